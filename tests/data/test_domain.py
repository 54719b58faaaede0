"""A domain's statistics in dB, how its samples carry them, and where its files are looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from dataset_trees import AIR_1_COLORS, save, speckle, stripes
from torch import Tensor

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.domain import (
    Domain,
    DomainConfig,
    open_domain,
    require_held_out,
)
from crossearth_sar.data.domain_labels import require_labels
from crossearth_sar.data.domain_statistics import MEASURED_SAMPLES, measure_db
from crossearth_sar.data.sample import ClassTable, Sample
from crossearth_sar.data.simulator.scenes import SimulatedScenes, SimulatorConfig
from crossearth_sar.data.stream import join_samples
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform
from crossearth_sar.errors import InputError
from crossearth_sar.ground_scale import average_power

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


# --- published datasets and mixtures ----------------------------------------------------------------------


def write_sources(root: Path) -> None:
    """QXS-SAROPT, one band and a teacher's labels, and AIR-PolSAR-Seg-1.0, three bands and its own."""
    for i in range(5):
        save(root / "QXS-SAROPT" / "sar_256_oc_0.2" / f"{i}.png", speckle((64, 64), i))
        save(root / "taught" / "sar_256_oc_0.2" / f"{i}.png", stripes(64, 64, 4))
        for channel in ("HH", "HV", "VV"):
            folder = root / "AIR-PolSAR-Seg-1.0" / "train_set"
            save(folder / f"{i}_{channel}.png", speckle((64, 64), i + 7 * len(channel)) // 4 + 1)
            save(folder / f"{i}_gt.png", AIR_1_COLORS[stripes(64, 64, 6)])


QXS = {"dataset": "QXS-SAROPT", "task": "seven", "pseudo_labels": "taught", "changes": {"upsample": False}}
POLSAR = {"dataset": "AIR-PolSAR-Seg-1.0", "task": "seven", "part": "train"}
MIXTURE = {"name": "both", "mixture": [{"name": "q", "official": QXS}, {"name": "p", "official": POLSAR}]}


def domain(**settings: object) -> DomainConfig:
    return from_mapping(DomainConfig, settings)


def test_a_mixture_joins_domains_each_with_its_own_statistics(tmp_path: Path) -> None:
    write_sources(tmp_path)
    both = open_domain(domain(**MIXTURE), str(tmp_path))
    alone = [open_domain(part, str(tmp_path)) for part in domain(**MIXTURE).mixture]
    assert [len(part) for part in alone] == [5, 4]
    assert (len(both), both.classes.names) == (9, alone[0].classes.names)
    for i, sample in enumerate(both):
        part, place = (alone[0], i) if i < 5 else (alone[1], i - 5)
        assert sample["name"] == part[place]["name"]
        for key in ("image", "mask", "db_mean", "db_std"):
            assert torch.equal(sample[key], part[place][key])  # type: ignore[literal-required]
    batch = join_samples([both[4], both[5]])
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["db_mean"].shape == (2, 3)
    assert torch.equal(batch["image"][0, 2], both[4]["image"][0])
    assert torch.equal(batch["image"][1], both[5]["image"])
    fewer = open_domain(domain(**MIXTURE, max_samples=3), str(tmp_path))
    assert [sample["name"] for sample in fewer] == [both[i]["name"] for i in (0, 3, 6)]


def test_missing_parts_of_a_mixture_come_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_domain(domain(**MIXTURE), str(tmp_path))
    for words in (
        "2 of 2 domains of 'both' are missing",
        "AIR-PolSAR-Seg-1.0",
        "get it from https://",
        "sar_256",
    ):
        assert words in str(error.value)
    write_sources(tmp_path)
    (tmp_path / "AIR-PolSAR-Seg-1.0").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"AIR-PolSAR-Seg-1.0 is not at[\s\S]*holds[\s\S]*elsewhere"):
        open_domain(domain(**MIXTURE), str(tmp_path))


@pytest.mark.parametrize(
    ("official", "words"),
    [
        ({"dataset": "QXS-SARPOT"}, "did you mean 'QXS-SAROPT'"),
        ({"dataset": "DDHR-SK"}, "DDHR-SK: domain does not fit[^$]*KR, CN, DDHR"),
        ({"dataset": "SEN12", "task": "sevn"}, "did you mean 'seven'"),
        ({"dataset": "SEN12", "changes": {"upsampel": True}}, "did you mean 'upsample'"),
        ({"dataset": "SEN12", "part": "val"}, "'all' | 'train' | 'test'"),
    ],
)
def test_official_settings_that_cannot_be(official: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        domain(name="x", official=official)


def test_mixtures_that_cannot_be() -> None:
    parts = [{"name": "a", "official": QXS}, {"name": "a", "official": POLSAR}]
    with pytest.raises(InputError, match="distinct names"):
        domain(name="x", mixture=parts)
    with pytest.raises(InputError, match="a setting of each of its domains"):
        domain(name="x", mixture=parts[:1], normalize="image")
    simulated = {"name": "s", "simulated": {"length": 2, "image_size": 24}}
    with pytest.raises(InputError, match="exactly one of"):
        domain(**simulated, mixture=[simulated])


def test_training_needs_a_label(tmp_path: Path) -> None:
    """Of every domain of a mixture: one without would count as trained on and teach nothing."""
    write_sources(tmp_path)
    require_labels(open_domain(domain(**MIXTURE), str(tmp_path)))
    untaught = domain(
        name="both",
        mixture=[
            {"name": "p", "official": POLSAR},
            {"name": "q", "official": {**QXS, "pseudo_labels": None}},
        ],
    )
    with pytest.raises(InputError, match=r"'q' has no labels to train on[\s\S]*in 5 of 5 samples"):
        require_labels(open_domain(untaught, str(tmp_path)))


def test_what_trains_does_not_validate(tmp_path: Path) -> None:
    write_sources(tmp_path)
    files = {"root": "QXS-SAROPT/sar_256_oc_0.2", "images": "*.png", "values": "amplitude"}
    left, right = "../../taught/sar_256_oc_0.2/*.png", "../../other/*.png"
    for i in range(5):
        save(tmp_path / "other" / f"{i}.png", stripes(64, 64, 4))

    def opened(name: str, **changes: object) -> Domain:
        folder = {**files, "classes": list("abcd"), "labels": left, **changes}
        return open_domain(domain(name=name, folder=folder), str(tmp_path))

    train = opened("train", names=["0", "1"])
    require_held_out(train, [opened("rest", exclude=["0", "1"]), opened("other label", labels=right)])
    for same in (opened("tiled", names=["1", "2"], tile=32), opened("same", names=["0"])):
        with pytest.raises(InputError, match=rf"'{same.name}' shows what 'train' trains on"):
            require_held_out(train, [same])
    mixed, held_out = (
        open_domain(domain(name=part, official={**POLSAR, "part": part}), str(tmp_path))
        for part in ("train", "test")
    )
    require_held_out(mixed, [held_out, train])
    with pytest.raises(InputError, match="'all' shows what 'train' trains on"):
        require_held_out(
            mixed, [open_domain(domain(name="all", official={**POLSAR, "part": "all"}), str(tmp_path))]
        )
    drawn = {"image_size": 24, "seed": 1}
    simulated = open_domain(domain(name="drawn", simulated={**drawn, "length": 4}))
    require_held_out(simulated, [open_domain(domain(name="x", simulated={**drawn, "length": 2, "seed": 2}))])
    with pytest.raises(InputError, match="'x' shows what 'drawn' trains on"):
        require_held_out(simulated, [open_domain(domain(name="x", simulated={**drawn, "length": 2}))])


def test_statistics_are_measured_at_the_spacing_of_the_model(tmp_path: Path) -> None:
    """Of a folder, a mixture and simulated scenes; of one image too. Samples stay as they are."""
    write_folder(tmp_path / "files")
    scenes = SimulatedScenes(SIMULATED)  # of 3 m, 24 pixels
    averaged = [average_power(scenes[i]["image"], (8, 8)) for i in range(5)]
    drawn = {"name": "drawn", "simulated": SIMULATED}
    for normalize in ("domain", "image"):
        domain = open_domain(DomainConfig(**drawn, normalize=normalize), pixel_m=9.0)
        mean, std = direct(averaged if normalize == "domain" else averaged[2:3])
        np.testing.assert_allclose(domain[2]["db_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(domain[2]["db_std"], std, rtol=1e-5)
        assert torch.equal(domain[2]["image"], scenes[2]["image"])
        assert domain[2]["pixel_m"] == 3
    folder = folder_domain("files")
    assert folder.folder is not None
    known = replace(folder, name="known", folder=replace(folder.folder, pixel_m=4.5))
    alone = open_domain(known, str(tmp_path), 9.0)
    mean, std = direct([average_power(alone[0]["image"], (10, 12))])
    np.testing.assert_allclose(alone[0]["db_std"], std, rtol=1e-5)
    mixture = DomainConfig(name="both", mixture=(known, replace(known, name="again")))
    assert torch.equal(open_domain(mixture, str(tmp_path), 9.0)[1]["db_std"], alone[0]["db_std"])
    assert not torch.equal(open_domain(mixture, str(tmp_path))[1]["db_std"], alone[0]["db_std"])


def test_an_unknown_spacing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "files")
    plain = open_domain(folder_domain("files"), str(tmp_path))
    assert not caplog.records
    domain = open_domain(folder_domain("files"), str(tmp_path), 9.0)
    for _ in range(3):
        assert torch.equal(domain[0]["db_std"], plain[0]["db_std"]), "taken as it is"
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    for word in (repr(domain.name), "one", "not known", "9 m", "pixel_m of the folder"):
        assert word in said


def test_a_folder_takes_the_spacing_of_its_files_or_of_its_settings(tmp_path: Path) -> None:
    write_folder(tmp_path / "files")
    keys = [1, 1, 0, 1, 1024, 0, 1, 1]  # a projected system, in metres
    tags = [(33550, "d", 3, (2.0, 2.0, 0.0), True), (34735, "H", 8, keys, True)]
    tifffile.imwrite(tmp_path / "files" / "one.tif", np.ones((20, 24), np.float32), extratags=tags)
    config = folder_domain("files")
    assert config.folder is not None
    assert open_domain(config, str(tmp_path))[0]["pixel_m"] == 2
    given = replace(config, folder=replace(config.folder, pixel_m=5.0, tile=16))
    assert [open_domain(given, str(tmp_path))[i]["pixel_m"] for i in range(4)] == [5.0] * 4
    with pytest.raises(InputError, match="pixel_m"):
        replace(config.folder, pixel_m=0.0)


def test_a_batch_of_known_and_unknown_spacings(tmp_path: Path) -> None:
    write_folder(tmp_path / "files")
    samples = [
        open_domain(folder_domain("files"), str(tmp_path))[0],
        open_domain(DomainConfig(name="drawn", simulated=SIMULATED))[0],
    ]
    transform = TrainTransform(AugmentConfig(crop_size=16), pixel_m=6.0)
    batch = join_samples([transform(sample, torch.Generator().manual_seed(0)) for sample in samples])
    assert batch["image"].shape == (2, 1, 16, 16)
    assert "pixel_m" not in batch
