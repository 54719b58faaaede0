"""Scenes row by row: the classes of `predict` to the pixel, statistics of a domain, nodata, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossearth_sar import CrossEarthSAR, InputError, build_model
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.domain import measure_db
from crossearth_sar.data.files.readers import RawImage, read_image
from crossearth_sar.evaluation import scene as module
from crossearth_sar.evaluation.scene import Scene, measure_scenes, predict_scene
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
