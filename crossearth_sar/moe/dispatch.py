"""The dispatch plan: which token goes to which expert, as index lists every backend reads.

N = B*T*K routed rows, E experts, K top-k, D dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DispatchPlan:
    """Routed rows grouped by expert, the order of tokens kept within an expert.

    Example, four tokens, three experts, top-1 choices [2, 0, 2, 0]:

        source_row  [1, 3, 0, 2]   grouped row n is assignment source_row[n] (token source_row[n] // K)
        grouped_row [2, 0, 3, 1]   the way back: assignment a is grouped row grouped_row[a]
        counts      [2, 0, 2]      rows per expert; expert 1 is empty
    """

    source_row: Tensor
    grouped_row: Tensor
    counts: Tensor
    top_k: int

    @property
    def source_token(self) -> Tensor:
        """(N,) int64: the token (row of the flattened (B*T, D) input) each grouped row is a copy of."""
        return self.source_row if self.top_k == 1 else self.source_row // self.top_k


def make_dispatch_plan(expert_index_BTK: Tensor, num_experts: int) -> DispatchPlan:
    """The plan for the router's (B, T, K) choices; a stable sort, so the same input gives the same plan."""
    expert_A = expert_index_BTK.flatten()
    source_row = expert_A.argsort(stable=True)
    grouped_row = torch.empty_like(source_row)
    grouped_row[source_row] = torch.arange(source_row.numel(), device=source_row.device)
    counts = F.one_hot(expert_A, num_experts).sum(0)
    return DispatchPlan(source_row, grouped_row, counts, expert_index_BTK.shape[-1])


def gather_rows(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """(T, D) tokens -> (N, D) rows grouped by expert."""
    return x_TD.index_select(0, plan.source_token)


def combine_rows(rows_ND: Tensor, gate_BTK: Tensor, plan: DispatchPlan) -> Tensor:
    """(N, D) grouped rows -> (T, D): sum over K of gate times row, back in token order."""
    back_TKD = rows_ND.index_select(0, plan.grouped_row).unflatten(0, (-1, plan.top_k))
    weighted = back_TKD * gate_BTK.reshape(-1, plan.top_k, 1)
    return weighted.sum(1) if plan.top_k > 1 else weighted.squeeze(1)
