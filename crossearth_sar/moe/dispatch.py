"""The dispatch plan: which token goes to which expert, as index lists every backend reads.

N = B*T*K routed rows, E experts, K top-k, D dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DispatchPlan:
    """Routed rows grouped by expert, the order of tokens kept within an expert.

    Example, four tokens, three experts, top-1 choices [2, 0, 2, 0]:

        source_row [1, 3, 0, 2]   grouped row n is assignment source_row[n] (token source_row[n] // K)
        offsets    [0, 2, 2, 4]   rows of expert e are offsets[e] .. offsets[e + 1]; expert 1 is empty

    source_row: (N,) int64 or int32; None where the rows already lie grouped by expert.
    offsets: (E + 1,) int32, on the device of the rows.
    backend: the one that made the plan and will run it.
    """

    source_row: Tensor | None
    offsets: Tensor
    top_k: int
    backend: str = "reference"


def make_dispatch_plan(
    expert_index_BTK: Tensor, num_experts: int, backend: str = "reference"
) -> DispatchPlan:
    """The plan for the router's (B, T, K) choices; stable, so the same input gives the same plan."""
    expert_A, top_k = expert_index_BTK.flatten(), expert_index_BTK.shape[-1]
    if backend == "triton":
        from crossearth_sar.kernels.routing import group_by_expert

        return DispatchPlan(*group_by_expert(expert_A, num_experts), top_k, backend)
    sorted_A, source_row = expert_A.sort(stable=True)
    # Where each expert's run begins, by binary search: nothing of it waits for the device.
    experts = torch.arange(num_experts + 1, device=expert_A.device)
    offsets = torch.searchsorted(sorted_A, experts, out_int32=True)
    return DispatchPlan(source_row, offsets, top_k, backend)


def gather_rows(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """(T, D) tokens -> (N, D) rows grouped by expert."""
    assert plan.source_row is not None, "the rows are grouped already"
    token = plan.source_row if plan.top_k == 1 else plan.source_row // plan.top_k
    return x_TD.index_select(0, token)


def combine_rows(rows_ND: Tensor, gate_BTK: Tensor | None, plan: DispatchPlan) -> Tensor:
    """(N, D) grouped rows -> (T, D): sum over K of gate times row, back in token order; gate None is 1."""
    assert plan.source_row is not None, "the rows are grouped already"
    back_AD = torch.zeros_like(rows_ND).index_copy(0, plan.source_row.long(), rows_ND)
    if gate_BTK is not None:
        back_AD = back_AD * gate_BTK.reshape(-1, 1)
    return back_AD if plan.top_k == 1 else back_AD.unflatten(0, (-1, plan.top_k)).sum(1)
