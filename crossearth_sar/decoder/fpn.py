"""A feature pyramid that gives classes per pixel: the decoder of small models.

From the coarsest stride to the finest, the sum so far is enlarged twofold and a map of the stem added (Lin et
al. 2017, Feature Pyramid Networks). A tenth of Mask2Former's arithmetic, and no matching: what a model of a
few seconds' training can afford.

B batch, H W pixels, h w map at the finest stride, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.convolution import conv_gelu
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.pixels import PixelDecoder, PixelOutput

FINEST_STRIDE = 4
"""Of a backbone without a stem: as Mask2Former's masks."""


class FPNDecoder(PixelDecoder):
    """Feature maps in, class logits out.

    Args:
        config: channels and weights.
        in_channels: widths of the feature maps, from the finest stride to the coarsest; those of the coarsest
            (a transformer's four, a ResNet's last) are projected together, the others added on the way up.
        strides: of these maps, pixels.
        num_classes: C.
    """

    def __init__(
        self, config: DecoderConfig, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(config, num_classes)
        self.deep = deepest_maps(strides)
        widths = fpn_widths(config, strides)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in in_channels[-self.deep :])
        self.project = nn.Linear(sum(in_channels[-self.deep :]), widths[0])
        maps = dict(zip(strides[: -self.deep], in_channels, strict=False))
        self.laterals = nn.ModuleList(
            nn.Conv2d(maps[strides[-1] >> level], wide, 1) if strides[-1] >> level in maps else nn.Identity()
            for level, wide in enumerate(widths[1:], start=1)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(wide, narrow, 1) for wide, narrow in pairwise(widths))
        self.smooth = nn.ModuleList(nn.Sequential(*conv_gelu(wide, wide)) for wide in widths[1:])
        self.classify = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, feature_maps: list[Tensor]) -> PixelOutput:
        """The maps as the backbone gives them."""
        stem, blocks = feature_maps[: -self.deep], feature_maps[-self.deep :]
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


def deepest_maps(strides: Sequence[int]) -> int:
    """How many maps have the coarsest stride, the last one's."""
    return list(strides).count(strides[-1])


def fpn_widths(config: DecoderConfig, strides: Sequence[int]) -> list[int]:
    """Of the pyramid's maps from the coarsest, the backbone's, to the finest: halved from the second on."""
    finest = min(strides[0], FINEST_STRIDE)
    levels = (strides[-1] // finest).bit_length()
    return [max(config.channels >> max(level - 1, 0), 16) for level in range(levels)]
