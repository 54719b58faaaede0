"""Reading a rectangle of an image file without decoding the rest, where the format allows it.

A satellite scene of 5556 x 3704 holds 88 patches; decoding all of it for each would cost most of the reading
time. Of a TIFF only the strips or tiles under the rectangle are decoded (an uncompressed one is mapped), an
NPY file is mapped; h5py, sarkit and rasterio read their own windows; other formats are decoded whole and cut.
What this is not: a cache.

C bands, H W pixels, h w pixels of the rectangle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import tifffile

from crossearth_sar.data.files.formats import decoding, part_reader, read_stored
from crossearth_sar.data.files.georeference import tagged_pixel_m
from crossearth_sar.data.files.names import members
from crossearth_sar.data.files.readers import (
    BandAxis,
    LabelParts,
    RawImage,
    Reading,
    label_parts,
    raw_image,
    read_shape,
    stored_band_axis,
)
from crossearth_sar.data.files.several import stacked
from crossearth_sar.data.files.stored import StoredImage, Window, both_valid, split_alpha
from crossearth_sar.data.files.tiff import alpha_sample, gdal_nodata, gdal_scales, mask_page, segment_grid
from crossearth_sar.errors import InputError


def read_image_window(
    path: str | Path, window: Window, *, shape: tuple[int, int, int] | None = None, **how: Unpack[Reading]
) -> RawImage:
    """The rectangle as `readers.read_image` reads whole files; its place is not known, nor need it be valid.

    Args:
        shape: what `readers.read_shape` said of the file, for whoever reads many windows of one; None: it is
            looked at again.

    Raises:
        InputError: the file cannot be read, a band does not exist, or the rectangle reaches beyond it.
    """
    axis, key = how.get("band_axis", "auto"), how.get("array_key")
    stored = stored_window(Path(path), window, axis, key, shape)
    if stored.sample_axis is not None:
        how = {**how, "band_axis": "auto"}
    return raw_image(stored, Path(path), **how)


def read_label_window(
    path: str | Path,
    window: Window,
    *,
    shape: tuple[int, int, int] | None = None,
    expand_colors: bool = False,
) -> LabelParts:
    """The rectangle as `readers.read_label_parts` reads whole files; `shape` and errors as in
    `read_image_window`."""
    stored = stored_window(Path(path), window, shape=shape)
    return label_parts(stored, Path(path), expand_colors=expand_colors)


def stored_window(
    path: Path,
    window: Window,
    band_axis: BandAxis = "auto",
    array_key: str | None = None,
    shape: tuple[int, int, int] | None = None,
) -> StoredImage:
    """What `formats.read_stored` gives of the rectangle alone; `shape` and errors as in
    `read_image_window`."""
    files = members(path)
    if files != (path,):
        parts = [stored_window(file, window, "auto", array_key) for file in files]
        return stacked(parts, files, path)
    if shape is None:
        shape = read_shape(path, band_axis=band_axis, array_key=array_key)  # finds truncated files, too
    bands, height, width = shape
    inside = 0 <= window.top <= height - window.height and 0 <= window.left <= width - window.width
    if not inside:
        raise InputError(
            f"{path} is smaller than the part to read", got=f"{height} x {width}", expected=window
        )
    stored, reader = None, part_reader(path)
    if reader is not None:
        if reader.block_rows(path, array_key) is not None:
            stored = read_stored(path, array_key, decode=True, window=window)
    elif _is_read_in_parts(path, band_axis):
        with decoding(path):
            stored = _tiff_window(path, window)
    elif path.suffix.lower() == ".npy":
        with decoding(path):
            stored = _npy_window(path, window, (bands, height, width))
    if stored is None:
        stored = _cut(read_stored(path, array_key, decode=True), path, window, band_axis)
    return stored


def _cut(stored: StoredImage, path: Path, window: Window, band_axis: BandAxis) -> StoredImage:
    assert stored.values is not None
    rows, columns = window.slices
    values, axis = stored.values, stored.sample_axis
    if values.ndim == 3:
        values, axis = np.moveaxis(values, stored_band_axis(stored, band_axis, path), 0), 0
    values = values[..., rows, columns]
    valid = None if stored.valid is None else stored.valid[..., rows, columns]
    return replace(stored, shape=values.shape, values=values, sample_axis=axis, valid=valid, place=None)


def block_rows(path: Path, *, band_axis: BandAxis = "auto", array_key: str | None = None) -> int | None:
    """How many rows of a file `read_image_window` decodes at least; None where that is all of them."""
    files = members(path)
    if files != (path,):
        each = [block_rows(file, array_key=array_key) for file in files]
        return max((rows for rows in each if rows is not None), default=None) if None not in each else None
    reader = part_reader(path)
    if reader is not None:
        with decoding(path):
            return reader.block_rows(path, array_key)
    if path.suffix.lower() == ".npy":
        return 1
    if not _is_read_in_parts(path, band_axis):
        return None
    with decoding(path), tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        if not _is_plain(series, page):
            return None
        if page.is_memmappable:
            return 1
        rows = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))
        return rows if rows < page.imagelength else None


def _is_read_in_parts(path: Path, band_axis: BandAxis) -> bool:
    is_masked_beside = path.with_name(f"{path.name}.msk").is_file()
    return path.suffix.lower() in (".tif", ".tiff") and band_axis == "auto" and not is_masked_beside


def _npy_window(path: Path, window: Window, shape: tuple[int, int, int]) -> StoredImage:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    rows, columns = window.slices
    if mapped.ndim == 2:
        values, axis = np.array(mapped[rows, columns]), None
    elif mapped.shape == shape:  # where both axes would fit, read_shape asked which it is
        values, axis = np.array(mapped[:, rows, columns]), 0
    else:
        values, axis = np.ascontiguousarray(np.moveaxis(mapped[rows, columns], -1, 0)), 0
    return StoredImage(values.shape, values, axis)


def _tiff_window(path: Path, window: Window) -> StoredImage | None:
    """None where the file is not one plain image: several pages, a colour table, or a small one."""
    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        whole = (window.height, window.width) == (page.imagelength, page.imagewidth)
        if not _is_plain(series, page) or whole:
            return None
        return _plain_window(tiff, page, path, window)


def _is_plain(series: Any, page: Any) -> bool:
    return (
        len(series.pages) == 1
        and page.axes in ("YX", "YXS", "SYX")
        and page.photometric != tifffile.PHOTOMETRIC.PALETTE
    )


def _plain_window(tiff: Any, page: Any, path: Path, window: Window) -> StoredImage:
    if page.is_memmappable:
        values, valid = _bands_first(tifffile.memmap(path, mode="r"), page.axes, window), None
    else:
        values, valid = _decode_segments(tiff, page, window)
    alpha = alpha_sample(page)
    if alpha is not None:
        values, seen = split_alpha(values, 0, alpha, path)
        valid = both_valid(valid, seen)
    mask = mask_page(tiff, page)
    if mask is not None:
        valid = both_valid(valid, _decode_segments(tiff, mask, window)[0][0] != 0)
    axis = 0 if values.ndim == 3 else None
    if values.ndim == 3 and len(values) == 1:
        values, axis = values[0], None
    nodata, scales = gdal_nodata(page, path), gdal_scales(page)
    return StoredImage(
        values.shape, values, axis, nodata, pixel_m=tagged_pixel_m(page), valid=valid, scales=scales
    )


def _bands_first(values: np.ndarray, axes: str, window: Window) -> np.ndarray:
    rows, columns = window.slices
    if axes == "YX":
        return np.array(values[rows, columns])[None]
    if axes == "YXS":
        return np.ascontiguousarray(np.moveaxis(values[rows, columns], -1, 0))
    return np.array(values[:, rows, columns])


def _decode_segments(tiff: Any, page: Any, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
    """The strips or tiles under the window, each decoded once: (C, h, w), and (h, w) False in those that a
    sparse file does not store."""
    planes, down, across, side_h, side_w = segment_grid(page)
    out = np.zeros((page.samplesperpixel, window.height, window.width), page.dtype)
    valid: np.ndarray | None = None
    bottom, right = window.top + window.height, window.left + window.width
    for plane in range(planes):
        for i in range(window.top // side_h, -(-bottom // side_h)):
            for j in range(window.left // side_w, -(-right // side_w)):
                index = (plane * down + i) * across + j
                top, left = max(window.top, i * side_h), max(window.left, j * side_w)
                below, beyond = min(bottom, (i + 1) * side_h), min(right, (j + 1) * side_w)
                here = (
                    slice(top - window.top, below - window.top),
                    slice(left - window.left, beyond - window.left),
                )
                if not page.databytecounts[index]:
                    valid = np.ones((window.height, window.width), bool) if valid is None else valid
                    valid[here] = False
                    continue
                tiff.filehandle.seek(page.dataoffsets[index])
                data = tiff.filehandle.read(page.databytecounts[index])
                segment = page.decode(data, index, jpegtables=page.jpegtables)[0]
                part = np.moveaxis(segment[0], -1, 0)  # (depth, h, w, samples) -> (samples, h, w)
                target = slice(plane, plane + 1) if planes > 1 else slice(None)
                out[(target, *here)] = part[
                    :, top - i * side_h : below - i * side_h, left - j * side_w : beyond - j * side_w
                ]
    return out, valid
