"""A linear classifier of each position's features: what probes a backbone, and the cheapest decoder.

Batch norm without learnt factors (they would be the classifier's), then a 1 x 1 convolution. With
`maps: all` each map has both, and the logits add up at the finest stride: a linear classifier of the maps
laid upon each other, as interpolating and classifying can change places.

B batch, h w map, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.batch_norm import BatchNorm2d, average_over_ranks
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.pixels import PixelDecoder, PixelOutput


class LinearDecoder(PixelDecoder):
    """Feature maps in, class logits out, at the stride of the finest map read.

    Args:
        config: maps and weights.
        in_channels: of the feature maps, of which the last, or the last four, are read.
        num_classes: C.
    """

    def __init__(self, config: DecoderConfig, *, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.count = 4 if config.maps == "all" else 1
        self.classifiers = nn.ModuleList(
            nn.Sequential(BatchNorm2d(width, affine=False), nn.Conv2d(width, num_classes, 1))
            for width in in_channels[-self.count :]
        )

    def forward(self, feature_maps: list[Tensor]) -> PixelOutput:
        """The maps as the backbone gives them."""
        read = feature_maps[-self.count :]
        logits = [classify(m) for classify, m in zip(self.classifiers, read, strict=True)]
        size = read[0].shape[-2:]
        enlarged = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in logits]
        if self.training:
            average_over_ranks(self)
        return PixelOutput(torch.stack(enlarged).sum(0))
