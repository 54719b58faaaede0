"""Dynamic instances: boxes drawn anew inside what two views of an image share.

Everything is in source pixels, where the overlap of two boxes is what it is in either view: scaling an axis
and mirroring change no ratio of areas.

N boxes, H W pixels of the source.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossearth_sar.selfsup.views import Boxes, View, overlap_of

TRIES = 50
"""Candidates for one box; where none fits, there is one box less."""


def sample_boxes(
    query_view: View,
    key_view: View,
    random: np.random.Generator,
    *,
    count: int = 10,
    smallest: float,
    max_iou: float = 0.5,
    valid: NDArray[np.bool_] | None = None,
) -> Boxes:
    """(n, 4) float64 boxes in source pixels inside both windows, n <= count.

    Sides vary as in the published method: the overlap is divided into 1 to as many columns as boxes of the
    smallest side have room, one is chosen, and the box has a uniform width and place in it; rows likewise.

    Args:
        smallest: least side in either view, pixels of the view.
        max_iou: any two overlap by less than this.
        valid: (H, W) of the source: a box lies inside the image and touches no pixel that is False.
    """
    x0, y0, x1, y1 = overlap_of(query_view, key_view)
    if valid is not None:
        x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, valid.shape[1]), min(y1, valid.shape[0])
    least_x = smallest * max(query_view.width / query_view.size, key_view.width / key_view.size)
    least_y = smallest * max(query_view.height / query_view.size, key_view.height / key_view.size)
    if x1 - x0 < least_x or y1 - y0 < least_y:
        return np.empty((0, 4))
    invalid = None if valid is None or valid.all() else _Invalid(valid)
    kept: list[tuple[float, float, float, float]] = []
    for _ in range(count):
        for draws in random.random((TRIES, 8)).tolist():
            left, right = _side(x0, x1, least_x, draws[:4])
            top, bottom = _side(y0, y1, least_y, draws[4:])
            box = (left, top, right, bottom)
            if all(iou(box, other) < max_iou for other in kept) and not (invalid and invalid.touched(box)):
                kept.append(box)
                break
    return np.array(kept, dtype=np.float64).reshape(-1, 4)


def iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return across * down / (sum(areas) - across * down)


def _side(start: float, end: float, least: float, draws: list[float]) -> tuple[float, float]:
    """An interval of at least `least` in one of a random number of equal cells of start..end."""
    columns, cell, length, place = draws
    extent = end - start
    number = 1 + int(columns * math.floor(extent / least))
    room = extent / number
    side = least + (room - least) * length
    low = start + int(cell * number) * room + (room - side) * place
    return max(low, start), min(low + side, end)


class _Invalid:
    """Says whether a box touches a pixel that was not measured, from sums over all rectangles at once."""

    def __init__(self, valid: NDArray[np.bool_]) -> None:
        self._sums = np.pad((~valid).astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def touched(self, box: tuple[float, float, float, float]) -> bool:
        left, top = math.floor(box[0]), math.floor(box[1])
        right, bottom = math.ceil(box[2]), math.ceil(box[3])
        sums = self._sums
        return bool(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])
