"""Reading a rectangle of an image file without decoding the rest, where the format allows it.

A satellite scene of 5556 x 3704 holds 88 patches; decoding all of it for each would cost most of the reading
time. Of a TIFF only the strips or tiles under the rectangle are decoded (an uncompressed one is mapped), an
NPY file is mapped; other formats are decoded whole and cut. What this is not: a cache.

C bands, H W pixels, h w pixels of the rectangle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from crossearth_sar.data.files.readers import BandAxis, read_bands, read_shape
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


def read_window(
    path: str | Path, window: Window, *, band_axis: BandAxis = "auto", expand_colors: bool = False
) -> np.ndarray:
    """(C, h, w) numbers of the file at `path`, in its own dtype.

    Args:
        band_axis: as in `readers.read_image`.
        expand_colors: whether a paletted file gives its colours, as `readers.read_bands` with "expand".

    Raises:
        InputError: the file cannot be read, or the rectangle reaches beyond it.
    """
    path = Path(path)
    bands, height, width = read_shape(path, band_axis=band_axis)  # finds truncated files, too
    inside = 0 <= window.top <= height - window.height and 0 <= window.left <= width - window.width
    if not inside:
        raise InputError(
            f"{path} is smaller than the part to read", got=f"{height} x {width}", expected=window
        )
    values = None
    if path.suffix.lower() in (".tif", ".tiff") and band_axis == "auto":
        values = _tiff_window(path, window)
    elif path.suffix.lower() == ".npy":
        values = _npy_window(path, window, (bands, height, width))
    if values is not None:
        return values
    rows, columns = window.slices
    whole = read_bands(path, colormap="expand" if expand_colors else "index", band_axis=band_axis)
    return np.ascontiguousarray(whole[:, rows, columns])


def block_rows(path: Path, *, band_axis: BandAxis = "auto") -> int | None:
    """How many rows of a file `read_window` decodes at least; None where that is all of them."""
    if path.suffix.lower() == ".npy":
        return 1
    if path.suffix.lower() not in (".tif", ".tiff") or band_axis != "auto":
        return None
    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        if not _is_plain(series, page):
            return None
        if page.is_memmappable:
            return 1
        rows = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))
        return rows if rows < page.imagelength else None


def _npy_window(path: Path, window: Window, shape: tuple[int, int, int]) -> np.ndarray:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    rows, columns = window.slices
    if mapped.ndim == 2:
        return np.array(mapped[rows, columns])[None]
    if mapped.shape == shape:  # where both axes would fit, read_shape asked which it is
        return np.array(mapped[:, rows, columns])
    return np.ascontiguousarray(np.moveaxis(mapped[rows, columns], -1, 0))


def _tiff_window(path: Path, window: Window) -> np.ndarray | None:
    """None where the file is not one plain image: several pages, a colour table, or a small one."""
    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        whole = (window.height, window.width) == (page.imagelength, page.imagewidth)
        if not _is_plain(series, page) or whole:
            return None
        if page.is_memmappable:
            mapped = tifffile.memmap(path, mode="r")
            return _bands_first(mapped, page.axes, window)
        try:
            return _decode_segments(tiff, page, window)
        except (ValueError, RuntimeError, OSError, TypeError, IndexError) as error:
            raise InputError(
                f"cannot read {path}",
                got=f"{error} ({type(error).__name__})",
                expected="a whole TIFF file",
                fix="it is damaged or cut short: get it anew",
            ) from error


def _is_plain(series: Any, page: Any) -> bool:
    return (
        len(series.pages) == 1
        and page.axes in ("YX", "YXS", "SYX")
        and page.photometric != tifffile.PHOTOMETRIC.PALETTE
    )


def _bands_first(values: np.ndarray, axes: str, window: Window) -> np.ndarray:
    rows, columns = window.slices
    if axes == "YX":
        return np.array(values[rows, columns])[None]
    if axes == "YXS":
        return np.ascontiguousarray(np.moveaxis(values[rows, columns], -1, 0))
    return np.array(values[:, rows, columns])


def _decode_segments(tiff: Any, page: Any, window: Window) -> np.ndarray:
    """The strips or tiles under the window, each decoded once."""
    side_h = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    side_w = page.tilewidth if page.is_tiled else page.imagewidth
    across, down = math.ceil(page.imagewidth / side_w), math.ceil(page.imagelength / side_h)
    bands = page.samplesperpixel
    planes = bands if page.axes == "SYX" else 1
    out = np.zeros((bands, window.height, window.width), page.dtype)
    bottom, right = window.top + window.height, window.left + window.width
    for plane in range(planes):
        for i in range(window.top // side_h, math.ceil(bottom / side_h)):
            for j in range(window.left // side_w, math.ceil(right / side_w)):
                index = (plane * down + i) * across + j
                tiff.filehandle.seek(page.dataoffsets[index])
                data = tiff.filehandle.read(page.databytecounts[index])
                segment = page.decode(data, index, jpegtables=page.jpegtables)[0]
                if segment is None:
                    continue  # a sparse file's empty tile
                part = np.moveaxis(segment[0], -1, 0)  # (depth, h, w, samples) -> (samples, h, w)
                top, left = max(window.top, i * side_h), max(window.left, j * side_w)
                height = min(bottom, i * side_h + part.shape[1]) - top
                width = min(right, j * side_w + part.shape[2]) - left
                target = slice(plane, plane + 1) if planes > 1 else slice(None)
                out[
                    target,
                    top - window.top : top - window.top + height,
                    left - window.left : left - window.left + width,
                ] = part[
                    :,
                    top - i * side_h : top - i * side_h + height,
                    left - j * side_w : left - j * side_w + width,
                ]
    return out
