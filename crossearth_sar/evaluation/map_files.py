"""Class maps as files: a PNG in the classes' colours, or a GeoTIFF that lies where its image lies.

Both hold the class indices themselves, so they can be read as labels again. A file appears when it is whole.

H W pixels.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.predictions import neutral_color


def write_class_map(
    classes_HW: np.ndarray, target: str | Path, classes: ClassTable, *, like: str | Path | None = None
) -> Path:
    """Writes uint8 class indices, 255 for nodata, by the suffix of `target`: .png, or .tif with rasterio.

    Args:
        like: for a GeoTIFF, the file whose transform and CRS, or ground control points, it gets.

    Raises:
        InputError: rasterio cannot read `like`, or that is an image of another size.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if target.suffix == ".png":
        picture = Image.fromarray(classes_HW)
        picture.putpalette([channel for color in _colors(classes) for channel in color])
        picture.save(part, format="PNG")
    else:
        assert target.suffix == ".tif", "the caller names the file"
        _write_geotiff(classes_HW, part, classes, like)
    os.replace(part, target)
    return target


def write_percent_map(percent_HW: np.ndarray, target: str | Path, *, like: str | Path | None = None) -> Path:
    """Writes uint8 percents, 255 for nodata, in grey; `target`, `like` and errors as in `write_class_map`."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if target.suffix == ".png":
        Image.fromarray(percent_HW).save(part, format="PNG")
    else:
        _write_geotiff(percent_HW, part, None, like)
    os.replace(part, target)
    return target


def _colors(classes: ClassTable) -> list[tuple[int, int, int]]:
    """One for each of 256 values; what is no class has the tone of ignored pixels."""
    neutral = neutral_color(classes.palette)
    return [*classes.palette, *[neutral] * (IGNORE_INDEX + 1 - len(classes))]


def _write_geotiff(
    map_HW: np.ndarray, target: Path, classes: ClassTable | None, like: str | Path | None
) -> None:
    """In the classes' colours; in grey, of percents, without classes."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    height, width = map_HW.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an image without one gives a map without
        place = {} if like is None else _georeference(Path(like), (height, width))
        with rasterio.open(
            target,
            "w",
            driver="GTiff",
            dtype="uint8",
            count=1,
            height=height,
            width=width,
            nodata=IGNORE_INDEX,
            photometric="minisblack" if classes is None else "palette",
            compress="deflate",
            tiled=True,
            **place,
        ) as file:
            if classes is not None:
                file.write_colormap(1, dict(enumerate(_colors(classes))))
                file.update_tags(1, **{f"class_{i}": name for i, name in enumerate(classes.names)})
            file.write(map_HW, 1)


def _georeference(image: Path, size: tuple[int, int]) -> dict[str, Any]:
    import rasterio

    try:
        with rasterio.open(image) as source:
            found, points = (source.height, source.width), source.gcps
            place = {"transform": source.transform, "crs": source.crs}
    except rasterio.errors.RasterioIOError as error:
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
    return {"gcps": points[0], "crs": points[1]} if points[0] else place
