"""The pyramid: strides 4, 8, 16, 32 from maps of one stride, whatever the patch size."""

from __future__ import annotations

import pytest
import torch

from crossearth_sar.decoder.pyramid import STRIDES, feature_pyramid


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 2)])
def test_sizes_are_the_image_over_the_stride_rounded_up(patch: int, grid: tuple[int, int]) -> None:
    levels = feature_pyramid([torch.randn(2, 3, *grid) for _ in range(4)], (patch,) * 4)
    for level, stride in zip(levels, (4, 8, 16, 32), strict=True):
        assert level.shape == (2, 3, -(-grid[0] * patch // stride), -(-grid[1] * patch // stride))


def test_patch_16_has_factors_4_2_1_and_a_half() -> None:
    maps = [torch.randn(1, 3, 32, 32) for _ in STRIDES]
    assert [level.shape[-1] / 32 for level in feature_pyramid(maps, (16,) * 4)] == [4, 2, 1, 0.5]


def test_shallow_maps_go_to_fine_strides_and_their_own_stride_is_untouched() -> None:
    maps = [torch.full((1, 1, 4, 4), float(i)) for i in range(4)]
    maps[2] = torch.randn(1, 1, 4, 4)
    levels = feature_pyramid(maps, (16,) * 4)
    for i in (0, 1, 3):
        assert bool((levels[i] == i).all())
    assert torch.equal(levels[2], maps[2])


def test_halving_is_the_mean_of_two_by_two() -> None:
    maps = [torch.randn(1, 2, 8, 8) for _ in range(4)]
    torch.testing.assert_close(
        feature_pyramid(maps, (16,) * 4)[3], maps[3].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    )


def test_refuses_another_number_of_maps() -> None:
    with pytest.raises(ValueError, match="zip"):
        feature_pyramid([torch.randn(1, 1, 4, 4)] * 3, (16,) * 4)


def test_maps_that_have_their_strides_are_handed_on() -> None:
    maps = [torch.randn(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    assert all(level is m for level, m in zip(feature_pyramid(maps, STRIDES), maps, strict=True))
