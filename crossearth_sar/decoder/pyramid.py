"""Four feature maps of one stride, resampled to the strides 4, 8, 16, 32 that the decoder expects."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32)


def feature_pyramid(feature_maps: list[Tensor], patch_size: int) -> list[Tensor]:
    """Bilinear resampling of map i, (B, D, h, w) at stride `patch_size`, to stride STRIDES[i].

    At patch size 16 the factors are 4, 2, 1 and 0.5 (METHOD sec. 2). Sizes are rounded up.
    """
    height, width = (side * patch_size for side in feature_maps[0].shape[-2:])
    return [
        F.interpolate(
            features, size=(-(-height // stride), -(-width // stride)), mode="bilinear", align_corners=False
        )
        for features, stride in zip(feature_maps, STRIDES, strict=True)
    ]
