"""Tiles normalised as their image, and unlike calibrations named where they are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from dataset_trees import save

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.files.readers import read_image
from crossearth_sar.evaluation.scene import Scene, measure_scenes


def write(root: Path, gains: dict[str, float]) -> None:
    """Scenes of 32 x 64 whose left half is 20 dB darker, times a gain each."""
    rng = np.random.default_rng(0)
    for name, gain in gains.items():
        amplitude = rng.rayleigh(size=(32, 64)).astype(np.float32) * gain + 1e-3
        amplitude[:, :32] *= 0.1
        save(root / "images" / f"{name}.tif", amplitude)
        save(root / "labels" / f"{name}.png", (np.arange(64) // 32 * np.ones((32, 1))).astype(np.uint8))


def opened(root: Path, model_m: float | None = None, normalize: str = "image", **folder: object) -> Domain:
    files = {"root": str(root), "images": "images/*.tif", "labels": "labels/*.png", "values": "amplitude"}
    settings = {**files, "classes": ["water", "land"], "nodata": 0, **folder}
    config = from_mapping(DomainConfig, {"name": "own", "normalize": normalize, "folder": settings})
    return open_domain(config, pixel_m=model_m)


@pytest.mark.parametrize("pixel_m", [None, 4.0])
def test_tiles_of_an_image_share_its_statistics(tmp_path: Path, pixel_m: float | None) -> None:
    write(tmp_path, {"a": 1, "b": 3})
    scene = tifffile.imread(tmp_path / "images" / "b.tif")
    scene[:5, 40:] = 0
    save(tmp_path / "images" / "b.tif", scene)
    whole, tiles = (opened(tmp_path, pixel_m, pixel_m=2, **cut) for cut in ({}, {"tile": 16}))
    assert (len(whole), len(tiles)) == (2, 16)
    for i in range(16):
        for key in ("db_mean", "db_std"):
            assert torch.equal(tiles[i][key], whole[i // 8][key]), (i, key)  # type: ignore[literal-required]
    means = [float(20 * tiles[i]["image"].log10().mean()) for i in (0, 3)]
    assert means[1] - means[0] > 15, "by itself, water would lie where land does"


def test_the_whole_image_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a": 1, "b": 3})
    tiles = opened(tmp_path, tile=16)
    asked: list[int] = []
    whole = FolderScenes.whole_scene

    def counted(self: FolderScenes, index: int) -> object:
        asked.append(self.scene_number(index))
        return whole(self, index)

    monkeypatch.setattr(FolderScenes, "whole_scene", counted)
    for i in (0, 1, 15, 2, 14):
        assert torch.equal(tiles[i]["db_mean"], tiles[i // 8 * 8]["db_mean"])
    assert asked == [0, 1]


def test_unlike_calibrations_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "even", {"a": 1, "b": 1.5, "c": 0.8})
    opened(tmp_path / "even", normalize="domain")
    opened(tmp_path / "even", normalize="domain", tile=16)
    assert not caplog.records, "halves of one image differ by 20 dB, images by 5"
    write(tmp_path / "odd", {"a": 1, "b": 1.5, "c": 10})
    opened(tmp_path / "odd", normalize="image")
    assert not caplog.records
    for cut in ({}, {"tile": 16}):
        caplog.clear()
        opened(tmp_path / "odd", normalize="domain", **cut)
        (record,) = caplog.records
        said = record.getMessage()
        for word in ("domain 'own'", "19.8 dB", "in image a", "in image c", "normalize: image"):
            assert word in said, said


def test_scenes_of_one_command_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"a": 1, "c": 10})
    scenes = [Scene(read_image(tmp_path / "images" / f"{n}.tif"), "amplitude") for n in "ac"]
    measure_scenes(scenes[:1])
    assert not caplog.records
    measure_scenes(scenes)
    assert "--normalize image" in caplog.text
    assert "a.tif" in caplog.text
