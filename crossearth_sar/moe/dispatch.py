"""Rows to their experts' order and back, by a dispatch plan.

N = B*T*K routed rows, A = T*K assignments, B batch, T tokens, D dim, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossearth_sar.moe.backends.base import DispatchPlan

__all__ = ["DispatchPlan", "combine_rows", "gather_rows"]


def gather_rows(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """(T, D) tokens -> (N, D) rows grouped by expert."""
    assert plan.source_row is not None, "the rows are grouped already"
    token_N = plan.source_row if plan.top_k == 1 else plan.source_row // plan.top_k
    return x_TD.index_select(0, token_N)


def combine_rows(rows_ND: Tensor, gate_BTK: Tensor | None, plan: DispatchPlan) -> Tensor:
    """(N, D) grouped rows -> (T, D): sum over K of gate times row, back in token order; gate None is 1."""
    assert plan.source_row is not None, "the rows are grouped already"
    back_AD = torch.zeros_like(rows_ND).index_copy(0, plan.source_row.long(), rows_ND)
    if gate_BTK is not None:
        back_AD = back_AD * gate_BTK.reshape(-1, 1)
    return back_AD if plan.top_k == 1 else back_AD.unflatten(0, (-1, plan.top_k)).sum(1)
