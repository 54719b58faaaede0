"""The wide mixture: what its scenes differ in, how they are delivered, and how near real images they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from crossearth_sar.config import from_mapping
from crossearth_sar.data.domain import DomainConfig, open_domain
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.data.simulator.config import SimulatorConfig
from crossearth_sar.data.simulator.landcover import BARREN, FOREST, WATER, Landcover
from crossearth_sar.data.simulator.product import delivered, swath
from crossearth_sar.data.simulator.scattering import (
    mean_sigma0_db,
    sea_gain,
    sigma0_table,
    with_land_contrast,
)
from crossearth_sar.data.simulator.scenes import SimulatedScenes, illuminate, simulate
from crossearth_sar.data.simulator.sensors import draw_sensor, simulated_sensors
from crossearth_sar.errors import InputError

WIDE = SimulatorConfig(length=400, image_size=64, sensors="wide", resolution_m=10.0, seed=4)


def ground(labels: np.ndarray) -> Landcover:
    flat = np.zeros(labels.shape, np.float32)
    return Landcover(labels, np.zeros(labels.shape, np.int64), flat, 0.0)


def test_a_wide_scene_depends_on_config_and_index_alone() -> None:
    scenes = SimulatedScenes(WIDE)
    first = scenes[7]
    _ = scenes[3]
    again = SimulatedScenes(dataclasses.replace(WIDE, length=8))[7]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["mask"], again["mask"])
    other = SimulatedScenes(dataclasses.replace(WIDE, seed=5))[7]
    assert not torch.equal(first["image"], other["image"])


def test_wide_scenes_keep_the_contract() -> None:
    ignored = 0
    for sample in (SimulatedScenes(WIDE)[i] for i in range(60)):
        assert sample["image"].shape == (1, 64, 64)
        assert sample["image"].dtype == torch.float32
        assert torch.isfinite(sample["image"]).all()
        assert sample["image"].min() >= 0
        assert sample["image"].std() > 0
        values = set(sample["mask"].unique().tolist())
        assert values <= {*range(7), IGNORE_INDEX}
        ignored += IGNORE_INDEX in values
    assert 0 < ignored < 20


def test_every_scene_draws_its_own_sensor() -> None:
    drawn = [draw_sensor(WIDE, i) for i in range(400)]
    assert all(c.sensors == "one" and c.ground == "landscape" and c.seed == WIDE.seed for c in drawn)
    assert {c.band for c in drawn} == {"L", "S", "C", "X"}
    assert {c.polarization for c in drawn} == {"HH", "HV", "VH", "VV"}
    assert {c.region for c in drawn} == {"temperate_north", "arid_south", "coastal"}
    assert {c.form for c in drawn} == {"float", "byte_amplitude", "byte_db", "byte_display"}
    pixels = np.array([c.resolution_m for c in drawn])
    assert 5 <= pixels.min() < 5.5
    assert 18 < pixels.max() <= 20
    assert np.median(pixels) == pytest.approx(10, rel=0.1)  # even in octaves
    correlations = [c.speckle_correlation for c in drawn]
    assert np.mean([0.4 <= c <= 0.75 for c in correlations]) > 0.6
    assert {c.slope_deg == 0 for c in drawn} == {True, False}


def test_simulated_sensors_are_datasets_of_their_own() -> None:
    sensors = simulated_sensors(6, seed=1, pixel_m=12.0, length=3, image_size=48)
    assert len(sensors) == len({c.seed for c in sensors}) == 6
    assert sensors == simulated_sensors(6, seed=1, pixel_m=12.0, length=3, image_size=48)
    assert {c.seed for c in sensors}.isdisjoint(c.seed for c in simulated_sensors(6, seed=2))
    assert all(6 <= c.resolution_m <= 24 and c.sensors == "one" and c.length == 3 for c in sensors)
    assert SimulatedScenes(sensors[0])[2]["image"].shape == (1, 48, 48)


def test_a_domain_is_wide_by_its_config() -> None:
    config = from_mapping(
        DomainConfig,
        {
            "name": "wide",
            "normalize": "image",
            "simulated": {"sensors": "wide", "resolution_m": 10, "length": 4, "image_size": 32},
        },
    )
    sample = open_domain(config)[3]
    assert sample["image"].shape == (1, 32, 32)
    assert torch.isfinite(sample["db_mean"]).all()


def test_wide_scenes_are_as_real_ones() -> None:
    """Medians over tiles of Sentinel-1, KOMPSAT-5 and AIRSAR: see bench/reports/simulator-realism."""
    peaks, contrasts, bright = [], [], []
    for i in range(200):
        scene = simulate(dataclasses.replace(WIDE, image_size=128), i)
        seen = scene.mask != IGNORE_INDEX
        level = scene.intensity[seen] / scene.intensity[seen].mean()
        peaks.append(10 * np.log10(np.percentile(level, 99.9)))
        bright.append(10 * np.log10(np.median(level)))
        water = scene.mask == WATER
        if 0.03 < water.mean() < 0.9:
            contrasts.append(
                10 * np.log10(scene.intensity[seen & ~water].mean() / scene.intensity[water].mean())
            )
    assert 6 < np.median(peaks) < 10
    assert np.quantile(peaks, 0.9) < 13
    assert -2.5 < np.median(bright) < -0.3
    low, middle, high = np.quantile(contrasts, (0.1, 0.5, 0.9))
    assert 1.5 < low < 5
    assert 4.5 < middle < 8
    assert 8 < high < 14


@pytest.mark.parametrize("form", ["byte_amplitude", "byte_db", "byte_display"])
def test_bytes_are_few_values_and_saturate(form: Any) -> None:
    amplitude = np.random.default_rng(0).gamma(2.0, 0.1, (200, 200)).astype(np.float32)
    got = delivered(np.random.default_rng(1), amplitude, form)
    values = np.unique(got)
    assert 20 < len(values) <= 256
    clipped = (got == values[-1]).mean()
    assert 0.0005 < clipped < 0.02
    assert (np.diff(got.ravel()[amplitude.ravel().argsort()]) >= 0).all()  # brighter stays brighter
    assert got.min() >= 0
    assert got.dtype == np.float32
    if form != "byte_display":
        middle = (amplitude > np.quantile(amplitude, 0.2)) & (amplitude < np.quantile(amplitude, 0.98))
        np.testing.assert_allclose(got[middle], amplitude[middle], rtol=0.1)


def test_a_form_changes_values_and_no_label() -> None:
    base = SimulatorConfig(image_size=64)
    byte = dataclasses.replace(base, form="byte_db")
    np.testing.assert_array_equal(simulate(base, 0).mask, simulate(byte, 0).mask)
    assert len(np.unique(simulate(byte, 0).intensity)) <= 256 < len(np.unique(simulate(base, 0).intensity))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_the_swath_ends_at_a_straight_edge(share: float) -> None:
    measured = swath(np.random.default_rng(3), 100, share)
    assert (~measured).mean() == pytest.approx(share, abs=0.01)
    for line in measured:
        assert np.count_nonzero(np.diff(line.astype(int))) <= 1


@pytest.mark.parametrize("looks", [1, 4])
def test_beyond_the_swath_is_ignored_and_filled(looks: int) -> None:
    config = SimulatorConfig(image_size=64, looks=looks, nodata=0.3)
    scene, whole = simulate(config, 1), simulate(dataclasses.replace(config, nodata=0.0), 1)
    missing = scene.mask == IGNORE_INDEX
    assert missing.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(scene.mask[~missing], whole.mask[~missing])
    np.testing.assert_array_equal(scene.intensity[~missing], whole.intensity[~missing])
    assert np.isin(scene.intensity[missing], whole.intensity[~missing]).all()


def test_a_gain_is_a_gain() -> None:
    base = SimulatorConfig(image_size=32)
    louder = dataclasses.replace(base, gain_db=6.0)
    ratio = simulate(louder, 0).intensity / simulate(base, 0).intensity
    np.testing.assert_allclose(ratio, 10**0.6, rtol=1e-4)


def test_a_rough_sea_is_brighter_in_copolarization() -> None:
    labels = np.full((64, 64), WATER)
    labels[:, 32:] = FOREST
    hh, hv, vv = sea_gain(np.random.default_rng(0), labels, sea_db=6.0, wind_db=0.0)
    assert (hh[:, 32:] == 1).all()
    np.testing.assert_allclose(10 * np.log10(hh[:, :32]), 6, rtol=1e-4)
    np.testing.assert_allclose(10 * np.log10(hv[:, :32]), 3, rtol=1e-4)
    np.testing.assert_array_equal(hh, vv)


def test_wind_is_patches_as_wide_as_the_scene() -> None:
    labels = np.full((96, 96), WATER)
    fields = [
        10 * np.log10(sea_gain(np.random.default_rng(i), labels, sea_db=0.0, wind_db=2.0)[0])
        for i in range(40)
    ]
    assert np.std(fields) == pytest.approx(2, rel=0.25)
    steps = np.mean([np.abs(np.diff(field, axis=1)).mean() for field in fields])
    assert steps < 0.4


def test_land_contrast_spares_water_and_scales_the_rest() -> None:
    table = sigma0_table(band="C").T
    half = with_land_contrast(table, 0.5)
    np.testing.assert_array_equal(half[:, WATER], table[:, WATER])
    before, after = (10 * np.log10(t[:, FOREST] / t[:, BARREN]) for t in (table, half))
    np.testing.assert_allclose(after, before / 2, rtol=1e-4)
    np.testing.assert_allclose(with_land_contrast(table, 1.0), table, rtol=1e-4)


def test_states_of_the_ground_are_added_in_db() -> None:
    plain = ground(np.full((64, 64), BARREN))
    wet = dataclasses.replace(plain, state_db=np.full((64, 64), -6.0, np.float32))
    config = SimulatorConfig(image_size=64, nesz_db=-60.0, texture_order=None, looks=100, peak_db=8.0)
    levels = [illuminate(config, g, np.random.default_rng(2)).intensity for g in (plain, wet)]
    assert 10 * np.log10(np.median(levels[1] / levels[0])) == pytest.approx(-6, abs=0.3)
    want = mean_sigma0_db(polarization="HH", band="C")[BARREN]
    assert 10 * np.log10(np.median(levels[0])) == pytest.approx(want, abs=2.5)


def test_thermal_noise_lifts_the_darkest_water() -> None:
    labels = ground(np.full((64, 64), WATER))
    quiet, loud = (
        illuminate(
            SimulatorConfig(polarization="VH", nesz_db=nesz, speckle_correlation=0.6, looks=9),
            labels,
            np.random.default_rng(3),
        ).intensity.mean()
        for nesz in (-45.0, -24.0)
    )
    assert 10 * np.log10(loud / quiet) > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ground": "landscap"}, "landscape"),
        ({"form": "byte"}, "byte_db"),
        ({"sensors": "narrow"}, "wide"),
        ({"speckle_correlation": 0.95}, "speckle_correlation"),
        ({"speckle_correlation": float("nan")}, "speckle_correlation"),
        ({"looks": 0.5}, "looks"),
        ({"peak_db": -1.0}, "peak_db"),
        ({"slope_deg": 50.0}, "slope_deg"),
        ({"nodata": 1.0}, "nodata"),
        ({"wind_db": -1.0}, "wind_db"),
        ({"sensors": "wide", "part": "real", "looks": 1}, "wide"),
        ({"form": "byte_db", "part": "real", "looks": 1}, "form"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SimulatorConfig(**changes)


def test_looks_may_be_any_number() -> None:
    config = SimulatorConfig(looks=4.4, texture_order=None)
    assert from_mapping(SimulatorConfig, {"looks": 4}).looks == 4
    intensity = illuminate(config, ground(np.full((256, 256), WATER)), np.random.default_rng(5)).intensity
    blocks = intensity.reshape(16, 16, 16, 16).transpose(0, 2, 1, 3).reshape(256, -1)
    looks = np.median(blocks.mean(1) ** 2 / blocks.var(1))
    assert looks == pytest.approx(4.4, rel=0.1)


def test_a_scene_is_a_part_of_an_image_whose_statistics_it_carries() -> None:
    config = dataclasses.replace(WIDE, sensors="one", ground="landscape", looks=9, surroundings=0.8)
    sample, alone = (
        SimulatedScenes(config)[3],
        SimulatedScenes(dataclasses.replace(config, surroundings=0.0))[3],
    )
    assert torch.equal(sample["image"], alone["image"]), "the scene itself is the same"
    assert "db_mean" not in alone
    assert sample["db_mean"].shape == sample["db_std"].shape == (1,)
    own = 20 * torch.log10(sample["image"]).mean()
    assert abs(float(sample["db_mean"]) - float(own)) > 0.1
    domain = open_domain(DomainConfig(name="d", simulated=config, normalize="image"))
    assert torch.equal(domain[3]["db_mean"], sample["db_mean"]), "a domain keeps them"
    wide = [SimulatedScenes(WIDE)[i] for i in range(40)]
    assert 15 <= sum("db_mean" in sample for sample in wide) <= 35


def test_slicks_are_dark_filaments_on_water_alone() -> None:
    labels = np.full((128, 128), WATER)
    labels[:, :40] = FOREST
    rngs = [np.random.default_rng(seed) for seed in range(8)]
    gains = np.stack([sea_gain(rng, labels, sea_db=0.0, wind_db=0.0, slicks_db=8.0)[2] for rng in rngs])
    assert np.all(gains[..., :40] == 1)
    assert 0.02 < (gains[..., 40:] < 10 ** (-0.4)).mean() < 0.6
    assert gains.min() >= 10 ** (-0.8) * 0.999
    assert gains[..., 40:].max() > 0.9
