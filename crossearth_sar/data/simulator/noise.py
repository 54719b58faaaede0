"""Smooth random fields: cubic B-splines over white noise, and filtering by a separable kernel.

H W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


def smooth_noise(rng: Generator, size: int, spacing_px: float, octaves: int = 1) -> Floats:
    """(size, size) float32 Gaussian field, mean 0 and variance 1 at every pixel, correlated over spacing_px.

    White noise on a lattice under cubic B-splines, as two small matrix products; each further octave halves
    both the spacing and the amplitude.
    """
    field, power = np.zeros((size, size), np.float32), 0.0
    for octave in range(octaves):
        basis = _spline_basis(size, max(1.0, spacing_px / 2**octave))
        lattice = rng.standard_normal((basis.shape[1], basis.shape[1]), dtype=np.float32)
        field += 0.5**octave * (basis @ lattice @ basis.T)
        power += 0.25**octave
    return field / np.float32(np.sqrt(power))


@lru_cache(maxsize=256)
def _spline_basis(size: int, spacing_px: float) -> Floats:
    """(size, N) uniform cubic B-splines, every row scaled to unit length so that the noise has variance 1."""
    position = (np.arange(size) + 0.5) / spacing_px
    cell = np.floor(position).astype(int)
    t = position - cell
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    basis = np.zeros((size, int(cell[-1]) + 4))
    for k, weight in enumerate(weights):
        basis[np.arange(size), cell + k] = weight
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)


def fractal(rng: Generator, size: int, spacing_px: float, octaves: int = 1) -> Floats:
    """`smooth_noise` with octaves down to 2 pixels; spacings in quarter octaves, so that splines are kept."""
    steps = round(4 * np.log2(max(spacing_px, 2.0)))
    return smooth_noise(rng, size, 2 ** (steps / 4), min(octaves, max(1, int(steps // 4))))


def blur(image_HW: Floats, sigma_px: float) -> Floats:
    """(H, W) under a separable Gaussian of standard deviation `sigma_px` pixels; edges go on as they are."""
    if sigma_px <= 0:
        return image_HW
    rows, columns = (_blur_matrix(side, float(sigma_px), True) for side in image_HW.shape)
    return np.asarray(rows @ image_HW @ columns.T, np.float32)


def correlated_noise(rng: Generator, shape: tuple[int, int], sigma_px: float) -> Floats:
    """`shape` float32 white Gaussian noise under a Gaussian of `sigma_px` pixels: mean 0, variance 1."""
    if sigma_px <= 0:
        return rng.standard_normal(shape, dtype=np.float32)
    rows, columns = (_blur_matrix(side, float(sigma_px), False) for side in shape)
    white = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    return np.asarray(rows @ white @ columns.T, np.float32)


def sigma_for(correlation: float) -> float:
    """Standard deviation, pixels, of the Gaussian under which neighbours of white noise correlate so.

    A narrow Gaussian on a pixel grid correlates less than exp(-1 / 4 sigma^2): the sampled one is inverted.
    """
    return float(np.interp(correlation, *_lag_one())) if correlation > 0 else 0.0


@lru_cache(maxsize=1)
def _lag_one() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lag-1 correlation, sigma), both rising."""
    sigma = np.linspace(0.15, 4, 400)
    offset = np.arange(-12, 13)
    kernel = np.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    return (kernel[:, 1:] * kernel[:, :-1]).sum(1) / (kernel**2).sum(1), sigma


@lru_cache(maxsize=256)
def _blur_matrix(side: int, sigma_px: float, keep_mean: bool) -> Floats:
    """The filter as a matrix: (side, side) whose rows sum to 1, or (side, N) whose rows have unit length.

    The second reads noise beyond the edges, so that its variance is the same everywhere.
    """
    reach = int(np.ceil(3 * sigma_px))
    offset = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offset / sigma_px) ** 2)
    wide = np.zeros((side, side + 2 * reach))
    for k, weight in enumerate(kernel / (kernel.sum() if keep_mean else np.linalg.norm(kernel))):
        wide[np.arange(side), np.arange(side) + k] = weight
    if keep_mean:
        inner = wide[:, reach : reach + side].copy()
        inner[:, 0] += wide[:, :reach].sum(1)
        inner[:, -1] += wide[:, reach + side :].sum(1)
        wide = inner
    return wide.astype(np.float32)
