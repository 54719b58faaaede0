"""Reading one SAR image file as bands, with its valid pixels.

`formats.py` decodes, here the axes are put in order, bands chosen and nodata found; `amplitude.py` makes
amplitudes of the values. A file is decoded whole: `windows.py` reads parts. What this is not: calibration;
numbers of a product are taken as they are stored.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from crossearth_sar.data.files.formats import WITHOUT_PLACE, read_stored
from crossearth_sar.data.files.georeference import Place
from crossearth_sar.data.files.names import is_remote
from crossearth_sar.data.files.stored import StoredImage
from crossearth_sar.errors import InputError

BandAxis = Literal["auto", "first", "last"]

Valid = Literal["all", "any"]
"""Where a pixel counts as measured: in all of its bands, or in any."""

MAX_AUTO_BANDS = 16
"""`band_axis="auto"` takes no axis longer than this for the bands."""


@dataclass(frozen=True)
class RawImage:
    """A decoded file before its values mean anything.

    values: (C, H, W), real or complex; in the file's own dtype, or float where it has a scale or an offset.
    valid: (H, W) bool; False where any kept band is NaN, infinite or the nodata value, or where the file's
        alpha, mask or empty tiles say that nothing is there; with `valid="any"` where all are.
    path: where it came from, for messages.
    pixel_m: metres per pixel on the ground, where the file's tags say so.
    place: where a GeoTIFF's tags put it.
    """

    values: np.ndarray
    valid: np.ndarray
    path: Path
    pixel_m: float | None = None
    place: Place | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.valid.shape[0], self.valid.shape[1]

    def rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Values (C, h, W) and valid pixels (h, W) of some rows."""
        return self.values[:, rows], self.valid[rows]


class Reading(TypedDict, total=False):
    """How a file is read, beside its path: the arguments of `read_image` that windows have too."""

    band_axis: BandAxis
    nodata: float | None
    bands: tuple[int, ...] | None
    scale: float | None
    offset: float | None
    array_key: str | None
    valid: Valid
    complex_bands: bool


class LabelParts(NamedTuple):
    """values: (C, H, W) as stored. labelled: (H, W) bool by alpha or mask, None: everywhere. nodata: the
    number that the file says stands for nothing. place: where a GeoTIFF's tags put it."""

    values: np.ndarray
    labelled: np.ndarray | None
    nodata: float | None
    place: Place | None


def read_image(path: str | Path, **how: Unpack[Reading]) -> RawImage:
    """Reads an image file into (C, H, W) with a mask of its valid pixels.

    Args:
        path: .png .jpg .jpeg .bmp .tif .tiff .npy or .npz; with h5py .h5 and NetCDF-4, with sarkit SICD and
            SIDD, with rasterio all else that GDAL reads, also from afar; several files by braces,
            `a_{vv,vh}.tif`; a Sentinel-1 SAFE folder or its zip. Of a TIFF the first image series is read
            (its overviews are not). A grey colour table is applied, a coloured one refused. An alpha band is
            no band: it says which pixels are valid, and so do a mask in the file or beside it (`NAME.msk`).
        band_axis: where the bands are in a file of three axes. "auto" takes what a TIFF says of its
            samples per pixel; where the file says nothing, the first or the last axis if it alone is at most
            16 long and the other two are at least twice as long.
        nodata: the stored value of pixels without a measurement, over what GDAL's tag in a TIFF says; for
            complex values its real part, with an imaginary part of 0 or the same.
        bands: indices from 0 of the bands to keep, in this order; None keeps all.
        array_key: which array of an .npz or HDF5 file, which image of a file of GDAL's that holds several;
            needed where it is not clear.
        scale, offset: values are the stored numbers times scale plus offset; over what GDAL's metadata tag in
            a TIFF says, band by band.
        valid: "all", the default: a pixel is valid where all kept bands are. "any": where one is, and in a
            band that is missing there stand the numbers of the first that is not.
        complex_bands: bands are I and Q in turns, of integers or floats: one complex band of two.

    Raises:
        InputError: the file is missing, truncated, of no supported kind, not numeric; its band axis is
            ambiguous; a band does not exist; or no pixel of it is valid.
    """
    raw = read_whole(path, **how)
    if not raw.valid.any():
        raise InputError(
            f"{raw.path} has no valid pixel",
            got=f"{raw.valid.size} pixels, all NaN, infinite, nodata or masked",
            expected="at least one measured pixel",
            fix="leave this file out, or correct the nodata value",
        )
    return raw


def read_whole(path: str | Path, **how: Unpack[Reading]) -> RawImage:
    """`read_image` of a file that may have no valid pixel, as a patch of a scene may."""
    return raw_image(read_stored(Path(path), how.get("array_key"), decode=True), Path(path), **how)


def raw_image(stored: StoredImage, path: Path, **how: Unpack[Reading]) -> RawImage:
    """What `read_image` makes of a decoded file, or of a rectangle of one, which may have no valid pixel."""
    bands, nodata = how.get("bands"), how.get("nodata")
    values = _pick_bands(_colormap_to_grey(stored, path), stored, how.get("band_axis", "auto"), bands, path)
    pairs_of_bands = how.get("complex_bands", False)
    numbers = _joined(values, path) if pairs_of_bands else values  # I may be 0 where Q is not
    measured = measured_numbers(numbers, stored.nodata if nodata is None else nodata)
    if stored.valid is not None:
        is_there = stored.valid if stored.valid.ndim == 2 or bands is None else stored.valid[list(bands)]
        is_pair = pairs_of_bands and is_there.ndim == 3
        measured &= is_there[0::2] & is_there[1::2] if is_pair else is_there
    pairs = stored.scales if bands is None or stored.scales is None else [stored.scales[b] for b in bands]
    values = _scaled(values, pairs, how.get("scale"), how.get("offset"))
    values = _joined(values, path) if pairs_of_bands else values
    if how.get("valid", "all") == "all":
        return RawImage(values, np.asarray(measured.all(axis=0)), path, stored.pixel_m, stored.place)
    return RawImage(
        _lent(values, measured), np.asarray(measured.any(axis=0)), path, stored.pixel_m, stored.place
    )


def _joined(values: np.ndarray, path: Path) -> np.ndarray:
    """(C / 2, H, W) complex numbers of I, Q, I, Q …"""
    if len(values) % 2 or np.iscomplexobj(values):
        raise InputError(
            f"{path} is no pairs of I and Q, as values: complex_bands or components: true says",
            got=f"{len(values)} bands of {values.dtype}",
            expected="two real bands for each band: the real part, then the imaginary",
            fix="declare values: complex if it is complex, or choose two: bands: [0, 1]",
        )
    out = np.empty((len(values) // 2, *values.shape[1:]), np.result_type(values.dtype, np.complex64))
    out.real, out.imag = values[0::2], values[1::2]
    return out


def _lent(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Where a band is missing, the first one that is measured there: what a model of one band sees in all."""
    first = np.take_along_axis(values, measured.argmax(axis=0)[None], axis=0)
    return np.where(measured, values, first)


def _scaled(
    values: np.ndarray,
    tagged: Sequence[tuple[float, float]] | None,
    scale: float | None,
    offset: float | None,
) -> np.ndarray:
    """Stored numbers times scale plus offset, in a type of floats; as they are where neither is known."""
    if tagged is None and scale is None and offset is None:
        return values
    pairs = tagged if tagged is not None and len(tagged) == len(values) else [(1.0, 0.0)] * len(values)
    factors = np.array([pair[0] if scale is None else scale for pair in pairs])
    terms = np.array([pair[1] if offset is None else offset for pair in pairs])
    kind = np.result_type(values, np.float32)
    factors, terms = (each.astype(kind)[:, None, None] for each in (factors, terms))
    scaled = values.astype(kind)
    scaled *= factors
    scaled += terms
    return scaled


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


def read_label_parts(path: str | Path, *, expand_colors: bool = False) -> LabelParts:
    """A label file's numbers, or its colours, and what it says of pixels without a label.

    Raises InputError as `read_bands` does.
    """
    return label_parts(read_stored(Path(path), None, decode=True), Path(path), expand_colors=expand_colors)


def label_parts(stored: StoredImage, path: Path, *, expand_colors: bool) -> LabelParts:
    """What `read_label_parts` makes of a decoded file, or of a rectangle of one."""
    assert stored.values is not None
    if stored.colormap is None:
        values = _pick_bands(stored.values, stored, "auto", None, path)
        labelled = stored.valid
        if labelled is not None and labelled.ndim == 3:
            labelled = np.asarray(labelled.all(axis=0))
        return LabelParts(values, labelled, stored.nodata, stored.place)
    # which entries of a colour table are drawn transparent says nothing of what they stand for
    colors = _apply_colormap(stored, path) if expand_colors else stored.values[..., None]
    return LabelParts(np.moveaxis(colors, -1, 0), None, stored.nodata, stored.place)


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
    axis = stored_band_axis(stored, band_axis, path)
    height, width = (n for i, n in enumerate(stored.shape) if i != axis)
    return stored.shape[axis], height, width


def read_pixel_m(path: str | Path, *, array_key: str | None = None) -> float | None:
    """Metres per pixel on the ground as the file says; None where it does not, as a PNG."""
    path = Path(path)
    return read_stored(path, array_key, decode=False).pixel_m if _may_have_place(path) else None


def read_place(path: str | Path, *, array_key: str | None = None) -> Place | None:
    """Where the file says that it lies; None where it does not, as a PNG."""
    path = Path(path)
    return read_stored(path, array_key, decode=False).place if _may_have_place(path) else None


def _may_have_place(path: Path) -> bool:
    return is_remote(path) or path.suffix.lower() not in WITHOUT_PLACE


def measured_numbers(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """(C, H, W) bool of (C, H, W) values; nodata is compared in the file's own precision."""
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
    return good


def _pick_bands(
    values: np.ndarray, stored: StoredImage, band_axis: BandAxis, bands: tuple[int, ...] | None, path: Path
) -> np.ndarray:
    values = (
        values[None]
        if values.ndim == 2
        else np.moveaxis(values, stored_band_axis(stored, band_axis, path), 0)
    )
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


def stored_band_axis(stored: StoredImage, band_axis: BandAxis, path: Path) -> int:
    """Which axis of a file with three holds the bands; InputError where nobody says and none stands out."""
    shape = stored.shape
    if band_axis != "auto":
        return 0 if band_axis == "first" else 2
    if stored.sample_axis is not None:
        return stored.sample_axis
    short = [axis for axis in (0, 2) if shape[axis] <= MAX_AUTO_BANDS]
    if len(short) == 1 and all(2 * shape[short[0]] <= n for i, n in enumerate(shape) if i != short[0]):
        return short[0]
    raise InputError(
        f"cannot tell which axis of {path} holds the bands",
        got=f"shape {shape}",
        expected=f"one outer axis of at most {MAX_AUTO_BANDS}, the others at least twice as long",
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
