"""The descriptors of every patch of an image, so that a router may see local physics, not the image's alone.

Reference form, in plain torch; the fused one is in csrc/. B batch, H W pixels, h w patches, N direction bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.descriptors.reference import (
    ENL_EPSILON,
    direction_bins,
    linear_number_of_looks,
    log_magnitude,
    sobel,
)

BLOCKS_PER_SIDE = 4
"""A patch's roughness is the variance of the means of 4 x 4 blocks in it."""


def reference_descriptor_map(
    image_BHW: Tensor, patch_size: int, *, num_bins: int = 36, flat_pixels: str = "include"
) -> Tensor:
    """[entropy, ENL, roughness] of each whole patch, (B, 3, h, w) float32; the rest of the image is left out.

    Gradients are those of the whole image, so that a patch's border is no edge. `patch_size` is a multiple
    of BLOCKS_PER_SIDE.
    """
    rows, columns = (side // patch_size for side in image_BHW.shape[1:])
    log_BHW = log_magnitude(image_BHW)
    g_x, g_y = sobel(log_BHW)

    def by_patch(values_BHW: Tensor) -> Tensor:
        cut = values_BHW[:, : rows * patch_size, : columns * patch_size]
        return F.pixel_unshuffle(cut[:, None], patch_size)  # (B, patch_size^2, h, w)

    bins = by_patch(direction_bins(g_x, g_y, num_bins))
    counted = (
        torch.ones_like(bins) if flat_pixels == "include" else by_patch(((g_x != 0) | (g_y != 0)).long())
    )
    histogram = bins.new_zeros(bins.shape[0], num_bins, rows, columns).scatter_add_(1, bins, counted).double()
    entropy = torch.special.entr(histogram / histogram.sum(1, keepdim=True).clamp(min=1)).sum(1)
    variance, mean = torch.var_mean(by_patch(log_BHW).double(), dim=1, correction=0)
    block_means = F.avg_pool2d(log_BHW[:, None].double(), patch_size // BLOCKS_PER_SIDE)[
        :, :, : rows * BLOCKS_PER_SIDE, : columns * BLOCKS_PER_SIDE
    ]
    roughness = F.pixel_unshuffle(block_means, BLOCKS_PER_SIDE).var(dim=1, correction=0)
    return torch.stack([entropy, mean.square() / (variance + ENL_EPSILON), roughness], dim=1).float()


def linear_number_of_looks_map(image_BHW: Tensor, patch_size: int) -> Tensor:
    """`reference.linear_number_of_looks` of each whole patch, (B, h, w) float64."""
    rows, columns = (side // patch_size for side in image_BHW.shape[1:])
    looks = image_BHW.new_empty(image_BHW.shape[0], rows, columns, dtype=torch.float64)
    for row in range(rows):  # a row of patches at a time: doubles of the whole image would be large
        strip = image_BHW[:, row * patch_size : (row + 1) * patch_size, : columns * patch_size]
        patches = strip.unflatten(2, (columns, patch_size)).movedim(2, 1).flatten(0, 1)
        looks[:, row] = linear_number_of_looks(patches).reshape(-1, columns)
    return looks
