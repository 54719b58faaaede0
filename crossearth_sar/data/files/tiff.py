"""Decoding a TIFF, whole or a rectangle of it, and what its tags say: which pixels are there, scale, nodata.

Alpha samples, mask directories and the empty tiles of sparse files decide which pixels are there and are
never bands, as GDAL has it. Tags are read from the file itself, so no rasterio is needed.

C bands, H W pixels, h w pixels of a rectangle.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from crossearth_sar.data.files.bounds import require_room
from crossearth_sar.data.files.georeference import tagged_pixel_m, tagged_place
from crossearth_sar.data.files.stored import StoredImage, both_valid, shape_without_alpha, split_alpha
from crossearth_sar.errors import InputError

_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_ALPHA = (1, 2)  # ExtraSamples: associated and unassociated


def _is_not_of_nodata(record: logging.LogRecord) -> bool:
    return "GDAL_NODATA" not in record.getMessage()


logging.getLogger("tifffile").addFilter(_is_not_of_nodata)  # a tag it cannot cast; it is read here, and used


def read_tiff(path: Path, *, decode: bool) -> StoredImage:
    """The first image of the file; its overviews are not looked at."""
    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        _require_tiff_whole(tiff, series, path)
        mask = mask_page(tiff, page)
        source = page if any(part is mask for part in series.pages if mask is not None) else series
        axes, shape = source.axes, tuple(source.shape)
        sample_axis = axes.index("S") if len(axes) == 3 and axes.count("S") == 1 else None
        if len(shape) == 3 and sample_axis == 1:
            raise InputError(
                f"{path} has its bands between the rows and the columns",
                got=f"axes {axes}",
                expected="bands first or last",
                fix="write it as a common GeoTIFF",
            )
        alpha = alpha_sample(page) if sample_axis is not None else None
        values, valid = None, None
        if decode:
            require_room(path, shape, series.dtype)
            values = source.asarray()
            if values.shape != shape:
                raise ValueError(f"decoded to {values.shape} where the header says {shape}")
            valid = _full_tiles([part for part in series.pages if part is not None])
            if mask is not None:
                valid = both_valid(valid, np.asarray(mask.asarray() != 0))
        if alpha is not None:
            assert sample_axis is not None
            if values is not None:
                values, seen = split_alpha(values, sample_axis, alpha, path)
                valid = both_valid(valid, seen)
            shape = shape_without_alpha(shape, sample_axis)
        return StoredImage(
            shape,
            values,
            sample_axis if len(shape) == 3 else None,
            gdal_nodata(page, path),
            _colormap(page, shape),
            tagged_pixel_m(page),
            valid,
            gdal_scales(page),
            tagged_place(page),
        )


def read_mask_file(path: Path) -> np.ndarray:
    """(H, W) bool of a mask beside an image, as GDAL writes it: a TIFF that is 0 where nothing is."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        require_room(path, page.shape, page.dtype)
        seen = np.asarray(page.asarray() != 0)
        axis = page.axes.find("S")
    return seen if axis < 0 else np.asarray(seen.all(axis))


def alpha_sample(page: Any) -> int | None:
    """Which of a page's samples is alpha; None where none is."""
    extra = [int(kind) for kind in page.extrasamples]
    found = [page.samplesperpixel - len(extra) + i for i, kind in enumerate(extra) if kind in _ALPHA]
    return found[0] if found and page.samplesperpixel > 1 else None


def mask_page(tiff: Any, page: Any) -> Any | None:
    """The directory that masks `page`, of its size; not those of overviews."""
    size = (page.imagelength, page.imagewidth)
    for other in tiff.pages:
        kind = int(getattr(other, "subfiletype", 0))
        if kind & _MASK and not kind & _REDUCED and (other.imagelength, other.imagewidth) == size:
            return other
    return None


def segment_grid(page: Any) -> tuple[int, int, int, int, int]:
    """(planes, down, across, height, width): how many strips or tiles there are, and the size of each."""
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    width = page.tilewidth if page.is_tiled else page.imagewidth
    planes = page.samplesperpixel if page.axes.startswith("S") else 1
    return planes, math.ceil(page.imagelength / height), math.ceil(page.imagewidth / width), height, width


def _full_tiles(pages: Sequence[Any]) -> np.ndarray | None:
    """(H, W) bool, False in tiles or strips that a sparse file does not store; None where none is missing."""
    valid = None
    for page in pages:
        stored = np.array(page.databytecounts) != 0
        page = page.keyframe
        planes, down, across, height, width = segment_grid(page)
        if stored.all() or stored.size != planes * down * across:
            continue
        tiles = stored.reshape(planes, down, across).all(0)
        whole = tiles.repeat(height, 0)[: page.imagelength].repeat(width, 1)[:, : page.imagewidth]
        valid = both_valid(valid, whole)
    return valid


def _colormap(page: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    is_paletted = page.photometric == tifffile.PHOTOMETRIC.PALETTE and len(shape) == 2
    if not is_paletted or page.colormap is None:
        return None
    return (np.asarray(page.colormap).T // 257).astype(np.uint8)


def _require_tiff_whole(tiff: Any, series: Any, path: Path) -> None:
    """Every strip or tile the header lists, and the whole chain of pages, must lie inside the file."""
    size = path.stat().st_size
    pages = [page for page in series.pages if page is not None]
    counts = [count for page in pages for count in page.databytecounts]
    stored = series.nbytes * sum(count > 0 for count in counts) // max(len(counts), 1)  # not in empty tiles
    require_room(path, (stored,), np.uint8)
    end = 0
    if series.dataoffset is not None:
        end = series.dataoffset + series.nbytes
    for page in pages:
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


def gdal_nodata(page: Any, path: Path) -> float | None:
    """The number in GDAL's nodata tag.

    Raises:
        InputError: it is no number.
    """
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


def gdal_scales(page: Any) -> tuple[tuple[float, float], ...] | None:
    """(scale, offset) of each band that is no alpha, as GDAL's metadata tag has them; None without any."""
    tag = page.tags.get(_GDAL_METADATA)
    text = "" if tag is None else str(tag.value).strip("\0 ")
    if "scale" not in text and "offset" not in text:
        return None
    found: dict[tuple[str, int], float] = {}
    try:
        for item in ElementTree.fromstring(text).iter("Item"):
            role = item.get("role", "")
            if role in ("scale", "offset"):
                found[role, int(item.get("sample", "0"))] = float(item.text or "")
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"GDAL's metadata tag has no readable scale or offset: {error}") from error
    bands = [band for band in range(page.samplesperpixel) if band != alpha_sample(page)]
    pairs = tuple((found.get(("scale", band), 1.0), found.get(("offset", band), 0.0)) for band in bands)
    return pairs if any(pair != (1.0, 0.0) for pair in pairs) else None
