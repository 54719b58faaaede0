"""Maps as files: class numbers as a PNG in the classes' colours or a GeoTIFF, probabilities as a TIFF.

All hold 255 where nothing was measured, and class maps the numbers themselves, so they can be read as labels
again. A file is whole or absent (`whole.py`); `is_whole` tells of one that others have left.

B bands, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from crossearth_sar.data.files.readers import read_shape
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.predictions import neutral_color
from crossearth_sar.evaluation.maps.geotiff import write_cog
from crossearth_sar.evaluation.maps.place import Place, copy_world_file, place_of
from crossearth_sar.whole import aside

_GDAL_METADATA, _GDAL_NODATA = 42112, 42113


def write_class_map(
    classes_HW: np.ndarray, target: str | Path, classes: ClassTable, *, like: str | Path | Place | None = None
) -> Path:
    """Writes uint8 class numbers, 255 for nodata, by the suffix of `target`: .png, or .tif with rasterio.

    Args:
        like: the image that it is the map of, or its place: a GeoTIFF lies there, a PNG gets a copy of an
            image's world file.

    Raises:
        InputError: rasterio cannot read `like`, that is an image of another size, or the map cannot be
            written.
    """
    target = Path(target)
    if target.suffix != ".png":
        assert target.suffix == ".tif", "the caller names the file"
        place = _place(like, _size(classes_HW))
        write_cog(classes_HW[None], target, place, ("class",), classes=classes)
        return target
    neutral = neutral_color(classes.palette)
    colors = [*classes.palette, *[neutral] * (IGNORE_INDEX + 1 - len(classes))]
    with aside(target) as part:
        picture = Image.fromarray(classes_HW)
        picture.putpalette([channel for color in colors for channel in color])
        picture.save(part, format="PNG")
        if not is_whole(part, _size(classes_HW)):
            raise OSError("what was written cannot be read back")
        if isinstance(like, str | Path):
            copy_world_file(Path(like), target)
    return target


def write_percents(
    percent_BHW: np.ndarray,
    target: str | Path,
    names: tuple[str, ...],
    *,
    like: str | Path | Place | None = None,
) -> Path:
    """Writes uint8 percents, 255 for nodata, as a TIFF whose bands have names.

    Args:
        like: as in `write_class_map`; without it, or None since there is no rasterio, a plain TIFF.

    Raises:
        InputError: as `write_class_map`.
    """
    target = Path(target)
    if like is not None:
        place = _place(like, (percent_BHW.shape[1], percent_BHW.shape[2]))
        write_cog(percent_BHW, target, place, names)
        return target
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{escape(name)}</Item>'
        for i, name in enumerate(names)
    )
    tags = [
        (_GDAL_METADATA, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True),
        (_GDAL_NODATA, "s", 0, str(IGNORE_INDEX), True),
    ]
    with aside(target) as part:
        tifffile.imwrite(
            part, percent_BHW, photometric="minisblack", planarconfig="separate", compression="zlib",
            rowsperstrip=64, extratags=tags, metadata=None,
        )  # fmt: skip
        if not is_whole(part, (percent_BHW.shape[1], percent_BHW.shape[2])):
            raise OSError("what was written cannot be read back")
    return target


def is_whole(path: Path, size: tuple[int, int]) -> bool:
    """Whether there is an image of (height, width) all of whose bytes are there."""
    try:
        if path.suffix != ".png":
            return read_shape(path)[1:] == size
        with PngImageFile(path) as picture:  # Image.open would refuse large ones
            found = (picture.height, picture.width)
            picture.verify()
    except (InputError, OSError, SyntaxError, ValueError):
        return False
    return found == size


def _place(like: str | Path | Place | None, size: tuple[int, int]) -> Place:
    if isinstance(like, Place):
        return like
    return Place({}) if like is None else place_of(Path(like), size)


def _size(map_HW: np.ndarray) -> tuple[int, int]:
    return map_HW.shape[0], map_HW.shape[1]
