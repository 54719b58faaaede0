"""Reading one SAR image file, and turning its values into linear amplitude.

PNG, JPEG and BMP go through pillow, TIFF and GeoTIFF through tifffile, NPY and NPZ through numpy with
pickling off. GDAL's nodata tag is read from the TIFF itself, so no rasterio is needed. A file is decoded
whole: cutting tiles out of it is `folder.py`'s work. What this is not: a product reader; Sentinel-1 SAFE
and CEOS folders are to be exported to GeoTIFF first, and georeferencing is not looked at here.

C bands, H W pixels.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import tifffile
from PIL import Image

from crossearth_sar.errors import InputError, nearest

BandAxis = Literal["auto", "first", "last"]
ValueKind = Literal["amplitude", "intensity", "db", "complex"]

MAX_AUTO_BANDS = 16
"""`band_axis="auto"` takes no axis longer than this for the bands."""

MAX_PLAUSIBLE_DB = 150.0
"""A dB value beyond this on either side is something else: a nodata number, or linear values."""

_GDAL_NODATA = 42113
_DECODE_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    ImportError,
    AssertionError,
    MemoryError,
    EOFError,
    SyntaxError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
    Image.DecompressionBombError,
)  # what pillow, tifffile, imagecodecs and numpy raise on damaged files, seen by damaging thousands


@dataclass(frozen=True)
class RawImage:
    """A decoded file before its values mean anything.

    values: (C, H, W) in the file's own dtype, real or complex.
    valid: (H, W) bool; False where any kept band is NaN, infinite or the nodata value.
    path: where it came from, for messages.
    """

    values: np.ndarray
    valid: np.ndarray
    path: Path


@dataclass(frozen=True)
class _Stored:
    """A file as stored: `values` is None after a look at the header alone.

    sample_axis: the band axis where the format itself knows it, else None.
    colormap: (N, 3) uint8 of a paletted file, else None.
    """

    shape: tuple[int, ...]
    values: np.ndarray | None
    sample_axis: int | None = None
    nodata: float | None = None
    colormap: np.ndarray | None = None


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
    stored = _read(path, array_key, decode=True)
    values = _pick_bands(_colormap_to_grey(stored, path), stored, band_axis, bands, path)
    valid = _valid_pixels(values, stored.nodata if nodata is None else nodata)
    if not valid.any():
        raise InputError(
            f"{path} has no valid pixel",
            got=f"{valid.size} pixels, all NaN, infinite or nodata",
            expected="at least one measured pixel",
            fix="leave this file out, or correct the nodata value",
        )
    return RawImage(values, valid, path)


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
    stored = _read(path, array_key, decode=True)
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
    stored = _read(path, array_key, decode=False)
    if len(stored.shape) == 2:
        return 1, stored.shape[0], stored.shape[1]
    axis = _band_axis(stored, band_axis, path)
    height, width = (n for i, n in enumerate(stored.shape) if i != axis)
    return stored.shape[axis], height, width


def to_amplitude(
    values: np.ndarray, kind: ValueKind, *, valid: np.ndarray | None = None, name: object = "image"
) -> np.ndarray:
    """Linear amplitude, float32, finite and >= 0, of values in any of the usual forms.

    "amplitude" as it is, "intensity" its square root, "db" 10**(dB/20) (dB of power: 10 log10 of
    intensity), "complex" its magnitude.

    Args:
        values: (C, H, W) or any shape ending in (H, W).
        kind: what the values are; a complex dtype must be declared "complex" and nothing else may.
        valid: (H, W) bool; other pixels are neither judged nor kept, they become 0. None: finite ones.
        name: what to call the image in a message, usually its path.

    Raises:
        InputError: for complex values under another kind and the reverse, negative amplitudes or
            intensities, dB values beyond 150 on either side, and what does not fit float32.
    """
    is_complex = np.iscomplexobj(values)
    if is_complex != (kind == "complex"):
        raise InputError(
            f"{name} is {'complex' if is_complex else 'real'} but its values are declared {kind!r}",
            got=f"dtype {values.dtype}",
            expected="values: complex for complex dtypes and for no other",
            fix="declare values: complex" if is_complex else "declare values: amplitude, intensity or db",
        )
    if valid is None:
        valid = np.isfinite(values).reshape(-1, *values.shape[-2:]).all(axis=0)
    values = np.where(valid, values, values.dtype.type(0))
    if kind == "complex":
        amplitude = np.abs(values)
    else:
        values = values.astype(np.result_type(values, np.float32), copy=False)
        _refuse_implausible(values, kind, name)
        if kind == "db":
            amplitude = np.where(valid, 10.0 ** (values / 20), 0.0)
        else:
            amplitude = np.sqrt(values) if kind == "intensity" else values
    with np.errstate(over="ignore"):
        amplitude = amplitude.astype(np.float32)
    if not np.isfinite(amplitude).all():
        raise InputError(
            f"{name} has values that float32 cannot hold",
            got=f"up to {np.abs(values).max():g}",
            expected="amplitudes below 3e38",
            fix="divide the image by a constant",
        )
    return amplitude


def _refuse_implausible(values: np.ndarray, kind: ValueKind, name: object) -> None:
    wrong = np.abs(values) > MAX_PLAUSIBLE_DB if kind == "db" else values < 0
    count = int(np.count_nonzero(wrong))
    if not count:
        return
    low, high = values[wrong].min(), values[wrong].max()
    got = f"{count} of {values.size} values, from {low:g} to {high:g}"
    likely_nodata = f"if {low:g} marks pixels without a measurement, set nodata: {low:g}"
    if kind == "db":
        raise InputError(
            f"{name} has values that are no decibels",
            got=got,
            expected=f"dB between -{MAX_PLAUSIBLE_DB:g} and {MAX_PLAUSIBLE_DB:g}",
            fix=likely_nodata
            if low == high
            else "declare values: intensity or values: amplitude if the image is linear",
        )
    fix = "declare values: db if the image is in decibels"
    if low == high:
        fix = f"{likely_nodata}; {fix}"
    elif count < 0.01 * values.size:
        fix = f"{fix}; so few may also be left by noise subtraction: set them to a nodata value"
    raise InputError(
        f"{name} has negative values but is declared {kind!r}", got=got, expected="values >= 0", fix=fix
    )


def _valid_pixels(values: np.ndarray, nodata: float | None) -> np.ndarray:
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


# --- axes and bands ---------------------------------------------------------------------------------------


def _pick_bands(
    values: np.ndarray, stored: _Stored, band_axis: BandAxis, bands: tuple[int, ...] | None, path: Path
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


def _band_axis(stored: _Stored, band_axis: BandAxis, path: Path) -> int:
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


def _colormap_to_grey(stored: _Stored, path: Path) -> np.ndarray:
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


def _apply_colormap(stored: _Stored, path: Path) -> np.ndarray:
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


# --- formats ----------------------------------------------------------------------------------------------


def _read(path: Path, array_key: str | None, *, decode: bool) -> _Stored:
    """Opens a file by its suffix; everything a decoder raises becomes an InputError that names the file."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(
            f"cannot read {path}: unknown kind of file",
            got=f"suffix {path.suffix!r}",
            expected=f"one of {', '.join(_READERS)}",
            fix="convert it, to GeoTIFF for instance",
        )
    if not path.is_file():
        raise InputError(
            f"cannot read {path}", got="a folder" if path.is_dir() else "no such file", fix="correct the path"
        )
    try:
        stored = read(path, array_key, decode)
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        message = " ".join(str(error).split())[:200]
        lacks_codec = isinstance(error, ImportError) or "requires the 'imagecodecs' package" in message
        raise InputError(
            f"cannot read {path}",
            got=f"{message} ({type(error).__name__}, {path.stat().st_size} bytes)",
            expected=f"a whole {path.suffix} file",
            fix="pip install imagecodecs" if lacks_codec else "it is damaged or cut short: get it anew",
        ) from error
    if len(stored.shape) not in (2, 3) or 0 in stored.shape:
        raise InputError(
            f"{path} is no image",
            got=f"shape {stored.shape}",
            expected="two or three axes",
            fix="write one file per image, (bands, height, width)",
        )
    if stored.values is None:
        return stored
    if stored.values.dtype.kind == "b":
        return replace(stored, values=stored.values.astype(np.uint8))
    if stored.values.dtype.kind not in "uifc" or stored.values.dtype.itemsize > 16:
        raise InputError(
            f"{path} holds no pixels",
            got=f"dtype {stored.values.dtype}",
            expected="integers, float16 to float64, or complex",
            fix="convert the array",
        )
    return stored


def _read_pillow(path: Path, array_key: str | None, decode: bool) -> _Stored:
    with Image.open(path) as image:
        bands = len(image.getbands())
        shape: tuple[int, ...] = (image.height, image.width) + ((bands,) if bands > 1 else ())
        raw_mode = str(image.tile[0][3]) if image.tile else ""
        if bands > 1 and "16" in raw_mode:
            raise InputError(
                f"{path} is a colour image of 16 bits, which would be cut to 8",
                got=raw_mode,
                expected="one band of 16 bits, or 8 bits",
                fix="convert it to TIFF",
            )
        if not decode and image.format != "BMP":
            image.verify()
            if image.format == "JPEG":
                _require_jpeg_end(path)
            return _Stored(shape, None, 2 if bands > 1 else None)
        image.load()
        colormap = None
        if image.mode == "P":
            flat = image.getpalette("RGB")
            assert flat is not None
            colormap = np.array(flat, np.uint8).reshape(-1, 3)
        values = np.array(image)
    return _Stored(shape, values, 2 if bands > 1 else None, None, colormap)


def _require_jpeg_end(path: Path) -> None:
    """Inside JPEG's coded data FF is never followed by D9, so the marker near the end means a whole file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if b"\xff\xd9" not in file.read():
            raise EOFError("no end of image: the file is truncated")


def _read_tiff(path: Path, array_key: str | None, decode: bool) -> _Stored:
    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        _require_tiff_whole(tiff, series, path)
        axes = series.axes
        sample_axis = axes.index("S") if len(axes) == 3 and axes.count("S") == 1 else None
        if len(series.shape) == 3 and sample_axis == 1:
            raise InputError(
                f"{path} has its bands between the rows and the columns",
                got=f"axes {axes}",
                expected="bands first or last",
                fix="write it as a common GeoTIFF",
            )
        colormap = None
        is_paletted = page.photometric == tifffile.PHOTOMETRIC.PALETTE and len(series.shape) == 2
        if is_paletted and page.colormap is not None:
            colormap = (np.asarray(page.colormap).T // 257).astype(np.uint8)
        values = series.asarray() if decode else None
        if values is not None and values.shape != tuple(series.shape):
            raise ValueError(f"decoded to {values.shape} where the header says {series.shape}")
        return _Stored(tuple(series.shape), values, sample_axis, _gdal_nodata(page, path), colormap)


def _require_tiff_whole(tiff: Any, series: Any, path: Path) -> None:
    """Every strip or tile the header lists, and the whole chain of pages, must lie inside the file."""
    size = path.stat().st_size
    if series.nbytes > max(1 << 28, 4096 * size):  # before anybody allocates it
        raise ValueError(f"{series.nbytes} bytes of pixels are promised, of {size} in the file")
    end = 0
    if series.dataoffset is not None:
        end = series.dataoffset + series.nbytes
    for page in series.pages:
        if page is not None:
            end = max([end, *(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))])
    if end > size:
        raise EOFError(f"pixels up to byte {end} are promised, the file ends at {size}")
    layout, last = tiff.tiff, tiff.pages[len(tiff.pages) - 1]
    file = tiff.filehandle
    file.seek(last.offset)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    if following >= size:  # tifffile logs this and goes on with fewer pages, that is, bands
        raise EOFError(f"a further page is promised at byte {following}, the file ends at {size}")


def _gdal_nodata(page: Any, path: Path) -> float | None:
    tag = page.tags.get(_GDAL_NODATA)
    if tag is None:
        return None
    text = str(tag.value).strip("\0 ")
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"{path} has a nodata tag that is no number",
            got=repr(text),
            expected="a number or nan",
            fix="mend it: gdal_edit.py -a_nodata <number> <file>, or -unsetnodata",
        ) from error


def _read_npy(path: Path, array_key: str | None, decode: bool) -> _Stored:
    if not decode:  # mapping fails when the file is shorter than its header says
        return _Stored(np.load(path, mmap_mode="r", allow_pickle=False).shape, None)
    values = np.load(path, allow_pickle=False)
    return _Stored(values.shape, values)


def _read_npz(path: Path, array_key: str | None, decode: bool) -> _Stored:
    with np.load(path, allow_pickle=False) as archive:
        keys = list(archive.files)
        if array_key is None and len(keys) != 1:
            raise InputError(
                f"{path} holds {len(keys)} arrays",
                got=", ".join(keys),
                expected="one of them",
                fix="name it: array_key",
            )
        key = keys[0] if array_key is None else array_key
        if key not in keys:
            raise InputError(
                f"{path} holds no array {key!r}{nearest(key, keys)}",
                expected=f"one of {', '.join(keys)}",
                fix="correct array_key",
            )
        if decode:
            values = archive[key]
            return _Stored(values.shape, values)
        with archive.zip.open(f"{key}.npy") as member:
            return _Stored(_npy_header_shape(member), None)


def _npy_header_shape(file: IO[bytes]) -> tuple[int, ...]:
    npy = np.lib.format
    is_first = npy.read_magic(file) == (1, 0)
    shape, _, _ = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)
    return shape


_READERS: dict[str, Callable[[Path, str | None, bool], _Stored]] = {
    ".png": _read_pillow,
    ".jpg": _read_pillow,
    ".jpeg": _read_pillow,
    ".bmp": _read_pillow,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
