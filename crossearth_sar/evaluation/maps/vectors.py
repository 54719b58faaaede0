"""Maps as polygons: a GeoPackage with one layer a map and one row a patch, by rasterio and pyogrio.

A patch is what hangs together over the sides of its pixels; its outline runs along them. Area is that of the
pixels, also where outlines are simplified.

N patches.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.errors import InputError
from crossearth_sar.whole import aside

FIELDS = ("class_number", "class_name", "area_m2")

_AT_ONCE = 50_000
"""So many patches are held before they are written."""


def require_vector_packages() -> None:
    """InputError unless rasterio and pyogrio are installed."""
    try:
        import pyogrio  # noqa: F401
        import rasterio  # noqa: F401
    except ImportError as error:
        raise InputError(
            "polygons need rasterio and pyogrio", got=str(error), fix="pip install 'crossearth-sar[geo]'"
        ) from error


def write_polygons(
    maps: Mapping[str, Path], target: Path, classes: ClassTable, *, simplify: float | None = None
) -> dict[str, int]:
    """Writes the maps, by the names of their layers, and says how many patches each has.

    Columns are the class's number and name and the area in square metres, empty unless the map's coordinate
    system is projected. What was not measured is no patch.

    Args:
        simplify: how far outlines may move, in units of the map; neighbours then may overlap or leave gaps.

    Raises:
        InputError: a map cannot be read, or the file cannot be written whole.
    """
    from pyogrio import read_info
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError

    counts: dict[str, int] = {}
    with aside(target) as part:
        try:
            for layer, path in maps.items():
                counts[layer] = _write_layer(path, part, layer, classes, simplify)
            for layer, count in counts.items():
                if read_info(part, layer=layer, force_feature_count=True)["features"] != count:
                    raise OSError(f"layer {layer} read back has not the {count} patches written")
        except (DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError) as error:
            raise OSError(str(error)) from error
    return counts


@dataclass
class _Patches:
    """Outlines as well-known binary, class numbers, and areas in m2."""

    outlines: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)


def _write_layer(path: Path, target: Path, layer: str, classes: ClassTable, simplify: float | None) -> int:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    count, is_first = 0, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # coordinates are then pixels
            warnings.filterwarnings("ignore", "'crs' was not provided")
            with rasterio.open(path) as source:
                crs = source.crs.to_wkt() if source.crs else None
                for patches in _patches(source):
                    _append(patches, target, layer, classes, crs, simplify, is_first)
                    count, is_first = count + len(patches.numbers), False
    except RasterioIOError as error:
        raise InputError(
            f"{path} cannot be made polygons of", got=str(error), fix="remove it; the same command makes it"
        ) from error
    return count


def _patches(source: Any) -> Iterator[_Patches]:
    """At least one, which may be empty: then the layer is, too."""
    import rasterio
    from rasterio.features import shapes

    metres = source.crs.linear_units_factor[1] if source.crs and source.crs.is_projected else float("nan")
    found = _Patches()
    for shape, value in shapes(rasterio.band(source, 1), connectivity=4, transform=source.transform):
        if int(value) == IGNORE_INDEX:
            continue
        rings = [np.asarray(ring, "<f8") for ring in shape["coordinates"]]
        areas = [_ring_area(ring) for ring in rings]
        found.outlines.append(_polygon_wkb(rings))
        found.numbers.append(int(value))
        found.areas.append((areas[0] - sum(areas[1:])) * metres**2)
        if len(found.numbers) == _AT_ONCE:
            yield found
            found = _Patches()
    yield found


def _append(
    patches: _Patches,
    target: Path,
    layer: str,
    classes: ClassTable,
    crs: str | None,
    simplify: float | None,
    is_first: bool,
) -> None:
    from pyogrio.raw import read, write

    numbers = np.array(patches.numbers, np.int32)
    names = np.array([classes.names[number] for number in patches.numbers], object)
    outlines = np.array(patches.outlines, object)
    columns = [numbers, names, np.array(patches.areas, np.float64)]
    about: dict[str, Any] = {"geometry_type": "Polygon", "driver": "GPKG", "fields": FIELDS}
    if simplify is not None and len(numbers):
        between = target.with_name(f"{target.name}.whole.gpkg")
        write(between, geometry=outlines, field_data=columns, layer="patches", crs=crs, **about)
        words = f"{', '.join(FIELDS)}, ST_SimplifyPreserveTopology(geom, {simplify!r}) AS geom"
        _, _, outlines, columns = read(between, sql=f"SELECT {words} FROM patches", sql_dialect="SQLITE")
        between.unlink()
    write(target, geometry=outlines, field_data=columns, layer=layer, crs=crs, append=not is_first, **about)


def _ring_area(ring: np.ndarray) -> float:
    """By the shoelace formula, from the first corner on, so that large coordinates cost no digits."""
    x, y = (ring - ring[0]).T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2


def _polygon_wkb(rings: list[np.ndarray]) -> bytes:
    """Well-known binary, little-endian: an outer ring and its holes."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), ring.tobytes()]
    return b"".join(parts)
