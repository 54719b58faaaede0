"""FLOP of a forward pass: those of the matrix products, two per multiplication and addition.

Of a transformer by formulas, which know of the K active experts only; of convolutions as torch counts them,
on tensors without data.

T tokens of an image, D width.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crossearth_sar.decoder import DecoderConfig, make_decoder
from crossearth_sar.decoder.fpn import deepest_maps, fpn_widths
from crossearth_sar.presets import ModelConfig
from crossearth_sar.resnet import ResNet, ResNetConfig
from crossearth_sar.vit import ViTConfig


def tokens_per_image(config: ModelConfig) -> int:
    """T: the crop's patches and CLS; of a ResNet, positions of its deepest map."""
    if config.vit is None:
        return (config.crop_size // config.backbone.map_strides[-1]) ** 2
    return (config.crop_size // config.vit.patch_size) ** 2 + 1


def forward_flop(config: ModelConfig) -> float:
    """FLOP of one forward pass of one crop."""
    if config.vit is None:
        assert config.resnet is not None, "ModelConfig has one of the two"
        return _resnet_flop(config.resnet, config.crop_size) + _decoder_flop(config)
    vit, tokens = config.vit, tokens_per_image(config)
    ffn = 4 * vit.dim * vit.hidden_dim
    if config.moe:
        width = vit.dim + config.moe.num_descriptors
        shapes = config.moe.expert.make().shapes(1, vit.dim, vit.hidden_dim).values()
        expert = 2 * sum(math.prod(shape) for shape in shapes if len(shape) > 2)
        experts = (config.moe.top_k + config.moe.expert.shared) * expert
        ffn = experts + 2 * width * config.moe.num_experts
    per_token = 8 * vit.dim**2 + 4 * tokens * vit.dim + ffn
    embedding = _embedding_flop(vit, config.crop_size)
    return float(embedding + vit.depth * tokens * per_token) + _decoder_flop(config)


@cache
def _resnet_flop(resnet: ResNetConfig, side: int) -> float:
    with torch.device("meta"):
        return _counted(ResNet(resnet), torch.empty(1, 3, side, side))


def _counted(module: nn.Module, *inputs: object) -> float:
    """As torch counts them, of a module and inputs on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*inputs)
    return float(counter.get_total_flops())


def _embedding_flop(vit: ViTConfig, side: int) -> int:
    """Stages of two 3x3 convolutions, and the projection of patches."""
    width, flop = 3, 0
    for wide in vit.stem:
        side //= 2
        flop += 2 * 9 * side**2 * (width + wide) * wide
        width = wide
    return flop + 2 * side**2 * width * vit.dim


def _fpn_flop(config: ModelConfig) -> int:
    """The projection of the deepest maps, then at each finer stride narrowing, a map, a convolution."""
    backbone, decoder = config.backbone, config.require_decoder()
    strides, widths, wide = backbone.map_strides, backbone.map_channels, decoder.channels
    deep, stride = deepest_maps(strides), strides[-1]
    maps = dict(zip(strides[:-deep], widths, strict=False))
    flop = 2 * (config.crop_size // stride) ** 2 * sum(widths[-deep:]) * wide
    for narrow in fpn_widths(decoder, strides)[1:]:
        coarse, stride = (config.crop_size // stride) ** 2, stride // 2
        fine = (config.crop_size // stride) ** 2
        flop += 2 * coarse * wide * narrow + 2 * fine * narrow * (maps.get(stride, 0) + 9 * narrow)
        wide = narrow
    return flop + 2 * (config.crop_size // stride) ** 2 * wide * config.num_classes


def _decoder_flop(config: ModelConfig) -> float:
    decoder, backbone = config.decoder, config.backbone
    if decoder is None:
        return 0.0
    if decoder.kind == "fpn":
        return float(_fpn_flop(config))
    if decoder.kind == "mask2former":
        return _mask2former_flop(config)
    return _convolutions_flop(
        decoder, backbone.map_channels, backbone.map_strides, config.num_classes, config.crop_size
    )


@cache
def _convolutions_flop(
    config: DecoderConfig, widths: tuple[int, ...], strides: tuple[int, ...], num_classes: int, side: int
) -> float:
    with torch.device("meta"):
        decoder = make_decoder(config, in_channels=widths, strides=strides, num_classes=num_classes)
        sides = [side // stride for stride in strides]
        maps = [torch.empty(1, wide, n, n) for wide, n in zip(widths, sides, strict=True)]
        return _counted(decoder, maps)


def _mask2former_flop(config: ModelConfig) -> float:
    """Mask2Former: deformable pixel decoder at strides 8 to 32, query decoder, masks at stride 4."""
    decoder, widths = config.require_decoder(), config.backbone.map_channels[-4:]
    pixels = {stride: (config.crop_size // stride) ** 2 for stride in (4, 8, 16, 32)}
    coarse = pixels[8] + pixels[16] + pixels[32]
    c = decoder.channels
    sampling = decoder.num_heads * 3 * 4 * 3  # levels, points, (x, y, weight)
    encoder_token = 4 * c**2 + 2 * c * sampling + 4 * c * decoder.pixel_ffn_dim
    projections = 2 * c * sum(w * n for w, n in zip(widths, pixels.values(), strict=True))
    flop = projections + decoder.pixel_layers * coarse * encoder_token
    flop += pixels[4] * (2 * 9 * c**2 + 2 * c**2)
    return float(flop + _query_decoder_flop(decoder, config.num_classes, pixels))


def _query_decoder_flop(decoder: DecoderConfig, num_classes: int, pixels: dict[int, int]) -> int:
    c, queries = decoder.channels, decoder.num_queries
    prediction = queries * (6 * c**2 + 2 * c * pixels[4] + 2 * c * (num_classes + 1))
    flop = prediction
    for layer in range(decoder.query_layers):
        seen = pixels[(32, 16, 8)[layer % 3]]
        cross = 4 * c**2 * (queries + seen) + 4 * queries * seen * c
        own = 8 * c**2 * queries + 4 * queries**2 * c
        flop += cross + own + 4 * c * decoder.query_ffn_dim * queries + prediction
    return flop
