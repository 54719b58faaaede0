"""Mask2Former for semantic segmentation: transformers' modules, loss and matcher, wired to our pyramid.

Settings are METHOD sec. 3. Nothing of Mask2Former is written again here; what is ours is the wiring, the
turning of a label map into per-class masks, and that ignored pixels neither cost nor teach.

B batch, H W pixels, h w mask resolution (stride 4), Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from crossearth_sar.config import require
from crossearth_sar.decoder.pyramid import feature_pyramid

CERTAINLY_OFF = -20.0
"""Mask logit put on ignored pixels: no cost against a target of 0, never an uncertain point, no gradient."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Mask2Former's sizes and weights; the defaults are METHOD sec. 3."""

    num_queries: int = 100
    """Queries, each of which gives one mask and its class."""

    channels: int = 256
    """Width of pixel decoder, masks and queries; a multiple of 32 (its group norms) and of num_heads."""

    num_heads: int = 8
    """Heads of all its attentions."""

    pixel_layers: int = 6
    """Deformable-attention layers of the pixel decoder."""

    pixel_ffn_dim: int = 1024
    """Hidden width of their FFNs."""

    query_layers: int = 9
    """Masked-attention layers after the initial prediction."""

    query_ffn_dim: int = 2048
    """Hidden width of their FFNs."""

    num_points: int = 12544
    """Points sampled per mask in loss and matching."""

    oversample_ratio: float = 3.0
    """So many times more points are drawn at random for the loss, of which the uncertain ones are chosen."""

    importance_ratio: float = 0.75
    """Share of the loss's points that are the uncertain ones; the rest are drawn anew at random."""

    class_weight: float = 2.0
    """Weight of the classification loss."""

    mask_weight: float = 5.0
    """Weight of the per-point mask loss."""

    dice_weight: float = 5.0
    """Weight of the dice loss."""

    no_object_weight: float = 0.1
    """Weight of the class «no object» inside the classification loss."""

    def __post_init__(self) -> None:
        for name in ("num_queries", "channels", "num_heads", "pixel_layers", "query_layers", "num_points"):
            require(getattr(self, name) >= 1, f"decoder.{name}", getattr(self, name), "at least 1")
        require(
            self.channels % 32 == 0 and self.channels % self.num_heads == 0,
            "decoder.channels",
            self.channels,
            f"a multiple of 32 and of num_heads = {self.num_heads}",
        )


@dataclass(frozen=True)
class DecoderOutput:
    """class_logits (B, Q, C + 1), the last column «no object»; mask_logits (B, Q, h, w) at stride 4;
    earlier: the same pair for the initial prediction and every layer before the last."""

    class_logits: Tensor
    mask_logits: Tensor
    earlier: list[tuple[Tensor, Tensor]]


class _Mask2FormerHead(Mask2FormerPreTrainedModel):
    """transformers' modules under its own initialisation; the class exists for `post_init` alone."""

    def __init__(self, config: Mask2FormerConfig, in_channels: int) -> None:
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=[in_channels] * 4)
        self.transformer_module = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()


class _Criterion(Mask2FormerLoss):
    """transformers' loss; its class weights stay float32, like the logits it is given."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows `.to(device)` but not `.bfloat16()` and the like."""
        return super()._apply(lambda t: t.to(fn(t).device), recurse)


class Mask2FormerDecoder(nn.Module):
    """Feature maps in, class and mask logits out; and the loss and the inference that belong to them.

    Args:
        config: sizes and weights.
        in_channels: D of the four feature maps.
        num_classes: C.
        patch_size: stride of the feature maps as they come from the backbone.
    """

    def __init__(self, config: DecoderConfig, *, in_channels: int, num_classes: int, patch_size: int) -> None:
        super().__init__()
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        self.config, self.num_classes, self.patch_size = config, num_classes, patch_size
        theirs = _transformers_config(config, num_classes)
        self.head = _Mask2FormerHead(theirs, in_channels)
        self.loss_weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = _Criterion(theirs, self.loss_weights)

    def forward(self, feature_maps: list[Tensor]) -> DecoderOutput:
        """Four (B, D, h', w') maps, shallow to deep, at the backbone's stride."""
        pixels = self.head.pixel_decoder(
            feature_pyramid(feature_maps, self.patch_size), output_hidden_states=False, return_dict=True
        )
        decoded = self.head.transformer_module(
            multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features
        )
        class_logits = [
            self.head.class_predictor(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states
        ]
        *earlier, last = zip(class_logits, decoded.masks_queries_logits, strict=True)
        return DecoderOutput(*last, earlier)

    def loss(self, output: DecoderOutput, mask_BHW: Tensor, ignore_index: int = 255) -> dict[str, Tensor]:
        """Weighted classification, mask and dice losses, each summed over all predictions.

        Args:
            mask_BHW: (B, H, W) int64, 0..C-1 or `ignore_index`. A class absent from an image is no target
                there; an image with no labelled pixel asks every query for «no object».

        Returns:
            {"class", "mask", "dice"}: scalars whose sum is the segmentation loss.
        """
        classes, masks = _per_class_masks(mask_BHW, self.num_classes, ignore_index)
        ignored = mask_BHW == ignore_index
        predictions = [
            (c, _switch_off(m, ignored))
            for c, m in [(output.class_logits, output.mask_logits), *output.earlier]
        ]
        (class_logits, mask_logits), *auxiliary = predictions
        terms = self.criterion(
            mask_logits.float(),
            class_logits.float(),
            masks,
            classes,
            [{"masks_queries_logits": m.float(), "class_queries_logits": c.float()} for c, m in auxiliary],
        )
        short = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
        return {
            name: self.loss_weights[key]
            * torch.stack([v for k, v in terms.items() if k.startswith(key)]).sum()
            for name, key in short.items()
        }

    def semantic_scores(self, output: DecoderOutput, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W): sum over queries of class probability times mask probability, at `size` = (H, W)."""
        masks = F.interpolate(output.mask_logits.float(), size=size, mode="bilinear", align_corners=False)
        probability_BQC = output.class_logits.float().softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", probability_BQC, masks.sigmoid())


def _per_class_masks(mask_BHW: Tensor, num_classes: int, ignore_index: int) -> tuple[list[Any], list[Any]]:
    """Per image the classes present, (n,) int64, and their binary masks, (n, H, W) float32."""
    classes, masks = [], []
    for mask_HW in mask_BHW:
        present = mask_HW.unique()
        present = present[present != ignore_index]
        assert present.numel() == 0 or int(present[-1]) < num_classes, "datasets hold 0..C-1 or ignore"
        classes.append(present)
        masks.append((mask_HW[None] == present[:, None, None]).float())
    return classes, masks


def _switch_off(mask_logits: Tensor, ignored_BHW: Tensor) -> Tensor:
    """Mask logits with CERTAINLY_OFF where most of the pixel's area is ignored."""
    ignored_share = F.interpolate(ignored_BHW[:, None].float(), size=mask_logits.shape[-2:], mode="area")
    return mask_logits.masked_fill(ignored_share > 0.5, CERTAINLY_OFF)


def _transformers_config(config: DecoderConfig, num_classes: int) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        num_labels=num_classes,
        init_std=config.channels**-0.5,  # the original's Xavier; the default 0.02 starves narrow decoders
        feature_size=config.channels,
        mask_feature_size=config.channels,
        hidden_dim=config.channels,
        num_attention_heads=config.num_heads,
        num_queries=config.num_queries,
        encoder_layers=config.pixel_layers,
        encoder_feedforward_dim=config.pixel_ffn_dim,
        decoder_layers=config.query_layers + 1,  # transformers counts the initial prediction
        dim_feedforward=config.query_ffn_dim,
        train_num_points=config.num_points,
        oversample_ratio=config.oversample_ratio,
        importance_sample_ratio=config.importance_ratio,
        class_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        no_object_weight=config.no_object_weight,
    )
