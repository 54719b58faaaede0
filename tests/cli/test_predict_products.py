"""`predict` on products and on several files of one image: their numbers, and a map in their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sar_files
import torch

from crossearth_sar import load_model
from crossearth_sar.cli.main import main
from crossearth_sar.data.files.readers import read_bands

SAFE = "S1A_IW_GRDH_1SDV_20260101T000000.SAFE"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of sarkit, about importlib
    pytest.mark.filterwarnings("ignore:.*SCHEMASV"),  # the SICD written here has only what is read
]


@pytest.fixture
def place(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(saved)
    (tmp_path / "data").mkdir()
    return tmp_path


def run(*arguments: str) -> int:
    return main(["predict", "--model", "model", "--device", "cpu", "--normalize", "image", *arguments])


def in_utm(file: object) -> None:
    assert file.crs.to_epsg() == 32633  # type: ignore[attr-defined]
    x, y = sar_files.ORIGIN_X, sar_files.ORIGIN_Y
    assert np.allclose(tuple(file.transform)[:6], (20, 0, x, 0, -20, y))  # type: ignore[attr-defined]


def by_control_points(file: object) -> None:
    points, crs = file.gcps  # type: ignore[attr-defined]
    assert crs.to_epsg() == 4326
    assert len(points) == 4
    assert {(round(p.x, 4), round(p.y, 4)) for p in points} >= {(14.9, 41.5), (14.905, 41.494)}


def nowhere(file: object) -> None:
    assert file.crs is None  # type: ignore[attr-defined]


CASES: dict[str, tuple[str, Callable[[Path], np.ndarray], str, str, str, Callable[[object], None]]] = {
    "vrt": ("rasterio", sar_files.vrt, "scene.vrt", "amplitude", "scene.tif", in_utm),
    "envi": (
        "rasterio", sar_files.envi_c3, "C3/{C11,C22,C33}.bin", "intensity", "C11_C22_C33.tif", nowhere
    ),
    "safe": ("rasterio", sar_files.safe, SAFE, "amplitude", f"{Path(SAFE).stem}.tif", by_control_points),
    "nisar": ("h5py", sar_files.nisar_gcov, "NISAR_L2_GCOV.h5", "intensity", "NISAR_L2_GCOV.tif", in_utm),
    "sicd": ("sarkit", sar_files.sicd, "scene.ntf", "complex", "scene.tif", by_control_points),
    "pair": ("rasterio", sar_files.pair, "*_{vv,vh}.tif", "amplitude", "a_vv_vh.tif", nowhere),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_map_of_it(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package, write, name, kind, target, lies = CASES[case]
    pytest.importorskip(package)
    rasterio = pytest.importorskip("rasterio")
    values = write(place / "data")
    assert run("--images", f"data/{name}", "--values", kind) == 0, capsys.readouterr().err
    np.save(place / "same.npy", values)
    assert run("--images", "same.npy", "--values", kind, "--output", "expected") == 0
    expected = read_bands(place / "expected" / "same.png")[0]
    assert len(np.unique(expected)) > 1 + np.isnan(values).any(), "one class everywhere shows no mistake"
    with rasterio.open(place / "maps" / target) as file:
        assert np.array_equal(file.read(1), expected)
        lies(file)
    assert json.loads((place / "maps" / "prediction.json").read_text())["valid"] == "all"
    before = (place / "maps" / target).stat().st_mtime_ns
    assert run("--images", f"data/{name}", "--values", kind) == 0
    assert (place / "maps" / target).stat().st_mtime_ns == before, "it is there already"


def test_files_that_are_missing_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sar_files.pair(place / "data", "a")
    sar_files.pair(place / "data", "b")
    (place / "data" / "b_vh.tif").unlink()
    (place / "data" / "a_vv.tif").unlink()
    assert run("--images", "data/*_{vv,vh}.tif", "--values", "amplitude") == 2
    assert "no data/a_vv.tif, data/b_vh.tif" in capsys.readouterr().err
    assert run("--images", "data/*_{hh,hv}.tif", "--values", "amplitude") == 2
    assert "names no file" in capsys.readouterr().err


def test_bands_of_a_safe_folder_are_chosen_by_number(place: Path) -> None:
    pytest.importorskip("rasterio")
    vv, vh = sar_files.safe(place / "data")
    assert run("--images", f"data/{SAFE}", "--values", "amplitude", "--bands", "1") == 0
    got = read_bands(place / "maps" / f"{Path(SAFE).stem}.tif")[0]
    model = load_model("model")
    assert np.array_equal(got, model.predict(torch.from_numpy(vh.astype(np.float32))[None, None])[0])
    assert not np.array_equal(got, model.predict(torch.from_numpy(vv.astype(np.float32))[None, None])[0])


def test_where_any_band_is_measured(place: Path) -> None:
    values = sar_files.pair(place / "data").astype(np.float32)
    values[0, :10], values[1, 20:30] = np.nan, np.nan
    for name, band in zip(("c_vv", "c_vh"), values, strict=True):
        np.save(place / "data" / f"{name}.npy", band)
    assert run("--images", "data/c_{vv,vh}.npy", "--values", "amplitude", "--valid", "any") == 0
    got = read_bands(place / "maps" / "c_vv_vh.png")[0]
    lent = np.where(np.isnan(values), values[::-1], values)
    assert np.array_equal(got, load_model("model").predict(torch.from_numpy(lent)[None])[0])
    assert run("--images", "data/c_{vv,vh}.npy", "--values", "amplitude", "--output", "all") == 0
    assert (read_bands(place / "all" / "c_vv_vh.png")[0] == 255).sum() == 20 * sar_files.WIDTH
