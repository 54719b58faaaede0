"""From pixels to tokens: the order of patches, and position embeddings on other grids."""

from __future__ import annotations

import pytest
import torch

from crossearth_sar.errors import InputError
from crossearth_sar.vit.embed import PatchEmbed, resize_position_embedding


def test_a_patch_is_a_token_at_its_row_and_column() -> None:
    embed, image = PatchEmbed(4, 6), torch.randn(2, 3, 8, 12)
    tokens, maps = embed(image)
    assert maps == []
    assert tokens.shape == (2, 2, 3, 6)
    by_hand = embed.proj.weight.flatten(1) @ image[1, :, 4:8, 8:12].flatten() + embed.proj.bias
    torch.testing.assert_close(tokens[1, 1, 2], by_hand)


@pytest.mark.parametrize("size", [(9, 8), (8, 10)])
def test_refuses_part_of_a_patch(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"(?s){size[0]} x {size[1]}.*multiples of 4"):
        PatchEmbed(4, 6)(torch.randn(1, 3, *size))


def test_the_own_grid_is_left_as_it_is() -> None:
    stored = torch.randn(1, 1 + 25, 4)
    assert resize_position_embedding(stored, (5, 5)) is stored


@pytest.mark.parametrize("grid", [(3, 3), (4, 9), (9, 4), (1, 7), (25, 1)])
def test_a_constant_stays_constant_and_cls_stays_first(grid: tuple[int, int]) -> None:
    stored = torch.full((1, 1 + 25, 4), 2.5)
    stored[:, 0] = -7
    resized = resize_position_embedding(stored, grid)
    assert resized.shape == (1, 1 + grid[0] * grid[1], 4)
    assert bool((resized[:, 0] == -7).all())
    torch.testing.assert_close(resized[:, 1:], torch.full_like(resized[:, 1:], 2.5))


def test_rows_and_columns_are_not_swapped() -> None:
    """A ramp down the rows: after resizing it still depends on the row alone, and rises with it."""
    ramp = torch.arange(8.0).repeat_interleave(8)
    stored = torch.cat([torch.zeros(1), ramp]).reshape(1, 65, 1)
    resized = resize_position_embedding(stored, (4, 16))[0, 1:, 0].unflatten(0, (4, 16))
    torch.testing.assert_close(resized, resized[:, :1].expand(-1, 16))
    assert bool((resized[1:] > resized[:-1]).all())


def test_half_precision_is_resized_in_single_and_returned_in_half() -> None:
    stored = torch.randn(1, 1 + 49, 4).bfloat16()
    resized = resize_position_embedding(stored, (5, 6))
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, resize_position_embedding(stored.float(), (5, 6)).bfloat16())
