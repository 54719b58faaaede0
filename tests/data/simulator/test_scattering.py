"""Backscatter, texture, geometry and speckle, each against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.simulator.landcover import BUILDING, FOREST, ROAD, WATER
from crossearth_sar.data.simulator.noise import Floats
from crossearth_sar.data.simulator.regions import LAYOUTS
from crossearth_sar.data.simulator.scattering import (
    FREQUENCY_GHZ,
    POINT_GAIN,
    REGION_OFFSET_DB,
    SCATTERING,
    Band,
    add_points,
    double_bounce,
    mean_sigma0_db,
    natural_variation,
    radar_geometry,
    sigma0_table,
    texture,
)
from crossearth_sar.data.simulator.speckle import multi_look, multi_look_span, single_look


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def test_tables_cover_the_classes_and_regions() -> None:
    assert tuple(SCATTERING) == SEVEN_CLASSES.names
    assert REGION_OFFSET_DB.keys() == LAYOUTS.keys()


def test_the_table_holds_at_c_band_and_reference_incidence() -> None:
    got = 10 * np.log10(sigma0_table(band="C"))
    want = [(row.hh_db, row.hv_db, row.vv_db) for row in SCATTERING.values()]
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("band", FREQUENCY_GHZ)
@pytest.mark.parametrize("region", LAYOUTS)
def test_physical_order_of_sigma0(band: Band, region: str) -> None:
    hh, hv, vv = (mean_sigma0_db(polarization=p, band=band, region=region) for p in ("HH", "HV", "VV"))
    assert (hv < hh).all()
    assert (hv < vv).all()
    assert vv[WATER] > hh[WATER]  # Bragg
    assert hh.argmin() == hv.argmin() == WATER
    assert hh.argmax() == BUILDING
    assert (hh - hv)[FOREST] == (hh - hv).min()  # volume scattering depolarizes most
    if region == "temperate_north":
        assert vv.argmin() == WATER
        assert hh.argsort()[-2] == hv.argmax() == FOREST


def test_smooth_surfaces_fade_with_wavelength_and_forest_does_not() -> None:
    by_band = np.stack([mean_sigma0_db(polarization="HV", band=b) for b in FREQUENCY_GHZ])
    assert (np.diff(by_band[:, ROAD]) > 0).all()
    assert (np.diff(by_band[:, WATER]) > 0).all()
    assert np.ptp(by_band[:, FOREST]) < 1.5
    assert by_band[0, FOREST] - by_band[0, ROAD] > by_band[3, FOREST] - by_band[3, ROAD] + 5


def test_full_is_a_quarter_of_the_span_and_vh_is_hv() -> None:
    linear = {p: 10 ** (mean_sigma0_db(polarization=p, band="X") / 10) for p in ("HH", "HV", "VH", "VV")}
    full = 10 ** (mean_sigma0_db(polarization="full", band="X") / 10)
    np.testing.assert_array_equal(linear["HV"], linear["VH"])
    np.testing.assert_allclose(full, sum(linear.values()) / 4, rtol=1e-5)


def test_steeper_incidence_is_brighter() -> None:
    steep, grazing = (mean_sigma0_db(polarization="VV", band="C", incidence_deg=a) for a in (25, 50))
    assert (steep > grazing).all()
    assert (steep - grazing)[WATER] > (steep - grazing)[FOREST] + 3


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_enl_of_homogeneous_speckle_is_the_number_of_looks(looks: int) -> None:
    intensity = multi_look(np.random.default_rng(0), np.full((400, 400), 0.03, np.float32), looks)
    assert intensity.mean() == pytest.approx(0.03, rel=0.01)
    assert intensity.mean() ** 2 / intensity.var() == pytest.approx(looks, rel=0.03)


def test_looks_are_means_of_single_looks() -> None:
    rng, power = np.random.default_rng(1), np.full((200, 200), 2.0, np.float32)
    averaged = np.mean([np.abs(single_look(rng, power)) ** 2 for _ in range(4)], axis=0)
    drawn = multi_look(rng, power, 4)
    quantiles = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(drawn, quantiles), np.quantile(averaged, quantiles), rtol=0.03)


def test_single_look_is_circular_gaussian() -> None:
    z = single_look(np.random.default_rng(2), np.full((500, 500), 0.5, np.float32))
    assert z.dtype == np.complex64
    real, imaginary = z.real.ravel(), z.imag.ravel()
    for part in (real, imaginary):
        assert part.mean() == pytest.approx(0, abs=0.005)
        assert part.var() == pytest.approx(0.25, rel=0.015)
        assert (part**4).mean() / part.var() ** 2 == pytest.approx(3, abs=0.05)  # kurtosis
    assert np.corrcoef(real, imaginary)[0, 1] == pytest.approx(0, abs=0.01)
    assert np.corrcoef(real**2, imaginary**2)[0, 1] == pytest.approx(0, abs=0.01)
    assert abs((z**2).mean()) < 0.005  # circular: no pseudo-variance
    assert np.corrcoef(real[:-1], real[1:])[0, 1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("looks", [1, 4])
@pytest.mark.parametrize("order", [1.0, 4.0])
def test_k_texture_has_the_variance_of_the_product_model(order: float, looks: int) -> None:
    rng, labels = np.random.default_rng(3), np.full((256, 256), FOREST)
    assert SCATTERING["forest"].texture == 1.0
    pixels = np.stack([multi_look(rng, texture(rng, labels, order), looks) for _ in range(12)])
    assert pixels.mean() == pytest.approx(1, rel=0.02)
    want = (1 + 1 / looks) * (1 + 1 / order) - 1
    assert pixels.var() / pixels.mean() ** 2 == pytest.approx(want, rel=0.06)


def test_texture_is_correlated_and_differs_by_class() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat([WATER, FOREST, BUILDING], 100)[None].repeat(300, 0)
    field = texture(rng, labels, 5.0)
    assert (field[:, :100] == 1).all()
    forest, urban = field[:, 100:200], field[:, 200:]
    assert urban.var() > 1.7 * forest.var() > 0
    assert np.corrcoef(forest[:, :-1].ravel(), forest[:, 1:].ravel())[0, 1] > 0.5
    assert abs(np.corrcoef(forest[:, :-20].ravel(), forest[:, 20:].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("order", [None, float("inf")])
def test_no_texture(order: float | None) -> None:
    assert (texture(np.random.default_rng(0), np.full((8, 8), FOREST), order) == 1).all()


def test_natural_variation_keeps_the_mean() -> None:
    rng, parcel = np.random.default_rng(5), np.arange(64 * 64).reshape(64, 64)
    for label in range(7):
        factors = np.stack([natural_variation(rng, np.full((64, 64), label), parcel) for _ in range(60)])
        assert factors.mean() == pytest.approx(1, abs=0.03)
        assert factors.std() > 0.02


def test_span_of_wishart_channels() -> None:
    """Against four channels drawn one by one with their covariance and their own noise."""
    rng, looks, nesz, shape = np.random.default_rng(6), 3, 0.02, (300, 300)
    hh, hv, vv, coherence = 0.3, 0.05, 0.2, 0.7

    def gaussian(power: float) -> np.ndarray:
        return single_look(rng, np.full((looks, *shape), power, np.float32))

    common, own_hh, own_vv, cross = gaussian(1), gaussian(1), gaussian(1), gaussian(hv)
    channels = [
        np.sqrt(hh) * (np.sqrt(coherence) * common + np.sqrt(1 - coherence) * own_hh),
        np.sqrt(vv) * (np.sqrt(coherence) * common + np.sqrt(1 - coherence) * own_vv),
        cross,
        cross,
    ]
    want = np.mean([np.abs(c + gaussian(nesz)) ** 2 for c in channels], axis=(0, 1))
    sigma0 = np.array([hh, hv, vv], np.float32)[:, None, None] * np.ones(shape, np.float32)
    got = multi_look_span(rng, sigma0, np.full(shape, coherence, np.float32), nesz, looks)
    assert got.mean() == pytest.approx((hh + 2 * hv + vv) / 4 + nesz, rel=0.01)
    assert got.var() == pytest.approx(want.var(), rel=0.04)
    quantiles = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(got, quantiles), np.quantile(want, quantiles), rtol=0.03)


class TestGeometry:
    """One building: columns 30..39 of 1 m pixels, 10 m high, on ground of sigma0 1, seen at 45 degrees."""

    def image(
        self,
        height: float = 10.0,
        incidence: float = 45.0,
        wall: float = 0.0,
        corner: float = 0.0,
        roof: float = 100.0,
    ) -> np.ndarray:
        sigma0 = np.ones((1, 4, 80), np.float32)
        heights, walls = np.zeros((4, 80), np.float32), np.zeros((4, 80), bool)
        sigma0[..., 30:40], heights[:, 30:40], walls[:, 30:40] = roof, height, True
        image = radar_geometry(
            sigma0,
            heights,
            walls,
            resolution_m=1.0,
            incidence_deg=incidence,
            wall_sigma0=floats(wall),
            corner_sigma0=floats(corner),
        )
        assert image.shape == sigma0.shape
        assert (image == image[:, :1]).all()  # rows do not mix
        return image[0, 0]

    def test_roof_is_laid_over_the_ground_before_the_building(self) -> None:
        np.testing.assert_array_equal(self.image()[20:30], 101)  # h / tan(45 degrees) = 10 m nearer

    def test_shadow_lies_behind(self) -> None:
        image = self.image()
        np.testing.assert_array_equal(image[30:50], 0)  # vacated footprint, then h * tan(45 degrees)
        np.testing.assert_array_equal(image[50:], 1)
        np.testing.assert_array_equal(image[:20], 1)

    def test_grazing_incidence_shortens_layover_and_lengthens_shadow(self) -> None:
        image = self.image(incidence=60.0)  # cot 0.577: layover 5.8 m; tan 1.73: shadow 17.3 m
        np.testing.assert_array_equal(image[24:30], 101)
        np.testing.assert_array_equal(image[30:34], 100)
        np.testing.assert_array_equal(image[34:57], 0)
        assert (image[58:] == 1).all()

    def test_wall_and_corner(self) -> None:
        image = self.image(wall=7.0, corner=1000.0, roof=0.0)
        np.testing.assert_array_equal(image[20:30], 1 + 7)
        assert image[30] == 1000
        assert image[31] == 0

    def test_a_shadowed_low_building_is_dark(self) -> None:
        sigma0 = np.ones((1, 1, 80), np.float32)
        heights = np.zeros((1, 80), np.float32)
        heights[:, 30:40], heights[:, 44:46] = 10, 3
        image = radar_geometry(
            sigma0,
            heights,
            heights > 0,
            resolution_m=1.0,
            incidence_deg=45.0,
            wall_sigma0=floats(5),
            corner_sigma0=floats(50),
        )
        assert image[0, 0, 40:50].max() == 0

    def test_flat_ground_is_left_alone_and_a_plateau_keeps_its_level(self) -> None:
        sigma0 = np.random.default_rng(0).random((2, 16, 16), dtype=np.float32)
        walls, nothing = np.zeros((16, 16), bool), np.zeros(2, np.float32)
        for height in (0.0, 12.0):
            level = np.full((16, 16), height, np.float32)
            image = radar_geometry(
                sigma0,
                level,
                walls,
                resolution_m=3.0,
                incidence_deg=38.0,
                wall_sigma0=nothing,
                corner_sigma0=nothing,
            )
            shift = round(height / np.tan(np.radians(38.0)) / 3.0)
            np.testing.assert_array_equal(image[:, :, : 16 - shift], sigma0[:, :, shift:])
            assert (image > 0).all()  # beyond the edge the plateau goes on


def test_double_bounce_fades_as_the_wall_turns_away_and_depolarizes() -> None:
    facing, turned = double_bounce(0.0, 3.0), double_bounce(45.0, 3.0)
    assert turned[0] < 0.15 * facing[0]
    assert turned[2] < 0.15 * facing[2]
    assert turned[1] > 2 * facing[1]
    np.testing.assert_allclose(double_bounce(10.0, 6.0), double_bounce(10.0, 3.0) / 2, rtol=1e-6)


@pytest.mark.parametrize("resolution_m", [3.0, 60.0])
def test_points_add_their_mean_cross_section(resolution_m: float) -> None:
    count, section_m2 = SCATTERING["building"].points
    rng, sigma0 = np.random.default_rng(7), np.zeros((3, 500, 500), np.float32)
    add_points(rng, sigma0, np.full((500, 500), BUILDING), floats(*POINT_GAIN), resolution_m)
    want = np.array(POINT_GAIN) * count * 1e-4 * section_m2
    np.testing.assert_allclose(sigma0.mean((1, 2)), want, rtol=0.05)
