"""The reference descriptors against scipy and numpy, pixel by pixel, and against physics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from crossearth_sar.descriptors.reference import (
    direction_bins,
    log_magnitude,
    reference_descriptors,
    sobel,
)


def by_numpy(image: np.ndarray, num_bins: int = 36, block: int = 16) -> tuple[float, float, float]:
    """METHOD sec. 1 word by word, in double precision."""
    x = np.log1p(np.abs(image.astype(np.complex128 if np.iscomplexobj(image) else np.float64)))
    g_x, g_y = ndimage.sobel(x, axis=1, mode="nearest"), ndimage.sobel(x, axis=0, mode="nearest")
    index = np.floor((np.arctan2(g_y, g_x) + np.pi) / (2 * np.pi) * num_bins).astype(int) % num_bins
    p = np.bincount(index.ravel(), minlength=num_bins) / index.size
    entropy = -sum(v * math.log(v) for v in p if v > 0)
    enl = x.mean() ** 2 / (x.var() + 1e-6)
    rows, columns = x.shape[0] // block, x.shape[1] // block
    if not rows or not columns:
        return entropy, enl, 0.0
    blocks = x[: rows * block, : columns * block].reshape(rows, block, columns, block)
    return entropy, enl, blocks.mean((1, 3)).var()


def gamma_image(looks: float, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(looks, 1 / looks, shape)


@pytest.mark.parametrize("shape", [(3, 3), (3, 50), (16, 16), (17, 33), (64, 48)])
@pytest.mark.parametrize("looks", [1, 4, 64])
def test_agrees_with_numpy(shape: tuple[int, int], looks: float) -> None:
    image = gamma_image(looks, *shape)
    got = reference_descriptors(torch.from_numpy(image)[None])[0]
    np.testing.assert_allclose(got, by_numpy(image), rtol=2e-6, atol=1e-9)


def test_complex_is_its_magnitude() -> None:
    generator = np.random.default_rng(1)
    image = generator.normal(size=(40, 40)) + 1j * generator.normal(size=(40, 40))
    got = reference_descriptors(torch.from_numpy(image.astype(np.complex64))[None])[0]
    np.testing.assert_allclose(got, by_numpy(image), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float64])
def test_integer_and_float_dtypes(dtype: torch.dtype) -> None:
    values = torch.from_numpy(gamma_image(4, 40, 40) * 60).clamp(max=255).floor()
    got = reference_descriptors(values.to(dtype)[None])[0]
    np.testing.assert_allclose(got, by_numpy(values.numpy()), rtol=1e-5)


def test_sobel_is_scipys_and_exactly_zero_on_flat_ground() -> None:
    x = log_magnitude(torch.from_numpy(gamma_image(2, 20, 30))[None])
    g_x, g_y = sobel(x)
    np.testing.assert_allclose(g_x[0], ndimage.sobel(x[0].numpy(), axis=1, mode="nearest"), atol=1e-12)
    np.testing.assert_allclose(g_y[0], ndimage.sobel(x[0].numpy(), axis=0, mode="nearest"), atol=1e-12)
    for value in (1 / 3, 0.1, 7.7):
        flat = sobel(torch.full((1, 9, 9), value))
        assert not any(bool(g.any()) for g in flat)


def test_bins_on_edges_and_without_gradient() -> None:
    g_x = torch.tensor([0.0, 1.0, 0.0, -1.0, -1.0, 0.0])
    g_y = torch.tensor([0.0, 0.0, 1.0, 0.0, -0.0, -1.0])
    # angle 0 opens bin N/2; pi/2 opens 3N/4; +pi and -pi are both bin 0; -pi/2 opens N/4.
    assert direction_bins(g_x, g_y, 36).tolist() == [18, 18, 27, 0, 0, 9]


def test_flat_pixels_are_included_or_excluded() -> None:
    flat = torch.full((1, 20, 20), 5.0)
    for choice in ("include", "exclude"):
        assert reference_descriptors(flat, flat_pixels=choice)[0, 0] == 0
    step = flat.clone()
    step[:, :, 10:] = 6.0  # gradients along +x in two columns; all else flat: angle 0 either way
    step[:, 10:, :] += 2.0
    included, excluded = (reference_descriptors(step, flat_pixels=c)[0, 0] for c in ("include", "exclude"))
    assert 0 < included < excluded


def test_constant_image() -> None:
    entropy, enl, roughness = reference_descriptors(torch.full((1, 32, 32), 3.0))[0].tolist()
    assert entropy == 0
    assert roughness == 0
    assert enl == pytest.approx(math.log1p(3) ** 2 / 1e-6, rel=1e-5)


def test_roughness_drops_partial_blocks_and_small_images_have_none() -> None:
    image = torch.zeros(1, 40, 40)
    image[:, 32:] = 1e6
    image[:, :, 32:] = 1e6
    assert reference_descriptors(image)[0, 2] == 0
    assert reference_descriptors(image[:, :, :15])[0, 2] == 0
    assert reference_descriptors(image, block_size=8)[0, 2] > 1


def test_more_looks_mean_higher_enl_and_noise_fills_all_directions() -> None:
    rows = [
        reference_descriptors(torch.from_numpy(gamma_image(looks, 256, 256))[None])[0]
        for looks in (1, 4, 16, 64)
    ]
    enl = [float(row[1]) for row in rows]
    assert enl == sorted(enl)
    assert all(float(row[0]) > 0.99 * math.log(36) for row in rows)


def test_a_large_offset_does_not_cancel_the_variance() -> None:
    x = torch.from_numpy(1e6 + np.random.default_rng(0).normal(size=(256, 256))).float()[None]
    expected = by_numpy(x[0].double().numpy())[1]
    assert float(reference_descriptors(x.double())[0, 1]) == pytest.approx(expected, rel=1e-5)
