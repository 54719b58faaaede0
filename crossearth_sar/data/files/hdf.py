"""Reading HDF5 files, NetCDF-4 among them, by h5py: which of their arrays is the image, where it lies.

Known by their layouts: NISAR's GCOV, GSLC and RSLC, COSMO-SkyMed's SBI, MBI and IMG, ICEYE's s_i and s_q or
s_amplitude. Otherwise the one image in the file is taken, or the one that `array_key` names. What this is
not: a reader of what else such products hold; noise, masks and calibration are left alone.

C bands, H W pixels, h w pixels of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossearth_sar.data.files.bounds import require_room
from crossearth_sar.data.files.georeference import Matrix, Place, ground_pixel_m
from crossearth_sar.data.files.names import expanded
from crossearth_sar.data.files.raster import require_extra
from crossearth_sar.data.files.stored import StoredImage, Window
from crossearth_sar.errors import InputError, nearest

_POLARIZATIONS = ("HHHH", "HVHV", "VHVH", "VVVV", "RHRH", "RVRV", "HH", "HV", "VH", "VV", "RH", "RV")
_AXES = (("xCoordinates", "yCoordinates"), ("x", "y"), ("longitude", "latitude"), ("lon", "lat"))
_METRES = ("m", "meter", "meters", "metre", "metres")
_IN_PAIRS = ("SBI", "IMG")
"""COSMO-SkyMed's names of arrays whose last axis, where it is 2 long, holds I and Q."""


@dataclass(frozen=True)
class Grid:
    """Where an array lies. system: EPSG:… or WKT, what rasterio takes; None: nobody says."""

    matrix: Matrix
    system: str | None
    unit: str


def is_hdf(path: Path) -> bool:
    """Whether the file begins as HDF5 does."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def read_hdf(path: Path, array_key: str | None, *, decode: bool, window: Window | None = None) -> StoredImage:
    """The image of the file, several arrays as bands: (C, H, W), or (H, W) of one. Of a window no place.

    Raises:
        InputError: h5py is not installed, there is no such array, which is meant is not clear, or arrays
            differ in size.
    """
    with _opened(path) as file:
        bands = _bands_of(file, array_key, path)
        shapes = {_shape(band) for band in bands}
        if len(shapes) > 1 or (len(bands) > 1 and len(min(shapes)) != 2):
            raise InputError(
                f"arrays of {path} are no bands of one image",
                got=", ".join(f"{band[0].name} {_shape(band)}" for band in bands),
                expected="(height, width), the same of all",
                fix="name others: array_key",
            )
        (shape,) = shapes
        if window is not None:
            assert len(shape) == 2, "hdf_block_rows said so"
            shape = (window.height, window.width)
        if decode and window is None:
            require_room(path, (sum(part.nbytes for band in bands for part in band),), np.uint8)
        values = np.stack([_numbers(band, window) for band in bands]) if decode else None
        grid = _grid(bands[0][0])
        scales = tuple(
            (_attribute(b[0], "scale_factor", 1.0), _attribute(b[0], "add_offset", 0.0)) for b in bands
        )
        return StoredImage(
            (len(bands), *shape) if len(bands) > 1 else shape,
            values if len(bands) > 1 or values is None else values[0],
            0 if len(bands) > 1 else None,
            _attribute(bands[0][0], "_FillValue", None),
            pixel_m=_pixel_m(grid, _shape(bands[0])),
            scales=scales if any(pair != (1.0, 0.0) for pair in scales) else None,
            place=_place(grid, shape) if window is None else None,
        )


def hdf_block_rows(path: Path, array_key: str | None) -> int | None:
    """Rows of a chunk, the least that is decoded; None for an array of three axes, which only comes whole."""
    with _opened(path) as file:
        bands = _bands_of(file, array_key, path)
        if any(len(_shape(band)) != 2 for band in bands):
            return None
        return max(int(part.chunks[0]) if part.chunks else 1 for band in bands for part in band)


def hdf_grid(path: Path, array_key: str | None) -> Grid | None:
    """Where the image lies, as the coordinates beside its array say."""
    with _opened(path) as file:
        return _grid(_bands_of(file, array_key, path)[0][0])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    require_extra(path, "h5py", "hdf")
    import h5py

    with h5py.File(path, "r") as file:
        yield file


Band = tuple[Any, ...]
"""One dataset of h5py, or two: I and Q."""


def _bands_of(file: Any, array_key: str | None, path: Path) -> list[Band]:
    if array_key is None:
        known = _known_layout(file)
        if known:
            return known
    arrays = _arrays(file)
    if array_key is not None:
        return [(_named(arrays, key, path),) for key in expanded(array_key, forbidden="")]
    if len(arrays) != 1:
        raise InputError(
            f"{path} holds {len(arrays)} arrays that may be the image",
            got=", ".join([*arrays][:12]) or "none of two axes or three",
            expected="one of them, or a layout known here: NISAR, COSMO-SkyMed, ICEYE",
            fix="name it: array_key; several as bands: array_key: '{HHHH,HVHV}'",
        )
    return [(array,) for array in arrays.values()]


def _known_layout(file: Any) -> list[Band]:
    if {"s_i", "s_q"} <= set(file):
        return [(file["s_i"], file["s_q"])]
    if "s_amplitude" in file:
        return [(file["s_amplitude"],)]
    for radar in ("LSAR", "SSAR"):
        for product in ("GCOV", "GSLC", "RSLC"):
            for room in ("grids", "swaths"):
                for frequency in ("A", "B"):
                    group = file.get(f"science/{radar}/{product}/{room}/frequency{frequency}", {})
                    found = [(group[name],) for name in _POLARIZATIONS if name in group]
                    if found:
                        return found
    cosmo = [
        file[f"{room}{name}"]
        for room in ("", "S01/")
        for name in ("SBI", "MBI", "IMG")
        if f"{room}{name}" in file
    ]
    return [(cosmo[0],)] if len(cosmo) == 1 and "S02" not in file else []


def _arrays(file: Any) -> dict[str, Any]:
    """Numeric arrays of two or three axes, each longer than one, by their whole names."""
    import h5py

    found: dict[str, Any] = {}

    def look(name: str, item: Any) -> None:
        is_array = isinstance(item, h5py.Dataset) and item.ndim in (2, 3) and 1 not in item.shape[-2:]
        if is_array and (item.dtype.kind in "uifc" or _is_pair(item.dtype)):
            found[name] = item

    file.visititems(look)
    return found


def _named(arrays: dict[str, Any], key: str, path: Path) -> Any:
    key = key.strip("/")
    found = [name for name in arrays if name == key or name.endswith(f"/{key}")]
    ends = [name.rpartition("/")[2] for name in arrays]
    if len(found) != 1:
        raise InputError(
            f"{path} holds {'no array' if not found else 'several arrays'} {key!r}{nearest(key, ends)}",
            got=", ".join(found) or None,
            expected=f"one of {', '.join([*arrays][:12])}",
            fix="correct array_key: the end of its name, as far as it is its alone",
        )
    return arrays[found[0]]


def _is_pair(dtype: np.dtype) -> bool:
    return dtype.names is not None and len(dtype.names) == 2 and dtype.names[0].lower() in ("r", "real", "re")


def _is_last_axis_pairs(array: Any) -> bool:
    return array.ndim == 3 and array.shape[2] == 2 and array.name.rpartition("/")[2] in _IN_PAIRS


def _shape(band: Band) -> tuple[int, ...]:
    shape = tuple(int(n) for n in band[0].shape)
    return shape[:2] if _is_last_axis_pairs(band[0]) else shape


def _numbers(band: Band, window: Window | None) -> np.ndarray:
    """Real or complex numbers of a band, I and Q joined."""
    here = ... if window is None else window.slices
    parts = [np.asarray(array[here]) for array in band]
    first = parts[0]
    if len(parts) == 2:
        return _complex(first, parts[1])
    if _is_pair(first.dtype):
        real, imaginary = first.dtype.names or ()
        return _complex(first[real], first[imaginary])
    if _is_last_axis_pairs(band[0]):
        return _complex(first[..., 0], first[..., 1])
    return first


def _complex(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    out = np.empty(real.shape, np.complex128 if real.dtype.itemsize == 8 else np.complex64)
    out.real, out.imag = real, imaginary
    return out


def _attribute(array: Any, name: str, default: Any) -> Any:
    """A number beside an array, as a float; `default` where there is none, or it is NaN or complex."""
    value = np.asarray(array.attrs.get(name, np.nan)).ravel()
    is_number = value.size == 1 and value.dtype.kind in "uif" and np.isfinite(value[0])
    return float(value[0]) if is_number else default


def _grid(array: Any) -> Grid | None:
    """From the coordinates of pixels' middles that stand beside an array, as NISAR and CF have them."""
    beside = array.parent
    for names in _AXES:
        if not all(name in beside and beside[name].ndim == 1 for name in names):
            continue
        x, y = (np.asarray(beside[name][()], np.float64) for name in names)
        if (len(y), len(x)) != array.shape[-2:] or min(len(x), len(y)) < 2:
            continue
        step_x, step_y = ((v[-1] - v[0]) / (len(v) - 1) for v in (x, y))
        matrix = ((step_x, 0.0, x[0] - step_x / 2), (0.0, step_y, y[0] - step_y / 2))
        unit = _text(beside[names[0]].attrs.get("units", "degrees" if names[0].startswith("lon") else ""))
        return Grid(matrix, _system(array, is_lonlat=names[0].startswith("lon")), unit)
    return None


def _system(array: Any, *, is_lonlat: bool) -> str | None:
    name = _text(array.attrs.get("grid_mapping", "projection"))
    about = array.parent.get(name, array.file.get(name))
    if about is not None:
        for key in ("spatial_ref", "crs_wkt"):
            if key in about.attrs:
                return _text(about.attrs[key])
        number = int(
            np.asarray(about.attrs.get("epsg_code", about[()] if about.shape == () else 0)).ravel()[0]
        )
        if number > 0:
            return f"EPSG:{number}"
    return "EPSG:4326" if is_lonlat else None


def _text(value: Any) -> str:
    value = value[()] if hasattr(value, "shape") and value.shape == () else value
    return value.decode() if isinstance(value, bytes) else str(value)


def _pixel_m(grid: Grid | None, shape: Sequence[int]) -> float | None:
    if grid is None:
        return None
    is_degrees = grid.unit.startswith("degree")
    if not is_degrees and grid.unit not in _METRES:
        return None
    return ground_pixel_m(grid.matrix, (shape[-2], shape[-1]), None if is_degrees else 1.0)


def _place(grid: Grid | None, shape: Sequence[int]) -> Place | None:
    if grid is None:
        return None
    number = grid.system if grid.system and grid.system.startswith("EPSG:") else None
    return Place(grid.matrix, (shape[-2], shape[-1]), number)
