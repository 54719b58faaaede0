"""The backend "megablocks": the grouped GEMM that MegaBlocks ships, between torch's gather and scatter.

Optional, and a peer to compare with. Needs CUDA, bfloat16, and the packages megablocks and grouped_gemm. Its
GEMM wants the rows per expert on the host, so every call waits for the device once.

T tokens, N routed rows, D dim, F hidden, E experts.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.dispatch import DispatchPlan, combine_rows, gather_rows
from crossearth_sar.moe.grouped_mm import expert_of_row


def megablocks_ffn(
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
        InputError: for another dtype than bfloat16.
    """
    if x_TD.dtype != torch.bfloat16:
        raise InputError(
            "MegaBlocks' grouped GEMM does not know this dtype",
            got=x_TD.dtype,
            expected="torch.bfloat16",
            fix="run under torch.autocast('cuda', torch.bfloat16), or take another backend",
        )
    gmm = importlib.import_module("megablocks.grouped_gemm_util").ops.gmm
    grouped = plan.source_row is None
    rows_ND = x_TD if grouped else gather_rows(x_TD, plan)
    expert_N = expert_of_row(plan.offsets, rows_ND.shape[0])
    counts = plan.offsets.diff().cpu().long()
    hidden_NF = gmm(rows_ND, w1_EFD, counts, trans_b=True) + b1_EF.index_select(0, expert_N)
    out_ND = gmm(ACTIVATIONS[activation](hidden_NF), w2_EDF, counts, trans_b=True)
    out_ND = out_ND + b2_ED.index_select(0, expert_N)
    if grouped:
        return out_ND if gate_A is None else out_ND * gate_A[:, None]
    return combine_rows(out_ND, gate_A, plan)
