"""Local descriptors: each patch by hand, from the whole image's gradients."""

from __future__ import annotations

import math

import pytest
import torch

from crossearth_sar import sar_descriptor_map, sar_descriptors
from crossearth_sar.descriptors.reference import direction_bins, log_magnitude, sobel
from crossearth_sar.errors import InputError


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("shape", [(32, 48), (37, 51)])
@pytest.mark.parametrize("flat_pixels", ["include", "exclude"])
def test_each_patch_by_hand(patch: int, shape: tuple[int, int], flat_pixels: str) -> None:
    image = torch.distributions.Gamma(4.0, 0.05).sample((2, 1, *shape)).floor()  # quantised: some flat ground
    got = sar_descriptor_map(image, patch, flat_pixels=flat_pixels)
    assert got.shape == (2, 3, shape[0] // patch, shape[1] // patch)
    x = log_magnitude(image[:, 0])
    g_x, g_y = sobel(x)
    bins = direction_bins(g_x, g_y, 36)
    for b in range(2):
        for row in range(shape[0] // patch):
            for column in range(shape[1] // patch):
                here = (b, slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
                counted = torch.ones(patch, patch, dtype=torch.bool)
                if flat_pixels == "exclude":
                    counted = (g_x[here] != 0) | (g_y[here] != 0)
                share = torch.bincount(bins[here][counted], minlength=36).double()
                share = share[share > 0] / max(float(share.sum()), 1)
                values, block = x[here].double(), patch // 4
                means = values.reshape(4, block, 4, block).mean((1, 3))
                expected = torch.stack([
                    -(share * share.log()).sum(),
                    values.mean() ** 2 / (values.var(correction=0) + 1e-6),
                    means.var(correction=0),
                ])  # fmt: skip
                torch.testing.assert_close(got[b, :, row, column].double(), expected, rtol=1e-5, atol=1e-7)


def test_homogeneous_texture_is_the_same_everywhere_and_a_boundary_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 128, 128, generator=generator) + 1
    image[..., 64:] *= 30
    looks, rough = sar_descriptor_map(image, 32)[0, 1], sar_descriptor_map(image, 32)[0, 2]
    assert float(looks[:, 2:].min()) > float(looks[:, :2].max()), "log(1 + x) of brighter speckle: more looks"
    across = sar_descriptor_map(image[..., 16:112], 32)[0, 2]
    assert float(across[:, 1].min()) > 10 * float(rough.max())


@pytest.mark.parametrize("patch", [0, 6, 3, 64, 16.0])
def test_refuses_patch_sizes(patch: object) -> None:
    with pytest.raises(InputError, match="patch_size"):
        sar_descriptor_map(torch.rand(1, 1, 40, 40), patch)  # type: ignore[arg-type]


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_linear_enl_of_intensity_is_the_number_of_looks(looks: int) -> None:
    intensity = torch.distributions.Gamma(float(looks), looks / 1e-3).sample((2, 1, 300, 300))
    enl = sar_descriptors(intensity, enl_domain="linear")[:, 1]
    torch.testing.assert_close(enl, torch.full((2,), float(looks)), rtol=0.03, atol=0)
    assert not math.isclose(float(enl[0]), float(sar_descriptors(intensity)[0, 1]), rel_tol=0.1)
    with pytest.raises(InputError, match="enl_domain"):
        sar_descriptors(intensity, enl_domain="decibel")
