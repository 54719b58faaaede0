"""Ground scale: images brought to the metres per pixel that a model works at, and labels and maps back.

What a network knows of texture and shape holds at one spacing. Shrinking is power averaging, what a coarser
radar pixel receives: the mean of the intensity over bins that share no pixel, then the root. Growing repeats
pixels, for there is nothing between two of them to know. Speckle is never interpolated: that would correlate
it, and the descriptors count its looks. The scores that come out are smooth, and are: so the borders of
classes are drawn at the image's own spacing. What this is not: a resampler between map projections.

C bands, K classes, H W pixels of the image, h w pixels at the model's spacing («working» pixels).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.errors import InputError

COARSEST, FINEST = 1 / 16, 64.0
"""A working pixel is at least and at most so many pixels of an image long: beyond, a spacing is a mistake."""

MAX_PIXEL_M = 1e5
"""A ground spacing is below this many metres."""


def require_pixel_m(metres: float | None, name: str = "pixel_m") -> None:
    """InputError unless `metres` is a ground spacing, or None."""
    fits = metres is None or 0 < metres < MAX_PIXEL_M
    require(fits, name, metres, f"metres per pixel, above 0 and below {MAX_PIXEL_M:g}, or null")


def scale_factor(own_m: float | None, model_m: float | None) -> float:
    """How many pixels of an image, `own_m` metres each, are as long as one of the model's `model_m`.

    1 where a spacing is not known: such images are taken as they are.

    Raises:
        InputError: a spacing is no length, or one is more than 64 times (16 times) finer than the other.
    """
    require_pixel_m(own_m, "the image's pixel_m")
    require_pixel_m(model_m, "the model's pixel_m")
    if own_m is None or model_m is None:
        return 1.0
    factor = model_m / own_m
    if not COARSEST <= factor <= FINEST:
        raise InputError(
            f"an image of {own_m:g} m a pixel is not for a model that works at {model_m:g} m",
            got=f"{factor:g} pixels of the image to one of the model",
            expected=f"{COARSEST:g} to {FINEST:g}",
            fix="correct pixel_m of the image or of the model",
        )
    return factor


def working_size(
    size: tuple[int, int] | torch.Size, own_m: float | None, model_m: float | None
) -> tuple[int, int]:
    """(h, w) at the model's spacing of an image of (H, W); errors as `scale_factor`."""
    height, width = size
    factor = scale_factor(own_m, model_m)
    return max(1, round(height / factor)), max(1, round(width / factor))


@dataclass(frozen=True)
class Bins:
    """Along one axis: working pixel i covers `count[i]` pixels from `first[i]` on.

    Pixel y of N lies in bin floor(y n / N): `Bins.of(5, 2)` is first 0 3, count 3 2. Where n is above N each
    working pixel i shows pixel floor(i N / n): `Bins.of(2, 3)` is first 0 0 1, count 1 1 1.
    """

    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, length: int, size: int) -> Bins:
        """`size` bins over `length` pixels."""
        place = torch.arange(size + 1)
        if size >= length:
            return cls(place[:-1] * length // size, torch.ones(size, dtype=torch.int64))
        edges = (place * length + size - 1) // size
        return cls(edges[:-1], edges.diff())

    def part(self, working: slice) -> tuple[slice, Bins]:
        """The pixels that some working pixels cover, and the bins within those alone."""
        first, count = self.first[working], self.count[working]
        start = int(first[0])
        return slice(start, int(first[-1] + count[-1])), Bins(first - start, count)


def bins_of(size: tuple[int, int] | torch.Size, working: tuple[int, int]) -> tuple[Bins, Bins]:
    """Bins of the rows and of the columns of an image."""
    return Bins.of(size[0], working[0]), Bins.of(size[1], working[1])


def average_power(amplitude: Tensor, size: tuple[int, int], valid: Tensor | None = None) -> Tensor:
    """Amplitude (..., H, W) -> (..., h, w): roots of mean intensities; repeated pixels where it grows.

    Args:
        amplitude: linear, of a floating-point type, which it keeps; sums are in double precision.
        valid: (H, W) bool: other pixels are in no mean; a bin without a valid one is 0 (`any_valid`).
    """
    if tuple(amplitude.shape[-2:]) == tuple(size):
        return amplitude if valid is None else torch.where(valid, amplitude, 0)
    return average_bins(amplitude, *bins_of(amplitude.shape[-2:], size), valid)


def average_bins(amplitude: Tensor, rows: Bins, columns: Bins, valid: Tensor | None = None) -> Tensor:
    """`average_power` over given bins, for a part of an image that is cut as the whole is."""
    if valid is None:
        count = (rows.count[:, None] * columns.count).to(amplitude.device)
    else:
        amplitude = torch.where(valid, amplitude, 0)
        count = _sums(valid, rows, columns)
    power = _sums(amplitude, rows, columns, square=True)
    return power.div_(count.clamp(min=1)).sqrt_().to(amplitude.dtype)


def any_valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) bool -> (h, w) bool: bins with a valid pixel."""
    return any_valid_bins(valid, *bins_of(valid.shape, size))


def any_valid_bins(valid: Tensor, rows: Bins, columns: Bins) -> Tensor:
    """`any_valid` over given bins."""
    return _sums(valid, rows, columns) > 0


def centre_pixels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (..., H, W) -> (..., h, w): the pixel in the middle of each bin, repeated where it grows.

    Not the commonest of the bin: that would starve thin classes, while one pixel keeps the shares of all.
    """
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    rows, columns = (
        (bins.first + (bins.count - 1) // 2).to(labels.device) for bins in bins_of(labels.shape[-2:], size)
    )
    return labels.index_select(-2, rows).index_select(-1, columns)


@dataclass(frozen=True)
class Between:
    """Along one axis: an image's pixel i has its middle between those of working pixels low[i] and high[i].

    share: how near to `high`, 0 to 1, (n, float32). Beyond the outermost middles the outermost pixel counts
    alone: `Between.of(4, 2, torch.arange(4))` is low 0 0 0 1, high 0 1 1 1, share 0, 0.25, 0.75, 0.
    """

    low: Tensor
    high: Tensor
    share: Tensor

    @classmethod
    def of(cls, length: int, size: int, pixels: Tensor) -> Between:
        """Of some pixels of an axis of `length`, among `size` working pixels."""
        place = ((pixels.double() + 0.5) * size / length - 0.5).clamp(0, size - 1)
        low = place.floor()
        share = (place - low).float()
        low = low.long()
        return cls(low, torch.where(share > 0, low + 1, low), share)

    def take(self, values: Tensor, dim: int) -> Tensor:
        """The values at the pixels, linearly between the two; exactly the same in whichever parts."""
        low, high = (values.index_select(dim, i.to(values.device)) for i in (self.low, self.high))
        shape = [-1 if axis == dim % values.ndim else 1 for axis in range(values.ndim)]
        share = self.share.to(values.device).view(shape)
        return low * (1 - share) + high * share


def interpolated(
    scores: Tensor,
    size: tuple[int, int],
    rows: slice | None = None,
    first: int = 0,
    height: int | None = None,
) -> Tensor:
    """Scores (..., h, w) at the middles of an image's pixels, bilinearly: (..., H, W), or some rows of it.

    Args:
        first, height: where `scores` are those of `first` and below alone, and how many there are in all.
    """
    rows, height = rows or slice(0, size[0]), height or scores.shape[-2]
    below = Between.of(size[0], height, torch.arange(rows.start, rows.stop))
    below = Between(below.low - first, below.high - first, below.share)
    if height != size[0]:
        scores = below.take(scores, -2)
    else:
        scores = scores[..., rows.start - first : rows.stop - first, :]
    if scores.shape[-1] == size[1]:
        return scores
    return Between.of(size[1], scores.shape[-1], torch.arange(size[1])).take(scores, -1)


def interpolated_at(scores: Tensor, size: tuple[int, int], places: Tensor) -> Tensor:
    """`interpolated` of scores (K, h, w) at places y W + x alone, int64 (N,): (K, N)."""
    below = Between.of(size[0], scores.shape[-2], places // size[1])
    across = Between.of(size[1], scores.shape[-1], places % size[1])
    total = scores.new_zeros(len(scores), len(places))
    for y, share_y in ((below.low, 1 - below.share), (below.high, below.share)):
        for x, share_x in ((across.low, 1 - across.share), (across.high, across.share)):
            total += scores[:, y, x] * (share_y * share_x).to(scores.device)
    return total


def row_blocks(rows: slice, width: int, pixels: int = 1 << 20) -> Iterator[slice]:
    """Some rows in parts of about so many pixels, so that nothing is held for all of an image at once."""
    edges = [*range(rows.start, rows.stop, max(1, pixels // width)), rows.stop]
    return (slice(top, bottom) for top, bottom in pairwise(edges))


def classes_at(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (..., K, h, w) -> classes (..., H, W), int64, of the largest interpolated score."""
    blocks = row_blocks(slice(0, size[0]), size[1])
    # max, not argmax: over an outer axis that is seven times slower on a CPU
    return torch.cat([interpolated(scores, size, rows).max(-3).indices for rows in blocks], -2)


def _sums(values: Tensor, rows: Bins, columns: Bins, *, square: bool = False) -> Tensor:
    """(..., H, W) -> (..., h, w) sums over the bins in float64, in the same order on every device."""
    by_rows = _sums_of_rows(values, rows, square=square)
    return _sums_of_rows(by_rows.mT.contiguous(), columns).mT.contiguous()


def _sums_of_rows(values: Tensor, bins: Bins, *, square: bool = False) -> Tensor:
    first, count = bins.first.to(values.device), bins.count.to(values.device)
    total = values.index_select(-2, first).double()
    if square:
        total.square_()
    for step in range(1, int(bins.count.max())):
        longer = (count > step).nonzero()[:, 0]
        part = values.index_select(-2, first[longer] + step).double()
        total.index_add_(-2, longer, part.square_() if square else part)  # each bin once: no race on a GPU
    return total
