"""Reading one SAR image file as bands, with its valid pixels.

`formats.py` decodes, here the axes are put in order, bands chosen and nodata found; `amplitude.py` makes
amplitudes of the values. A file is decoded whole: cutting tiles out of it is `folder.py`'s work. What this
is not: a product reader; Sentinel-1 SAFE and CEOS folders are to be exported to GeoTIFF first, and of
georeferencing only the ground spacing is looked at.

C bands, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from crossearth_sar.data.files.formats import StoredImage, read_stored
from crossearth_sar.errors import InputError

BandAxis = Literal["auto", "first", "last"]

MAX_AUTO_BANDS = 16
"""`band_axis="auto"` takes no axis longer than this for the bands."""


@dataclass(frozen=True)
class RawImage:
    """A decoded file before its values mean anything.

    values: (C, H, W) in the file's own dtype, real or complex.
    valid: (H, W) bool; False where any kept band is NaN, infinite or the nodata value.
    path: where it came from, for messages.
    pixel_m: metres per pixel on the ground, where the file's tags say so.
    """

    values: np.ndarray
    valid: np.ndarray
    path: Path
    pixel_m: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.valid.shape[0], self.valid.shape[1]

    def rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Values (C, h, W) and valid pixels (h, W) of some rows."""
        return self.values[:, rows], self.valid[rows]


def read_image(
    path: str | Path,
    *,
    band_axis: BandAxis = "auto",
    nodata: float | None = None,
    bands: tuple[int, ...] | None = None,
    array_key: str | None = None,
) -> RawImage:
    """Reads an image file into (C, H, W) with a mask of its valid pixels.

    Args:
        path: .png .jpg .jpeg .bmp .tif .tiff .npy or .npz. Of a TIFF the first image series is read (its
            overviews and masks are not). A grey colour table is applied, a coloured one refused.
        band_axis: where the bands are in a file of three axes. "auto" takes what a TIFF says of its
            samples per pixel; where the file says nothing, the first or the last axis if it is at most 16
            long and the other two are at least twice as long.
        nodata: the value of pixels without a measurement, over what GDAL's tag in a TIFF says; for
            complex values its real part, with an imaginary part of 0 or the same.
        bands: indices from 0 of the bands to keep, in this order; None keeps all.
        array_key: which array of an .npz; needed where it holds several.

    Raises:
        InputError: the file is missing, truncated, of no supported kind, not numeric; its band axis is
            ambiguous; a band does not exist; or no pixel of it is valid.
    """
    path = Path(path)
    stored = read_stored(path, array_key, decode=True)
    values = _pick_bands(_colormap_to_grey(stored, path), stored, band_axis, bands, path)
    valid = valid_pixels(values, stored.nodata if nodata is None else nodata)
    if not valid.any():
        raise InputError(
            f"{path} has no valid pixel",
            got=f"{valid.size} pixels, all NaN, infinite or nodata",
            expected="at least one measured pixel",
            fix="leave this file out, or correct the nodata value",
        )
    return RawImage(values, valid, path, stored.pixel_m)


def read_bands(
    path: str | Path,
    *,
    colormap: Literal["index", "expand"] = "index",
    band_axis: BandAxis = "auto",
    array_key: str | None = None,
) -> np.ndarray:
    """Reads a file as (C, H, W) numbers without judging them: what label maps are read with.

    A paletted file gives its indices, (1, H, W), or with `colormap="expand"` its colours, (3, H, W) uint8.
    Nodata tags play no part. Raises InputError as `read_image` does, save for missing valid pixels.
    """
    path = Path(path)
    stored = read_stored(path, array_key, decode=True)
    assert stored.values is not None
    if stored.colormap is not None and colormap == "expand":
        return np.moveaxis(_apply_colormap(stored, path), -1, 0)
    return _pick_bands(stored.values, stored, band_axis, None, path)


def read_shape(
    path: str | Path, *, band_axis: BandAxis = "auto", array_key: str | None = None
) -> tuple[int, int, int]:
    """(bands, height, width) of an image file, mostly without decoding it.

    Finds truncated files: TIFF and NPY by the extents their headers promise, PNG by its checksums, JPEG by
    its end marker, NPZ by its directory; BMP is decoded. A damaged compressed stream of full length is
    found only by `read_image`. Raises InputError as `read_image` does.
    """
    path = Path(path)
    stored = read_stored(path, array_key, decode=False)
    if len(stored.shape) == 2:
        return 1, stored.shape[0], stored.shape[1]
    axis = _band_axis(stored, band_axis, path)
    height, width = (n for i, n in enumerate(stored.shape) if i != axis)
    return stored.shape[axis], height, width


def read_nodata(path: str | Path) -> float | None:
    """What GDAL's tag in a TIFF says stands for pixels without a measurement; None for other files."""
    return read_stored(Path(path), None, decode=False).nodata


def read_pixel_m(path: str | Path) -> float | None:
    """Metres per pixel on the ground as a GeoTIFF's tags say; None for other files and where they do not."""
    path = Path(path)
    is_tiff = path.suffix.lower() in (".tif", ".tiff")
    return read_stored(path, None, decode=False).pixel_m if is_tiff else None


def valid_pixels(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """(H, W) bool of (C, H, W) values; nodata is compared in the file's own precision."""
    good: np.ndarray = np.isfinite(values)
    if nodata is not None and np.isfinite(nodata):
        if values.dtype.kind == "c":
            number = values.real.dtype.type(nodata)
            is_nodata = (values.real == number) & ((values.imag == 0) | (values.imag == number))
        elif values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                is_nodata = values == values.dtype.type(nodata)
        else:
            is_nodata = values == nodata
        good &= ~is_nodata
    return np.asarray(good.all(axis=0))


def _pick_bands(
    values: np.ndarray, stored: StoredImage, band_axis: BandAxis, bands: tuple[int, ...] | None, path: Path
) -> np.ndarray:
    values = values[None] if values.ndim == 2 else np.moveaxis(values, _band_axis(stored, band_axis, path), 0)
    if bands is None:
        return np.ascontiguousarray(values)
    outside = [b for b in bands if not 0 <= b < len(values)]
    if outside or not bands:
        raise InputError(
            f"{path} has no band {outside[0] if outside else ''}",
            got=f"bands {bands}",
            expected=f"indices from 0 to {len(values) - 1}",
            fix="correct bands, or band_axis if the bands are on another axis",
        )
    return np.ascontiguousarray(values[list(bands)])


def _band_axis(stored: StoredImage, band_axis: BandAxis, path: Path) -> int:
    shape = stored.shape
    if band_axis != "auto":
        return 0 if band_axis == "first" else 2
    if stored.sample_axis is not None:
        return stored.sample_axis
    fits = [
        axis
        for axis in (0, 2)
        if shape[axis] <= MAX_AUTO_BANDS
        and all(2 * shape[axis] <= n for i, n in enumerate(shape) if i != axis)
    ]
    if len(fits) == 1:
        return fits[0]
    raise InputError(
        f"cannot tell which axis of {path} holds the bands",
        got=f"shape {shape}",
        expected=f"one axis of at most {MAX_AUTO_BANDS}, the others at least twice as long",
        fix="say band_axis: first or band_axis: last",
    )


def _colormap_to_grey(stored: StoredImage, path: Path) -> np.ndarray:
    assert stored.values is not None
    if stored.colormap is None:
        return stored.values
    colors = _apply_colormap(stored, path)
    if (colors != colors[..., :1]).any():
        raise InputError(
            f"{path} is stored with a colour table",
            got="coloured pixels",
            expected="grey values or separate bands",
            fix="give the measurements themselves: a coloured picture has lost them",
        )
    return colors[..., 0]


def _apply_colormap(stored: StoredImage, path: Path) -> np.ndarray:
    assert stored.values is not None
    assert stored.colormap is not None
    if int(stored.values.max()) >= len(stored.colormap):
        raise InputError(
            f"{path} uses a colour its colour table lacks",
            got=f"index {stored.values.max()}",
            expected=f"below {len(stored.colormap)}",
            fix="write the file again",
        )
    return stored.colormap[stored.values]
