"""The dispatch plan: a grouping, the way back, and the example of its docstring."""

from __future__ import annotations

import pytest
import torch

from crossearth_sar.moe.backends import REFERENCE
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
