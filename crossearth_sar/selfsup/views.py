"""A view of an image: a window in it, perhaps mirrored, seen at a size. Functions of floats alone.

Positions are measured at pixel edges: 0 is the left edge of the first pixel, W the right edge of the last.
Boxes are x0, y0, x1, y1 with x0 < x1, y0 < y1, float64.

N boxes, C bands, H W pixels of the source, S pixels a side of the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossearth_sar.errors import InputError

Boxes = NDArray[np.float64]
"""(N, 4)."""

TRIES = 10
"""Windows that are drawn before the largest in the middle is taken."""


@dataclass(frozen=True)
class View:
    """The window from (x0, y0), `width` x `height` source pixels, mirrored where flip_x or flip_y says so,
    seen in size x size pixels. Nothing need be whole.

    `View(4, 0, 8, 8, True, False, 16)` doubles its pixels and turns left to right: the source's box
    4, 0, 6, 2 is 12, 0, 16, 4 in it.
    """

    x0: float
    y0: float
    width: float
    height: float
    flip_x: bool
    flip_y: bool
    size: int

    def to_view(self, boxes_N4: Boxes) -> Boxes:
        """Boxes in source pixels -> the same in pixels of the view; beyond the window they are not cut."""
        x0, y0, x1, y1 = np.asarray(boxes_N4, np.float64).reshape(-1, 4).T
        u0, u1 = _along(x0, x1, self.x0, self.width, self.size, self.flip_x)
        v0, v1 = _along(y0, y1, self.y0, self.height, self.size, self.flip_y)
        return np.stack([u0, v0, u1, v1], axis=1)

    @property
    def window(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in source pixels."""
        return self.x0, self.y0, self.x0 + self.width, self.y0 + self.height


def draw_view(
    random: np.random.Generator,
    width: int,
    height: int,
    *,
    size: int,
    area: tuple[float, float] = (0.2, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip_x: float = 0.5,
    flip_y: float = 0.5,
) -> View:
    """A window of random share of the image, aspect and place, inside the image.

    Args:
        width, height: of the image, pixels.
        size: side of the view, pixels.
        area: the window's share of the image is uniform between these.
        aspect: its width over its height, uniform in the logarithm. Of ten draws the first that fits is
            taken, else the largest window of allowed aspect, in the middle.
        flip_x, flip_y: probabilities of mirroring left to right, and top to bottom.

    Raises:
        InputError: for an empty image, or bounds that are none.
    """
    _check(width, height, size, area, aspect)
    draw_x, draw_y = random.random(2).tolist()
    flips = (draw_x < flip_x, draw_y < flip_y)
    # All tries are drawn at once: what follows from the generator does not depend on which one fits.
    for share, ratio, place_x, place_y in random.random((TRIES, 4)).tolist():
        pixels = width * height * (area[0] + (area[1] - area[0]) * share)
        shape = aspect[0] * (aspect[1] / aspect[0]) ** ratio
        across, down = math.sqrt(pixels * shape), math.sqrt(pixels / shape)
        if across <= width and down <= height:
            x0, y0 = place_x * (width - across), place_y * (height - down)
            return View(x0, y0, across, down, *flips, size)
    shape = min(max(width / height, aspect[0]), aspect[1])
    across, down = min(width, height * shape), min(height, width / shape)
    return View((width - across) / 2, (height - down) / 2, across, down, *flips, size)


def overlap_of(one: View, other: View) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of what both windows show, source pixels; x1 <= x0 or y1 <= y0 where it is nothing."""
    first, second = one.window, other.window
    return (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )


def _along(
    low: NDArray[np.float64], high: NDArray[np.float64], start: float, extent: float, size: int, flip: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends of intervals of one axis in the view; of a mirrored one they change places."""
    low, high = ((end - start) * (size / extent) for end in (low, high))
    return (size - high, size - low) if flip else (low, high)


def _check(
    width: int, height: int, size: int, area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    if width < 1 or height < 1 or size < 1:
        raise InputError(
            "no view of an image without pixels",
            got=f"width {width}, height {height}, size {size}",
            expected="at least 1 each",
        )
    if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1] < math.inf:
        raise InputError(
            "no view has such shares or aspects",
            got=f"area {area}, aspect {aspect}",
            expected="0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]",
        )
