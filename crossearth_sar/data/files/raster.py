"""Reading a file through rasterio: whatever GDAL knows that this package has no reader of its own for.

VRT, ENVI and PolSARpro, Erdas, NITF, COSAR, CEOS, product folders, and everything that is no local file. A
window decodes the blocks below it alone. What this is not: needed; without rasterio these files are refused
with the line that installs it.

C bands, H W pixels, h w pixels of a window.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from crossearth_sar.data.files.bounds import require_room
from crossearth_sar.data.files.georeference import Matrix, Place, ground_pixel_m
from crossearth_sar.data.files.names import gdal_name, is_remote
from crossearth_sar.data.files.stored import StoredImage, Window, both_valid, split_alpha
from crossearth_sar.errors import InputError, nearest

_OPTIONS = {"GDAL_VRT_ENABLE_PYTHON": "NO"}
"""A VRT can hold Python to run; whatever the environment says, it is not run here."""

_REMOTE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": 3}
"""No listing of a bucket for each file, and a server that is busy is asked again."""

_BARE = ("ENVI", "EHdr", "ISCE", "ROI_PAC", "GenBin", "PAux")
_BYTES = {"complex_int16": 4}


def require_extra(path: Path, module: str, extra: str) -> None:
    """InputError where an optional package that reads `path` is not installed, with the line that does it."""
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"cannot read {path} without {module}",
            got=f"{module} is not installed",
            expected=f"{module}, which reads this kind of file",
            fix=f"pip install 'crossearth-sar[{extra}]'",
        )


def read_raster(
    path: Path, array_key: str | None = None, *, decode: bool, window: Window | None = None
) -> StoredImage:
    """An image as GDAL sees it: (C, H, W), or (H, W) of a single band; of a window no place.

    Raises:
        InputError: rasterio is not installed, GDAL does not know the file, it is damaged, or holds several
            images of which `array_key` names none.
    """
    with open_raster(path, array_key) as source:
        _require_whole(source, path)
        alpha = _alpha_band(source)
        bands = source.count - (alpha is not None)
        size = (source.height, source.width) if window is None else (window.height, window.width)
        values = valid = None
        if decode:
            values, valid = _decoded(source, window)
            if alpha is not None:
                values, seen = split_alpha(values, 0, alpha, path)
                valid = both_valid(valid, seen)
            values = values.reshape(bands, *size)
        matrix, metres = _matrix(source), None
        if matrix is not None:
            metres = ground_pixel_m(matrix, (source.height, source.width), _unit_metres(source.crs))
        kept = [i for i in range(source.count) if i != alpha]
        nodata, valid = _nodata([source.nodatavals[i] for i in kept], values, valid)
        scales = tuple((source.scales[i], source.offsets[i]) for i in kept)
        system = source.crs.to_epsg() if source.crs else None
        return StoredImage(
            (bands, *size) if bands > 1 else size,
            values if bands > 1 or values is None else values[0],
            0 if bands > 1 else None,
            nodata,
            _colormap(source) if bands == 1 else None,
            metres,
            valid,
            scales if any(pair != (1.0, 0.0) for pair in scales) else None,
            None
            if matrix is None or window is not None
            else Place(matrix, size, f"EPSG:{system}" if system else None),
        )


def raster_block_rows(path: Path, array_key: str | None = None) -> int:
    """Rows of a block, the least that is decoded."""
    with open_raster(path, array_key) as source:
        return int(max(height for height, _ in source.block_shapes))


@contextmanager
def open_raster(path: Path, array_key: str | None = None) -> Iterator[Any]:
    """rasterio's dataset; whatever GDAL says while it is used becomes an InputError that names the file."""
    require_extra(path, "rasterio", "geo")
    import rasterio
    from rasterio._err import CPLE_BaseError  # what GDAL says itself has no public name
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    options = {**_OPTIONS, **(_REMOTE if is_remote(path) else {})}
    with rasterio.Env(**options), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an image without a place is an image
        try:
            with rasterio.open(gdal_name(path)) as found:
                name = _subdataset(found, array_key, path)
                if name is None and not _is_turned(found):
                    yield found
                    return
            with _as_stored(name or gdal_name(path)) as found:
                yield found
        except (RasterioError, CPLE_BaseError) as error:
            message = " ".join(str(error.__cause__ or error).split())[:300]
            is_unknown = "not recognized" in message and not is_remote(path)
            raise InputError(
                f"cannot read {path}{': unknown kind of file' if is_unknown else ''}",
                got=message,
                expected="a whole file, of TIFF, PNG, JPEG, NPY, NPZ, HDF5, NITF or what GDAL reads",
                fix=_remedy(path),
            ) from error


def _is_turned(source: Any) -> bool:
    """Of a NetCDF file without coordinates GDAL takes the last row for the first."""
    return bool(source.driver == "netCDF" and source.count and source.transform.is_identity)


def _as_stored(name: str) -> Any:
    import rasterio

    found = rasterio.open(name)
    if not _is_turned(found):
        return found
    found.close()
    with rasterio.Env(GDAL_NETCDF_BOTTOMUP="NO"):
        return rasterio.open(name)


def _require_whole(source: Any, path: Path) -> None:
    """InputError where a file of bare numbers is shorter than its header says: GDAL would read zeros."""
    if source.driver not in _BARE or not path.is_file():
        return
    promised = sum(_BYTES.get(kind) or np.dtype(kind).itemsize for kind in source.dtypes)
    promised *= source.height * source.width
    if path.stat().st_size < promised:
        raise InputError(
            f"cannot read {path}: it is cut short",
            got=f"{path.stat().st_size} bytes",
            expected=f"{promised}, as its header says: {source.height} x {source.width}",
            fix="get it anew, or the header that belongs to it",
        )


def _remedy(path: Path) -> str:
    if is_remote(path):
        return (
            "correct the address; of a bucket, GDAL takes the keys from AWS_… and the like, or asks for none"
        )
    if path.suffix.lower() in (".bin", ".img") and not any(
        path.with_name(name).is_file() for name in (f"{path.name}.hdr", f"{path.stem}.hdr")
    ):
        return f"ENVI and PolSARpro files need their header beside them, {path.name}.hdr: fetch it"
    return "correct the path, get the file anew, or convert it to GeoTIFF"


def _subdataset(source: Any, array_key: str | None, path: Path) -> str | None:
    """The name of the one that is meant; None: the file itself."""
    names = [str(name) for name in source.subdatasets]
    if array_key is None:
        if source.count or len(names) < 2:
            return None if source.count or not names else names[0]
        raise InputError(
            f"{path} holds {len(names)} images",
            got=", ".join(name.rpartition(":")[2] for name in names[:12]),
            expected="one of them",
            fix="name it: array_key",
        )
    short = {name.rpartition(":")[2].lstrip("/"): name for name in names}
    found = [name for key, name in short.items() if name == array_key or key == array_key.lstrip("/")]
    if len(found) != 1:
        raise InputError(
            f"{path} holds no image {array_key!r}{nearest(array_key, short)}",
            expected=f"one of {', '.join([*short][:12])}" if short else "no array_key: it holds one image",
            fix="correct array_key",
        )
    return found[0]


def _decoded(source: Any, window: Window | None) -> tuple[np.ndarray, np.ndarray | None]:
    """All bands, (C, h, w), and what a mask in the file or beside it hides, (h, w) bool."""
    from rasterio.enums import MaskFlags
    from rasterio.windows import Window as Part

    part = None if window is None else Part(window.left, window.top, window.width, window.height)
    if window is None:
        numbers = sum(_BYTES.get(kind) or np.dtype(kind).itemsize for kind in source.dtypes)
        local = [Path(name) for name in source.files if Path(name).is_file()]
        on_disk = sum(file.stat().st_size for file in local) if len(local) == len(source.files) else 0
        require_room(Path(source.name), (source.height, source.width, numbers), np.uint8, on_disk=on_disk)
    values = source.read(window=part)
    flags = source.mask_flag_enums[0]
    is_masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    return values, source.read_masks(1, window=part) != 0 if is_masked else None


def _nodata(
    numbers: list[float | None], values: np.ndarray | None, valid: np.ndarray | None
) -> tuple[float | None, np.ndarray | None]:
    """The number of all bands; where theirs differ none, and (C, h, w) where each band has a measurement."""
    if len({repr(number) for number in numbers}) == 1:
        return numbers[0], valid
    if values is None:
        return None, valid
    each = [
        np.ones(band.shape, bool) if number is None else np.asarray(band != band.dtype.type(number))
        for band, number in zip(values, numbers, strict=True)
    ]
    return None, both_valid(valid, np.stack(each))


def _alpha_band(source: Any) -> int | None:
    from rasterio.enums import ColorInterp

    found = [i for i, kind in enumerate(source.colorinterp) if kind == ColorInterp.alpha]
    return found[0] if found and source.count > 1 else None


def _colormap(source: Any) -> np.ndarray | None:
    from rasterio.enums import ColorInterp

    if source.colorinterp[0] != ColorInterp.palette:
        return None
    colors = source.colormap(1)
    return np.array([colors.get(i, (0, 0, 0, 0))[:3] for i in range(max(colors) + 1)], np.uint8)


def _matrix(source: Any) -> Matrix | None:
    t = source.transform
    is_known = not t.is_identity and all(map(math.isfinite, tuple(t)[:6]))
    return ((t.a, t.b, t.c), (t.d, t.e, t.f)) if is_known else None


def _unit_metres(crs: Any) -> float | None:
    """Of a unit of the coordinates; None: degrees; NaN: nobody says."""
    if crs and crs.is_geographic:
        return None
    return float(crs.linear_units_factor[1]) if crs and crs.is_projected else math.nan
