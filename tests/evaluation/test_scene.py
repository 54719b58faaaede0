"""Scenes row by row: the classes of `predict` to the pixel, statistics of a domain, nodata, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossearth_sar import CrossEarthSAR, InputError, build_model
from crossearth_sar.data.domain import DomainConfig, open_domain
from crossearth_sar.data.folder import FolderConfig
from crossearth_sar.data.readers import RawImage, read_image
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
    torch.manual_seed(1)
    return build_model("crossearth_sar_tiny", 3, changes=SMALL).eval()


def speckle(*shape: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    mean = np.linspace(0.1, 3, shape[-1]) * (1 + np.arange(shape[-2]) // 50 % 2)[:, None]
    return (mean * draw.rayleigh(size=shape)).astype(np.float32)


def scene_of(values: np.ndarray, kind: str = "amplitude", valid: np.ndarray | None = None) -> Scene:
    valid = np.isfinite(values).all(0) if valid is None else valid
    return Scene(RawImage(values, valid, Path("scene.npy")), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(64, 64), (50, 63), (3, 200), (65, 64), (183, 150)])
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
    assert size[0] < 60 or len(np.unique(found)) > 1, "one class everywhere would show no mistake"


def test_nodata_is_255_and_its_windows_are_left_out(model: CrossEarthSAR) -> None:
    values = speckle(1, 200, 150)
    values[:, 130:, 70:] = np.nan
    values[0, 0, 0] = np.inf
    scene = scene_of(values)
    mean, std = measure_scenes([scene])
    windows: list[ModelOutput] = []
    found = predict_scene(model, scene, mean, std, on_window=windows.append)
    image = torch.from_numpy(np.where(scene.raw.valid, values, 0))[None]
    expected = model.predict(image, mean[None], std[None])[0].numpy()
    expected[~scene.raw.valid] = 255
    assert np.array_equal(found, expected)
    assert len(windows) == 5 * 4 - 2  # rows from 136, columns from 80 and 86 hold nothing


def test_the_model_stays_in_its_mode(model: CrossEarthSAR) -> None:
    try:
        scene = scene_of(speckle(1, 20, 20))
        predict_scene(model.train(), scene, torch.zeros(1), torch.ones(1))
        assert model.training
    finally:
        model.eval()


def test_statistics_are_those_of_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks and files, of values in dB, with pixels without a measurement."""
    for i, height in enumerate((33, 70)):
        db = 10 * np.log10(speckle(1, height, 40)[0])
        db[:5, :9] = np.nan
        np.save(tmp_path / f"s{i}.npy", db)
    folder = FolderConfig(root=str(tmp_path), images="*.npy", values="db", classes=("a", "b"))
    domain = open_domain(DomainConfig(name="d", folder=folder))
    monkeypatch.setattr(module, "BLOCK_PIXELS", 40 * 16)
    mean, std = measure_scenes(Scene(read_image(p), "db") for p in sorted(tmp_path.glob("*.npy")))
    assert domain.db_mean is not None
    assert domain.db_std is not None
    torch.testing.assert_close(mean, domain.db_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(std, domain.db_std, rtol=1e-6, atol=0)


def test_bad_scenes_are_refused_with_words(model: CrossEarthSAR) -> None:
    negative = speckle(1, 80, 40)
    negative[0, 70, 3] = -1
    with pytest.raises(InputError, match=r"(?s)scene\.npy, rows 0 to 79 has negative.*values: db"):
        measure_scenes([scene_of(negative)])
    with pytest.raises(InputError, match=r"(?s)number of bands.*2 in scene.npy, 1 before it"):
        measure_scenes([scene_of(speckle(1, 9, 9)), scene_of(speckle(2, 9, 9))])
    with pytest.raises(InputError, match="at least one"):
        measure_scenes([])
