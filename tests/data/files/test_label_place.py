"""A label that lies elsewhere than its image is refused; one that runs the other way is turned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.errors import InputError

H, W, STEP = 40, 60, 10.0
WATER = np.zeros((H, W), np.uint8)
WATER[:10, 5:30] = 1
NORTH_UP = (STEP, -STEP, 500_000.0, 5_000_000.0)
"""Step in x, step in y, and the corner of the first row and column."""


def write(
    path: Path,
    values: np.ndarray,
    place: tuple[float, ...] | None,
    *,
    system: int = 32633,
    point: bool = False,
) -> None:
    tags: list[tuple[int, str, int, Any, bool]] = []
    if place is not None:
        step_x, step_y, x, y = place
        if point:
            x, y = x + step_x / 2, y + step_y / 2
        tags.append((34264, "d", 16, [step_x, 0, 0, x, 0, step_y, 0, y, *[0.0] * 7, 1], True))
        keys = [
            1,
            1,
            0,
            4,
            1024,
            0,
            1,
            1,
            1025,
            0,
            1,
            2 if point else 1,
            3072,
            0,
            1,
            system,
            3076,
            0,
            1,
            9001,
        ]
        tags.append((34735, "H", len(keys), keys, True))
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack", extratags=tags)


def mask_of(root: Path) -> np.ndarray:
    config = {
        "root": str(root),
        "images": "i/*.tif",
        "labels": "l/*.tif",
        "values": "amplitude",
        "classes": ["land", "water"],
    }
    return FolderScenes(from_mapping(FolderConfig, config))[0]["mask"].numpy()


def test_one_place_is_one_place(tmp_path: Path) -> None:
    image = np.full((H, W), 9, np.uint8)
    write(tmp_path / "i" / "a.tif", image, NORTH_UP)
    for place, point in (
        (NORTH_UP, False),
        (NORTH_UP, True),
        ((10, -10, 500_004.0, 5e6), False),
        (None, False),
    ):
        write(tmp_path / "l" / "a.tif", WATER, place, point=point)
        assert np.array_equal(mask_of(tmp_path), WATER)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_a_label_that_runs_the_other_way_is_turned(rows: bool, columns: bool, tmp_path: Path) -> None:
    write(tmp_path / "i" / "a.tif", np.full((H, W), 9, np.uint8), NORTH_UP)
    stored = WATER[::-1] if rows else WATER
    stored = stored[:, ::-1] if columns else stored
    x, step_x = (500_000.0 + W * STEP, -STEP) if columns else (500_000.0, STEP)
    y, step_y = (5_000_000.0 - H * STEP, STEP) if rows else (5_000_000.0, -STEP)
    write(tmp_path / "l" / "a.tif", np.ascontiguousarray(stored), (step_x, step_y, x, y))
    assert np.array_equal(mask_of(tmp_path), WATER)


@pytest.mark.parametrize(
    ("place", "system", "words"),
    [
        ((10.0, -10.0, 500_400.0, 5_000_000.0), 32633, "different places.*up to 40 pixels apart.*unsetgt"),
        ((20.0, -20.0, 500_000.0, 5_000_000.0), 32633, "different places.*up to 60 pixels apart"),
        (NORTH_UP, 32634, "other coordinate systems.*EPSG:32633, label EPSG:32634"),
    ],
)
def test_a_label_of_another_place_is_refused(
    place: tuple[float, ...], system: int, words: str, tmp_path: Path
) -> None:
    write(tmp_path / "i" / "a.tif", np.full((H, W), 9, np.uint8), NORTH_UP)
    write(tmp_path / "l" / "a.tif", WATER, place, system=system)
    with pytest.raises(InputError, match=f"(?s){words}"):
        mask_of(tmp_path)


def test_what_rasterio_writes_south_up(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes GeoTIFFs as GDAL does")
    size = {"driver": "GTiff", "height": H, "width": W, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    up, down = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), rasterio.Affine(10, 0, 5e5, 0, 10, 5e6 - 10 * H)
    for kind, values, transform in (("i", 9 + WATER[::-1], down), ("l", WATER, up)):
        (tmp_path / kind).mkdir()
        with rasterio.open(tmp_path / kind / "a.tif", "w", transform=transform, **size) as file:
            file.write(values[None])
    assert np.array_equal(mask_of(tmp_path), WATER[::-1])
