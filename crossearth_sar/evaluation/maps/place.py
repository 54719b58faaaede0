"""Where an image lies: what rasterio reads of it for its map, and world files that stand beside it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.maps.whole import write_text


@dataclass(frozen=True)
class Place:
    """georeference: of `rasterio.open`: transform and CRS, or ground control points. rpcs: or None."""

    georeference: dict[str, Any]
    rpcs: Any = None


def place_of(image: Path, size: tuple[int, int]) -> Place:
    """What rasterio finds in the image of (height, width).

    Raises:
        InputError: rasterio cannot read it, or sees an image of another size.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # gives a map without one
            with rasterio.open(image) as source:
                found, (points, points_crs) = (source.height, source.width), source.gcps
                rpcs, transform, crs = source.rpcs, source.transform, source.crs
    except RasterioIOError as error:
        raise InputError(
            f"rasterio cannot read the georeference of {image}",
            got=str(error),
            fix="convert it to a common GeoTIFF",
        ) from error
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
