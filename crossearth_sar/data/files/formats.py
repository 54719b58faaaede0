"""Decoding one image file, or only its header, by its suffix; a damaged file is an error that names it.

PNG, JPEG and BMP go through pillow, TIFF and GeoTIFF through tifffile, NPY and NPZ through numpy with
pickling off. GDAL's nodata tag and the ground spacing are read from the TIFF itself, so no rasterio is
needed. What this is not: an opinion on the axes or the values; `readers.py` says which axis holds the bands
and which pixels are valid.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
from PIL import Image

from crossearth_sar.data.files.georeference import tagged_pixel_m
from crossearth_sar.errors import InputError, nearest

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
class StoredImage:
    """A file as stored: `values` is None after a look at the header alone.

    sample_axis: the band axis where the format itself knows it, else None.
    colormap: (N, 3) uint8 of a paletted file, else None.
    pixel_m: metres per pixel on the ground, where a GeoTIFF's tags say so.
    """

    shape: tuple[int, ...]
    values: np.ndarray | None
    sample_axis: int | None = None
    nodata: float | None = None
    colormap: np.ndarray | None = None
    pixel_m: float | None = None


def read_stored(path: Path, array_key: str | None, *, decode: bool) -> StoredImage:
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
    return _checked(stored, path)


def _checked(stored: StoredImage, path: Path) -> StoredImage:
    """Booleans as uint8; InputError where a file holds no image of numbers."""
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


def _read_pillow(path: Path, array_key: str | None, decode: bool) -> StoredImage:
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
            return StoredImage(shape, None, 2 if bands > 1 else None)
        image.load()
        colormap = None
        if image.mode == "P":
            flat = image.getpalette("RGB")
            assert flat is not None
            colormap = np.array(flat, np.uint8).reshape(-1, 3)
        values = np.array(image)
    return StoredImage(shape, values, 2 if bands > 1 else None, None, colormap)


def _require_jpeg_end(path: Path) -> None:
    """Inside JPEG's coded data FF is never followed by D9, so the marker near the end means a whole file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if b"\xff\xd9" not in file.read():
            raise EOFError("no end of image: the file is truncated")


def _read_tiff(path: Path, array_key: str | None, decode: bool) -> StoredImage:
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
        nodata, pixel_m = _gdal_nodata(page, path), tagged_pixel_m(page)
        return StoredImage(tuple(series.shape), values, sample_axis, nodata, colormap, pixel_m)


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


def _read_npy(path: Path, array_key: str | None, decode: bool) -> StoredImage:
    if not decode:  # mapping fails when the file is shorter than its header says
        return StoredImage(np.load(path, mmap_mode="r", allow_pickle=False).shape, None)
    values = np.load(path, allow_pickle=False)
    return StoredImage(values.shape, values)


def _read_npz(path: Path, array_key: str | None, decode: bool) -> StoredImage:
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
            return StoredImage(values.shape, values)
        with archive.zip.open(f"{key}.npy") as member:
            return StoredImage(_npy_header_shape(member), None)


def _npy_header_shape(file: IO[bytes]) -> tuple[int, ...]:
    npy = np.lib.format
    is_first = npy.read_magic(file) == (1, 0)
    shape, _, _ = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)
    return shape


_READERS: dict[str, Callable[[Path, str | None, bool], StoredImage]] = {
    ".png": _read_pillow,
    ".jpg": _read_pillow,
    ".jpeg": _read_pillow,
    ".bmp": _read_pillow,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
