"""From pixels to tokens: patch projection, CLS token, position embedding for any grid.

B batch, H W pixels, h w patches, T tokens (1 + h*w), D dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.convolution import conv_gelu
from crossearth_sar.errors import InputError


class ConvStage(nn.Sequential):
    """(B, C, H, W) -> (B, width, H / 2, W / 2): two 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(*conv_gelu(in_channels, width, stride=2), *conv_gelu(width, width))


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, h, w, D), and the maps of the stem on the way.

    Without a stem one strided convolution, DINOv2's, whose name for its weight is proj.

    Args:
        patch_size: pixels of a patch's side, a multiple of 2 ** len(stem).
        stem: widths of convolutional stages before the projection, each of which halves the side: edges and
            speckle are seen at the strides where they are, and a decoder may read them there.
    """

    def __init__(self, patch_size: int, dim: int, in_channels: int = 3, stem: Sequence[int] = ()) -> None:
        super().__init__()
        self.patch_size = patch_size
        widths = [in_channels, *stem]
        self.stem = nn.ModuleList(ConvStage(*pair) for pair in pairwise(widths))
        left = patch_size >> len(stem)
        self.proj = nn.Conv2d(widths[-1], dim, kernel_size=left, stride=left)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The patches, and for each stage of the stem its (B, width, H / 2 ** i, W / 2 ** i)."""
        height, width = image_BCHW.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                "image size is not a multiple of the patch size",
                got=f"{height} x {width}",
                expected=f"multiples of {self.patch_size}",
                fix="pad the image, or use predict(), which does",
            )
        maps, x = [], image_BCHW
        for stage in self.stem:
            x = stage(x)
            maps.append(x)
        return self.proj(x).permute(0, 2, 3, 1), maps


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
