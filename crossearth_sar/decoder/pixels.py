"""What decoders share that give classes per pixel: their output, its loss, its scores.

B batch, H W pixels, h w map, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.config import DecoderConfig


class PixelOutput(NamedTuple):
    """logits: (B, C, h, w) of the classes, h and w a stride of the image; auxiliary: those of a second head
    at another stride, where one trains beside it."""

    logits: Tensor
    auxiliary: Tensor | None = None


class PixelDecoder(Decoder):
    """Loss and inference of logits per pixel; what maps become logits says the class that inherits."""

    def __init__(self, config: DecoderConfig, num_classes: int) -> None:
        super().__init__()
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        self.config, self.num_classes = config, num_classes

    def loss(self, output: PixelOutput, mask_BHW: Tensor, ignore_index: int = 255) -> dict[str, Tensor]:
        """Weighted cross-entropy and Dice losses.

        Args:
            mask_BHW: (B, H, W) int64, 0..C-1 or `ignore_index`, which neither costs nor teaches.

        Returns:
            {"class", "dice"}: cross-entropy, the mean over labelled pixels; 1 - Dice's coefficient, the mean
            over the classes that each image has. Both 0 without a labelled pixel. "auxiliary" beside them,
            the cross-entropy of auxiliary logits, where there are some.
        """
        size = (mask_BHW.shape[-2], mask_BHW.shape[-1])
        logits = _enlarged(output.logits.float(), size)
        known_BHW = mask_BHW != ignore_index
        target = F.one_hot(mask_BHW.where(known_BHW, 0), self.num_classes).movedim(-1, 1) * known_BHW[:, None]
        probability = logits.softmax(1) * known_BHW[:, None]
        overlap_BC = (probability * target).sum((-2, -1))
        size_BC = target.sum((-2, -1))
        dice_BC = 1 - (2 * overlap_BC + 1) / (probability.sum((-2, -1)) + size_BC + 1)
        present_BC = size_BC > 0
        terms = {
            "class": self.config.class_weight * _cross_entropy(logits, mask_BHW, ignore_index),
            "dice": self.config.dice_weight * (dice_BC * present_BC).sum() / present_BC.sum().clamp(min=1),
        }
        if output.auxiliary is not None:
            beside = _cross_entropy(_enlarged(output.auxiliary.float(), size), mask_BHW, ignore_index)
            terms["auxiliary"] = self.config.auxiliary_weight * beside
        return terms

    def semantic_scores(self, output: PixelOutput, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W): probabilities of the classes, at `size` = (H, W)."""
        return _enlarged(output.logits.float(), size).softmax(1)


def _cross_entropy(logits_BCHW: Tensor, mask_BHW: Tensor, ignore_index: int) -> Tensor:
    entropy = F.cross_entropy(logits_BCHW, mask_BHW, ignore_index=ignore_index, reduction="sum")
    return entropy / (mask_BHW != ignore_index).sum().clamp(min=1)


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
