"""The backend "megablocks": the grouped GEMM that MegaBlocks ships, between torch's gather and scatter.

Optional, and a peer to compare with. Needs CUDA, bfloat16, and the packages megablocks and grouped_gemm. Its
GEMM wants the rows per expert on the host, so every call waits for the device once.

N routed rows, E experts, I and J: widths in and out of a product.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends.base import ComposingBackend, DispatchPlan, GroupedLinear
from crossearth_sar.moe.backends.grouped_mm import bias_rows, expert_of_row


class MegaBlocks(ComposingBackend):
    """See the module's docstring. Its linear map raises InputError for another dtype than bfloat16."""

    name = "megablocks"

    def grouped_linear(self, plan: DispatchPlan, rows: int) -> GroupedLinear:
        gmm = importlib.import_module("megablocks.grouped_gemm_util").ops.gmm
        counts_E = plan.offsets.diff().cpu().long()
        expert_N = expert_of_row(plan.offsets, rows)

        def linear(rows_NI: Tensor, weight_EJI: Tensor, bias_EJ: Tensor | None) -> Tensor:
            if rows_NI.dtype != torch.bfloat16:
                raise InputError(
                    "MegaBlocks' grouped GEMM does not know this dtype",
                    got=rows_NI.dtype,
                    expected="torch.bfloat16",
                    fix="run under torch.autocast('cuda', torch.bfloat16), or take another backend",
                )
            rows_NJ = gmm(rows_NI, weight_EJI, batch_sizes=counts_E, trans_b=True)
            return rows_NJ if bias_EJ is None else rows_NJ + bias_rows(bias_EJ, expert_N)

        return linear
