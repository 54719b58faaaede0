"""The fused form against the reference in double precision, over every kind of image and every dtype."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from descriptor_images import edge_share_allows, fuzz_images, pixels_where_the_edge_decides
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import Tensor

from crossearth_sar import sar_descriptors
from crossearth_sar.backend import extension_status
from crossearth_sar.descriptors.fused import PIXEL_TYPES, fused_descriptors
from crossearth_sar.descriptors.reference import (
    direction_bins,
    log_magnitude,
    reference_descriptors,
    sobel,
)
from crossearth_sar.errors import InputError

pytestmark = pytest.mark.skipif(not extension_status()[0], reason=extension_status()[1])


def fused(
    image_BHW: Tensor, num_bins: int = 36, block_size: int = 16, flat_pixels: str = "include"
) -> Tensor:
    return fused_descriptors(image_BHW, num_bins=num_bins, block_size=block_size, flat_pixels=flat_pixels)[0]


def test_agrees_with_the_reference_over_the_fuzz() -> None:
    """Entropy to 1e-4 nats where no pixel lies on an edge, ENL and roughness to 1e-5 of the double values.

    Where float32 itself resolves X' no better than the spread it is to measure (an offset of 1e6), the
    tolerance is that resolution.
    """
    compared = free_of_edges = 0
    for name, image in fuzz_images():
        got, exact = fused(image)[0].double(), reference_descriptors(image.double())[0].double()
        x = log_magnitude(image.double())
        resolution = float(x.abs().amax()) * 2**-23
        deviation = float(x.std(correction=0)) + 1e-12
        relative = 1e-5 + 4 * resolution / deviation
        edge_pixels = int(pixels_where_the_edge_decides(image).sum())
        share = torch.tensor(edge_pixels / image.numel()).double()
        assert float((got[0] - exact[0]).abs()) <= float(edge_share_allows(share)), name
        enl_relative = relative * min(1.0, deviation**2 / (deviation**2 + 1e-6)) + 1e-6
        assert float(got[1]) == pytest.approx(float(exact[1]), rel=enl_relative, abs=1e-30), name
        assert float(got[2]) == pytest.approx(float(exact[2]), rel=relative, abs=resolution**2), name
        compared += 1
        free_of_edges += edge_pixels == 0
    assert compared >= 500
    assert free_of_edges >= 100, "the strict entropy tolerance was met by real cases"


def test_rule_on_the_edges() -> None:
    """Gradients exactly along an axis open the bin above, flat pixels count at angle 0: as the reference."""
    for axis in (1, 2):
        for sign in (1, -1):
            image = torch.zeros(1, 12, 12)
            half = image.narrow(axis, 6, 6)
            half.fill_(3.0)
            step = image if sign == 1 else image.flip(axis)
            bins = direction_bins(*sobel(log_magnitude(step)), 36)
            assert bins.unique().numel() == (1 if (axis, sign) == (2, 1) else 2)
            for flat in ("include", "exclude"):
                torch.testing.assert_close(
                    fused(step, flat_pixels=flat), reference_descriptors(step, flat_pixels=flat)
                )


@pytest.mark.parametrize("dtype", list(PIXEL_TYPES))
def test_every_pixel_type_is_read_as_it_is(dtype: torch.dtype) -> None:
    values = torch.from_numpy(np.random.default_rng(0).gamma(4, 15, (3, 37, 53))).clamp(max=255).floor()
    image = values.to(dtype)
    if dtype.is_complex:
        image = torch.polar(values.float(), torch.rand(3, 37, 53) * 6)
    expected = reference_descriptors(image.cdouble() if dtype.is_complex else values)
    torch.testing.assert_close(fused(image), expected, rtol=1e-5, atol=2e-4 if dtype.is_complex else 1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_other_types_are_converted(dtype: torch.dtype) -> None:
    image = (torch.rand(2, 20, 20) * 9999).to(dtype)  # few equal values, so few directions on an edge
    torch.testing.assert_close(fused(image), reference_descriptors(image), rtol=1e-5, atol=1e-6)


def test_half_precision_specials() -> None:
    smallest = torch.tensor([6e-8, 6e-5, 65504.0], dtype=torch.float16)
    image = smallest[torch.randint(0, 3, (1, 32, 32))]
    torch.testing.assert_close(fused(image), reference_descriptors(image.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("view", ["rows", "columns", "transposed", "batch", "expanded"])
def test_strides(view: str) -> None:
    whole = torch.rand(4, 40, 60) * 9
    image = {
        "rows": whole[:, ::2],
        "columns": whole[:, :, ::3],
        "transposed": whole.transpose(1, 2),
        "batch": whole[::2],
        "expanded": whole[:1].expand(3, -1, -1),
    }[view]
    assert torch.equal(fused(image), fused(image.contiguous()))


@pytest.mark.parametrize("num_bins", [4, 8, 36, 72, 252])
@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("flat_pixels", ["include", "exclude"])
def test_parameters(num_bins: int, block_size: int, flat_pixels: str) -> None:
    image = torch.from_numpy(np.random.default_rng(0).gamma(4, 15, (2, 150, 131))).floor()
    options = {"num_bins": num_bins, "block_size": block_size, "flat_pixels": flat_pixels}
    torch.testing.assert_close(
        fused(image, **options), reference_descriptors(image, **options), rtol=2e-5, atol=2e-4
    )  # type: ignore[arg-type]


def test_same_bits_for_any_number_of_threads() -> None:
    image = torch.rand(3, 700, 333) * 100
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(fused(image))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])
    one_by_one = torch.cat([fused(image[i : i + 1]) for i in range(3)])
    assert torch.equal(results[0], one_by_one)


def test_counts_what_is_not_finite() -> None:
    image = torch.rand(3, 200, 500)
    image[1, 0, 0] = image[1, 199, 499] = image[1, 130, 7] = float("nan")
    image[2, 131] = float("inf")
    _, nonfinite = fused_descriptors(image, num_bins=36, block_size=16, flat_pixels="include")
    assert nonfinite.tolist() == [0, 3, 500]
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.complex64):
        _, nonfinite = fused_descriptors(image.to(dtype), num_bins=36, block_size=16, flat_pixels="include")
        assert nonfinite.tolist() == [0, 3, 500], dtype
    with pytest.raises(InputError, match="503 of 300000, the first at image 1, row 0, column 0"):
        sar_descriptors(image, backend="fused")


def test_what_it_does_not_take_goes_to_the_reference_or_is_refused() -> None:
    image = torch.rand(1, 20, 20)
    expected = reference_descriptors(image, num_bins=10)
    assert torch.equal(sar_descriptors(image, num_bins=10), expected)
    with pytest.raises(InputError, match="num_bins 10"):
        sar_descriptors(image, num_bins=10, backend="fused")


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.crossearth_sar.describe, (torch.rand(2, 20, 24), 36, 16, True))


def theoretical_enl(looks: float, scale: float) -> float:
    """mu^2 / (sigma^2 + 1e-6) of log(1 + scale I), I of unit mean and `looks` looks, by integration.

    For a bright scene mu and sigma^2 are psi(L) + ln(scale / L) and psi'(L): the check beside it.
    """
    law = stats.gamma(looks, scale=scale / looks)
    ends = law.ppf([1e-13, 1 - 1e-13])

    def moment(power: int, about: float) -> float:
        def integrand(t: float) -> float:  # over t = ln I, where the density is smooth for one look too
            return (math.log1p(math.exp(t)) - about) ** power * law.pdf(math.exp(t)) * math.exp(t)

        return float(integrate.quad(integrand, *np.log(ends), epsabs=1e-10, limit=200)[0])

    mean = moment(1, 0.0)
    return mean**2 / (moment(2, mean) + 1e-6)


@pytest.mark.parametrize("scale", [0.1, 1000.0])
def test_theory_of_speckle_in_the_log_domain(scale: float) -> None:
    """A constant scene of L looks, by Monte Carlo against theory; more looks give a higher ENL."""
    generator = np.random.default_rng(3)
    last = 0.0
    for looks in (1, 2, 4, 16, 64):
        image = torch.from_numpy(generator.gamma(looks, scale / looks, (1, 512, 512))).float()
        got = float(fused(image)[0, 1])
        assert got == pytest.approx(theoretical_enl(looks, scale), rel=0.02)
        assert got > last
        last = got


@pytest.mark.parametrize("looks", [1, 4, 64])
def test_the_theory_itself(looks: int) -> None:
    bright = 1e7
    mean = special.digamma(looks) + math.log(bright / looks)
    asymptotic = mean**2 / (special.polygamma(1, looks) + 1e-6)
    assert theoretical_enl(looks, bright) == pytest.approx(asymptotic, rel=1e-4)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_large_offset_does_not_cancel_the_variance(offset: float) -> None:
    """To 1e-3: of |X| itself, and of X' as float32 resolves it."""
    image = torch.from_numpy(offset + np.random.default_rng(0).normal(size=(1, 600, 500))).float()
    linear = float(sar_descriptors(image, enl_domain="linear", backend="fused")[0, 1])
    relative_variance = float(image.double().var(correction=0) / image.double().mean() ** 2)
    assert 1 / linear - 1e-6 == pytest.approx(relative_variance, rel=1e-3, abs=2e-13)
    x = log_magnitude(image).double()
    expected = float(x.mean() ** 2 / (x.var(correction=0) + 1e-6))
    assert float(fused(image)[0, 1]) == pytest.approx(expected, rel=1e-3)


def test_moments_follow_a_scene_of_two_levels() -> None:
    """A dark strip above a bright scene of little variance: the pivots follow, and nothing is lost."""
    for rows in (1, 16, 17, 100):
        image = torch.full((1, 900, 64), 200.0)
        image[:, :rows] = 0.01
        image += 0.01 * torch.rand(image.shape)
        exact = reference_descriptors(image.double())
        torch.testing.assert_close(fused(image)[:, 1:], exact[:, 1:], rtol=1e-5, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(3, 70),
    width=st.integers(3, 70),
    repeat=st.integers(2, 4),
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([2, 5, 256, 10_000]),
)
def test_entropy_is_in_range_and_knows_no_size(
    height: int, width: int, repeat: int, seed: int, levels: int
) -> None:
    """Entropy lies in 0 .. ln N; repeating a texture downwards keeps it, but for the rows at the seams."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, levels, (1, height, width), generator=generator).float()
    entropy = float(fused(image)[0, 0])
    assert 0 <= entropy <= math.log(36) + 1e-6
    mirrored = torch.cat([image, image.flip(1)], dim=1)  # so that copies meet without a step
    taller = torch.cat([mirrored] * repeat, dim=1)
    assert float(fused(taller)[0, 0]) == pytest.approx(float(fused(mirrored)[0, 0]), abs=0.5 / height + 1e-4)


def test_a_constant_image_has_no_roughness_at_any_level() -> None:
    for value in (0.0, 1e-3, 1 / 3, 255.0, 1e9):
        assert float(fused(torch.full((1, 100, 90), value))[0, 2]) <= 1e-12
