"""Rows to their experts' order and back, by a dispatch plan.

N = B*T*K routed rows, A = T*K assignments, B batch, T tokens, D dim, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossearth_sar.moe.backends.base import DispatchPlan

__all__ = ["DispatchPlan", "combine_rows", "gather_rows"]


def gather_rows(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """(T, D) tokens -> (N, D) rows grouped by expert."""
    assert plan.source_row is not None, "the rows are grouped already"
    rows: Tensor = _Gather.apply(x_TD, plan.source_row, plan.top_k)
    return rows


class _Gather(torch.autograd.Function):
    """index_select, with a gradient that is a copy and a sum over K: autograd's own adds rows atomically, in
    the dtype of the rows and in no order that would come again."""

    @staticmethod
    def forward(x_TD: Tensor, source_row_N: Tensor, top_k: int) -> Tensor:
        return x_TD.index_select(0, source_row_N if top_k == 1 else source_row_N // top_k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, source_row_N, ctx.top_k = inputs
        ctx.save_for_backward(source_row_N)

    @staticmethod
    def backward(ctx: Any, drows_ND: Tensor) -> tuple[Tensor, None, None]:
        (source_row_N,) = ctx.saved_tensors
        back_AD = torch.empty_like(drows_ND).index_copy(0, source_row_N.long(), drows_ND)
        return back_AD if ctx.top_k == 1 else back_AD.unflatten(0, (-1, ctx.top_k)).sum(1), None, None


def combine_rows(rows_ND: Tensor, gate_BTK: Tensor | None, plan: DispatchPlan) -> Tensor:
    """(N, D) grouped rows -> (T, D): sum over K of gate times row, back in token order; gate None is 1."""
    assert plan.source_row is not None, "the rows are grouped already"
    back_AD = torch.zeros_like(rows_ND).index_copy(0, plan.source_row.long(), rows_ND)
    if gate_BTK is not None:
        back_AD = back_AD * gate_BTK.reshape(-1, 1)
    return back_AD if plan.top_k == 1 else back_AD.unflatten(0, (-1, plan.top_k)).sum(1)
