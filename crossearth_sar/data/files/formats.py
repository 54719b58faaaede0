"""Decoding one image file, or only its header, by its name; a damaged file is an error that names it.

PNG, JPEG and BMP go through pillow, TIFF and GeoTIFF through tifffile, NPY and NPZ through numpy with
pickling off: own readers, that need nothing more. HDF5 goes through h5py, SICD and SIDD through sarkit, and
all else, and all that is no local file, through rasterio, where these are installed. An alpha band, a
transparent value and a mask beside the file (`NAME.msk`, as GDAL writes it) say which pixels are there and
are no bands. What this is not: an opinion on the axes or the values; `readers.py` says which axis holds the
bands and which pixels are valid.

H W pixels.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from crossearth_sar.data.files.bounds import require_room
from crossearth_sar.data.files.hdf import hdf_block_rows, is_hdf, read_hdf
from crossearth_sar.data.files.names import is_product, is_remote, members
from crossearth_sar.data.files.nitf import nitf_block_rows, read_nitf
from crossearth_sar.data.files.raster import raster_block_rows, read_raster
from crossearth_sar.data.files.several import stacked
from crossearth_sar.data.files.stored import StoredImage, Window, both_valid, split_alpha
from crossearth_sar.data.files.tiff import read_mask_file, read_tiff
from crossearth_sar.errors import InputError, nearest

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
)  # what pillow, tifffile, imagecodecs and numpy raise on damaged files, seen by damaging thousands


class PartReader(NamedTuple):
    """A library's reader, that reads windows by itself.

    read: (path, array_key, decode=, window=) -> StoredImage. block_rows: (path, array_key) -> how many rows
    are decoded at least, None where that is all of them.
    """

    read: Callable[..., StoredImage]
    block_rows: Callable[[Path, str | None], int | None]


def part_reader(path: Path) -> PartReader | None:
    """Whoever reads this file; None: one of the own readers, whose windows are in `windows.py`."""
    suffix = path.suffix.lower()
    if is_remote(path):
        return _RASTER
    if suffix in _READERS:
        return None
    if suffix in _HDF_SUFFIXES and path.is_file() and is_hdf(path):
        return PartReader(read_hdf, hdf_block_rows)
    if suffix in NITF_SUFFIXES and path.is_file():
        return PartReader(read_nitf, lambda path, _: nitf_block_rows(path))
    return _RASTER


_RASTER = PartReader(read_raster, raster_block_rows)
_HDF_SUFFIXES = (".h5", ".hdf5", ".he5", ".hdf", ".nc", ".nc4")
NITF_SUFFIXES = (".ntf", ".nitf", ".nsf")


def read_stored(
    path: Path, array_key: str | None, *, decode: bool, window: Window | None = None
) -> StoredImage:
    """Opens a file by its name; everything a decoder raises becomes an InputError that names the file.

    Args:
        window: decodes the rectangle alone; for a `part_reader`.
    """
    files = members(path)
    if files != (path,):
        parts = [read_stored(file, array_key, decode=decode, window=window) for file in files]
        return stacked(parts, files, path)
    if not (is_remote(path) or path.is_file() or is_product(path)):
        raise InputError(
            f"cannot read {path}", got="a folder" if path.is_dir() else "no such file", fix="correct the path"
        )
    reader = part_reader(path)
    with decoding(path):
        if reader is not None:
            stored = reader.read(path, array_key, decode=decode, window=window)
        else:
            assert window is None, "own readers have windows.py"
            stored = _masked_beside(_READERS[path.suffix.lower()](path, array_key, decode), path)
    return _checked(stored, path)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Everything that a decoder raises becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        message = " ".join(str(error).split())[:200]
        lacks_codec = isinstance(error, ImportError) or "requires the 'imagecodecs' package" in message
        size = f", {path.stat().st_size} bytes" if path.is_file() else ""
        raise InputError(
            f"cannot read {path}",
            got=f"{message} ({type(error).__name__}{size})",
            expected=f"a whole {path.suffix} file",
            fix="pip install imagecodecs" if lacks_codec else "it is damaged or cut short: get it anew",
        ) from error


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


def _masked_beside(stored: StoredImage, path: Path) -> StoredImage:
    """With the mask that lies beside the file, where there is one and pixels were decoded."""
    beside = path.with_name(f"{path.name}.msk")
    if stored.values is None or not beside.is_file():
        return stored
    mask = read_mask_file(beside)
    if mask.shape not in (stored.shape[:2], stored.shape[-2:]):
        raise InputError(
            f"the mask {beside} has another size than its image",
            got=f"{mask.shape[0]} x {mask.shape[1]}, image {stored.shape}",
            fix="make it anew, or remove it",
        )
    return replace(stored, valid=both_valid(stored.valid, mask))


_PICTURES = ("PNG", "JPEG", "BMP")
"""All that pillow is asked for: left alone, it goes by the content, and gives PostScript to Ghostscript."""

_PIXEL = {"I": "i4", "F": "f4", "I;16": "u2", "I;16B": "u2"}
"""What pillow keeps of a pixel and band, where that is no byte."""


def _read_pillow(path: Path, array_key: str | None, decode: bool) -> StoredImage:
    with _any_size(), Image.open(path, formats=_PICTURES) as image:
        require_room(path, (image.height, image.width, len(image.getbands())), _PIXEL.get(image.mode, "u1"))
        bands, has_alpha = len(image.getbands()), image.getbands()[-1] == "A"
        raw_mode = str(image.tile[0][3]) if image.tile else ""
        if bands > 1 and "16" in raw_mode:
            raise InputError(
                f"{path} is a colour image of 16 bits, which would be cut to 8",
                got=raw_mode,
                expected="one band of 16 bits, or 8 bits",
                fix="convert it to TIFF",
            )
        left = bands - has_alpha
        shape: tuple[int, ...] = (image.height, image.width) + ((left,) if left > 1 else ())
        if not decode and image.format != "BMP":
            image.verify()
            if image.format == "JPEG":
                _require_jpeg_end(path)
            return StoredImage(shape, None, 2 if left > 1 else None)
        image.load()
        colormap = None
        if image.mode == "P":
            flat = image.getpalette("RGB")
            assert flat is not None
            colormap = np.array(flat, np.uint8).reshape(-1, 3)
        values = np.array(image)
        valid = _not_transparent(values, image.info.get("transparency"))
    if has_alpha:
        values, valid = split_alpha(values, 2, bands - 1, path)
    return StoredImage(shape, values, 2 if left > 1 else None, None, colormap, valid=valid)


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow without its limit of 179 million pixels, fewer than a strip has; ours goes by the file."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _not_transparent(
    values: np.ndarray, transparent: int | tuple[int, ...] | bytes | None
) -> np.ndarray | None:
    """(H, W) bool of a PNG that calls a grey value, a colour or entries of its colour table transparent."""
    if transparent is None:
        return None
    if isinstance(transparent, bytes):  # the alpha of each entry, those of the rest are opaque
        opaque = np.ones(256, bool)
        opaque[: len(transparent)] = np.frombuffer(transparent, np.uint8) != 0
        return opaque[values]
    different = values != np.array(transparent)
    return np.asarray(different.any(-1) if different.ndim == 3 else different)


def _require_jpeg_end(path: Path) -> None:
    """Inside JPEG's coded data FF is never followed by D9, so the marker near the end means a whole file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if b"\xff\xd9" not in file.read():
            raise EOFError("no end of image: the file is truncated")


def _read_tiff(path: Path, array_key: str | None, decode: bool) -> StoredImage:
    return read_tiff(path, decode=decode)


def _read_npy(path: Path, array_key: str | None, decode: bool) -> StoredImage:
    if not decode:  # mapping fails when the file is shorter than its header says
        return StoredImage(np.load(path, mmap_mode="r", allow_pickle=False).shape, None)
    with path.open("rb") as file:
        require_room(path, *_npy_header(file))
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
        with archive.zip.open(f"{key}.npy") as member:
            shape, dtype = _npy_header(member)
        if not decode:
            return StoredImage(shape, None)
        require_room(path, shape, dtype)
        values = archive[key]
        return StoredImage(values.shape, values)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    npy = np.lib.format
    is_first = npy.read_magic(file) == (1, 0)
    shape, _, dtype = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)
    return shape, dtype


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
WITHOUT_PLACE = (".png", ".jpg", ".jpeg", ".bmp", ".npy", ".npz")
"""Suffixes of files that do not say where they lie, nor how long their pixels are on the ground."""
