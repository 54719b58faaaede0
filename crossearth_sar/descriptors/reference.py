"""The three SAR physical descriptors in plain torch: the definition that other forms agree with.

Equations (1)-(7) of the paper. Not fast (about twenty passes over the image) and not validated:
`ops.sar_descriptors` is the public door.

B batch, H W pixels, N direction bins.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_PIXELS = 1 << 20
ENL_EPSILON = 1e-6
"""Added to the variance in the ENL, so that a constant image has a finite one."""


def reference_descriptors(
    image_BHW: Tensor, *, num_bins: int = 36, block_size: int = 16, flat_pixels: str = "include"
) -> Tensor:
    """[directional entropy (nats), ENL, local roughness] of each image, as (B, 3) float32.

    Args:
        image_BHW: real (any dtype) or complex, finite, H and W at least 3.
        num_bins, block_size, flat_pixels: as in `ops.sar_descriptors`.
    """
    log_BHW = log_magnitude(image_BHW)
    columns = (
        directional_entropy(log_BHW, num_bins=num_bins, flat_pixels=flat_pixels),
        equivalent_number_of_looks(log_BHW),
        local_roughness(log_BHW, block_size=block_size),
    )
    return torch.stack(columns, dim=1).float()


def log_magnitude(image_BHW: Tensor) -> Tensor:
    """X' = log(1 + |X|), eq. (1). Double where single precision could overflow, single elsewhere."""
    if image_BHW.is_complex():
        return torch.log1p(image_BHW.to(torch.complex128).abs()).float()
    working = torch.float64 if image_BHW.dtype in (torch.float64, torch.int64) else torch.float32
    return torch.log1p(image_BHW.to(working).abs())


def sobel(log_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """3x3 Sobel derivatives (g_x, g_y), each (B, H, W); cross-correlation, one-pixel replicate padding.

    Differences are taken before the smoothing, so that a flat neighbourhood gives exactly zero.
    """
    padded = F.pad(log_BHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = padded[:, :, 2:] - padded[:, :, :-2]
    down = padded[:, 2:, :] - padded[:, :-2, :]
    g_x = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    g_y = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return g_x, g_y


def direction_bins(g_x: Tensor, g_y: Tensor, num_bins: int) -> Tensor:
    """Bin of atan2(g_y, g_x), eq. (2): N equal half-open bins [lo, hi) over [-pi, pi), pi joining the first.

    A pixel exactly on an edge belongs to the bin above; g = (0, 0) has the angle 0.
    """
    turn = (torch.atan2(g_y, g_x) + math.pi) / (2 * math.pi)
    return torch.floor(turn * num_bins).long().remainder(num_bins)


def directional_entropy(log_BHW: Tensor, *, num_bins: int, flat_pixels: str) -> Tensor:
    """H = -sum p ln p over the N direction bins, eq. (3), in nats: 0 .. ln N; (B,) float64."""
    g_x, g_y = sobel(log_BHW)
    bins_BP = direction_bins(g_x, g_y, num_bins).flatten(1)
    counted = torch.ones_like(bins_BP)
    if flat_pixels == "exclude":
        counted = ((g_x != 0) | (g_y != 0)).flatten(1).long()
    histogram_BN = bins_BP.new_zeros(bins_BP.shape[0], num_bins).scatter_add_(1, bins_BP, counted).double()
    share_BN = histogram_BN / histogram_BN.sum(1, keepdim=True).clamp(min=1)
    return torch.special.entr(share_BN).sum(1)


def equivalent_number_of_looks(log_BHW: Tensor) -> Tensor:
    """ENL = mu^2 / (sigma^2 + 1e-6) of X', population variance, eq. (4)-(5); (B,) float64."""
    variance, mean = torch.var_mean(log_BHW.flatten(1).double(), dim=1, correction=0)
    return mean.square() / (variance + ENL_EPSILON)


def linear_number_of_looks(image_BHW: Tensor) -> Tensor:
    """1 / (relative variance of |X| + 1e-6): of an intensity image its number of looks; (B,) float64.

    In two passes, a strip of rows at a time: doubles of a whole scene would be large.
    """
    wide = torch.complex128 if image_BHW.is_complex() else torch.float64
    batch, height, width = image_BHW.shape
    strips = image_BHW.split(max(1, STRIP_PIXELS // width), dim=1)
    zero = image_BHW.new_zeros(batch, dtype=torch.float64)
    pixels = max(height * width, 1)
    mean = sum((strip.to(wide).abs().sum((1, 2)) for strip in strips), zero) / pixels
    about_mean = ((strip.to(wide).abs() - mean[:, None, None]).square().sum((1, 2)) for strip in strips)
    variance = sum(about_mean, zero) / pixels
    return 1 / (variance / mean.square().clamp(min=torch.finfo(torch.float64).tiny) + ENL_EPSILON)


def local_roughness(log_BHW: Tensor, *, block_size: int) -> Tensor:
    """Population variance of the means of non-overlapping blocks, eq. (6)-(7); (B,) float64.

    Partial blocks at the right and bottom are dropped; an image smaller than one block has roughness 0.
    """
    _, height, width = log_BHW.shape
    if height < block_size or width < block_size:
        return log_BHW.new_zeros(log_BHW.shape[0], dtype=torch.float64)
    rows, columns = height // block_size, width // block_size  # no pooling: ONNX Runtime has none of doubles
    whole = log_BHW[:, : rows * block_size, : columns * block_size].double()
    means = whole.unflatten(1, (rows, block_size)).unflatten(3, (columns, block_size)).mean((2, 4))
    return means.flatten(1).var(dim=1, correction=0)
