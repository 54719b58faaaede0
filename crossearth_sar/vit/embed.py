"""From pixels to tokens: patch projection, CLS token, position embedding for any grid.

B batch, H W pixels, h w patches, T tokens (1 + h*w), D dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.errors import InputError


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, h, w, D): one strided convolution; DINOv2's name for its weight is proj."""

    def __init__(self, patch_size: int, dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                "image size is not a multiple of the patch size",
                got=f"{height} x {width}",
                expected=f"multiples of {self.patch_size}",
                fix="pad the image, or use predict(), which does",
            )
        return self.proj(image_BCHW).permute(0, 2, 3, 1)


def resize_position_embedding(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + g*g, D) with its CLS position first -> (1, 1 + h*w, D), bicubic to exactly `grid` = (h, w).

    The convention is that of transformers' Dinov2 (target size, no antialiasing, no offset).
    """
    cls_position, patch_positions = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(patch_positions.shape[1] ** 0.5)
    assert side * side == patch_positions.shape[1], "position embeddings lie on a square grid"
    if grid == (side, side):
        return pos_embed
    square = patch_positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), size=grid, mode="bicubic", align_corners=False)
    patches = resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([cls_position, patches], dim=1)
