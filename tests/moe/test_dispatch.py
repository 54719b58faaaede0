"""The dispatch plan: a grouping, the way back, and the example of its docstring."""

from __future__ import annotations

import pytest
import torch

from crossearth_sar.moe.backends import REFERENCE
from crossearth_sar.moe.backends.grouped_mm import bias_rows
from crossearth_sar.moe.dispatch import combine_rows, gather_rows


def test_worked_example() -> None:
    plan = REFERENCE.make_plan(torch.tensor([[[2], [0], [2], [0]]]), 3)
    assert plan.source_row.tolist() == [1, 3, 0, 2]
    assert plan.offsets.tolist() == [0, 2, 2, 4]
    assert plan.offsets.dtype == torch.int32


@pytest.mark.parametrize(("tokens", "top_k"), [(0, 1), (1, 1), (1, 3), (37, 1), (37, 2), (64, 3)])
def test_rows_are_grouped_stably_and_come_back(tokens: int, top_k: int) -> None:
    index = (
        torch.stack([torch.randperm(5)[:top_k] for _ in range(tokens)])
        if tokens
        else torch.zeros(0, top_k).long()
    )
    plan = REFERENCE.make_plan(index[None], 5)
    assert plan.source_row is not None
    expert = index.flatten()[plan.source_row]
    assert torch.equal(expert, expert.sort().values)
    for e in range(5):
        mine = plan.source_row[expert == e]
        assert torch.equal(mine, mine.sort().values), "the order of tokens is kept within an expert"
        assert int(plan.offsets.diff()[e]) == mine.numel()
    x, gate = torch.randn(tokens, 4), torch.rand(1, tokens, top_k)
    back = combine_rows(gather_rows(x, plan), gate, plan)
    torch.testing.assert_close(back, x * gate[0].sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_gradients_are_sums_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    """Thousands of rows of one sign, added one by one in bfloat16, stop growing: the sum would be far off."""
    torch.manual_seed(0)
    expert_N = torch.tensor([0] * 100 + [2] * 8000)
    bias = torch.randn(4, 24, dtype=dtype, requires_grad=True)
    upstream = torch.rand(8100, 24).to(dtype)
    bias_rows(bias, expert_N).backward(upstream)
    exact = torch.zeros(4, 24, dtype=torch.float64).index_add(0, expert_N, upstream.double())
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad.double(), exact, rtol=max(2 * torch.finfo(dtype).eps, 1e-6), atol=0)
    one_by_one = torch.zeros(4, 24, dtype=dtype)
    for start in range(0, 8100, 50):  # in some order, as atomic additions are
        one_by_one.index_add_(0, expert_N[start : start + 50], upstream[start : start + 50])
    if dtype == torch.bfloat16:
        assert ((one_by_one.double() - exact).abs() > 0.02 * exact)[2].any(), "or the test proves nothing"


def test_gradients_of_gathered_rows_add_up_over_the_choices() -> None:
    plan = REFERENCE.make_plan(torch.stack([torch.randperm(5)[:3] for _ in range(19)])[None], 5)
    x = torch.randn(19, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, plan), (x,))
    half = torch.randn(19, 4).bfloat16().requires_grad_()
    upstream = torch.randn(57, 4).bfloat16()
    gather_rows(half, plan).backward(upstream)
    assert plan.source_row is not None
    exact = torch.zeros(19, 4).index_add(0, plan.source_row // 3, upstream.float())
    assert half.grad is not None
    torch.testing.assert_close(half.grad, exact.bfloat16())
