"""The simulated dataset: determinism, radiometry, domain gaps, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from crossearth_sar.config import from_mapping, merge, to_mapping
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.sample import SegmentationDataset
from crossearth_sar.data.simulator.landcover import BUILDING, FOREST, WATER, Landcover
from crossearth_sar.data.simulator.regions import LAYOUTS
from crossearth_sar.data.simulator.scattering import POINT_GAIN, SCATTERING, mean_sigma0_db
from crossearth_sar.data.simulator.scenes import (
    GAP_AXES,
    GAP_KINDS,
    SimulatedScenes,
    SimulatorConfig,
    gap_pair,
    illuminate,
    simulate,
)
from crossearth_sar.errors import InputError


def flat(label: int, size: int = 128) -> Landcover:
    """Ground of one class, every pixel its own parcel, nothing standing."""
    return Landcover(
        np.full((size, size), label),
        np.arange(size * size).reshape(size, size),
        np.zeros((size, size), np.float32),
        0.0,
    )


def class_means_db(config: SimulatorConfig, scenes: int = 12) -> np.ndarray:
    drawn = [simulate(config, i) for i in range(scenes)]
    intensity = np.concatenate([s.intensity.ravel() for s in drawn])
    mask = np.concatenate([s.mask.ravel() for s in drawn])
    return 10 * np.log10([intensity[mask == c].mean() for c in range(7)])


def test_sample_keeps_the_contract() -> None:
    scenes: SegmentationDataset = SimulatedScenes(SimulatorConfig(length=3, image_size=48))
    assert len(scenes) == 3
    assert scenes.classes is SEVEN_CLASSES
    sample = scenes[2]
    assert sample["image"].shape == (1, 48, 48)
    assert sample["image"].dtype == torch.float32
    assert torch.isfinite(sample["image"]).all()
    assert sample["image"].min() >= 0
    assert sample["mask"].shape == (48, 48)
    assert sample["mask"].dtype == torch.int64
    assert 0 <= sample["mask"].min() <= sample["mask"].max() <= 6
    assert len({s["name"] for s in map(scenes.__getitem__, range(3))}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"looks": 1},
        {"polarization": "full"},
        {"looks": 1, "part": "imaginary"},
        {"texture_order": None},
        {"region": "coastal", "band": "Ka"},
        {"region": "arid_south", "band": "P", "polarization": "VH"},
    ],
)
def test_a_scene_depends_on_config_and_index_alone(changes: dict[str, Any]) -> None:
    config = SimulatorConfig(length=5, image_size=40, **changes)
    scenes = SimulatedScenes(config)
    first = scenes[3]
    _ = [scenes[i] for i in (0, 4)]
    for again in (scenes[3], SimulatedScenes(dataclasses.replace(config, length=4))[np.int64(3)]):  # type: ignore[index]
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["image"], scenes[2]["image"])
    other = SimulatedScenes(dataclasses.replace(config, seed=1))[3]
    assert not torch.equal(first["image"], other["image"])
    assert not torch.equal(first["mask"], other["mask"])


@pytest.mark.parametrize("index", [-1, 5, 10**9])
def test_beyond_the_end(index: int) -> None:
    with pytest.raises(IndexError, match=f"scene {index} of 5"):
        SimulatedScenes(SimulatorConfig(length=5))[index]


def test_iteration_ends() -> None:
    assert len(list(SimulatedScenes(SimulatorConfig(length=3, image_size=16)))) == 3  # type: ignore[call-overload]


@pytest.mark.parametrize("label", range(7))
@pytest.mark.parametrize(
    ("polarization", "band", "region"),
    [("HH", "C", "temperate_north"), ("HV", "L", "arid_south"), ("full", "X", "coastal")],
)
def test_mean_intensity_of_a_class_is_its_table_value(
    label: int, polarization: Any, band: Any, region: Any
) -> None:
    config = SimulatorConfig(
        polarization=polarization, band=band, region=region, nesz_db=-30.0, texture_order=4.0
    )
    rng = np.random.default_rng(label)
    mean = np.mean([illuminate(config, flat(label), rng).intensity.mean() for _ in range(48)])
    count, section_m2 = list(SCATTERING.values())[label].points
    hh, hv, vv = POINT_GAIN
    gain = {"HH": hh, "HV": hv, "full": (hh + 2 * hv + vv) / 4}[polarization]
    table_db = mean_sigma0_db(polarization=polarization, band=band, region=region)[label]
    want = 10 ** (table_db / 10) + gain * count * 1e-4 * section_m2 + 10**-3.0
    assert 10 * np.log10(mean) == pytest.approx(10 * np.log10(want), abs=0.4)


@pytest.mark.parametrize("changes", [{"looks": 1}, {"looks": 4}, {"looks": 4, "polarization": "full"}])
def test_noise_floor_is_all_that_is_left_in_shadow(changes: dict[str, Any]) -> None:
    ground = flat(BUILDING, 64)
    ground.height_m[:, 20:24] = 60.0  # its shadow reaches 47 m, 15 columns, at the default incidence
    rng = np.random.default_rng(0)
    config = SimulatorConfig(nesz_db=-18.0, **changes)
    shadow = np.stack([illuminate(config, ground, rng).intensity[:, 24:38] for _ in range(20)])
    assert 10 * np.log10(np.median(shadow, axis=0).mean()) == pytest.approx(-18.0, abs=2.0)
    dark = [
        illuminate(SimulatorConfig(nesz_db=n, band="P", **changes), flat(WATER), rng).intensity.mean()
        for n in (-60.0, -18.0)
    ]
    assert dark[0] < 0.5 * dark[1]
    assert dark[1] >= 0.95 * 10**-1.8


def test_products_of_a_single_look_scene_agree() -> None:
    scene = simulate(SimulatorConfig(looks=1), 0)
    assert scene.slc is not None
    assert scene.slc.dtype == np.complex64
    np.testing.assert_allclose(scene.intensity, np.abs(scene.slc) ** 2, rtol=1e-5)
    np.testing.assert_allclose(scene.amplitude, np.abs(scene.slc), rtol=1e-5)
    np.testing.assert_allclose(scene.db, 20 * np.log10(np.abs(scene.slc)), atol=1e-3)
    both = np.hypot(scene.image("real"), scene.image("imaginary"))
    np.testing.assert_allclose(both, scene.amplitude, rtol=1e-5)
    for array in (scene.intensity, scene.amplitude, scene.db, scene.image("real")):
        assert array.dtype == np.float32


@pytest.mark.parametrize("changes", [{"looks": 4}, {"looks": 1, "polarization": "full"}])
def test_no_complex_image_where_there_is_none(changes: dict[str, Any]) -> None:
    scene = simulate(SimulatorConfig(image_size=32, **changes), 0)
    assert scene.slc is None
    with pytest.raises(InputError, match="looks=1"):
        scene.image("real")


def test_part_is_what_the_dataset_returns() -> None:
    for part in ("real", "imaginary"):
        config = SimulatorConfig(looks=1, part=part, image_size=32)
        np.testing.assert_array_equal(SimulatedScenes(config)[1]["image"][0], simulate(config, 1).image(part))


def test_radar_settings_leave_the_ground_alone() -> None:
    base = SimulatorConfig(image_size=64)
    for changes in (
        {"polarization": "HV"},
        {"band": "Ka"},
        {"looks": 1},
        {"nesz_db": -20.0},
        {"incidence_deg": 25.0},
        {"texture_order": None},
        {"looks": 1, "part": "real"},
    ):
        other = dataclasses.replace(base, **changes)
        np.testing.assert_array_equal(simulate(base, 2).mask, simulate(other, 2).mask)


def test_there_are_the_eight_gaps_of_the_benchmarks() -> None:
    assert len(set(GAP_KINDS)) == len(GAP_KINDS) == 8
    assert {axis for kind in GAP_KINDS for axis in kind.split("+")} == GAP_AXES.keys()
    names = {f.name for f in dataclasses.fields(SimulatorConfig)}
    for source, target in GAP_AXES.values():
        assert source.keys() == target.keys() <= names
    for one, two in itertools.combinations(GAP_AXES.values(), 2):
        assert not one[0].keys() & two[0].keys()


@pytest.mark.parametrize("kind", GAP_KINDS)
def test_a_gap_differs_in_its_axes_and_nothing_else(kind: str) -> None:
    source, target = gap_pair(kind, length=7, image_size=32, seed=11)
    differing = {
        f.name
        for f in dataclasses.fields(SimulatorConfig)
        if getattr(source, f.name) != getattr(target, f.name)
    }
    assert differing == {name for axis in kind.split("+") for name in GAP_AXES[axis][0]}
    assert (source.length, source.image_size, source.seed) == (7, 32, 11)
    for config in (source, target):
        assert SimulatedScenes(config)[0]["image"].shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("kind", "spread_db"),
    [("polarization", 1.2), ("region", 2.0), ("region+band", 3.0), ("region+platform+band", 3.0)],
)
def test_a_gap_shifts_the_classes_unequally(kind: str, spread_db: float) -> None:
    """No single gain undoes it: the shifts of the class means differ from one another."""
    source, target = gap_pair(kind)
    shift_db = class_means_db(target) - class_means_db(source)
    assert np.ptp(shift_db) > spread_db, shift_db


def test_cross_polarization_darkens_water_more_than_forest() -> None:
    config = SimulatorConfig(nesz_db=-40.0)
    shift_db = class_means_db(dataclasses.replace(config, polarization="HV")) - class_means_db(config)
    assert shift_db.max() < -3
    assert shift_db[FOREST] > shift_db[WATER] + 2


def test_the_complex_gap_changes_the_distribution() -> None:
    """|Re z| has its mode at zero and a heavier spread than the Rayleigh amplitude."""
    source, target = gap_pair("complex")
    amplitude, real = (SimulatedScenes(c)[0]["image"] for c in (source, target))
    ratio = [(x.std() / x.mean()).item() for x in (amplitude, real)]
    assert ratio[1] > ratio[0] + 0.1
    assert (real**2).mean().item() == pytest.approx((amplitude**2).mean().item() / 2, rel=0.1)


def test_a_control_pair_has_no_gap() -> None:
    config = SimulatorConfig()
    shift_db = class_means_db(dataclasses.replace(config, seed=1), 32) - class_means_db(config, 32)
    assert np.abs(shift_db).max() < 1.5, shift_db


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length"),
        ({"image_size": 8}, "image_size"),
        ({"image_size": 64.0}, "image_size"),
        ({"seed": -1}, "seed"),
        ({"region": "temperate_nort"}, "temperate_north"),
        ({"polarization": "RH"}, "HV"),
        ({"band": "K"}, "Ka"),
        ({"resolution_m": 0.0}, "resolution_m"),
        ({"looks": 0}, "looks"),
        ({"resolution_m": float("nan")}, "metres"),
        ({"nesz_db": 3.0}, "nesz_db"),
        ({"incidence_deg": 90.0}, "incidence_deg"),
        ({"texture_order": 0.0}, "texture_order"),
        ({"part": "phase"}, "imaginary"),
        ({"part": "real"}, "complex scene"),
        ({"part": "real", "looks": 1, "polarization": "full"}, "phase"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SimulatorConfig(**changes)


def test_config_from_mapping_and_back() -> None:
    config = from_mapping(SimulatorConfig, {"region": "coastal", "texture_order": None, "nesz_db": -25})
    assert config == from_mapping(SimulatorConfig, to_mapping(config))
    assert config.texture_order is None
    assert merge(config, {"looks": 1}).looks == 1
    with pytest.raises(InputError, match="did you mean 'looks'"):
        from_mapping(SimulatorConfig, {"look": 1})


@pytest.mark.parametrize(
    ("kind", "common", "message"),
    [
        ("regions", {}, "did you mean 'region'"),
        ("region+band", {"band": "X"}, "band cannot be common"),
        ("region", {"colour": 1}, "unknown config key"),
        ("complex", {"looks": 4}, "complex scene"),
    ],
)
def test_gap_pair_refuses(kind: str, common: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gap_pair(kind, **common)


def test_regions_of_config_and_layouts_are_the_same() -> None:
    for region in LAYOUTS:
        assert simulate(SimulatorConfig(region=region, image_size=16), 0).mask.shape == (16, 16)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="index"):
        simulate(SimulatorConfig(), -1)
