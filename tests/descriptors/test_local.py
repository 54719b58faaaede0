"""Local descriptors: each patch by hand, from the whole image's gradients; the fused form against them."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from descriptor_images import edge_share_allows, fuzz_images, pixels_where_the_edge_decides
from hypothesis import given, settings
from hypothesis import strategies as st

from crossearth_sar import sar_descriptor_map, sar_descriptors
from crossearth_sar.backend import extension_status
from crossearth_sar.descriptors.fused import PIXEL_TYPES, fused_descriptor_map
from crossearth_sar.descriptors.local import reference_descriptor_map
from crossearth_sar.descriptors.reference import direction_bins, log_magnitude, sobel
from crossearth_sar.errors import InputError

BOTH = [
    "reference",
    pytest.param("fused", marks=pytest.mark.skipif(not extension_status()[0], reason=extension_status()[1])),
]
needs_extension = pytest.mark.skipif(not extension_status()[0], reason=extension_status()[1])


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("shape", [(32, 48), (37, 51)])
@pytest.mark.parametrize("flat_pixels", ["include", "exclude"])
@pytest.mark.parametrize("backend", BOTH)
def test_each_patch_by_hand(patch: int, shape: tuple[int, int], flat_pixels: str, backend: str) -> None:
    image = torch.distributions.Gamma(4.0, 0.05).sample((2, 1, *shape)).floor()  # quantised: some flat ground
    got = sar_descriptor_map(image, patch, flat_pixels=flat_pixels, backend=backend)
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


@needs_extension
def test_fused_agrees_with_the_reference_over_the_fuzz() -> None:
    """Tolerances as of the whole image's descriptors, patch by patch, by the pixels on edges in the patch."""
    compared = 0
    for number, (name, image) in enumerate(fuzz_images(rounds=12)):
        largest = min(image.shape[1:]) // 4 * 4
        if largest == 0:
            continue
        patch = min((4, 8, 12, 16, 32, 100)[number % 6], largest)
        got = fused_descriptor_map(image, patch, num_bins=36, flat_pixels="include")[0].double()
        exact = reference_descriptor_map(image.double(), patch).double()
        x = log_magnitude(image.double())
        resolution = float(x.abs().amax()) * 2**-23
        rows, columns = (side // patch for side in image.shape[1:])

        def by_patch(values: torch.Tensor, rows: int = rows, columns: int = columns, side: int = patch):
            cut = values[:, : rows * side, : columns * side]
            return cut.unflatten(2, (columns, side)).unflatten(1, (rows, side))

        allowed = edge_share_allows(by_patch(pixels_where_the_edge_decides(image)).double().mean((2, 4)))
        assert ((got[:, 0] - exact[:, 0]).abs() <= allowed).all(), name
        deviation = by_patch(x).std((2, 4), correction=0) + 1e-12
        relative = (1e-5 + 4 * resolution / deviation) * deviation**2 / (deviation**2 + 1e-6) + 1e-6
        # The epsilon of the ENL caps what rounding of a nearly constant patch can do.
        relative = relative + 4 * resolution * deviation / (deviation**2 + 1e-6)
        assert ((got[:, 1] - exact[:, 1]).abs() <= relative * exact[:, 1] + 1e-30).all(), name
        roughness_allows = 1e-5 * exact[:, 2] + 4 * resolution * (exact[:, 2].sqrt() + resolution)
        assert ((got[:, 2] - exact[:, 2]).abs() <= roughness_allows).all(), name
        compared += got[0, 0].numel()
    assert compared >= 2000


@needs_extension
@pytest.mark.parametrize("dtype", [*PIXEL_TYPES, torch.int64, torch.complex128])
@pytest.mark.parametrize("view", ["plain", "rows", "columns", "transposed"])
def test_fused_reads_every_type_and_stride(dtype: torch.dtype, view: str) -> None:
    values = torch.from_numpy(np.random.default_rng(0).gamma(4, 15, (2, 70, 90))).clamp(max=255).floor()
    whole = torch.polar(values, values).to(dtype) if dtype.is_complex else values.to(dtype)
    image = {
        "plain": whole,
        "rows": whole[:, ::2],
        "columns": whole[:, :, ::3],
        "transposed": whole.mT,
    }[view]
    got = sar_descriptor_map(image, 16, backend="fused")
    expected = sar_descriptor_map(image, 16, backend="reference")
    # Equal differences are common here and lie on edges: rounding may move a few of a patch's 256 pixels.
    torch.testing.assert_close(got[:, 0], expected[:, 0], rtol=0, atol=0.03)
    torch.testing.assert_close(got[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-6)
    assert torch.equal(got, sar_descriptor_map(image.contiguous(), 16, backend="fused"))


@needs_extension
@pytest.mark.parametrize("num_bins", [4, 8, 36, 72, 252])
@pytest.mark.parametrize("flat_pixels", ["include", "exclude"])
@pytest.mark.parametrize("enl_domain", ["log", "linear"])
def test_fused_takes_every_option(num_bins: int, flat_pixels: str, enl_domain: str) -> None:
    image = torch.from_numpy(np.random.default_rng(0).gamma(4, 1, (2, 50, 61)))
    image[:, 10:30, 10:40] = 5  # flat ground
    got, expected = (
        sar_descriptor_map(
            image, 12, num_bins=num_bins, flat_pixels=flat_pixels, enl_domain=enl_domain, backend=backend
        )
        for backend in ("fused", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@needs_extension
def test_map_has_the_same_bits_for_any_number_of_threads() -> None:
    image = torch.rand(3, 700, 333) * 100
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(sar_descriptor_map(image, 16, backend="fused"))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_extension
def test_map_counts_pixels_that_are_not_finite_everywhere() -> None:
    image = torch.rand(2, 40, 50)
    image[0, 39, 0] = image[1, 0, 49] = image[1, 3, 3] = float("nan")  # two in what the patches leave out
    assert fused_descriptor_map(image, 16, num_bins=36, flat_pixels="include")[1].tolist() == [1, 2]
    with pytest.raises(InputError, match="3 of 4000, the first at image 0, row 39, column 0"):
        sar_descriptor_map(image, 16, backend="fused")
    assert sar_descriptor_map(image[:0], 16, enl_domain="linear").shape == (0, 3, 2, 3)


@settings(max_examples=40, deadline=None)
@given(
    patch=st.sampled_from([4, 8, 20]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 4),
    rest=st.integers(0, 3),
    levels=st.sampled_from([1, 2, 9, 10_000]),
    seed=st.integers(0, 10_000),
)
def test_entropy_is_in_range_and_constant_patches_have_none(
    patch: int, rows: int, columns: int, rest: int, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(
        0, levels, (1, rows * patch + rest, columns * patch + rest), generator=generator
    ).float()
    found = sar_descriptor_map(image + 7, patch)
    assert found.shape == (1, 3, rows, columns)
    assert bool(((found[:, 0] >= 0) & (found[:, 0] <= math.log(36) + 1e-6)).all())
    assert bool((found[:, 1:] >= 0).all())
    if levels == 1:
        assert bool((found[:, 0] == 0).all())
        assert bool((found[:, 2] == 0).all())


@needs_extension
@pytest.mark.slow
@pytest.mark.skipif("CROSSEARTH_SLOW" not in os.environ, reason="4 GB, a minute: CROSSEARTH_SLOW=1 runs it")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_image_of_20000_by_20000(dtype: torch.dtype) -> None:
    """More pixels than a float counts, near 2^31 bytes: a tile repeated, whose descriptors are known."""
    side, repeats = 2000, 10
    tile = torch.from_numpy(np.random.default_rng(0).gamma(4, 15, (side // 2, side // 2)))
    tile = tile.clamp(max=255).to(dtype)
    tile = torch.cat([torch.cat([tile, tile.flip(1)], 1), torch.cat([tile.flip(0), tile.flip((0, 1))], 1)])
    image = tile.repeat(repeats, repeats)[None]  # mirrored, so that copies meet without a step
    torch.set_num_threads(os.cpu_count() or 1)
    one, many = (sar_descriptors(part, block_size=20, backend="fused") for part in (tile[None], image))
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)
    map_of_one, map_of_many = (sar_descriptor_map(part, 20, backend="fused") for part in (tile[None], image))
    assert torch.equal(map_of_many, map_of_one.repeat(1, 1, repeats, repeats))
    torch.set_num_threads(1)


@needs_extension
def test_map_opcheck() -> None:
    torch.library.opcheck(torch.ops.crossearth_sar.describe_map, (torch.rand(2, 20, 24), 8, 36, True))


def test_one_patch_is_the_image_but_for_the_blocks() -> None:
    image = torch.rand(1, 64, 64)
    whole = sar_descriptors(image, block_size=16)
    torch.testing.assert_close(sar_descriptor_map(image, 64)[:, :, 0, 0], whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_linear_enl_of_intensity_is_the_number_of_looks(looks: int) -> None:
    intensity = torch.distributions.Gamma(float(looks), looks / 1e-3).sample((2, 1, 300, 300))
    enl = sar_descriptors(intensity, enl_domain="linear")[:, 1]
    torch.testing.assert_close(enl, torch.full((2,), float(looks)), rtol=0.03, atol=0)
    assert not math.isclose(float(enl[0]), float(sar_descriptors(intensity)[0, 1]), rel_tol=0.1)
    with pytest.raises(InputError, match="enl_domain"):
        sar_descriptors(intensity, enl_domain="decibel")


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_looks_of_the_linear_domain_reach_the_map(backend: str) -> None:
    """A patch that is the whole image has the looks of the image, mean squared over variance of |X|."""
    image = torch.distributions.Gamma(4.0, 4.0).sample((2, 1, 32, 32)).sqrt()
    linear = sar_descriptor_map(image, 32, enl_domain="linear", backend=backend)[:, 1, 0, 0]
    flat = image.double().flatten(1)
    expected = (flat.mean(1) ** 2 / flat.var(1, correction=0)).float()
    torch.testing.assert_close(linear, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(linear, sar_descriptor_map(image, 32, backend=backend)[:, 1, 0, 0], rtol=0.05)
