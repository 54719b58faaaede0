"""Landscapes, their water and their relief: shapes at any pixel size, and labels that a pixel can show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label, uniform_filter

from crossearth_sar.data.simulator.landcover import BUILDING, FOREST, ROAD, WATER, Landcover
from crossearth_sar.data.simulator.landscape import draw_landscape
from crossearth_sar.data.simulator.noise import Floats
from crossearth_sar.data.simulator.regions import LAYOUTS
from crossearth_sar.data.simulator.terrain import LAYOVER_DB, fractal_terrain, slope_gain
from crossearth_sar.data.simulator.water import CHANCES, KINDS, distance_to_level, draw_water, without_specks

SCENES = 120


def draw(
    index: int, region: str = "temperate_north", resolution_m: float = 10.0, size: int = 96
) -> Landcover:
    return draw_landscape(np.random.default_rng((9, index)), region, size=size, resolution_m=resolution_m)


def terrain(seed: int, size: int = 128) -> Floats:
    return fractal_terrain(np.random.default_rng(seed), size, size / 3)


@pytest.mark.parametrize("region", LAYOUTS)
@pytest.mark.parametrize(("size", "resolution_m"), [(16, 1.0), (33, 40.0), (64, 10.0), (48, 0.3)])
def test_any_size_and_resolution(region: str, size: int, resolution_m: float) -> None:
    for index in range(6):
        ground = draw(index, region, resolution_m, size)
        assert ground.state_db is not None
        assert ground.terrain is not None
        assert ground.labels.shape == ground.parcel.shape == ground.height_m.shape == (size, size)
        assert 0 <= ground.labels.min() <= ground.labels.max() <= 6
        for field in (ground.height_m, ground.state_db, ground.terrain):
            assert field.dtype == np.float32
            assert np.isfinite(field).all()
        upright = (ground.labels == BUILDING) | (ground.labels == FOREST)
        np.testing.assert_array_equal(ground.height_m > 0, upright & (resolution_m < 5))


def test_every_class_is_there() -> None:
    labels = np.stack([draw(i, region).labels for region in LAYOUTS for i in range(30)])
    share = np.bincount(labels.ravel(), minlength=7) / labels.size
    assert share.min() > 0.01, share
    assert share.max() < 0.5, share


@pytest.mark.parametrize("resolution_m", [2.0, 10.0, 30.0])
def test_water_has_all_shares_and_a_third_of_the_scenes_has_none(resolution_m: float) -> None:
    shares = np.array(
        [
            (draw(i, region, resolution_m, 64).labels == WATER).mean()
            for region in LAYOUTS
            for i in range(SCENES)
        ]
    )
    assert 0.22 < (shares == 0).mean() < 0.45
    some = shares[shares > 0]
    assert np.quantile(some, 0.1) < 0.04
    assert 0.05 < np.median(some) < 0.25
    assert (some > 0.6).mean() > 0.03
    assert some.max() > 0.85


def test_the_kinds_of_water() -> None:
    assert set().union(*CHANCES.values()) == {"none", *KINDS}
    drawn = {
        kind: [draw_water(np.random.default_rng((1, i)), kind, terrain(i)) > 0 for i in range(24)]
        for kind in KINDS
    }
    shares = {kind: np.mean(masks) for kind, masks in drawn.items()}
    assert shares["stream"] < shares["river"] < shares["coast"] < shares["open"]
    assert shares["open"] > 0.65
    pieces = {kind: np.mean([label(mask)[1] for mask in masks]) for kind, masks in drawn.items()}
    assert pieces["ponds"] > 3 * pieces["lake"]
    long = [max(np.ptp(np.nonzero(mask)[axis]) for axis in (0, 1)) for mask in drawn["river"] if mask.any()]
    assert np.median(long) > 100
    assert not (draw_water(np.random.default_rng(0), "none", terrain(0)) > 0).any()


def test_streams_are_a_few_pixels_wide() -> None:
    widths = []
    for i in range(24):
        mask = draw_water(np.random.default_rng((2, i)), "stream", terrain(i)) > 0
        edge = mask & (uniform_filter(mask.astype(float), 3) < 0.99)
        if mask.any():
            widths.append(2 * mask.sum() / edge.sum())
    assert 1.5 < np.median(widths) < 4


def test_no_water_label_of_a_lone_pixel() -> None:
    depth = np.full((9, 9), -1, np.float32)
    depth[1, 1] = depth[4, 4] = depth[5, 5] = depth[7, 1:4] = 2  # one, two and three pixels
    kept = without_specks(depth) > 0
    assert kept.sum() == 3
    assert kept[7, 1:4].all()
    for i in range(40):
        bodies, _ = label(draw(i, "coastal").labels == WATER, np.ones((3, 3)))
        assert np.bincount(bodies.ravel())[1:].min(initial=9) >= 3


def test_distance_to_a_circle() -> None:
    y, x = np.mgrid[-40:41, -40:41].astype(np.float32)
    distance = distance_to_level(20**2 - (x * x + y * y))
    near = np.abs(np.hypot(x, y) - 20) < 3
    np.testing.assert_allclose(distance[near], (20 - np.hypot(x, y))[near], atol=0.4)


def test_roads_are_no_finer_than_a_pixel_and_stop_at_water() -> None:
    for i in range(20):
        ground = draw(i, "coastal", 5.0)
        assert not (ground.labels[ground.labels == ROAD] == WATER).any()
    coarse = np.stack([draw(i, "temperate_north", 35.0).labels for i in range(40)])
    fine = np.stack([draw(i, "temperate_north", 5.0).labels for i in range(40)])
    assert (coarse == ROAD).mean() < 0.6 * (fine == ROAD).mean()


def test_towns_are_clusters_and_no_grid() -> None:
    """Buildings have unequal sizes, and their neighbourhoods unequal density."""
    areas, densities = [], []
    for i in range(60):
        built = draw(i, "temperate_north", 8.0, 128).labels == BUILDING
        if built.mean() < 0.02:
            continue
        areas.append(np.bincount(label(built)[0].ravel())[1:])
        density = uniform_filter(built.astype(float), 15)[built]
        densities.append(density.std() / density.mean())
    assert len(areas) > 8
    pooled = np.concatenate(areas)
    assert pooled.std() / pooled.mean() > 0.7
    assert np.median(densities) > 0.2


def test_flat_ground_is_left_alone() -> None:
    gain = slope_gain(terrain(0), slope_deg=0.0, incidence_deg=38.0)
    np.testing.assert_allclose(gain, 1, rtol=1e-5)


def test_slopes_facing_the_sensor_are_brighter() -> None:
    ramp = np.abs(np.arange(64, dtype=np.float32) - 32)[None].repeat(8, 0)  # a valley: down, then up
    gain = slope_gain(ramp, slope_deg=10.0, incidence_deg=40.0)
    want = np.sin(np.radians(40)) / np.sin(np.radians(30)) * np.cos(np.radians(30)) / np.cos(np.radians(40))
    np.testing.assert_allclose(gain[:, 40:60], want, rtol=1e-4)
    assert (gain[:, 2:30] < 1).all()


def test_steep_slopes_lie_over_and_throw_shadow() -> None:
    ridge = -np.abs(np.arange(64, dtype=np.float32) - 32)[None].repeat(4, 0)
    gain = slope_gain(ridge, slope_deg=39.0, incidence_deg=30.0)
    np.testing.assert_allclose(gain[:, 2:30], 10 ** (LAYOVER_DB / 10), rtol=1e-5)
    dark = slope_gain(ridge, slope_deg=39.0, incidence_deg=60.0)
    assert (dark[:, 34:60] == 0).all()
    assert (dark[:, :30] > 0).all()


def test_mountains_vary_more_than_hills() -> None:
    spread = [
        np.mean(
            [np.log(slope_gain(terrain(i), slope_deg=s, incidence_deg=38.0) + 1e-2).std() for i in range(8)]
        )
        for s in (1.0, 6.0, 18.0)
    ]
    assert spread[0] < 0.5 * spread[1] < 0.4 * spread[2]


def test_terrain_has_unit_slope() -> None:
    assert np.diff(terrain(3), axis=1).std() == pytest.approx(1, rel=1e-3)
