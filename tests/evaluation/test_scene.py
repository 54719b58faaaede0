"""Scenes row by row: the classes of `predict` to the pixel, statistics of a domain, nodata, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossearth_sar import CrossEarthSAR, InputError, build_model
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.domain import DomainConfig, open_domain
from crossearth_sar.data.domain_statistics import measure_db
from crossearth_sar.data.files.readers import RawImage, read_image
from crossearth_sar.decibels import db_statistics
from crossearth_sar.evaluation import scene as module
from crossearth_sar.evaluation.evaluate import predict_sample
from crossearth_sar.evaluation.scene import Scene, measure_scenes, predict_scene
from crossearth_sar.ground_scale import average_power, working_size
from crossearth_sar.model import ModelOutput

SMALL = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "patch_size": 16, "depth": 4},
    "decoder": {"channels": 32, "num_queries": 8, "pixel_layers": 1, "query_layers": 1},
    "crop_size": 64,
    "crop_stride": 40,
}


@pytest.fixture(scope="module")
def model() -> CrossEarthSAR:
    torch.manual_seed(4)  # one whose classes differ over an image
    return build_model("crossearth_sar_tiny", 3, changes=SMALL).eval()


def speckle(*shape: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    mean = np.linspace(0.1, 3, shape[-1]) * (1 + np.arange(shape[-2]) // 50 % 2)[:, None]
    return (mean * draw.rayleigh(size=shape)).astype(np.float32)


def scene_of(values: np.ndarray, kind: str = "amplitude", valid: np.ndarray | None = None) -> Scene:
    valid = np.isfinite(values).all(0) if valid is None else valid
    return Scene(RawImage(values, valid, Path("scene.npy")), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(64, 64), (50, 63), (3, 110), (65, 64), (120, 110)])
def test_classes_are_those_of_predict(model: CrossEarthSAR, size: tuple[int, int]) -> None:
    values = speckle(2, *size)
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([8.0, 6.0])
    windows: list[ModelOutput] = []
    found = predict_scene(model, scene_of(values), mean, std, on_window=windows.append)
    expected_windows: list[ModelOutput] = []
    expected = model.predict(
        torch.from_numpy(values)[None], mean[None], std[None], on_window=expected_windows.append
    )[0]
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.numpy())
    assert len(windows) == len(expected_windows)
    assert min(size) < 64 or len(np.unique(found)) > 1, "one class everywhere would show no mistake"


def test_nodata_is_filled_as_in_training_and_255_in_the_map(model: CrossEarthSAR, tmp_path: Path) -> None:
    values = speckle(1, 50, 60)
    values[:, :9, 7:40] = np.nan
    np.save(tmp_path / "one.npy", values[0])
    folder = FolderScenes(
        FolderConfig(root=str(tmp_path), images="*.npy", values="amplitude", classes=("a",))
    )
    mean, std = torch.tensor([20.0]), torch.tensor([5.0])
    expected = model.predict(folder[0]["image"][None], mean, std)[0].numpy()
    assert len(np.unique(expected)) > 1
    expected[~np.isfinite(values[0])] = 255
    assert np.array_equal(predict_scene(model, scene_of(values), mean, std), expected)


def test_windows_without_a_measurement_are_left_out(model: CrossEarthSAR) -> None:
    values = speckle(1, 130, 110)
    values[:, 64:, 40:] = np.nan
    values[0, 0, 0] = np.inf
    windows: list[ModelOutput] = []
    scene = scene_of(values)
    found = predict_scene(model, scene, torch.zeros(1), torch.ones(1), on_window=windows.append)
    assert len(windows) == 3 * 3 - 2  # rows from 66, columns from 40 and 46 hold nothing
    assert np.array_equal(found == 255, ~scene.raw.valid)


def test_the_model_stays_in_its_mode(model: CrossEarthSAR) -> None:
    try:
        scene = scene_of(speckle(1, 64, 64))
        predict_scene(model.train(), scene, torch.zeros(1), torch.ones(1))
        assert model.training
    finally:
        model.eval()


def test_statistics_are_those_of_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks and files, of values in dB; of measured pixels alone."""
    for i, height in enumerate((33, 70)):
        np.save(tmp_path / f"s{i}.npy", 10 * np.log10(speckle(1, height, 40)[0]))
    folder = FolderScenes(FolderConfig(root=str(tmp_path), images="*.npy", values="db", classes=("a", "b")))
    monkeypatch.setattr(module, "BLOCK_PIXELS", 40 * 16)
    found = measure_scenes(Scene(read_image(p), "db") for p in sorted(tmp_path.glob("*.npy")))
    for one, other in zip(found, measure_db(folder), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    padded = np.pad(speckle(1, 70, 40), ((0, 0), (9, 0), (0, 0)), constant_values=np.nan)
    for one, other in zip(
        measure_scenes([scene_of(padded)]), measure_scenes([scene_of(speckle(1, 70, 40))]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_bad_scenes_are_refused_with_words(model: CrossEarthSAR) -> None:
    negative = speckle(1, 80, 40)
    negative[0, 70, 3] = -1
    with pytest.raises(InputError, match=r"(?s)scene\.npy, rows 0 to 79 has negative.*values: db"):
        measure_scenes([scene_of(negative)])
    with pytest.raises(InputError, match=r"(?s)number of bands.*2 in scene.npy, 1 before it"):
        measure_scenes([scene_of(speckle(1, 9, 9)), scene_of(speckle(2, 9, 9))])
    with pytest.raises(InputError, match="at least one"):
        measure_scenes([])


@pytest.mark.parametrize(
    ("own", "size"), [(10.0, (64, 70)), (3.0, (230, 200)), (2.0, (301, 47)), (25.0, (40, 33))]
)
def test_at_the_ground_spacing_of_the_model(own: float, size: tuple[int, int]) -> None:
    """The classes of predict on the scene's pixels; statistics of the averaged scene, in several blocks."""
    model, values = scaled(), speckle(1, *size)
    scene = Scene(RawImage(values, np.ones(size, bool), Path("scene.npy"), 7.0), "amplitude", own)
    image = torch.from_numpy(values)[None]
    mean, std = measure_scenes([scene], 10.0)
    small = average_power(image, working_size(size, own, 10.0))
    for one, other in zip((mean, std), db_statistics(small), strict=True):
        torch.testing.assert_close(one, other[0], rtol=1e-5, atol=0)
    found = predict_scene(model, scene, mean, std)
    assert found.shape == size
    assert np.array_equal(found, model.predict(image, mean, std, pixel_m=own)[0].numpy())
    assert len(np.unique(found)) > 1
    tagged = Scene(RawImage(values, np.ones(size, bool), Path("scene.npy"), own), "amplitude")
    assert np.array_equal(predict_scene(model, tagged, mean, std), found), (
        "the file's own, where none is given"
    )


def test_blocks_of_rows_average_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(RawImage(speckle(1, 230, 90), np.ones((230, 90), bool), Path("x")), "amplitude", 3.0)
    whole = list(scene.blocks(10.0))
    monkeypatch.setattr(module, "BLOCK_PIXELS", 1000)
    parts = list(scene.blocks(10.0))
    assert len(whole) == 1 < len(parts)
    assert torch.equal(torch.cat(parts, 1), whole[0])


def test_nodata_is_not_averaged_in(tmp_path: Path) -> None:
    """Scene and sample agree: measured pixels are averaged, then what is missing is filled."""
    values = speckle(1, 128, 120)
    values[:, :31, 9:77] = np.nan
    np.save(tmp_path / "one.npy", values[0])
    settings = FolderConfig(
        root=str(tmp_path), images="*.npy", values="amplitude", classes=("a", "b", "c"), pixel_m=5.0
    )
    domain = open_domain(DomainConfig(name="x", folder=settings), pixel_m=10.0)
    scene = Scene(read_image(tmp_path / "one.npy"), "amplitude", 5.0)
    statistics = measure_scenes([scene], 10.0)
    for one, key in zip(statistics, ("db_mean", "db_std"), strict=True):
        torch.testing.assert_close(one, domain[0][key], rtol=1e-6, atol=0)  # type: ignore[literal-required]
    expected = predict_sample(scaled(), domain[0]).numpy()
    expected[~scene.raw.valid] = 255
    assert np.array_equal(predict_scene(scaled(), scene, *statistics), expected)
    assert len(np.unique(expected)) > 2


def scaled() -> CrossEarthSAR:
    torch.manual_seed(4)
    return build_model("crossearth_sar_tiny", 3, changes={**SMALL, "pixel_m": 10.0}).eval()
