"""Correlated speckle, the impulse response and saturation, each against what it is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from crossearth_sar.data.simulator.noise import Floats, blur
from crossearth_sar.data.simulator.speckle import (
    imaged,
    impulse_sigma_px,
    multi_look,
    multi_look_span,
    saturated,
    single_look,
)

LEVEL: Floats = np.full((400, 400), 0.03, np.float32)


def lag(intensity: Floats, rows: int, columns: int) -> float:
    """Correlation of pixels so far apart."""
    height, width = intensity.shape
    one, other = intensity[: height - rows, : width - columns], intensity[rows:, columns:]
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("correlation", [0.43, 0.6, 0.73])
@pytest.mark.parametrize("looks", [1.0, 2.5, 4.0, 16.0])
def test_multi_look_has_the_asked_correlation_mean_and_looks(looks: float, correlation: float) -> None:
    rng = np.random.default_rng(0)
    intensity = multi_look(rng, LEVEL, looks, correlation)
    assert lag(intensity, 0, 1) == pytest.approx(correlation, abs=0.03)
    assert lag(intensity, 1, 0) == pytest.approx(correlation, abs=0.03)
    assert abs(lag(intensity, 0, 8)) < 0.04
    assert intensity.mean() == pytest.approx(0.03, rel=0.025)
    assert intensity.mean() ** 2 / intensity.var() == pytest.approx(looks, rel=0.08)


def test_correlated_speckle_keeps_the_gamma_law() -> None:
    rng, quantiles = np.random.default_rng(1), np.linspace(0.02, 0.98, 25)
    plain, correlated = (multi_look(rng, LEVEL, 3.0, c) for c in (0.0, 0.6))
    np.testing.assert_allclose(np.quantile(correlated, quantiles), np.quantile(plain, quantiles), rtol=0.05)


@pytest.mark.parametrize("correlation", [0.43, 0.73])
def test_single_look_stays_circular_and_correlates(correlation: float) -> None:
    z = single_look(np.random.default_rng(2), LEVEL, correlation)
    intensity = np.abs(z) ** 2
    assert z.dtype == np.complex64
    assert lag(intensity, 0, 1) == pytest.approx(correlation, abs=0.03)
    assert lag(intensity, 1, 0) == pytest.approx(correlation, abs=0.03)
    assert intensity.mean() == pytest.approx(0.03, rel=0.03)
    assert intensity.mean() ** 2 / intensity.var() == pytest.approx(1, rel=0.06)
    assert np.corrcoef(z.real.ravel(), z.imag.ravel())[0, 1] == pytest.approx(0, abs=0.02)
    assert z.real.var() == pytest.approx(0.015, rel=0.04)


def test_the_span_correlates_too_and_keeps_its_mean() -> None:
    sigma0 = np.array([0.3, 0.05, 0.2], np.float32)[:, None, None] * np.ones((300, 300), np.float32)
    span = multi_look_span(
        np.random.default_rng(3), sigma0, np.full((300, 300), 0.7, np.float32), 0.01, 4, 0.6
    )
    assert span.mean() == pytest.approx(0.6 / 4 + 0.01, rel=0.02)
    assert lag(span, 0, 1) == pytest.approx(0.6, abs=0.03)


def test_the_response_is_as_wide_as_its_correlation_says() -> None:
    assert impulse_sigma_px(0.0) == 0
    sigma_px = impulse_sigma_px(0.6)
    assert np.exp(-1 / (2 * sigma_px**2)) == pytest.approx(0.6, abs=0.01)
    point = np.zeros((1, 31, 31), np.float32)
    point[0, 15, 15] = 1
    assert imaged(point, 0.0) is point
    seen = imaged(point, 0.6)[0]
    assert seen.sum() == pytest.approx(1, rel=1e-5)
    offset = np.arange(31) - 15
    assert (seen.sum(0) * offset**2).sum() == pytest.approx(sigma_px**2 / 2, rel=0.05)


def test_blur_keeps_a_level_up_to_the_edges() -> None:
    np.testing.assert_allclose(blur(np.full((20, 33), 0.7, np.float32), 1.3), 0.7, rtol=1e-5)


def test_saturation_spares_the_mean_and_bounds_the_peak() -> None:
    sigma0 = np.full((1, 64, 64), 0.1, np.float32)
    sigma0[0, ::16, ::16] = 1000.0
    assert saturated(sigma0, None) is sigma0
    bound = sigma0.mean() * 10
    got = saturated(sigma0, 10.0)
    assert got.max() <= bound
    assert got.max() > 0.95 * bound
    np.testing.assert_allclose(got[0, 1::16, 1::16], 0.1, rtol=0.01)
