"""The ground spacing that GeoTIFF tags state: metres, feet, degrees, matrices, and tags that do not say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from crossearth_sar.data.files.readers import read_image, read_pixel_m

PROJECTED, GEOGRAPHIC = (1024, 0, 1, 1), (1024, 0, 1, 2)
METRE, FOOT, DEGREE, CHAIN = (3076, 0, 1, 9001), (3076, 0, 1, 9002), (2054, 0, 1, 9102), (3076, 0, 1, 9033)
UTM = [PROJECTED, (1026, 34737, 9, 0), (3072, 0, 1, 32633), METRE]


def write(
    path: Path,
    keys: list[tuple[int, int, int, int]] | None,
    *,
    scale: tuple[float, float] | None = None,
    tie: tuple[float, float] | None = (500_000.0, 4_600_000.0),
    matrix: list[float] | None = None,
) -> Path:
    tags: list[tuple[int, str, int, Any, bool]] = []
    if scale is not None:
        tags.append((33550, "d", 3, (*scale, 0.0), True))
    if tie is not None:
        tags.append((33922, "d", 6, (0.0, 0.0, 0.0, *tie, 0.0), True))
    if matrix is not None:
        tags.append((34264, "d", 16, matrix, True))
    if keys is not None:
        numbers = [1, 1, 0, len(keys), *(n for key in keys for n in key)]
        tags.append((34735, "H", len(numbers), numbers, True))
    image = np.ones((100, 80), np.float32)
    tifffile.imwrite(path, image, photometric="minisblack", extratags=tags)
    return path


def test_metres_feet_and_pixels_that_are_no_squares(tmp_path: Path) -> None:
    assert read_pixel_m(write(tmp_path / "a.tif", UTM, scale=(10.0, 10.0))) == 10
    assert read_image(tmp_path / "a.tif").pixel_m == 10
    assert read_pixel_m(write(tmp_path / "b.tif", UTM, scale=(2.0, 8.0))) == 4
    assert read_pixel_m(write(tmp_path / "c.tif", [PROJECTED], scale=(3.0, 3.0))) == 3
    assert read_pixel_m(write(tmp_path / "d.tif", [PROJECTED, FOOT], scale=(10.0, 10.0))) == pytest.approx(
        3.048
    )


def test_degrees_become_metres_at_the_middle_of_the_image(tmp_path: Path) -> None:
    step = 1e-4
    path = write(tmp_path / "a.tif", [GEOGRAPHIC, DEGREE], scale=(step, step), tie=(12.0, 60.005))
    expected = 111_320 * step * math.sqrt(math.cos(math.radians(60)))  # 50 rows below the corner
    assert read_pixel_m(path) == pytest.approx(expected, rel=1e-9)
    assert read_pixel_m(write(tmp_path / "b.tif", [GEOGRAPHIC], scale=(step, step), tie=None)) is None


def test_a_turned_image_has_a_matrix(tmp_path: Path) -> None:
    sine, cosine = 5 * math.sin(0.3), 5 * math.cos(0.3)
    matrix = [cosine, sine, 0, 5e5, sine, -cosine, 0, 4e6, *[0.0] * 7, 1]
    path = write(tmp_path / "a.tif", UTM, tie=None, matrix=matrix)
    assert read_pixel_m(path) == pytest.approx(5, rel=1e-9)


def test_tags_that_do_not_say_are_no_error(tmp_path: Path) -> None:
    assert read_pixel_m(write(tmp_path / "none.tif", None, tie=None)) is None
    assert read_pixel_m(write(tmp_path / "bare.tif", None, scale=(10.0, 10.0))) is None, "of which unit?"
    assert read_pixel_m(write(tmp_path / "chain.tif", [PROJECTED, CHAIN], scale=(1.0, 1.0))) is None
    assert read_pixel_m(write(tmp_path / "gcp.tif", [GEOGRAPHIC])) is None
    assert read_pixel_m(write(tmp_path / "zero.tif", UTM, scale=(0.0, 10.0))) is None
    assert read_pixel_m(write(tmp_path / "geocentric.tif", [(1024, 0, 1, 3)], scale=(1.0, 1.0))) is None
    np.save(tmp_path / "a.npy", np.ones((4, 4), np.float32))
    assert read_pixel_m(tmp_path / "a.npy") is None
    assert read_image(tmp_path / "a.npy").pixel_m is None


@pytest.mark.parametrize(("crs", "step"), [("EPSG:32633", 10.0), ("EPSG:4326", 1e-4)])
def test_what_rasterio_writes(crs: str, step: float, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes GeoTIFFs as GDAL does")
    transform = rasterio.Affine(step, 0, 15, 0, -step, 45)
    size = {"height": 40, "width": 50, "count": 1, "dtype": "float32"}
    with rasterio.open(tmp_path / "a.tif", "w", crs=crs, transform=transform, **size) as file:
        file.write(np.ones((1, 40, 50), np.float32))
    expected = step if step == 10 else 111_320 * step * math.sqrt(math.cos(math.radians(45 - 20 * step)))
    assert read_pixel_m(tmp_path / "a.tif") == pytest.approx(expected, rel=1e-9)
