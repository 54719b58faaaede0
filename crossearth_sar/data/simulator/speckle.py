"""Speckle and the impulse response: what coherent imaging adds to a mean image.

What: `single_look`, `multi_look` and `multi_look_span` draw fully developed speckle over signal plus thermal
noise, independent from pixel to pixel or correlated as oversampled products are; `imaged` blurs the mean
image by the same impulse response; `saturated` bounds the brightest echoes.
Not here: sidelobes. The impulse response is a Gaussian, named by the one number that is measured on products:
the correlation of the intensities of neighbouring pixels, 0 to 0.9.

H W pixels, N channels (HH, HV, VV). Power is linear.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr

from crossearth_sar.data.simulator.noise import Floats, blur, correlated_noise, sigma_for

ComplexImage = NDArray[np.complex64]

_REACH = 5.0
"""Standard deviations of the Gaussian field that quantile tables span."""
_STEPS = 2048


def impulse_sigma_px(correlation: float) -> float:
    """Standard deviation, pixels, of the Gaussian response whose intensities correlate so at lag 1.

    The intensity of a circular Gaussian field has the square of the field's autocorrelation.
    """
    return sigma_for(float(np.sqrt(correlation)))


def imaged(sigma0: Floats, correlation: float) -> Floats:
    """sigma0 (N, H, W) as the response of that correlation resolves it: blurred by its square, mean kept."""
    sigma_px = impulse_sigma_px(correlation) / np.sqrt(2)
    return np.stack([blur(channel, sigma_px) for channel in sigma0]) if correlation > 0 else sigma0


def saturated(sigma0: Floats, peak_db: float | None) -> Floats:
    """sigma0 (N, H, W), never above `peak_db` over its channel's mean: (sigma0^-2 + peak^-2)^(-1/2)."""
    if peak_db is None:
        return sigma0
    peak = sigma0.mean((1, 2), keepdims=True) * np.float32(10 ** (peak_db / 10))
    return sigma0 / np.sqrt(1 + (sigma0 / peak) ** 2)


def single_look(rng: Generator, power: Floats, correlation: float = 0.0) -> ComplexImage:
    """Fully developed speckle: (H, W) complex circular Gaussian of mean power `power` (signal plus noise).

    correlation: of the intensities of neighbouring pixels.
    """
    if correlation > 0:
        sigma_px = impulse_sigma_px(correlation)
        parts = np.stack([correlated_noise(rng, power.shape, sigma_px) for _ in range(2)], axis=-1)
    else:
        parts = rng.standard_normal((*power.shape, 2), dtype=np.float32)
    parts *= np.sqrt(power / 2)[..., None]
    return parts.view(np.complex64)[..., 0]


def multi_look(rng: Generator, power: Floats, looks: float, correlation: float = 0.0) -> Floats:
    """(H, W) mean of `looks` independent single-look intensities: gamma of shape L and mean `power`.

    L may be any number: the equivalent number of looks of a product. Correlated speckle is a correlated
    Gaussian field under the gamma law's quantiles; the field is correlated so much more that the intensities
    come out as asked.
    """
    if correlation <= 0:
        unit = rng.standard_gamma(looks, power.shape, dtype=np.float32)
        return unit * (power / np.float32(looks))
    field_correlation = np.interp(correlation, *_gamma_correlation(looks))
    field = correlated_noise(rng, power.shape, sigma_for(float(field_correlation)))
    position = np.clip((field + _REACH) * ((_STEPS - 1) / (2 * _REACH)), 0, _STEPS - 1.001)
    left = position.astype(np.int32)
    table = _gamma_quantiles(looks)
    low = table[left]
    return (low + (position - left).astype(np.float32) * (table[left + 1] - low)) * power


@lru_cache(maxsize=256)
def _gamma_quantiles(looks: float) -> Floats:
    """(_STEPS,) quantiles of the gamma law of shape `looks` and mean 1 over -5..5 standard deviations."""
    grid = ndtr(np.linspace(-_REACH, _REACH, _STEPS))
    return (gammaincinv(looks, grid) / looks).astype(np.float32)


@lru_cache(maxsize=256)
def _gamma_correlation(looks: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(correlation of gamma variables, correlation of the Gaussians below them), rising, to interpolate in.

    By Mehler's formula the first is sum over k of c_k^2 r^k, c_k the Hermite coefficients of the quantiles.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    values = gammaincinv(looks, ndtr(np.clip(nodes, -8, 8))) / looks
    weights = weights / weights.sum()
    r = np.linspace(0, 0.999, 400)
    total, before, now = np.zeros_like(r), np.zeros_like(nodes), np.ones_like(nodes)
    variance = (weights * values**2).sum() - (weights * values).sum() ** 2
    for k in range(1, 12):
        before, now = now, (nodes * now - np.sqrt(k - 1) * before) / np.sqrt(k)  # normalised Hermite
        total += (weights * values * now).sum() ** 2 / variance * r**k
    return total, r


def multi_look_span(
    rng: Generator, sigma0: Floats, coherence: Floats, nesz: float, looks: float, correlation: float = 0.0
) -> Floats:
    """(H, W) mean intensity of HH, HV, VH, VV, from sigma0 (N, H, W) and the HH-VV coherence (H, W).

    The trace of a complex Wishart matrix is a sum of independent gammas weighted by the eigenvalues of the
    covariance. HH and VV give the two of [[hh, c], [c, vv]]; HV and VH share their signal but not their noise
    and give 2 hv and 0; each channel's noise adds `nesz` to every eigenvalue.
    """
    hh, hv, vv = sigma0
    noise = np.float32(nesz)
    centre = (hh + vv) / 2
    split = np.sqrt(((hh - vv) / 2) ** 2 + coherence**2 * hh * vv)
    total = multi_look(rng, np.full_like(hh, noise), looks, correlation)
    for eigenvalue in (centre + split, np.maximum(centre - split, 0), 2 * hv):
        total += multi_look(rng, eigenvalue + noise, looks, correlation)
    return total / np.float32(4)
