"""What decoding a file gives, before anything of it is judged: the same for every format.

C bands, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossearth_sar.data.files.georeference import Place
from crossearth_sar.errors import InputError


@dataclass(frozen=True)
class Window:
    """Rows top .. top + height, columns left .. left + width."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, rows: slice, columns: slice) -> Window:
        """The window of rows and columns as `spacing.sliding_windows` gives them."""
        return cls(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class StoredImage:
    """A file as stored, without its alpha: `values` and `valid` are None after a look at the header alone.

    sample_axis: the band axis where the format itself knows it, else None.
    nodata: of the stored numbers, before scale and offset.
    colormap: (N, 3) uint8 of a paletted file, else None.
    pixel_m: metres per pixel on the ground, where a GeoTIFF's tags say so.
    valid: (H, W) bool, or (C, H, W) where bands differ, False where an alpha band, a mask or an empty tile
        says that nothing is there; None: the file says nothing of the kind.
    scales: (scale, offset) of each band, where the file has any: what is meant is stored * scale + offset.
    place: where a GeoTIFF's tags put it.
    """

    shape: tuple[int, ...]
    values: np.ndarray | None
    sample_axis: int | None = None
    nodata: float | None = None
    colormap: np.ndarray | None = None
    pixel_m: float | None = None
    valid: np.ndarray | None = None
    scales: tuple[tuple[float, float], ...] | None = None
    place: Place | None = None


def both_valid(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Where both say that something is there; None, a file without a word on it, says everywhere."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


MAX_HALF_SEEN = 0.1
"""Edges of what is seen may be feathered; an alpha with more levels between is a measurement by its look."""


def split_alpha(values: np.ndarray, axis: int, alpha: int, name: object) -> tuple[np.ndarray, np.ndarray]:
    """(the other bands, where alpha is not 0); a single other band loses its axis.

    Raises:
        InputError: a tenth of alpha is neither 0 nor its largest value; `name` is the file.
    """
    opacity = values.take(alpha, axis)
    seen = np.asarray(opacity != 0)
    between = np.count_nonzero(seen & (opacity != opacity.max()))
    if between > MAX_HALF_SEEN * opacity.size:
        raise InputError(
            f"band {alpha} of {name} is tagged alpha, but does not look like it",
            got=f"{between} of {opacity.size} pixels neither 0 nor {opacity.max()}",
            expected="0 where nothing is, and one value elsewhere",
            fix=f"if it is a measurement, take the tag off (gdal_edit.py -colorinterp_{alpha + 1} undefined)",
        )
    others = np.delete(values, alpha, axis)
    return (others.squeeze(axis) if others.shape[axis] == 1 else others), seen


def shape_without_alpha(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """What `split_alpha` leaves of a shape."""
    left = (shape[axis] - 1,) if shape[axis] > 2 else ()
    return (*shape[:axis], *left, *shape[axis + 1 :])
