"""The looks of single-look images: 1 for simulated speckle, on any ground that the estimate is made for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bench.experiments.single_look import (
    looks_by_sub_looks,
    looks_of_share,
    share_of_first,
    uniform_ground,
    without_empty_border,
)

SIDE = 320
BANDWIDTH = 0.8


def single_look(texture_width: float | None = None, contrast: float = 0.7, seed: int = 0) -> np.ndarray:
    """Complex Gaussian speckle, oversampled as real products are, on uniform or log-normal ground."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(SIDE, SIDE)) + 1j * generator.normal(size=(SIDE, SIDE))
    kept = np.abs(np.fft.fftfreq(SIDE)) < BANDWIDTH / 2
    speckle = np.fft.ifft2(np.fft.fft2(noise) * np.outer(kept, kept))
    if texture_width is None:
        return speckle
    ground = ndimage.gaussian_filter(generator.normal(size=(SIDE, SIDE)), texture_width)
    return speckle * np.exp(contrast / 2 * ground / ground.std())


@pytest.mark.parametrize("texture_width", [None, 8])
def test_uniform_ground_is_found_and_oversampling_undone(texture_width: float | None) -> None:
    found = uniform_ground(single_look(texture_width))
    assert found.looks == pytest.approx(1, abs=0.05)
    assert found.patches > 300


def test_texture_finer_than_a_patch_lowers_the_enl_but_not_the_sub_looks() -> None:
    slc = single_look(2, contrast=1.2)
    assert uniform_ground(slc).looks < 0.9
    assert looks_by_sub_looks(slc) == pytest.approx((1, 1), abs=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_sub_looks_of_uniform_ground(seed: int) -> None:
    assert looks_by_sub_looks(single_look(seed=seed)) == pytest.approx((1, 1), abs=0.04)


def test_share_of_independent_gammas() -> None:
    generator = np.random.default_rng(0)
    for looks in (1, 3, 10):
        first, second = generator.gamma(looks, 1, (2, 200_000))
        assert looks_of_share(share_of_first(first, second)) == pytest.approx(looks, rel=0.03)


def test_empty_border_is_cut_away() -> None:
    slc = np.zeros((30, 40), dtype=np.complex64)
    slc[3:-2, 5:-1] = 1 + 1j
    assert without_empty_border(slc).shape == (25, 34)
