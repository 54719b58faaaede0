"""The backend "megablocks": the grouped GEMM that MegaBlocks ships, between torch's gather and scatter.

Optional, and a peer to compare with. Needs CUDA, bfloat16, and the packages megablocks and grouped_gemm. Its
GEMM wants the rows per expert on the host, so every call waits for the device once.

T tokens, N routed rows, D dim, F hidden, E experts.
"""

from __future__ import annotations

import importlib
from functools import partial

import torch
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.moe.dispatch import DispatchPlan
from crossearth_sar.moe.grouped_mm import composed_ffn


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
    counts = plan.offsets.diff().cpu().long()
    product = partial(gmm, batch_sizes=counts, trans_b=True)
    return composed_ffn(product, x_TD, gate_A, plan, w1_EFD, b1_EF, w2_EDF, b2_ED, activation)
