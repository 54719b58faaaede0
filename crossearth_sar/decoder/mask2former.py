"""Mask2Former for semantic segmentation: transformers' modules, loss and matcher, wired to our pyramid.

Settings are METHOD sec. 3. Nothing of Mask2Former is written again here; what is ours is the wiring, the
turning of a label map into per-class masks, and that ignored pixels neither cost nor teach: an image teaches
«no object» by the share of it that is labelled.

B batch, H W pixels, h w mask resolution (stride 4), Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.pyramid import feature_pyramid

CERTAINLY_OFF = -20.0
"""Mask logit put on ignored pixels: no cost against a target of 0, never an uncertain point, no gradient."""


class MaskOutput(NamedTuple):
    """class_logits (B, Q, C + 1), the last column «no object»; mask_logits (B, Q, h, w) at stride 4;
    earlier: the same pair for the initial prediction and every layer before the last."""

    class_logits: Tensor
    mask_logits: Tensor
    earlier: list[tuple[Tensor, Tensor]]


class Mask2FormerDecoder(Decoder):
    """Feature maps in, class and mask logits out; and the loss and the inference that belong to them.

    Args:
        config: sizes and weights.
        in_channels, strides: of the feature maps, of which the last four are read.
        num_classes: C.
    """

    def __init__(
        self, config: DecoderConfig, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides[-4:])
        from crossearth_sar.decoder.transformers_parts import Criterion, Mask2FormerHead, transformers_config

        theirs = transformers_config(config, num_classes)
        self.head = Mask2FormerHead(theirs, in_channels[-4:])
        self.loss_weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = Criterion(theirs, self.loss_weights)

    def forward(self, feature_maps: list[Tensor]) -> MaskOutput:
        """Four (B, D, h', w') maps, shallow to deep, at the backbone's strides; those of a stem before them
        are not looked at."""
        pixels = self.head.pixel_decoder(
            feature_pyramid(feature_maps[-4:], self.strides), output_hidden_states=False, return_dict=True
        )
        decoded = self.head.transformer_module(
            multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features
        )
        class_logits = [
            self.head.class_predictor(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states
        ]
        *earlier, last = zip(class_logits, decoded.masks_queries_logits, strict=True)
        return MaskOutput(*last, earlier)

    def loss(self, output: MaskOutput, mask_BHW: Tensor, ignore_index: int = 255) -> dict[str, Tensor]:
        """Weighted classification, mask and dice losses, each summed over all predictions.

        Args:
            mask_BHW: (B, H, W) int64, 0..C-1 or `ignore_index`. A class absent from an image is no target
                there; an image asks its other queries for «no object» by its labelled share, one with no
                labelled pixel for nothing.

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
        self.criterion.labelled_share_B = 1 - ignored.flatten(1).float().mean(1)
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

    def semantic_scores(self, output: MaskOutput, size: tuple[int, int]) -> Tensor:
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
