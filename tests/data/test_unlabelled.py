"""Images without labels, and labelled ones whose labels nobody needs, as one domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from crossearth_sar import InputError
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.published import open_spec
from crossearth_sar.data.domain import DomainConfig, OfficialConfig, open_domain
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.data.simulator.scenes import SimulatorConfig


def write(folder: Path, values: np.ndarray, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        tifffile.imwrite(folder / f"{number}.tif", np.roll(values, number))


def speckle(*shape: int) -> np.ndarray:
    parts = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    return parts[0] + 1j * parts[1]


def test_a_folder_without_labels_needs_no_classes(tmp_path: Path) -> None:
    write(tmp_path / "images", np.abs(speckle(40, 30)))
    config = DomainConfig(
        name="plain", folder=FolderConfig(root="images", images="*.tif", values="amplitude")
    )
    domain = open_domain(config, str(tmp_path))
    assert len(domain.classes) == 0
    assert (domain[1]["mask"] == IGNORE_INDEX).all()
    with pytest.raises(InputError, match="classes"):
        FolderConfig(root="images", images="*.tif", labels="*.png", values="amplitude")
    with pytest.raises(InputError, match="label_column: null"):
        FolderConfig(root="images", index="index.csv", values="amplitude")


def test_labels_that_are_not_used_need_not_be_there(tmp_path: Path) -> None:
    write(tmp_path / "images", np.abs(speckle(40, 30)), count=12)
    folder = FolderConfig(
        root="", images="images/*.tif", labels="labels/*.png", values="amplitude", classes=("a", "b"),
        label_values={1: "a", 2: "b"}, palette=((0, 0, 0), (1, 1, 1)), part="train",
    )  # fmt: skip
    config = DomainConfig(name="labelled", folder=folder)
    with pytest.raises(InputError, match="does not exist"):
        open_domain(config, str(tmp_path))
    unlabelled = open_domain(config, str(tmp_path), labels=False)
    (tmp_path / "labels").mkdir()
    for number in range(12):
        Image.fromarray(np.full((40, 30), 1, np.uint8)).save(tmp_path / "labels" / f"{number}.png")
    labelled = open_domain(config, str(tmp_path))
    assert [labelled[i]["name"] for i in range(len(labelled))] == [
        unlabelled[i]["name"] for i in range(len(unlabelled))
    ], "the side of a split is the same with labels and without"


def test_a_mixture_of_kinds_of_values_each_with_its_statistics(tmp_path: Path) -> None:
    complex_values = speckle(64, 64).astype(np.complex64)
    amplitude = np.abs(complex_values)
    stretched = np.clip(20 * np.log10(amplitude) * 4 + 120, 1, 255).astype(np.uint8)
    write(tmp_path / "complex", complex_values)
    write(tmp_path / "linear", 300 * amplitude**2)
    write(tmp_path / "display", stretched)
    parts = (
        DomainConfig(name="slc", folder=FolderConfig(root="complex", images="*.tif", values="complex")),
        DomainConfig(name="power", folder=FolderConfig(root="linear", images="*.tif", values="intensity")),
        DomainConfig(
            name="display",
            folder=FolderConfig(root="display", images="*.tif", values="db", scale=0.25, offset=-30.0),
        ),
        DomainConfig(name="simulated", simulated=SimulatorConfig(length=2, image_size=64)),
    )
    config = DomainConfig(name="all", mixture=parts)
    with pytest.raises(InputError, match="other classes"):
        open_domain(config, str(tmp_path))
    domain = open_domain(config, str(tmp_path), labels=False)
    assert len(domain) == 8
    slc, power, display = (domain[i] for i in (0, 2, 4))
    gain = 10 * np.log10(300)
    torch.testing.assert_close(power["db_mean"], slc["db_mean"] + gain, rtol=0, atol=1e-3)
    torch.testing.assert_close(display["db_mean"], slc["db_mean"], rtol=0, atol=0.2)  # steps of 0.25 dB
    torch.testing.assert_close(display["image"], slc["image"], rtol=0.05, atol=0.05)


def test_a_published_dataset_without_its_teachers_labels(tmp_path: Path) -> None:
    spec = open_spec("QXS-SAROPT", {})
    values = np.abs(speckle(256, 256)) * 50 + 1
    folder = tmp_path / spec.folder / Path(spec.images).parent
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.png")
    config = DomainConfig(
        name="qxs", official=OfficialConfig(dataset="QXS-SAROPT", task="seven", pseudo_labels="pseudo")
    )
    with pytest.raises(InputError, match="pseudo labels"):
        open_domain(config, str(tmp_path))
    assert len(open_domain(config, str(tmp_path), labels=False)) == 3
    mixture = DomainConfig(name="both", mixture=(config, replace(config, name="again")))
    assert len(open_domain(mixture, str(tmp_path), labels=False)) == 6
