"""Bringing images to a ground spacing: power is kept, looks grow, nodata stays out, and the way back fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.ground_scale import (
    Bins,
    any_valid,
    average_bins,
    average_power,
    bins_of,
    centre_pixels,
    classes_at,
    interpolated,
    interpolated_at,
    scale_factor,
    working_size,
)


def one_look(*shape: int) -> Tensor:
    """Amplitudes whose intensities are exponential, of mean 1."""
    draws = np.random.default_rng(0).exponential(size=shape)
    return torch.from_numpy(np.sqrt(draws).astype(np.float32))


def by_hand(image: np.ndarray, size: tuple[int, int], valid: np.ndarray) -> np.ndarray:
    """Pixel by pixel: row y of H goes to bin floor(y h / H)."""
    (height, width), (h, w) = image.shape, size
    power, count = np.zeros(size), np.zeros(size)
    for y in range(height):
        for x in range(width):
            if valid[y, x]:
                power[y * h // height, x * w // width] += float(image[y, x]) ** 2
                count[y * h // height, x * w // width] += 1
    return np.sqrt(power / np.maximum(count, 1))


@pytest.mark.parametrize("size", [(7, 5), (20, 30), (1, 1), (13, 30), (19, 29)])
def test_bins_are_those_of_the_formula(size: tuple[int, int]) -> None:
    image = one_look(20, 30)
    valid = torch.from_numpy(np.random.default_rng(1).random((20, 30)) > 0.4)
    whole = torch.ones(20, 30, dtype=torch.bool)
    for mask, given in ((whole, None), (valid, valid)):
        expected = by_hand(image.numpy(), size, mask.numpy())
        np.testing.assert_allclose(average_power(image, size, given), expected, rtol=1e-6)
        assert torch.equal(any_valid(mask, size), torch.from_numpy(expected > 0))


def test_power_is_kept_and_looks_grow_with_the_pixels_averaged() -> None:
    image = one_look(2, 480, 480)
    for factor in (2, 3, 8):
        small = average_power(image, (480 // factor, 480 // factor)).double().square()
        assert float(small.mean()) == pytest.approx(float(image.double().square().mean()), rel=1e-6)
        assert float(small.mean() ** 2 / small.var()) == pytest.approx(factor**2, rel=0.1)


def test_nodata_is_in_no_mean() -> None:
    image, valid = torch.full((1, 6, 6), 2.0), torch.ones(6, 6, dtype=torch.bool)
    image[:, :3, :4], valid[:3, :4] = torch.nan, False
    small = average_power(image, (2, 3), valid)
    assert small[0].tolist() == [[0, 0, 2], [2, 2, 2]]
    assert any_valid(valid, (2, 3)).tolist() == [[False, False, True], [True, True, True]]


def test_growing_repeats_and_the_way_back_is_exact() -> None:
    image = one_look(1, 9, 11)
    twice = image.repeat_interleave(2, -2).repeat_interleave(2, -1)
    assert torch.equal(average_power(image, (18, 22)), twice)
    assert torch.equal(average_power(twice, (9, 11)), image)
    assert average_power(image, (9, 11)) is image
    assert set(average_power(image, (13, 11)).flatten().tolist()) <= set(image.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_and_small_amplitudes_of_any_type(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for value in (limits.max / 2, limits.tiny * 4):
        image = torch.full((1, 4, 4), value, dtype=dtype)
        if dtype != torch.float64:  # whose squares are beyond it
            assert torch.equal(average_power(image, (2, 2)), image[:, :2, :2])


def test_a_part_is_averaged_as_the_whole_is() -> None:
    image = one_look(1, 101, 60)
    size = (23, 17)
    rows, columns = bins_of((101, 60), size)
    whole = average_power(image, size)
    for start in range(0, 23, 5):
        own, part = rows.part(slice(start, start + 5))
        assert torch.equal(average_bins(image[:, own], part, columns), whole[:, start : start + 5])


@pytest.mark.parametrize(("length", "size"), [(10, 3), (10, 10), (3, 10), (101, 100), (1, 1), (1, 7)])
def test_classes_come_back_to_the_pixels_of_their_bin(length: int, size: int) -> None:
    working = torch.arange(size).expand(1, size)
    back = centre_pixels(working, (1, length))[0]
    if size <= length:
        assert back.tolist() == [y * size // length for y in range(length)]
        assert torch.equal(centre_pixels(back[None], (1, size)), working)
    else:
        bins = Bins.of(size, length)
        assert bool(((back >= bins.first) & (back < bins.first + bins.count)).all())


def test_labels_keep_their_shares() -> None:
    labels = torch.from_numpy((np.random.default_rng(3).random((400, 400)) < 0.2).astype(np.uint8))
    small = centre_pixels(labels, (100, 133))
    assert small.dtype == torch.uint8
    assert float(small.float().mean()) == pytest.approx(0.2, abs=0.01), "a majority would leave none"


def test_sizes_and_spacings() -> None:
    assert working_size((1000, 10), 1.1, 9.0) == (122, 1)
    assert working_size((100, 50), 20.0, 10.0) == (200, 100)
    assert working_size((3, 5), None, 10.0) == working_size((3, 5), 10.0, None) == (3, 5)
    assert scale_factor(0.15, 9.6) == pytest.approx(64)
    for own, model in ((0.1, 10.0), (200.0, 10.0)):
        with pytest.raises(
            InputError, match=rf"{own:g} m a pixel is not for a model that works at {model:g} m"
        ):
            scale_factor(own, model)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="the image's pixel_m does not fit"):
            scale_factor(wrong, 10.0)


@pytest.mark.parametrize("size", [(7, 9), (14, 27), (10, 12), (64, 9), (4, 5)])
def test_scores_are_interpolated_as_torch_does(size: tuple[int, int]) -> None:
    """In whichever parts, exactly the same; at single places, too."""
    scores = torch.rand(3, 7, 9)
    expected = F.interpolate(scores[None].double(), size=size, mode="bilinear", align_corners=False)[0]
    found = interpolated(scores, size)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(classes_at(scores, size), found.argmax(0))
    parts = [interpolated(scores, size, slice(top, top + 1)) for top in range(size[0])]
    assert torch.equal(torch.cat(parts, 1), found)
    places = torch.arange(0, size[0] * size[1], 3)
    torch.testing.assert_close(interpolated_at(scores, size, places), found.flatten(1)[:, places])


def test_borders_of_classes_are_no_blocks() -> None:
    """A straight border that runs obliquely comes back as one from a grid eight times coarser."""
    y, x = torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
    truth = (x + 0.4 * y > 100).long()
    share = truth.float().view(20, 8, 20, 8).mean((1, 3))
    scores = torch.stack([1 - share, share])
    smooth = (classes_at(scores, (160, 160)) != truth).float().mean()
    blocky = (centre_pixels(scores.argmax(0), (160, 160)) != truth).float().mean()
    assert smooth < 0.4 * blocky
