"""The loss that is about contours: ratios of averages, in the places where the query sees them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from view_batches import SIZE, Batch, micro_di3cl, view_batch

from crossearth_sar.selfsup.edges import as_query_sees, differences, edge_losses, explained_share, log_ratios

WHOLE = torch.tensor([[[0.0, 0, SIZE, SIZE]]])


def step(ratio: float) -> Tensor:
    """(1, 1, S, S) amplitude, dark left and bright right; `ratio` is that of the intensities."""
    image = torch.ones(1, 1, SIZE, SIZE)
    image[..., SIZE // 2 :] = math.sqrt(ratio)
    return image


def test_an_edge_is_the_logarithm_of_a_ratio() -> None:
    across, down = log_ratios(step(5.0), WHOLE, 4)
    assert across.shape == (1, 1, 4, 3)
    assert down.shape == (1, 1, 3, 4)
    assert torch.allclose(across[0, 0], torch.tensor([0, math.log(5), 0]).expand(4, 3), atol=1e-5)
    assert down.abs().max() < 1e-5


def test_no_gain_moves_it_and_speckle_is_as_strong_on_bright_ground_as_on_dark() -> None:
    speckle = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) + 0.5
    speckle[..., SIZE // 2 :] = speckle[..., : SIZE // 2]  # the same on both sides of the edge
    across, down = log_ratios(step(30.0) * speckle, WHOLE, 4)
    louder = log_ratios(50 * step(30.0) * speckle, WHOLE, 4)
    assert torch.allclose(louder[0], across, atol=1e-5)
    assert torch.allclose(down[..., :2], down[..., 2:], atol=1e-5)
    amplitudes = (step(30.0) * speckle).view(4, 8, 4, 8).mean((1, 3)).diff(dim=0)
    assert amplitudes[:, 2:].abs().mean() > 4 * amplitudes[:, :2].abs().mean(), "differences are not"


def test_an_unlit_part_is_no_nan() -> None:
    image = step(2.0)
    image[..., :8, :8] = 0
    assert all(torch.isfinite(part).all() for part in log_ratios(image, WHOLE, 4))


def by_loops(level: Tensor, batch: Batch, grid: int) -> float:
    """Edge by edge: where the query's part is in the key's box, what stands there, Huber's loss."""
    losses = []
    for n, k in batch["valid"].nonzero().tolist():
        x0, y0, x1, y1 = batch["key_boxes"][n, k].double().tolist()
        mirror_x, mirror_y = batch["mirrored"][n].tolist()
        power = batch["key_image"][n, 0].double().square()

        def seen(row: int, column: int) -> float:
            row = grid - 1 - row if mirror_y else row  # noqa: B023
            column = grid - 1 - column if mirror_x else column  # noqa: B023
            wide, high = (x1 - x0) / grid, (y1 - y0) / grid  # noqa: B023
            total = area = 0.0
            for i in range(SIZE):
                for j in range(SIZE):
                    left, top = x0 + column * wide, y0 + row * high  # noqa: B023
                    across = min(left + wide, j + 1) - max(left, j)
                    down = min(top + high, i + 1) - max(top, i)
                    if across > 0 and down > 0:
                        total, area = total + across * down * float(power[i, j]), area + across * down  # noqa: B023
            return math.log(total / area)

        values = [[seen(row, column) for column in range(grid)] for row in range(grid)]
        for row in range(grid):
            for column in range(grid):
                for down, across in ((1, 0), (0, 1)):
                    if row + down < grid and column + across < grid:
                        target = values[row + down][column + across] - values[row][column]
                        predicted = float(level[n, k, row + down, column + across] - level[n, k, row, column])
                        off = abs(predicted - target)
                        losses.append(off**2 / 2 if off < 1 else off - 0.5)
    return sum(losses) / len(losses)


def test_the_loss_against_loops() -> None:
    batch, grid = view_batch(3, without=(1,)), 2
    batch["valid"][:, 3:] = False
    assert batch["mirrored"].any()
    assert not batch["mirrored"].all()
    level = 0.3 * torch.randn(3, 10, grid, grid)
    seen = as_query_sees(log_ratios(batch["key_image"], batch["key_boxes"], grid), batch["mirrored"])
    losses = edge_losses(level, seen)[batch["valid"]]
    assert float(losses.mean()) == pytest.approx(by_loops(level, batch, grid), rel=1e-4)
    unmirrored = as_query_sees(
        log_ratios(batch["key_image"], batch["key_boxes"], grid), torch.zeros(3, 2, dtype=torch.bool)
    )
    assert abs(float(edge_losses(level, unmirrored)[batch["valid"]].mean() - losses.mean())) > 1e-3


def test_mirrored_both_ways_it_is_the_same_ground() -> None:
    image = torch.rand(1, 1, SIZE, SIZE) + 0.1
    boxes = torch.tensor([[[4.0, 6, 20, 28]]])
    for mirror_x, mirror_y in ((True, False), (False, True), (True, True)):
        axes = [axis for axis, mirror in ((-1, mirror_x), (-2, mirror_y)) if mirror]
        other = boxes.clone()
        if mirror_x:
            other[..., [0, 2]] = SIZE - boxes[..., [2, 0]]
        if mirror_y:
            other[..., [1, 3]] = SIZE - boxes[..., [3, 1]]
        seen = as_query_sees(log_ratios(image.flip(axes), other, 4), torch.tensor([[mirror_x, mirror_y]]))
        for got, expected in zip(seen, log_ratios(image, boxes, 4), strict=True):
            assert torch.allclose(got, expected, atol=1e-5)


def test_gradient_and_share_explained() -> None:
    level = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    target = differences(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    checked = level[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: edge_losses(x, (target[0][:1, :1], target[1][:1, :1])), checked)
    valid = torch.tensor([[True, True, False], [False, True, True]])
    assert float(explained_share(torch.zeros(2, 3, 4, 4).double(), target, valid)) == 0
    right = torch.where(valid[..., None, None], level, 0)
    assert float(explained_share(right, differences(level), valid)) == pytest.approx(1)
    assert float(explained_share(level, target, torch.zeros_like(valid))) == 0


def test_in_the_method_it_has_a_gradient_to_the_shallow_map_and_can_be_learnt() -> None:
    module, batch = micro_di3cl(contour="edges", global_weight=0.0, region_weight=0.0), view_batch(4)
    assert "queue.contour" not in module.state()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    explained = []
    for _ in range(30):
        terms = module(batch)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        explained.append(float(terms.values["edges_explained"]))
    assert module.encoder.backbone.patch_embed.proj.weight.grad.abs().max() > 0  # type: ignore[union-attr]
    assert explained[-1] > max(explained[0], 0) + 0.1
