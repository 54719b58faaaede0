"""The scale-free descriptors in plain torch: the definition that the C++ form agrees with (METHOD sec. 1).

Four numbers that no gain moves, of an image or of each of its patches: direction entropy, looks, correlation,
variation. All are of ratios of intensities I = |X|^2; nothing absolute is added to one. Not validated:
`scale_free_ops` is the public door.

B batch, H W pixels, h w patches or blocks, s pixels a side of one, K direction bins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Pixels a side of the blocks whose median speaks for an image; smaller images are one block wide or high."""
MIN_PATCH = 4
SMALLEST = 1e-15
"""An intensity below this share of the image's largest (-150 dB) counts as none."""
LEAST_SPREAD = 1e-3
"""Relative variance below which a block counts as constant: a thousand looks, ln 1000 = 6.9."""
DIRECTION_BINS = 8
"""Directions of lines, 0 .. 180 degrees: bins of 22.5 degrees, centred on the axes and the diagonals."""
DEVIATIONS = 2.5
"""The noise floor of gradients, in deviations of what speckle alone gives."""
GRADIENT_VARIANCE = 3 / 64
"""Variance of the ratio gradient along one axis where independent pixels have a relative variance of 1."""
PRIOR = 0.02
"""Weight per cell that is spread over all directions, so that one chance gradient is no direction."""


class BlockValues(NamedTuple):
    """Of each block, (B, h, w): relative variance, correlation, mean, where that is above 0, and the spread
    of the logarithms of its quarters' means."""

    spread: Tensor
    correlation: Tensor
    mean: Tensor
    measured: Tensor
    variation: Tensor


def reference_scale_free(image_BHW: Tensor, patch_size: int | None = None) -> tuple[Tensor, Tensor]:
    """(B, 4) float32 of each image and (B, 4, h, w) float32 of each whole patch, (B, 4, 0, 0) without any.

    Args:
        image_BHW: real of any dtype or complex, H and W at least 3. An image with a pixel that is NaN or inf
            is NaN throughout.
        patch_size: of the map, MIN_PATCH or more, at most H and W.
    """
    intensity_BHW, unsound_B = relative_intensity(image_BHW)
    blocks = block_values(intensity_BHW, min(BLOCK, *image_BHW.shape[1:]))
    spread_B, correlation_B, variation_B = _of_image(blocks)
    floor_B = noise_floor(spread_B, correlation_B)
    weights_BKyx = direction_weights(intensity_BHW, floor_B)
    cells = weights_BKyx.shape[-2] * weights_BKyx.shape[-1]
    entropy_B = direction_entropy(weights_BKyx.sum((2, 3)), torch.full_like(spread_B, cells))
    columns = (entropy_B, number_of_looks(spread_B), correlation_B, variation_B)
    image_B4 = torch.stack(columns, dim=1) + unsound_B[:, None]
    if patch_size is None:
        return image_B4.float(), image_B4.new_zeros(len(image_B4), 4, 0, 0, dtype=torch.float32)
    patches = block_values(intensity_BHW, patch_size)
    local = torch.stack(
        [
            _entropy_of_patches(weights_BKyx, patch_size, image_BHW.shape),
            number_of_looks(patches.spread),
            patches.correlation,
            patches.variation,
        ],
        dim=1,
    )
    map_B4hw = torch.where(patches.measured[:, None], local, image_B4[:, :, None, None])
    return image_B4.float(), (map_B4hw + unsound_B[:, None, None, None]).float()


def relative_intensity(image_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """|X|^2 over the image's largest, (B, H, W) float64; and (B,) 0, NaN for an image with a bad pixel."""
    wide = torch.complex128 if image_BHW.is_complex() else torch.float64
    magnitude_BHW = image_BHW.to(wide).abs()
    largest_B11 = magnitude_BHW.amax((1, 2), keepdim=True)
    intensity_BHW = (magnitude_BHW / torch.where(largest_B11 > 0, largest_B11, 1)).square()
    return intensity_BHW * (intensity_BHW >= SMALLEST), 0 * largest_B11[:, 0, 0]


def block_values(intensity_BHW: Tensor, side: int) -> BlockValues:
    """Of every whole block of `side` pixels a side; what is left over at the right and bottom is left out."""
    I_Bhwss = intensity_BHW.unfold(1, side, side).unfold(2, side, side)
    mean = I_Bhwss.mean((3, 4))
    square = torch.where(mean > 0, mean.square(), 1)
    d_Bhwss = I_Bhwss - mean[..., None, None]
    spread = d_Bhwss.square().sum((3, 4)) / (side * side - 1) / square
    along_x = (d_Bhwss[..., :-1] * d_Bhwss[..., 1:]).mean((3, 4))
    along_y = (d_Bhwss[..., :-1, :] * d_Bhwss[..., 1:, :]).mean((3, 4))
    correlation = (along_x + along_y) / 2 / square / spread.clamp(min=LEAST_SPREAD)
    return BlockValues(spread, correlation.clamp(-1, 1), mean, mean > 0, _spread_of_quarters(I_Bhwss))


def number_of_looks(spread: Tensor) -> Tensor:
    """ln of the looks, -ln of the relative variance; at most ln 1000."""
    return -torch.log(spread.clamp(min=LEAST_SPREAD))


def noise_floor(spread: Tensor, correlation: Tensor) -> Tensor:
    """The length of ratio gradients that speckle of such spread and correlation hardly ever has.

    No speckle spreads more than that of a single look, 1: what does is ground.
    """
    deviation = (GRADIENT_VARIANCE * spread.clamp(max=1)).sqrt()
    return DEVIATIONS * deviation * (1 + correlation.clamp(min=0))


def direction_weights(intensity_BHW: Tensor, floor_B: Tensor) -> Tensor:
    """(B, K, H // 2, W // 2): by how much each cell's gradient exceeds the floor, in its direction's bin.

    Cells are means of 2 x 2 pixels; a gradient is (right - left) / (right + left) of the sums over three
    cells, weighted 1 2 1, on either side. A cell that is empty, or beside an empty one, has none.
    """
    padded = F.pad(_cells(intensity_BHW)[:, None], (1, 1, 1, 1), mode="replicate")
    full = -F.max_pool2d(-padded, 3, stride=1)[:, 0] > 0
    padded = padded[:, 0]
    upright = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    level = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    r_x = _contrast(upright[:, :, 2:], upright[:, :, :-2])
    r_y = _contrast(level[:, 2:], level[:, :-2])
    excess = ((r_x.square() + r_y.square()).sqrt() - floor_B[:, None, None]).clamp(min=0) * full
    turn = torch.atan2(r_y, r_x) / math.pi * DIRECTION_BINS  # modulo 8: a line has no sign
    bins = torch.floor(turn + 0.5).long().remainder(DIRECTION_BINS)
    return F.one_hot(bins, DIRECTION_BINS).movedim(3, 1) * excess[:, None]


def _cells(intensity_BHW: Tensor) -> Tensor:
    """Means of 2 x 2 pixels. No pooling: ONNX Runtime has no average of doubles."""
    _, height, width = intensity_BHW.shape
    even = intensity_BHW[:, : height // 2 * 2, : width // 2 * 2]
    upper, lower = even[:, ::2], even[:, 1::2]
    return (upper[..., ::2] + upper[..., 1::2] + lower[..., ::2] + lower[..., 1::2]) / 4


def direction_entropy(weight_BK: Tensor, cells: Tensor) -> Tensor:
    """Entropy in nats, 0 .. ln K, of weights (B, K, …) of `cells` (B, …) cells, PRIOR per cell mixed in."""
    total = weight_BK.sum(1) + PRIOR * cells
    share = (weight_BK + PRIOR / DIRECTION_BINS * cells[:, None]) / total[:, None]
    return torch.special.entr(share).sum(1)


def _of_image(blocks: BlockValues) -> tuple[Tensor, Tensor, Tensor]:
    """Medians (the lower, of an even number) and spread of ln mean over the measured blocks, each (B,).

    Without any: spread 1, a single look; correlation and variation 0.
    """
    measured = blocks.measured.flatten(1)
    any_B = measured.any(1)
    middle_B1 = (measured.sum(1, keepdim=True) - 1).clamp(min=0) // 2

    def median(values: Tensor, fallback: float) -> Tensor:
        ordered = torch.where(measured, values.flatten(1), torch.inf).sort(1).values
        return torch.where(any_B, ordered.gather(1, middle_B1)[:, 0], fallback)

    logs = torch.where(measured, blocks.mean.flatten(1), 1).log()
    return median(blocks.spread, 1.0), median(blocks.correlation, 0.0), _deviation(logs, measured)


def _spread_of_quarters(I_Bhwss: Tensor) -> Tensor:
    half = I_Bhwss.shape[-1] // 2
    first, second = slice(None, half), slice(half, None)
    quarters = [I_Bhwss[..., y, x].mean((3, 4)) for y in (first, second) for x in (first, second)]
    mean = torch.stack(quarters, dim=-1)
    return _deviation(torch.where(mean > 0, mean, 1).log(), mean > 0)


def _deviation(values: Tensor, counted: Tensor) -> Tensor:
    """Population standard deviation along the last axis of what is counted; 0 of nothing."""
    count = counted.sum(-1).clamp(min=1)
    mean = (values * counted).sum(-1) / count
    return (((values - mean[..., None]).square() * counted).sum(-1) / count).sqrt()


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    return (a - b) / torch.where(total > 0, total, 1)


def _entropy_of_patches(weights_BKyx: Tensor, patch: int, shape: torch.Size) -> Tensor:
    """A cell belongs to the patch of its first pixel."""
    rows, columns = (
        _membership(cells, side // patch, patch, weights_BKyx)
        for cells, side in zip(weights_BKyx.shape[2:], shape[1:], strict=True)
    )
    weight_BKhw = rows @ weights_BKyx @ columns.T
    cells_hw = rows.sum(1)[:, None] * columns.sum(1)
    return direction_entropy(weight_BKhw, cells_hw.expand(len(weight_BKhw), -1, -1))


def _membership(cells: int, patches: int, patch: int, like: Tensor) -> Tensor:
    """(patches, cells) of 0 and 1."""
    owner = 2 * torch.arange(cells, device=like.device) // patch
    return (owner == torch.arange(patches, device=like.device)[:, None]).to(like.dtype)
