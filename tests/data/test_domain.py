"""A domain's statistics in dB, how its samples carry them, and where its files are looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from crossearth_sar.data.domain import MEASURED_SAMPLES, Domain, DomainConfig, measure_db, open_domain
from crossearth_sar.data.folder import FolderConfig
from crossearth_sar.data.sample import ClassTable, Sample
from crossearth_sar.data.synthetic import SimulatedScenes, SimulatorConfig
from crossearth_sar.errors import InputError

SIMULATED = SimulatorConfig(length=5, image_size=24, seed=3)
CLASSES = ClassTable(names=("a",), palette=((0, 0, 0),))


class Recorded:
    """Images given as a list, and the indices that were asked for."""

    classes = CLASSES

    def __init__(self, images: list[Tensor]) -> None:
        self.images, self.asked = images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        image = self.images[index]
        return Sample(image=image, mask=torch.zeros(image.shape[1:]).long(), name=str(index))


def direct(images: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per band of 20 log10 of the pixels above 0, in double precision."""
    bands = range(images[0].shape[0])
    joined = [np.concatenate([image[band].double().numpy().ravel() for image in images]) for band in bands]
    decibels = [20 * np.log10(values[values > 0]) for values in joined]
    return np.array([d.mean() for d in decibels]), np.array([d.std() for d in decibels])


def test_statistics_of_a_simulated_domain() -> None:
    domain, scenes = open_domain(DomainConfig(name="x", simulated=SIMULATED)), SimulatedScenes(SIMULATED)
    mean, std = direct([scenes[i]["image"] for i in range(5)])
    for sample in (domain[0], domain[4]):
        np.testing.assert_allclose(sample["db_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(sample["db_std"], std, rtol=1e-5)
        assert sample["db_mean"].dtype == sample["db_std"].dtype == torch.float32
    assert torch.equal(domain[2]["image"], scenes[2]["image"])
    assert domain[2]["name"] == scenes[2]["name"]
    assert (domain.name, domain.classes, len(domain)) == ("x", scenes.classes, 5)


def test_bands_of_unlike_size_and_pixels_of_zero() -> None:
    """Bands keep apart, unlike image sizes weigh by their pixels, and nodata does not count."""
    images = [torch.rand(2, 9, 7) + 0.1, torch.rand(2, 4, 30) * 50 + 0.1]
    images[0][0, :3], images[1][1, :, 4] = 0, 0
    mean, std = measure_db(Recorded(images))
    expected_mean, expected_std = direct(images)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5)
    np.testing.assert_allclose(std, expected_std, rtol=1e-5)


def test_a_domain_without_a_lit_pixel_has_finite_statistics() -> None:
    mean, std = measure_db(Recorded([torch.zeros(1, 4, 4)]))
    assert torch.isfinite(mean).all()
    assert bool((std > 0).all())


def test_normalisation_by_image() -> None:
    domain = open_domain(DomainConfig(name="x", simulated=SIMULATED, normalize="image"))
    samples = [domain[i] for i in (0, 3)]
    for sample in samples:
        mean, std = direct([sample["image"]])
        np.testing.assert_allclose(sample["db_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(sample["db_std"], std, rtol=1e-5)
    assert not torch.equal(samples[0]["db_mean"], samples[1]["db_mean"])


def test_normalisation_by_image_measures_nothing_early() -> None:
    data = Recorded([torch.rand(1, 4, 4) + 0.1 for _ in range(3)])
    Domain(DomainConfig(name="x", simulated=SIMULATED, normalize="image"), data)
    assert data.asked == []


@pytest.mark.parametrize("length", [1, 2, MEASURED_SAMPLES, MEASURED_SAMPLES + 1, 1000])
def test_measured_samples_are_evenly_spread(length: int) -> None:
    data = Recorded([torch.ones(1, 1, 1)] * length)
    measure_db(data)
    assert len(data.asked) == len(set(data.asked)) == min(length, MEASURED_SAMPLES)
    assert (data.asked[0], data.asked[-1]) == (0, length - 1)
    steps = np.diff(data.asked)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_config_takes_exactly_one_source() -> None:
    folder = FolderConfig(root=".", values="amplitude", classes=("a", "b"), images="*.tif")
    for sources in ({}, {"simulated": SIMULATED, "folder": folder}):
        with pytest.raises(InputError, match="domain 'x' does not fit"):
            DomainConfig(name="x", **sources)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="normalize"):
        DomainConfig(name="x", simulated=SIMULATED, normalize="pixel")


def write_folder(folder: Path) -> None:
    folder.mkdir()
    amplitude = np.random.default_rng(0).random((20, 24), dtype=np.float32) + 0.5
    tifffile.imwrite(folder / "one.tif", amplitude)
    tifffile.imwrite(folder / "one_label.tif", (amplitude > 1).astype(np.uint8))


def folder_domain(root: str) -> DomainConfig:
    files = {"images": "one.tif", "labels": "one_label.tif"}
    return DomainConfig(
        name="files", folder=FolderConfig(root=root, values="amplitude", classes=("dark", "bright"), **files)
    )


def test_a_relative_root_is_taken_below_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set")
    expected = direct([torch.from_numpy(tifffile.imread(tmp_path / "set" / "one.tif"))[None]])
    here = tmp_path / "set"
    for root, data_root, cwd in (("set", tmp_path, "/"), ("set", "", tmp_path), (str(here), "/nowhere", "/")):
        monkeypatch.chdir(cwd)
        domain = open_domain(folder_domain(root), str(data_root))
        assert domain.classes.names == ("dark", "bright")
        np.testing.assert_allclose(domain[0]["db_mean"], expected[0], rtol=1e-4)
        np.testing.assert_allclose(domain[0]["db_std"], expected[1], rtol=1e-4)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="elsewhere"):
        open_domain(folder_domain("elsewhere"), str(tmp_path))
