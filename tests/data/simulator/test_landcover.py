"""Label maps: their statistics, their shapes, and the random field beneath them."""

from __future__ import annotations

import numpy as np
import pytest

from crossearth_sar.data.simulator.landcover import (
    AGRICULTURAL,
    BUILDING,
    FOREST,
    ROAD,
    STOREY_M,
    WATER,
    Landcover,
    draw_landcover,
)
from crossearth_sar.data.simulator.noise import smooth_noise
from crossearth_sar.data.simulator.regions import LAYOUTS


def draw(region: str, index: int, size: int = 128, resolution_m: float = 3.0) -> Landcover:
    return draw_landcover(
        np.random.default_rng((5, index)), LAYOUTS[region], size=size, resolution_m=resolution_m
    )


def shares(region: str, scenes: int = 32) -> np.ndarray:
    labels = np.stack([draw(region, i).labels for i in range(scenes)])
    return np.bincount(labels.ravel(), minlength=7) / labels.size


@pytest.mark.parametrize("region", LAYOUTS)
def test_every_class_is_there_and_none_dominates(region: str) -> None:
    share = shares(region)
    assert len(share) == 7
    assert share.min() > 0.01, share
    assert share.max() < 0.6, share


def test_regions_differ_in_their_land_cover() -> None:
    north, south, coast = (shares(region) for region in ("temperate_north", "arid_south", "coastal"))
    assert abs(north - south).sum() > 0.3
    assert abs(north - coast).sum() > 0.3
    assert coast[WATER] > 2 * north[WATER]


@pytest.mark.parametrize("region", LAYOUTS)
@pytest.mark.parametrize(("size", "resolution_m"), [(16, 0.1), (33, 30.0), (64, 100.0)])
def test_any_size_and_resolution(region: str, size: int, resolution_m: float) -> None:
    for index in range(4):
        ground = draw(region, index, size, resolution_m)
        assert ground.labels.shape == ground.parcel.shape == ground.height_m.shape == (size, size)
        assert ground.labels.dtype == np.int64
        assert 0 <= ground.labels.min() <= ground.labels.max() <= 6
        assert np.isfinite(ground.height_m).all()


@pytest.mark.parametrize("region", LAYOUTS)
def test_only_buildings_and_trees_stand_above_ground(region: str) -> None:
    layout = LAYOUTS[region]
    for index in range(8):
        ground = draw(region, index)
        assert 0 <= ground.wall_angle_deg <= 45
        upright = (ground.labels == BUILDING) | (ground.labels == FOREST)
        np.testing.assert_array_equal(ground.height_m > 0, upright)
        roofs = ground.height_m[ground.labels == BUILDING]
        if roofs.size:
            assert roofs.min() >= STOREY_M * layout.storeys[0]
            assert roofs.max() <= STOREY_M * layout.storeys[1] + 1.5


def test_objects_keep_their_size_in_metres() -> None:
    def built_area(resolution_m: float) -> float:
        """Median area of whole buildings: the components of the building mask."""
        from scipy.ndimage import label

        areas = []
        for index in range(12):
            components, count = label(draw("arid_south", index, 192, resolution_m).labels == BUILDING)
            areas += list(np.bincount(components.ravel())[1:] * resolution_m**2) if count else []
        return float(np.median(areas))

    assert built_area(1.5) == pytest.approx(built_area(3.0), rel=0.35)


def test_roads_are_thin_and_long() -> None:
    from scipy.ndimage import binary_erosion

    roads = [draw("temperate_north", i).labels == ROAD for i in range(16)]
    wide = [binary_erosion(road, iterations=4) for road in roads]  # nothing over 8 px = 24 m but crossings
    assert np.sum(wide) < 0.06 * np.sum(roads)
    longest = [max(np.ptp(np.nonzero(road)[axis]) for axis in (0, 1)) for road in roads if road.any()]
    assert np.mean(longest) > 100


def test_water_is_in_one_or_two_pieces() -> None:
    from scipy.ndimage import label

    pieces = [label(draw("coastal", i).labels == WATER, np.ones((3, 3)))[1] for i in range(24)]
    assert np.median(pieces) <= 3
    assert max(pieces) > 0


def test_fields_follow_parcels() -> None:
    for index in range(8):
        ground = draw("temperate_north", index)
        if (ground.labels == AGRICULTURAL).any():
            numbers = np.unique(ground.parcel[ground.labels == AGRICULTURAL])
            assert len(numbers) < 40


def test_smooth_noise_has_unit_variance_everywhere_and_the_asked_correlation() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_noise(rng, 48, 8.0) for _ in range(3000)])
    np.testing.assert_allclose(fields.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(fields.var(0), 1, atol=0.15)
    near = (fields[:, 24, 24] * fields[:, 24, 26]).mean()
    far = (fields[:, 24, 8] * fields[:, 24, 44]).mean()
    assert near > 0.85
    assert abs(far) < 0.1


def test_octaves_add_detail_and_keep_the_variance() -> None:
    rng = np.random.default_rng(1)
    plain = np.stack([smooth_noise(rng, 32, 16.0) for _ in range(400)])
    rough = np.stack([smooth_noise(rng, 32, 16.0, octaves=4) for _ in range(400)])
    assert rough.var() == pytest.approx(1, abs=0.1)
    assert np.diff(rough).var() > 2 * np.diff(plain).var()
