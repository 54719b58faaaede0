"""The ground spacing that a GeoTIFF's own tags state, in metres per pixel; nothing else of its place.

Read from the tags themselves, so no rasterio and no PROJ are needed: scale or matrix, and of the coordinate
system only whether it is projected, in which unit, or in degrees. What this is not: a check that the file
tells the truth, or a way to place it on a map.
"""

from __future__ import annotations

import math
from typing import Any

METRES_PER_DEGREE = 111_320.0
"""Of latitude, and of longitude on the equator."""

_SCALE, _TIE_POINTS, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
_MODEL_TYPE, _ANGULAR_UNIT, _LINEAR_UNIT = 1024, 2054, 3076
_PROJECTED, _GEOGRAPHIC, _DEGREE = 1, 2, 9102
_UNIT_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937, 9036: 1000.0}


def tagged_pixel_m(page: Any) -> float | None:
    """The geometric mean of a pixel's two sides in metres, of a page of tifffile.

    Degrees become metres at the latitude of the image's middle. None where the tags do not say: no scale, no
    coordinate system, one in another unit, ground control points instead.
    """
    keys, matrix = _geo_keys(page), _matrix(page)
    if matrix is None or _MODEL_TYPE not in keys:
        return None
    (a, b, _), (d, e, north) = matrix
    if keys[_MODEL_TYPE] == _PROJECTED:
        metres_x = metres_y = _UNIT_METRES.get(keys.get(_LINEAR_UNIT, 9001), math.nan)
    elif keys[_MODEL_TYPE] == _GEOGRAPHIC and keys.get(_ANGULAR_UNIT, _DEGREE) == _DEGREE:
        latitude = d * page.imagewidth / 2 + e * page.imagelength / 2 + north
        metres_x = METRES_PER_DEGREE * math.cos(math.radians(latitude))
        metres_y = METRES_PER_DEGREE
    else:
        return None
    area = math.hypot(a * metres_x, d * metres_y) * math.hypot(b * metres_x, e * metres_y)
    return math.sqrt(area) if 0 < area < math.inf else None


def _geo_keys(page: Any) -> dict[int, int]:
    """The keys whose values stand in the directory itself; ours are all of that kind."""
    numbers = _numbers(page, _KEYS)
    entries = [numbers[i : i + 4] for i in range(4, len(numbers) - 3, 4)]
    return {int(key): int(value) for key, location, _, value in entries if location == 0}


def _matrix(page: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """((a, b, c), (d, e, f)): x = a column + b row + c, y = d column + e row + f; f NaN where unknown."""
    whole = _numbers(page, _MATRIX)
    if len(whole) == 16:
        return (whole[0], whole[1], whole[3]), (whole[4], whole[5], whole[7])
    scale, tie = _numbers(page, _SCALE), _numbers(page, _TIE_POINTS)
    if len(scale) < 2:
        return None
    column, row, _, x, y, _ = tie[:6] if len(tie) >= 6 else (math.nan,) * 6
    return (scale[0], 0.0, x - scale[0] * column), (0.0, -scale[1], y + scale[1] * row)


def _numbers(page: Any, code: int) -> tuple[float, ...]:
    """A tag's numbers; none where it is missing, or holds something else."""
    tag = page.tags.get(code)
    value = None if tag is None else tag.value
    if not isinstance(value, tuple) or not all(isinstance(v, int | float) for v in value):
        return ()
    return tuple(float(v) for v in value)
