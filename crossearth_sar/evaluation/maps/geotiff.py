"""Cloud-optimised GeoTIFFs with rasterio: tiles, overviews, what lies beside, and a look at what was written.

GDAL's COG driver copies from another file, which is written row by row before, so no map is held whole.

B bands, H W pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.evaluation.maps.place import Place
from crossearth_sar.evaluation.maps.styles import gdal_categories, qgis_style
from crossearth_sar.ground_scale import row_blocks
from crossearth_sar.whole import aside, write_text

_CACHE_MB = 64
"""Of GDAL's blocks, whose default is a share of the machine."""


def write_cog(
    map_BHW: np.ndarray,
    target: Path,
    place: Place,
    descriptions: tuple[str, ...],
    *,
    classes: ClassTable | None = None,
) -> None:
    """Writes uint8 bands, 255 for nodata, whole or not at all.

    Args:
        map_BHW: an array, or one mapped from a file.
        classes: for a map of class numbers: its colour table, tags class_0, class_1, … and, beside it, names
            for GDAL and a style for QGIS. Overviews take the commonest class, other maps the mean.

    Raises:
        InputError: it cannot be written.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError  # what GDAL says itself has no public name
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with aside(target) as part, rasterio.Env(GDAL_CACHEMAX=_CACHE_MB), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            _write(map_BHW, part, place, descriptions, classes)
            _require_same(map_BHW, part)
        except (RasterioError, CPLE_BaseError) as error:
            raise OSError(str(error)) from error
        if classes is not None:
            write_text(target.with_name(f"{target.name}.aux.xml"), gdal_categories(classes))
            write_text(target.with_suffix(".qml"), qgis_style(classes))


def _write(
    map_BHW: np.ndarray,
    part: Path,
    place: Place,
    descriptions: tuple[str, ...],
    classes: ClassTable | None,
) -> None:
    import rasterio
    from rasterio.shutil import copy
    from rasterio.windows import Window

    bands, height, width = map_BHW.shape
    rows_first = part.with_name(f"{part.name}.rows.tif")
    with rasterio.open(
        rows_first, "w", driver="GTiff", dtype="uint8", count=bands, height=height, width=width,
        nodata=IGNORE_INDEX, interleave="band", bigtiff="if_safer",
        photometric="minisblack" if classes is None else "palette", **place.georeference,
    ) as file:  # fmt: skip
        if classes is not None:
            file.write_colormap(1, dict(enumerate(classes.palette)))
            file.update_tags(1, **{f"class_{i}": name for i, name in enumerate(classes.names)})
        if place.rpcs is not None:
            file.rpcs = place.rpcs
        for band, name in enumerate(descriptions, 1):
            file.set_band_description(band, name)
        for rows in row_blocks(slice(0, height), width):
            file.write(map_BHW[:, rows], window=Window(0, rows.start, width, rows.stop - rows.start))
    copy(
        rows_first, part, driver="COG", compress="deflate", bigtiff="if_safer",
        overview_resampling="average" if classes is None else "mode",
    )  # fmt: skip
    rows_first.unlink()


def _require_same(map_BHW: np.ndarray, part: Path) -> None:
    import rasterio
    from rasterio.windows import Window

    _, height, width = map_BHW.shape
    with rasterio.open(part) as file:
        for rows in row_blocks(slice(0, height), width):
            window = Window(0, rows.start, width, rows.stop - rows.start)
            if not np.array_equal(file.read(window=window), map_BHW[:, rows]):
                raise OSError(f"rows {rows.start} to {rows.stop - 1} read back are not those written")
