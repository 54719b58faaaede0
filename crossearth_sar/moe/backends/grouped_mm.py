"""The backend "grouped_mm": torch.nn.functional.grouped_mm between torch's own gather and scatter.

A peer to compare with, and the form to take where Triton is missing on a GPU. It has no biases of its own, so
each is added as a row per token; nothing is fused. In bfloat16 on compute capability 9.x and 10.x torch runs
one grouped GEMM and never waits for the device. Everywhere else it loops over the experts, on a GPU after
reading the offsets back; torch.compile knows it in bfloat16 only. Widths must be multiples of 16 bytes.

N routed rows, E experts, E1 = E + 1, I and J: widths in and out of a product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends.base import ComposingBackend, DispatchPlan, GroupedLinear

GROUPED_MM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class GroupedMM(ComposingBackend):
    """See the module's docstring. Its linear map raises InputError for a dtype grouped_mm does not know."""

    name = "grouped_mm"

    def grouped_linear(self, plan: DispatchPlan, rows: int) -> GroupedLinear:
        ends_E = plan.offsets[1:]
        expert_N = expert_of_row(plan.offsets, rows)

        def linear(rows_NI: Tensor, weight_EJI: Tensor, bias_EJ: Tensor | None) -> Tensor:
            if rows_NI.dtype not in GROUPED_MM_DTYPES:
                raise InputError(
                    "grouped_mm does not know this dtype",
                    got=rows_NI.dtype,
                    expected=" | ".join(str(dtype) for dtype in GROUPED_MM_DTYPES),
                    fix="backend='auto' or 'reference' takes any",
                )
            rows_NJ = F.grouped_mm(rows_NI, weight_EJI.transpose(1, 2), offs=ends_E)
            return rows_NJ if bias_EJ is None else rows_NJ + bias_rows(bias_EJ, expert_N)

        return linear


def expert_of_row(offsets_E1: Tensor, rows: int) -> Tensor:
    """(N,) the expert of each grouped row, without asking the device how many rows an expert has."""
    row_N = torch.arange(rows, device=offsets_E1.device, dtype=offsets_E1.dtype)
    return torch.searchsorted(offsets_E1[1:], row_N, right=True)


def bias_rows(bias_EJ: Tensor, expert_N: Tensor) -> Tensor:
    """(N, J) the bias of each row's expert. Its gradient is a product with ones, which sums in float32:
    index_select's adds the rows one by one in their own dtype, atomically, so that in bfloat16 a sum of
    thousands of rows is off by percents and differs from run to run."""
    rows: Tensor = _BiasRows.apply(bias_EJ, expert_N)
    return rows


class _BiasRows(torch.autograd.Function):
    @staticmethod
    def forward(bias_EJ: Tensor, expert_N: Tensor) -> Tensor:
        return bias_EJ.index_select(0, expert_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        bias_EJ, expert_N = inputs
        ctx.experts = bias_EJ.shape[0]
        ctx.save_for_backward(expert_N)

    @staticmethod
    def backward(ctx: Any, drows_NJ: Tensor) -> tuple[Tensor, None]:
        (expert_N,) = ctx.saved_tensors
        experts_E = torch.arange(ctx.experts, device=expert_N.device)
        is_own_EN = (experts_E[:, None] == expert_N).to(drows_NJ.dtype)
        return is_own_EN @ drows_NJ, None
