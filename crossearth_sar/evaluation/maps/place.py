"""Where an image lies: what rasterio reads of it for its map, and world files that stand beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.data.files.formats import NITF_SUFFIXES
from crossearth_sar.data.files.hdf import hdf_grid, is_hdf
from crossearth_sar.data.files.names import is_remote, members
from crossearth_sar.data.files.nitf import nitf_corners, nitf_kind
from crossearth_sar.data.files.raster import open_raster
from crossearth_sar.errors import InputError
from crossearth_sar.whole import write_text


@dataclass(frozen=True)
class Place:
    """georeference: of `rasterio.open`: transform and CRS, or ground control points. rpcs: or None."""

    georeference: dict[str, Any]
    rpcs: Any = None


def place_of(image: Path, size: tuple[int, int], array_key: str | None = None) -> Place:
    """What the image of (height, width) says, by rasterio or, of HDF5, SICD and SIDD, by itself; of an image
    of several files the first.

    Raises:
        InputError: rasterio cannot read it, or sees an image of another size.
    """
    image = members(image)[0]
    other = _of_other_libraries(image, array_key)
    if other is not None:
        return other
    with open_raster(image, array_key) as source:
        found, (points, points_crs) = (source.height, source.width), source.gcps
        rpcs, transform, crs = source.rpcs, source.transform, source.crs
    if found != size:
        raise InputError(
            f"rasterio sees an image of another size in {image}",
            got=f"{found[0]} x {found[1]}",
            expected=f"{size[0]} x {size[1]} (height x width)",
            fix="write a file of this one image",
        )
    if points:
        return Place({"gcps": points, "crs": points_crs}, rpcs)
    return Place({"crs": crs} if transform.is_identity else {"transform": transform, "crs": crs}, rpcs)


def _of_other_libraries(image: Path, array_key: str | None) -> Place | None:
    from rasterio import Affine
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS

    if is_remote(image) or not image.is_file():
        return None
    if is_hdf(image):
        grid = hdf_grid(image, array_key)
        if grid is None:
            return Place({})
        crs = {} if grid.system is None else {"crs": CRS.from_user_input(grid.system)}
        return Place({"transform": Affine(*grid.matrix[0], *grid.matrix[1]), **crs})
    if image.suffix.lower() not in NITF_SUFFIXES or nitf_kind(image) is None:
        return None
    points = [
        GroundControlPoint(row=row, col=column, x=longitude, y=latitude, z=0.0, id=str(i))
        for i, (row, column, latitude, longitude) in enumerate(nitf_corners(image, array_key), 1)
    ]
    return Place({"gcps": points, "crs": CRS.from_epsg(4326)} if points else {})


def copy_world_file(image: Path, target: Path) -> None:
    """The six numbers beside an image (.pgw, .jgw, .tfw, .wld …) and its .prj go beside a PNG's map."""
    suffix = image.suffix.lower()
    kinds = [f"{suffix[:2]}{suffix[-1]}w", f"{suffix}w", ".wld"]
    beside = {path.name: path for path in image.parent.glob(f"{_literal(image.stem)}.*")}
    for name in beside:
        if name.removeprefix(image.stem).lower() in kinds:
            write_text(target.with_suffix(".pgw"), beside[name].read_text(encoding="utf-8"))
        elif name.removeprefix(image.stem).lower() == ".prj":
            write_text(target.with_suffix(".prj"), beside[name].read_text(encoding="utf-8"))


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
