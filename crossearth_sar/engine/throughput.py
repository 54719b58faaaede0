"""How fast a run is, and what it waits for: images, tokens and arithmetic per second, waiting, balance.

FLOP are those of the model's matrix products, two per multiplication and addition, with the K active
experts only; a training step counts three forward passes (one, and two in backward). What is computed twice
under activation checkpointing is not counted, as is usual for model FLOP utilisation (MFU).

T tokens of an image, L layers, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from crossearth_sar.decoder import DecoderConfig
from crossearth_sar.decoder.fpn import fpn_widths
from crossearth_sar.presets import ModelConfig

Item = TypeVar("Item")

PEAK_BF16_TFLOPS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0}
"""Dense bf16 tensor-core peak by a part of the device's name, from NVIDIA's data sheets (SXM parts)."""


def tokens_per_image(config: ModelConfig) -> int:
    """T: the crop's patches and CLS."""
    return (config.crop_size // config.vit.patch_size) ** 2 + 1


def forward_flop(config: ModelConfig) -> float:
    """FLOP of one forward pass of one crop."""
    vit, tokens = config.vit, tokens_per_image(config)
    ffn = 4 * vit.dim * vit.hidden_dim
    if config.moe:
        width = vit.dim + config.moe.num_descriptors
        shapes = config.moe.expert.make().shapes(1, vit.dim, vit.hidden_dim).values()
        expert = 2 * sum(math.prod(shape) for shape in shapes if len(shape) > 2)
        experts = (config.moe.top_k + config.moe.expert.shared) * expert
        ffn = experts + 2 * width * config.moe.num_experts
    per_token = 8 * vit.dim**2 + 4 * tokens * vit.dim + ffn
    return float(_embedding_flop(config) + vit.depth * tokens * per_token) + _decoder_flop(config)


def peak_tflops(device: torch.device) -> float | None:
    """The device's dense bf16 peak, or None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_TFLOPS.items() if part in name), None)


class Meter:
    """Turns the times of a step into the columns of the log.

    Args:
        tokens: of one image. flop: of one image's forward pass.
        batch_size: images per step over all ranks.
        peak: of all devices together, TFLOP/s; None leaves MFU out.
    """

    def __init__(self, tokens: int, flop: float, batch_size: int, peak: float | None) -> None:
        self.batch_size, self.peak = batch_size, peak
        self.tokens = batch_size * tokens
        self.step_tflop = 3 * flop * batch_size / 1e12
        self._waited = 0.0
        self._started = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; what the training process waits for them is measured."""
        iterator = iter(batches)
        while True:
            self._started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited = time.perf_counter() - self._started
            yield batch

    def row(self) -> dict[str, float]:
        """Of the step that began with the last batch and ends now."""
        seconds = time.perf_counter() - self._started
        row = {
            "images_per_second": self.batch_size / seconds,
            "tokens_per_second": self.tokens / seconds,
            "data_wait": self._waited / seconds,
            "tflops": self.step_tflop / seconds,
        }
        if self.peak is not None:
            row["mfu"] = row["tflops"] / self.peak
        return row


def balance_columns(share_LE: Tensor, ep_size: int) -> dict[str, float]:
    """How even the experts' work is, in the worst layer; 1 is even.

    Args:
        share_LE: (L, E) share of all ranks' tokens per layer and expert.

    Returns:
        largest_expert_share: the largest share; expert_balance: that times E; max_rank_load: the tokens of
        the busiest of ep_size ranks over their mean.
    """
    if not share_LE.numel():
        return {"largest_expert_share": 0.0, "expert_balance": 0.0, "max_rank_load": 0.0}
    largest = float(share_LE.max())
    per_rank = share_LE.unflatten(1, (ep_size, -1)).sum(2)
    return {
        "largest_expert_share": largest,
        "expert_balance": largest * share_LE.shape[1],
        "max_rank_load": float(per_rank.max()) * ep_size,
    }


def _embedding_flop(config: ModelConfig) -> int:
    """Stages of two 3x3 convolutions, and the projection of patches."""
    vit, side, width, flop = config.vit, config.crop_size, 3, 0
    for wide in vit.stem:
        side //= 2
        flop += 2 * 9 * side**2 * (width + wide) * wide
        width = wide
    return flop + 2 * side**2 * width * vit.dim


def _fpn_flop(config: ModelConfig) -> int:
    """The projection of four maps, then at each finer stride narrowing, a map of the stem, a convolution."""
    vit, decoder = config.vit, config.require_decoder()
    wide = decoder.channels
    stride, maps = vit.patch_size, dict(zip(vit.map_strides, vit.stem, strict=False))
    flop = 2 * (config.crop_size // stride) ** 2 * 4 * vit.dim * wide
    for narrow in fpn_widths(decoder, vit.map_strides)[1:]:
        coarse, stride = (config.crop_size // stride) ** 2, stride // 2
        fine = (config.crop_size // stride) ** 2
        flop += 2 * coarse * wide * narrow + 2 * fine * narrow * (maps.get(stride, 0) + 9 * narrow)
        wide = narrow
    return flop + 2 * (config.crop_size // stride) ** 2 * wide * config.num_classes


def _decoder_flop(config: ModelConfig) -> float:
    if config.decoder is None:
        return 0.0
    if config.decoder.kind == "fpn":
        return float(_fpn_flop(config))
    return _mask2former_flop(config)


def _mask2former_flop(config: ModelConfig) -> float:
    """Mask2Former: deformable pixel decoder at strides 8 to 32, query decoder, masks at stride 4."""
    decoder, width = config.require_decoder(), config.vit.dim
    pixels = {stride: (config.crop_size // stride) ** 2 for stride in (4, 8, 16, 32)}
    coarse = pixels[8] + pixels[16] + pixels[32]
    c = decoder.channels
    sampling = decoder.num_heads * 3 * 4 * 3  # levels, points, (x, y, weight)
    encoder_token = 4 * c**2 + 2 * c * sampling + 4 * c * decoder.pixel_ffn_dim
    flop = 2 * width * c * (coarse + pixels[4]) + decoder.pixel_layers * coarse * encoder_token
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
