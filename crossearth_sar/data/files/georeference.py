"""What a GeoTIFF's own tags state of its ground: metres per pixel, and whether two files lie in one place.

Read from the tags themselves, so no rasterio and no PROJ are needed: scale or matrix, and of the coordinate
system only whether it is projected, in which unit, or in degrees, and its EPSG number. What this is not: a
check that the file tells the truth, or a way to place it on a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossearth_sar.errors import InputError

METRES_PER_DEGREE = 111_320.0
"""Of latitude, and of longitude on the equator."""

_SCALE, _TIE_POINTS, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
_MODEL_TYPE, _ANGULAR_UNIT, _LINEAR_UNIT = 1024, 2054, 3076
_RASTER_TYPE, _GEOGRAPHIC_SYSTEM, _PROJECTED_SYSTEM = 1025, 2048, 3072
_POINT, _OF_ITS_OWN = 2, 32767
APART_PIXELS = 1.0
"""A label whose corners lie farther from its image's than this is of another place."""

_PROJECTED, _GEOGRAPHIC, _DEGREE = 1, 2, 9102
_UNIT_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937, 9036: 1000.0}


Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
"""((a, b, c), (d, e, f)): x = a column + b row + c, y = d column + e row + f, of pixels' corners."""


@dataclass(frozen=True)
class Place:
    """Where a file lies. system: of coordinates, `EPSG:32633`; None where the tags do not number it."""

    matrix: Matrix
    size: tuple[int, int]
    system: str | None


def tagged_place(page: Any) -> Place | None:
    """Of a page of tifffile; None where the tags do not say: no scale or tie point, ground control points."""
    matrix, keys = _matrix(page), _geo_keys(page)
    if matrix is None or not all(map(math.isfinite, (*matrix[0], *matrix[1]))):
        return None
    (a, b, c), (d, e, f) = matrix
    if keys.get(_RASTER_TYPE) == _POINT:  # tie points are middles of pixels there
        c, f = c - (a + b) / 2, f - (d + e) / 2
    number = keys.get(_PROJECTED_SYSTEM, keys.get(_GEOGRAPHIC_SYSTEM, _OF_ITS_OWN))
    system = None if number in (0, _OF_ITS_OWN) else f"EPSG:{number}"
    return Place(((a, b, c), (d, e, f)), (page.imagelength, page.imagewidth), system)


def label_flips(
    image: Place | None, label: Place | None, name: object, *, what: str = "label"
) -> tuple[bool, bool]:
    """Whether a label's (rows, columns) run against its image's, where both lie in one place.

    (False, False) where either does not say where it lies.

    Args:
        name: of the two files, for the message. what: the second is.

    Raises:
        InputError: their coordinate systems differ, or their corners do by more than APART_PIXELS.
    """
    if image is None or label is None or image.size != label.size:
        return False, False
    fix = f"bring the {what} onto the image's grid (gdalwarp -te … -ts …), or pair it with its own image"
    if image.system and label.system and image.system != label.system:
        raise InputError(
            f"image and {what} have other coordinate systems: {name}",
            got=f"image {image.system}, {what} {label.system}",
            expected=f"one grid: pixel i of the {what} lies on image pixel i",
            fix=fix,
        )
    to_image = np.array((*image.matrix, (0, 0, 1)), float)
    if abs(np.linalg.det(to_image)) < 1e-300:
        return False, False
    between = np.linalg.solve(to_image, np.array((*label.matrix, (0, 0, 1)), float))
    height, width = image.size
    corners = np.array([(0, width, 0, width), (0, 0, height, height), (1, 1, 1, 1)], float)
    found = (between @ corners)[:2]
    apart: dict[tuple[bool, bool], float] = {}
    for rows in (False, True):
        for columns in (False, True):
            wanted = corners[:2].copy()
            wanted[0] = width - wanted[0] if columns else wanted[0]
            wanted[1] = height - wanted[1] if rows else wanted[1]
            apart[rows, columns] = float(np.abs(found - wanted).max())
    best = min(apart, key=apart.__getitem__)
    if apart[best] > APART_PIXELS:
        raise InputError(
            f"image and {what} lie in different places: {name}",
            got=f"corners up to {apart[best]:.6g} pixels apart by their GeoTIFF tags",
            expected=f"at most {APART_PIXELS:g}: pixel i of the {what} lies on image pixel i",
            fix=f"{fix}; if the {what} is right as it is, take the place out of it (gdal_edit.py -unsetgt)",
        )
    return best


def tagged_pixel_m(page: Any) -> float | None:
    """The geometric mean of a pixel's two sides in metres, of a page of tifffile.

    Degrees become metres at the latitude of the image's middle. None where the tags do not say: no scale, no
    coordinate system, one in another unit, ground control points instead.
    """
    keys, matrix = _geo_keys(page), _matrix(page)
    if matrix is None or _MODEL_TYPE not in keys:
        return None
    size = (page.imagelength, page.imagewidth)
    if keys[_MODEL_TYPE] == _PROJECTED:
        return ground_pixel_m(matrix, size, _UNIT_METRES.get(keys.get(_LINEAR_UNIT, 9001), math.nan))
    if keys[_MODEL_TYPE] == _GEOGRAPHIC and keys.get(_ANGULAR_UNIT, _DEGREE) == _DEGREE:
        return ground_pixel_m(matrix, size, None)
    return None


def ground_pixel_m(matrix: Matrix, size: tuple[int, int], unit_metres: float | None) -> float | None:
    """The geometric mean of a pixel's two sides in metres; None where they are not finite, or no side.

    Args:
        size: (H, W). unit_metres: of a unit of the coordinates; None: they are degrees, as long as at
            the latitude of the image's middle.
    """
    (a, b, _), (d, e, north) = matrix
    metres_x = metres_y = METRES_PER_DEGREE if unit_metres is None else unit_metres
    if unit_metres is None:
        latitude = d * size[1] / 2 + e * size[0] / 2 + north
        metres_x *= math.cos(math.radians(latitude))
    area = math.hypot(a * metres_x, d * metres_y) * math.hypot(b * metres_x, e * metres_y)
    return math.sqrt(area) if 0 < area < math.inf else None


def _geo_keys(page: Any) -> dict[int, int]:
    """The keys whose values stand in the directory itself; ours are all of that kind."""
    numbers = _numbers(page, _KEYS)
    entries = [numbers[i : i + 4] for i in range(4, len(numbers) - 3, 4)]
    return {int(key): int(value) for key, location, _, value in entries if location == 0}


def _matrix(page: Any) -> Matrix | None:
    """As the tags have it; c and f NaN where unknown."""
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
