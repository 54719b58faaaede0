"""The public door: shapes it takes, what it refuses and with which words."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossearth_sar import sar_descriptors
from crossearth_sar.errors import InputError


def test_both_shapes_give_the_same() -> None:
    image = torch.rand(3, 1, 20, 24)
    got = sar_descriptors(image)
    assert got.shape == (3, 3)
    assert got.dtype == torch.float32
    assert torch.equal(got, sar_descriptors(image[:, 0]))


def test_strided_input_and_empty_batch() -> None:
    image = torch.rand(2, 1, 24, 40)
    assert torch.equal(sar_descriptors(image[..., ::2]), sar_descriptors(image[..., ::2].contiguous()))
    assert sar_descriptors(torch.rand(0, 1, 8, 8)).shape == (0, 3)


def test_no_gradient_flows() -> None:
    assert not sar_descriptors(torch.rand(1, 1, 8, 8, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(8, 8), ["(8, 8)", "(B, 1, H, W)"]),
        (torch.rand(1, 3, 8, 8), ["(1, 3, 8, 8)", "one band"]),
        (torch.rand(1, 1, 2, 8), ["(1, 1, 2, 8)", "at least 3"]),
        ([[1.0]], ["list", "tensor"]),
    ],
)
def test_refuses_shapes(image: object, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"sar_descriptors|image") as caught:
        sar_descriptors(image)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def test_says_how_many_pixels_are_not_finite_and_where() -> None:
    image = torch.rand(2, 1, 8, 9)
    image[1, 0, 3, 4] = float("nan")
    image[1, 0, 5, 0] = float("inf")
    with pytest.raises(InputError, match=r"2 of 144, the first at image 1, row 3, column 4"):
        sar_descriptors(image)
    assert sar_descriptors(image, check_finite=False).shape == (2, 3)


@pytest.mark.parametrize(
    "arguments", [{"num_bins": 0}, {"block_size": 0}, {"flat_pixels": "maybe"}, {"backend": "cuda11"}]
)
def test_refuses_parameters(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError):
        sar_descriptors(torch.rand(1, 1, 8, 8), **arguments)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6, 3e38]),
    seed=st.integers(0, 1000),
)
def test_finite_and_in_range_for_every_finite_image(height: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = (torch.rand(1, height, width, generator=generator) * 2 - 1) * scale
    entropy, enl, roughness = sar_descriptors(image)[0].tolist()
    assert 0 <= entropy <= math.log(36) + 1e-6
    assert 0 <= enl < math.inf
    assert 0 <= roughness < math.inf


def test_extreme_double_and_complex_values_stay_finite() -> None:
    assert torch.isfinite(sar_descriptors(torch.full((1, 8, 8), 1e308, dtype=torch.float64))).all()
    assert torch.isfinite(sar_descriptors(torch.full((1, 8, 8), 3e38 + 3e38j, dtype=torch.complex64))).all()
