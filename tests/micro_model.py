"""A model of the smallest size, and images for it.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossearth_sar import CrossEarthSAR, build_model

CLASSES = 3
MICRO: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "stem": ()},
    "decoder": {
        "kind": "mask2former",
        "channels": 64,
        "class_weight": 2.0,
        "dice_weight": 5.0,
        "num_queries": 8,
        "num_heads": 2,
        "pixel_layers": 1,
        "pixel_ffn_dim": 48,
        "query_layers": 2,
        "query_ffn_dim": 48,
        "num_points": 64,
    },
    "crop_size": 64,
    "crop_stride": 40,
}


def micro(moe: dict[str, Any] | None = None, sparse: bool = True) -> CrossEarthSAR:
    changes = {**MICRO, "moe": moe} if moe else MICRO
    return build_model("crossearth_sar_tiny", CLASSES, changes=changes, sparse=sparse)


def amplitude(*shape: int) -> Tensor:
    """Speckle of one look on a mean that differs over the image, so that predictions do too."""
    ramp = torch.linspace(0.1, 3, shape[-1])
    return ramp * torch.randn(shape).square().add(torch.randn(shape).square()).sqrt()


def label(batch: int = 2, size: int = 64) -> Tensor:
    return torch.tensor([0] * (size // 2) + [1] * (size // 4) + [2] * (size // 4)).expand(batch, size, size)
