"""The backend "grouped_mm": torch.nn.functional.grouped_mm between torch's own gather and scatter.

A peer to compare with, and the form to take where Triton is missing on a GPU. It has no biases of its own, so
each is added as a row per token; nothing is fused. In bfloat16 on compute capability 9.x and 10.x torch runs
one grouped GEMM and never waits for the device. Everywhere else it loops over the experts, on a GPU after
reading the offsets back; torch.compile knows it in bfloat16 only. Widths must be multiples of 16 bytes.

T tokens, N routed rows, D dim, F hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.dispatch import DispatchPlan, combine_rows, gather_rows

GROUPED_MM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped_mm_ffn(
    x_TD: Tensor,
    gate_A: Tensor | None,
    plan: DispatchPlan,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    activation: str,
) -> Tensor:
    """As `grouped_ffn`; (T, D) -> (T, D).

    Raises:
        InputError: for a dtype grouped_mm does not know.
    """
    if x_TD.dtype not in GROUPED_MM_DTYPES:
        raise InputError(
            "grouped_mm does not know this dtype",
            got=x_TD.dtype,
            expected=" | ".join(str(dtype) for dtype in GROUPED_MM_DTYPES),
            fix="backend='auto' or 'reference' takes any",
        )
    ends = plan.offsets[1:]

    def product(rows_NP: Tensor, weight_EQP: Tensor) -> Tensor:
        return F.grouped_mm(rows_NP, weight_EQP.transpose(1, 2), offs=ends)

    return composed_ffn(product, x_TD, gate_A, plan, w1_EFD, b1_EF, w2_EDF, b2_ED, activation)


def composed_ffn(
    product: Callable[[Tensor, Tensor], Tensor],
    x_TD: Tensor,
    gate_A: Tensor | None,
    plan: DispatchPlan,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    activation: str,
) -> Tensor:
    """`grouped_ffn` around a grouped GEMM: `product` takes (N, P) rows and (E, Q, P) weights to (N, Q)."""
    grouped = plan.source_row is None
    rows_ND = x_TD if grouped else gather_rows(x_TD, plan)
    expert_N = expert_of_row(plan.offsets, rows_ND.shape[0])
    hidden_NF = ACTIVATIONS[activation](product(rows_ND, w1_EFD) + b1_EF.index_select(0, expert_N))
    out_ND = product(hidden_NF, w2_EDF) + b2_ED.index_select(0, expert_N)
    if grouped:
        return out_ND if gate_A is None else out_ND * gate_A[:, None]
    return combine_rows(out_ND, gate_A, plan)


def expert_of_row(offsets: Tensor, rows: int) -> Tensor:
    """(N,) the expert of each grouped row, without asking the device how many rows an expert has."""
    row = torch.arange(rows, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:], row, right=True)
