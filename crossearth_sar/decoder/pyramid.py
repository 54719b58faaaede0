"""Four feature maps, resampled to the strides 4, 8, 16, 32 that decoders expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32)


def feature_pyramid(feature_maps: list[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Bilinear resampling of map i, (B, D, h, w) at stride `strides[i]`, to stride STRIDES[i].

    With a patch size of 16 the factors are 4, 2, 1 and 0.5 (METHOD sec. 2). Sizes are rounded up. What has
    its stride already, a ResNet's maps, stays as it is.
    """
    height, width = (side * strides[0] for side in feature_maps[0].shape[-2:])
    return [
        features
        if own == stride
        else F.interpolate(
            features, size=(-(-height // stride), -(-width // stride)), mode="bilinear", align_corners=False
        )
        for features, own, stride in zip(feature_maps, strides, STRIDES, strict=True)
    ]
