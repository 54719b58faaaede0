"""Means over boxes against plain loops, in float64, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from crossearth_sar.selfsup.regions import region_grids, region_means

SIZE = 60
BOXES = torch.tensor(
    [
        [[0.0, 0, 60, 60], [7.5, 12.25, 31.0, 59.0], [20, 20, 21, 20.5]],
        [[50.0, 3, 60, 4.5], [10, 10, 20, 20], [0, 24, 36, 48]],
    ],
    dtype=torch.float64,
)


def maps(height: int = 5, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def mean_by_loops(map_Dhw: Tensor, box: list[float]) -> Tensor:
    """Cell by cell: the area that the box has in it."""
    total, area = torch.zeros(map_Dhw.shape[0], dtype=torch.float64), 0.0
    high, wide = SIZE / map_Dhw.shape[1], SIZE / map_Dhw.shape[2]
    for row in range(map_Dhw.shape[1]):
        for column in range(map_Dhw.shape[2]):
            across = min(box[2], (column + 1) * wide) - max(box[0], column * wide)
            down = min(box[3], (row + 1) * high) - max(box[1], row * high)
            if across > 0 and down > 0:
                total += across * down * map_Dhw[:, row, column]
                area += across * down
    return total / area


def roi_align_by_loops(map_Dhw: Tensor, box: list[float]) -> Tensor:
    """RoIAlign, aligned, one bin, as many samples an axis as it is cells long: sample by sample."""
    height, width = map_Dhw.shape[1:]
    x0, x1 = (end * width / SIZE - 0.5 for end in (box[0], box[2]))
    y0, y1 = (end * height / SIZE - 0.5 for end in (box[1], box[3]))
    number_x, number_y = math.ceil(x1 - x0), math.ceil(y1 - y0)
    total = torch.zeros(map_Dhw.shape[0], dtype=torch.float64)
    for i in range(number_y):
        for j in range(number_x):
            y = y0 + (i + 0.5) * (y1 - y0) / number_y
            x = x0 + (j + 0.5) * (x1 - x0) / number_x
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            above, left = int(y), int(x)
            below, right = min(above + 1, height - 1), min(left + 1, width - 1)
            down, across = y - above, x - left
            total += (1 - down) * (1 - across) * map_Dhw[:, above, left]
            total += (1 - down) * across * map_Dhw[:, above, right]
            total += down * (1 - across) * map_Dhw[:, below, left]
            total += down * across * map_Dhw[:, below, right]
    return total / (number_x * number_y)


@pytest.mark.parametrize("shape", [(5, 6), (1, 1), (7, 60), (4, 3)])
def test_as_loops_over_cells(shape: tuple[int, int]) -> None:
    values = maps(*shape)
    got = region_means(values, BOXES, SIZE)
    for n, boxes in enumerate(BOXES.tolist()):
        for k, box in enumerate(boxes):
            assert torch.allclose(got[n, k], mean_by_loops(values[n], box), atol=1e-12)
            single = region_means(values.float(), BOXES.float(), SIZE)[n, k]
            assert torch.allclose(single.double(), got[n, k], atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6), (1, 1), (7, 12), (4, 3)])
def test_roi_align_as_loops_over_samples(shape: tuple[int, int]) -> None:
    values = maps(*shape)
    got = region_means(values, BOXES, SIZE, "roi_align")
    for n, boxes in enumerate(BOXES.tolist()):
        for k, box in enumerate(boxes):
            assert torch.allclose(got[n, k], roi_align_by_loops(values[n], box), atol=1e-12)


def test_the_two_ways_are_two() -> None:
    area, align = (region_means(maps(), BOXES, SIZE, how) for how in ("area", "roi_align"))  # type: ignore[arg-type]
    assert (area - align).abs().max() > 0.05


def test_parts_are_the_means_of_their_own_boxes() -> None:
    values, grid = maps(), 3
    got = region_grids(values, BOXES, SIZE, grid)
    assert got.shape == (2, 3, grid, grid, 3)
    for row in range(grid):
        for column in range(grid):
            x0, y0, x1, y1 = BOXES.unbind(-1)
            part = torch.stack(
                [
                    x0 + (x1 - x0) * column / grid,
                    y0 + (y1 - y0) * row / grid,
                    x0 + (x1 - x0) * (column + 1) / grid,
                    y0 + (y1 - y0) * (row + 1) / grid,
                ],
                dim=-1,
            )
            assert torch.allclose(got[:, :, row, column], region_means(values, part, SIZE), atol=1e-12)
    assert torch.allclose(got.mean((2, 3)), region_means(values, BOXES, SIZE), atol=1e-12)


@pytest.mark.parametrize("pooling", ["area", "roi_align"])
def test_gradients(pooling: str) -> None:
    def mean(values: Tensor) -> Tensor:
        return region_means(values, BOXES, SIZE, pooling)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(mean, maps(3, 4).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda values: region_grids(values, BOXES, SIZE, 2), maps(3, 4).requires_grad_()
    )


def test_a_box_without_area_or_beyond_the_view_is_nought_and_no_nan() -> None:
    boxes = torch.tensor([[[0.0, 0, 0, 0], [70, 10, 80, 20], [-10, -10, 10, 12]]]).expand(2, -1, -1)
    got = region_means(maps(), boxes, SIZE)
    assert (got[:, :2] == 0).all()
    assert torch.allclose(got[:, 2], maps()[:, :, 0, 0]), "what lies outside is left out"


def test_bf16_maps_are_averaged_in_float32() -> None:
    values = maps().bfloat16()
    got = region_means(values, BOXES.float(), SIZE)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), region_means(values.double(), BOXES, SIZE), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(region_means(values, BOXES.float(), SIZE), got)
