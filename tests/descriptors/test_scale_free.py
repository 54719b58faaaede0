"""The scale-free descriptors: what they mean on simulated ground, at any gain, and the C++ form of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from descriptor_images import fuzz_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossearth_sar import scale_free_descriptor_map, scale_free_descriptors
from crossearth_sar.backend import extension_status
from crossearth_sar.descriptors import SCALE_FREE_DESCRIPTORS, scale_free_descriptors_and_map
from crossearth_sar.descriptors.fused import PIXEL_TYPES
from crossearth_sar.descriptors.scale_free import DIRECTION_BINS, reference_scale_free
from crossearth_sar.errors import InputError

needs_extension = pytest.mark.skipif(not extension_status()[0], reason=extension_status()[1])
BOTH = ["reference", pytest.param("fused", marks=needs_extension)]
NO_DIRECTION = math.log(DIRECTION_BINS)
ENTROPY, LOOKS, CORRELATION, VARIATION = range(4)


def speckle(looks: float, shape: tuple[int, ...] = (1, 256, 256), seed: int = 0) -> Tensor:
    """Amplitude of uniform ground."""
    return torch.from_numpy(np.random.default_rng(seed).gamma(looks, 1 / looks, shape)).sqrt().float()


def oversampled(seed: int = 0, side: int = 256, kept: float = 0.5) -> Tensor:
    """Single-look amplitude whose band fills a share of the spectrum: neighbours' intensities correlate."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(side, side)) + 1j * generator.normal(size=(side, side))
    band = np.abs(np.fft.fftfreq(side)) < kept / 2
    return torch.from_numpy(np.abs(np.fft.ifft2(np.fft.fft2(noise) * np.outer(band, band))))[None].float()


# --- meaning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [1, 2, 4, 16, 64])
def test_uniform_speckle(looks: int) -> None:
    """The looks are there, pixels are independent, no direction stands out, blocks hardly differ."""
    entropy, log_looks, correlation, variation = scale_free_descriptors(speckle(looks))[0].tolist()
    assert math.exp(log_looks) == pytest.approx(looks, rel=0.1)
    assert correlation == pytest.approx(0, abs=0.05)
    assert entropy == pytest.approx(NO_DIRECTION, abs=0.01)
    assert variation == pytest.approx(1 / math.sqrt(64 * looks), rel=0.1)


def test_correlation_is_that_of_the_intensity() -> None:
    """Half the band: the coherence of neighbours is sinc(1/2), its square correlates intensities."""
    found = float(scale_free_descriptors(oversampled())[0, CORRELATION])
    assert found == pytest.approx(np.sinc(0.5) ** 2, abs=0.08)


@pytest.mark.parametrize("looks", [1, 4])
def test_edges_decide_the_directions(looks: int) -> None:
    """Fields of two levels: one direction; a grid: two; the same without levels: none."""
    image = speckle(looks)
    strips, grid = image.clone(), image.clone()
    bright = torch.arange(256) // 32 % 2 == 1
    strips[..., bright] *= 5
    grid[..., bright[:, None] ^ bright] *= 5
    entropies = scale_free_descriptors(torch.cat([strips, grid, image]))[:, ENTROPY]
    assert float(entropies[0]) < 0.9 * NO_DIRECTION
    assert float(entropies[0]) < float(entropies[1]) - 0.2
    assert float(entropies[1]) < float(entropies[2]) - 0.05
    turned = scale_free_descriptors(strips.mT)[0, ENTROPY]
    torch.testing.assert_close(turned, entropies[0], rtol=0, atol=1e-3)


def test_a_line_has_one_direction_whichever_side_is_bright() -> None:
    image = torch.ones(1, 64, 64)
    image[..., 30:34] = 9  # both its sides, of opposite gradients
    assert float(scale_free_descriptors(image)[0, ENTROPY]) < 0.7
    assert float(scale_free_descriptors(1 / image)[0, ENTROPY]) < 0.7


def test_variation_is_the_spread_of_the_ground_and_structure_leaves_the_looks_alone() -> None:
    levels = torch.from_numpy(np.random.default_rng(1).lognormal(0, 0.5, (1, 16, 16))).float()
    ground = levels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    found = scale_free_descriptors(ground * speckle(4))[0]
    assert float(found[VARIATION]) == pytest.approx(2 * 0.5, rel=0.15)  # of intensity twice
    assert math.exp(float(found[LOOKS])) == pytest.approx(4, rel=0.1)


def test_the_map_says_where() -> None:
    """Left a single look, right 16 and brighter: the looks on either side, and where the edge is."""
    image = torch.cat([speckle(1, (1, 128, 64)), 3 * speckle(16, (1, 128, 64))], dim=2)
    found = scale_free_descriptor_map(image, 16)[0]
    assert float(found[LOOKS, :, :4].max()) < float(found[LOOKS, :, 4:].min())
    across = scale_free_descriptor_map(image[..., 8:120], 16)[0]
    assert float(across[VARIATION, :, 3].min()) > float(across[VARIATION, :, 4:].max())
    assert float(across[ENTROPY, :, 3].mean()) < float(across[ENTROPY, :, 4:].mean()) - 0.3


# --- gain and finiteness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("gain", [0.01, 0.37, 100.0])
@pytest.mark.parametrize("patch", [8, 14])
def test_a_gain_changes_nothing(backend: str, gain: float, patch: int) -> None:
    """Less than 1 % of what a number is; the correlation, which may be 0, by less than 0.01."""
    for name, image in fuzz_images(rounds=4):
        if min(image.shape[1:]) < patch or name.startswith(("constant", "ramp", "decibel")):
            continue
        before = scale_free_descriptors_and_map(image, patch, backend=backend)
        after = scale_free_descriptors_and_map(image * gain, patch, backend=backend)
        for one, other in zip(before, after, strict=True):
            difference = (one - other).abs()
            allowed = one.abs()
            allowed[:, CORRELATION] = 1
            assert bool((difference <= 0.01 * allowed + 1e-4).all()), name


@needs_extension
def test_a_power_of_two_changes_no_bit() -> None:
    image = speckle(3)
    expected = scale_free_descriptors(image, backend="fused")
    for power in (-100, -7, 7, 100):
        assert torch.equal(scale_free_descriptors(image * 2.0**power, backend="fused"), expected)


@pytest.mark.parametrize("backend", BOTH)
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    scale=st.sampled_from([0.0, 1e-45, 1e-30, 1e-3, 1.0, 1e6, 3.4e38]),
    empty=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_finite_and_in_range_for_every_finite_image(
    backend: str, height: int, width: int, scale: float, empty: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = (torch.rand(1, height, width, generator=generator) * 2 - 1) * scale
    image *= torch.rand(1, height, width, generator=generator) >= empty
    side = min(height, width)
    found = [scale_free_descriptors(image, backend=backend)[..., None, None]]
    if side >= 4:
        found.append(scale_free_descriptor_map(image, 4 + seed % (side - 3), backend=backend))
    for values in found:
        assert bool(torch.isfinite(values).all())
        assert bool(((values[:, ENTROPY] >= 0) & (values[:, ENTROPY] <= NO_DIRECTION + 1e-5)).all())
        assert bool((values[:, LOOKS] <= math.log(1000) + 1e-5).all())
        assert bool((values[:, CORRELATION].abs() <= 1).all())
        assert bool((values[:, VARIATION] >= 0).all())


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(("value", "log_looks"), [(0.0, 0.0), (1e-30, math.log(1000)), (7.0, math.log(1000))])
def test_empty_and_constant_images_have_defined_values(backend: str, value: float, log_looks: float) -> None:
    image = torch.full((1, 40, 33), value)
    expected = torch.tensor([[NO_DIRECTION, log_looks, 0.0, 0.0]])
    torch.testing.assert_close(scale_free_descriptors(image, backend=backend), expected, rtol=1e-6, atol=5e-4)
    found = scale_free_descriptor_map(image, 7, backend=backend)
    torch.testing.assert_close(found, expected[:, :, None, None].expand_as(found), rtol=1e-6, atol=5e-4)


@pytest.mark.parametrize("backend", BOTH)
def test_an_empty_border_is_no_ground(backend: str) -> None:
    """Half the image is fill: the numbers are those of the other half; empty patches have the image's."""
    image = speckle(4)
    image[..., :128] = 0
    got = scale_free_descriptors(image, backend=backend)
    torch.testing.assert_close(got, scale_free_descriptors(image[..., 128:]), rtol=0, atol=0.02)
    found = scale_free_descriptor_map(image, 16, backend=backend)
    torch.testing.assert_close(found[..., :8], got[:, :, None, None].expand(-1, -1, 16, 8))


# --- the C++ form ----------------------------------------------------------------------------------------


@needs_extension
def test_fused_agrees_with_the_reference_over_the_fuzz() -> None:
    """Where speckle or texture is measured to 1e-4, where float32 holds next to none of it to 1e-3."""
    compared = 0
    for number, (name, image) in enumerate(fuzz_images(rounds=20)):
        side = min(image.shape[1:])
        patch = min((4, 5, 7, 8, 14, 16, 37, 100)[number % 8], side) if side >= 4 else None
        exact = reference_scale_free(image.double(), patch)
        got = scale_free_descriptors_and_map(image, patch) if patch else (scale_free_descriptors(image),)
        tolerance = 1e-3 if name.startswith(("constant", "ramp", "offset", "stripes", "decibel")) else 1e-4
        for one, other in zip(got, exact, strict=False):
            torch.testing.assert_close(
                one, other, rtol=1e-5, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
        compared += 1
    assert compared == 260


@needs_extension
@pytest.mark.parametrize("dtype", [*PIXEL_TYPES, torch.int64, torch.complex128, torch.bool])
@pytest.mark.parametrize("view", ["plain", "rows", "columns", "transposed"])
def test_fused_reads_every_type_and_stride(dtype: torch.dtype, view: str) -> None:
    values = torch.from_numpy(np.random.default_rng(0).gamma(4, 15, (2, 70, 90))).clamp(max=255).floor()
    whole = torch.polar(values, values).to(dtype) if dtype.is_complex else values.to(dtype)
    image = {"plain": whole, "rows": whole[:, ::2], "columns": whole[:, :, ::3], "transposed": whole.mT}[view]
    got = scale_free_descriptors_and_map(image, 14, backend="fused")
    for one, other in zip(got, scale_free_descriptors_and_map(image, 14, backend="reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=5e-4)
    again = scale_free_descriptors_and_map(image.contiguous(), 14, backend="fused")
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))


@needs_extension
@pytest.mark.parametrize("patch", [8, 13, 16])
def test_same_bits_for_any_number_of_threads(patch: int) -> None:
    image = torch.rand(3, 700, 333) * 100
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(scale_free_descriptors_and_map(image, patch, backend="fused"))
    torch.set_num_threads(1)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])
    alone = scale_free_descriptors_and_map(image[1:2], patch, backend="fused")
    assert torch.equal(results[0][0][1:2], alone[0])
    without_map = scale_free_descriptors(image, backend="fused")  # sums are emptied at other rows
    torch.testing.assert_close(results[0][0], without_map, rtol=1e-6, atol=1e-6)


@needs_extension
@pytest.mark.parametrize("patch", [0, 4, 9])
def test_opcheck(patch: int) -> None:
    torch.library.opcheck(torch.ops.crossearth_sar.describe_scale_free, (torch.rand(2, 20, 24), patch))


# --- the door --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_pixel_is_refused_or_spoils_its_image_alone(backend: str, bad: float) -> None:
    image = speckle(4, (3, 40, 50))
    image[1, 39, 49] = bad
    with pytest.raises(InputError, match="1 of 6000, the first at image 1, row 39, column 49"):
        scale_free_descriptors(image, backend=backend)
    for values in scale_free_descriptors_and_map(image, 16, backend=backend, check_finite=False):
        assert torch.isnan(values[1]).all()
        assert torch.isfinite(values[[0, 2]]).all()


@pytest.mark.parametrize("backend", BOTH)
def test_shapes_and_no_gradient(backend: str) -> None:
    image = torch.rand(2, 1, 30, 45, requires_grad=True)
    assert len(SCALE_FREE_DESCRIPTORS) == 4
    assert scale_free_descriptors(image, backend=backend).shape == (2, 4)
    assert torch.equal(scale_free_descriptors(image), scale_free_descriptors(image[:, 0]))
    found = scale_free_descriptor_map(image, 14, backend=backend)
    assert found.shape == (2, 4, 2, 3)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert scale_free_descriptors(image[:0], backend=backend).shape == (0, 4)
    assert scale_free_descriptor_map(image[:0], 5, backend=backend).shape == (0, 4, 6, 9)


@pytest.mark.parametrize("patch", [0, 3, 31, 16.0, None])
def test_refuses_patch_sizes(patch: object) -> None:
    with pytest.raises(InputError, match="patch_size"):
        scale_free_descriptor_map(torch.rand(1, 1, 30, 40), patch)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (1, 3, 8, 8), (1, 1, 2, 8)])
def test_refuses_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        scale_free_descriptors(torch.rand(shape))
