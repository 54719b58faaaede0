"""A feature pyramid that gives classes per pixel: the decoder of small models.

From the coarsest stride to the finest, the sum so far is enlarged twofold and a map of the stem added (Lin et
al. 2017, Feature Pyramid Networks). A tenth of Mask2Former's arithmetic, and no matching: what a model of a
few seconds' training can afford.

B batch, H W pixels, h w map at the finest stride, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.config import require
from crossearth_sar.convolution import conv_gelu
from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.config import DecoderConfig

FINEST_STRIDE = 4
"""Of a backbone without a stem: as Mask2Former's masks."""


class PixelOutput(NamedTuple):
    """logits: (B, C, h, w) of the classes, h and w a stride of the image."""

    logits: Tensor


class FPNDecoder(Decoder):
    """Feature maps in, class logits out; and the loss and the inference that belong to them.

    Args:
        config: channels and weights.
        in_channels: widths of the feature maps: those of the stem, if there is one, and the four of blocks.
        strides: of these maps, pixels.
        num_classes: C.
    """

    def __init__(
        self, config: DecoderConfig, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        self.config, self.num_classes = config, num_classes
        *stem, width = in_channels[:-3]
        widths = fpn_widths(config, strides)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.project = nn.Linear(4 * width, widths[0])
        maps = dict(zip(strides, stem, strict=False))
        self.laterals = nn.ModuleList(
            nn.Conv2d(maps[strides[-1] >> level], wide, 1) if strides[-1] >> level in maps else nn.Identity()
            for level, wide in enumerate(widths[1:], start=1)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(wide, narrow, 1) for wide, narrow in pairwise(widths))
        self.smooth = nn.ModuleList(nn.Sequential(*conv_gelu(wide, wide)) for wide in widths[1:])
        self.classify = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, feature_maps: list[Tensor]) -> PixelOutput:
        """The maps as `ViTOutput` has them."""
        stem, blocks = feature_maps[:-4], feature_maps[-4:]
        tokens = [
            norm(features.permute(0, 2, 3, 1)) for norm, features in zip(self.norms, blocks, strict=True)
        ]
        x = self.project(torch.cat(tokens, -1)).permute(0, 3, 1, 2)
        finer = list(stem)
        for lateral, narrow, smooth in zip(self.laterals, self.narrow, self.smooth, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False)
            if isinstance(lateral, nn.Conv2d):
                x = x + lateral(finer.pop())
            x = smooth(x)
        return PixelOutput(self.classify(x))

    def loss(self, output: PixelOutput, mask_BHW: Tensor, ignore_index: int = 255) -> dict[str, Tensor]:
        """Weighted cross-entropy and Dice losses.

        Args:
            mask_BHW: (B, H, W) int64, 0..C-1 or `ignore_index`, which neither costs nor teaches.

        Returns:
            {"class", "dice"}: cross-entropy, the mean over labelled pixels; 1 - Dice's coefficient, the mean
            over the classes that each image has. Both 0 without a labelled pixel.
        """
        logits = _enlarged(output.logits.float(), (mask_BHW.shape[-2], mask_BHW.shape[-1]))
        known_BHW = mask_BHW != ignore_index
        entropy = F.cross_entropy(logits, mask_BHW, ignore_index=ignore_index, reduction="sum")
        target = F.one_hot(mask_BHW.where(known_BHW, 0), self.num_classes).movedim(-1, 1) * known_BHW[:, None]
        probability = logits.softmax(1) * known_BHW[:, None]
        overlap_BC = (probability * target).sum((-2, -1))
        size_BC = target.sum((-2, -1))
        dice_BC = 1 - (2 * overlap_BC + 1) / (probability.sum((-2, -1)) + size_BC + 1)
        present_BC = size_BC > 0
        return {
            "class": self.config.class_weight * entropy / known_BHW.sum().clamp(min=1),
            "dice": self.config.dice_weight * (dice_BC * present_BC).sum() / present_BC.sum().clamp(min=1),
        }

    def semantic_scores(self, output: PixelOutput, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W): probabilities of the classes, at `size` = (H, W)."""
        return _enlarged(output.logits.float(), size).softmax(1)


def fpn_widths(config: DecoderConfig, strides: Sequence[int]) -> list[int]:
    """Of the pyramid's maps from the coarsest, the backbone's, to the finest: halved from the second on."""
    finest = min(strides[0], FINEST_STRIDE)
    levels = (strides[-1] // finest).bit_length()
    return [max(config.channels >> max(level - 1, 0), 16) for level in range(levels)]


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
