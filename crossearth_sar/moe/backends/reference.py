"""The backend "reference": plain torch, any device, any dtype. Experts are a loop over blocks of rows.

Each expert's rows are contiguous in the plan, so an expert is a handful of GEMMs on a block of rows, and the
blocks share one set of buffers that stays in cache: fresh memory costs a CPU more than the activation. The
backward writes each expert's gradient where it belongs; autograd on slices of the stacked parameters would
fill a gradient of the whole stack for every expert. Reading the offsets is a host synchronisation on a GPU.
Experts of other types than «ffn» are composed of the operation in grouped_linear.py.

T tokens, N routed rows, A = T*K assignments, D dim, F hidden, E experts, E1 = E + 1, K top-k, M rows of a
block, I and J: widths in and out of a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from crossearth_sar.moe.backends.base import (
    ComposingBackend,
    DispatchPlan,
    ExpertWeights,
    FFNGradients,
    FusedBackend,
    GroupedLinear,
    sum_choices,
)
from crossearth_sar.moe.backends.grouped_linear import grouped_linear

BLOCK_ROWS = 2048
"""Rows of a block at most: enough for the GEMM's full speed, few enough for the buffers to stay warm."""


class Reference(FusedBackend, ComposingBackend):
    """See the module's docstring."""

    name = "reference"

    def forward(
        self,
        x_TD: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        save_pre: bool,
    ) -> tuple[Tensor, Tensor | None]:
        w1_EFD, b1_EF, w2_EDF, b2_ED = weights
        rows, (hidden_dim, dim) = x_TD.shape[0] * plan.top_k, w1_EFD.shape[1:]
        blocks, widest = _blocks(plan.offsets)
        y_AD = x_TD.new_empty(rows, dim)
        pre_NF = x_TD.new_empty(rows, hidden_dim) if save_pre else None
        x_buffer_MD, out_buffer_MD = x_TD.new_empty(widest, dim), x_TD.new_empty(widest, dim)
        act_buffer_MF = x_TD.new_empty(widest, hidden_dim)
        for block in blocks:
            e, size = block.expert, block.hi - block.lo
            x_MD = _gathered(x_TD, plan, block, x_buffer_MD)
            pre_MF = act_buffer_MF[:size] if pre_NF is None else pre_NF[block.lo : block.hi]
            torch.addmm(b1_EF[e], x_MD, w1_EFD[e].t(), out=pre_MF)
            act_MF = _activate(pre_MF, activation, out_MF=act_buffer_MF[:size])
            in_place = plan.source_row is None
            out_MD = y_AD[block.lo : block.hi] if in_place else out_buffer_MD[:size]
            torch.addmm(b2_ED[e], act_MF, w2_EDF[e].t(), out=out_MD)
            _scatter(y_AD, out_MD, gate_A, plan, block)
        return sum_choices(y_AD, plan.top_k), pre_NF

    def backward(
        self,
        dy_TD: Tensor,
        x_TD: Tensor,
        pre_NF: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        want_weights: bool,
    ) -> FFNGradients:
        w1_EFD, _, w2_EDF, b2_ED = weights
        hidden_dim, dim = w1_EFD.shape[1:]
        blocks, widest = _blocks(plan.offsets)
        dx_AD = x_TD.new_empty(x_TD.shape[0] * plan.top_k, dim)
        dgate_A = None if gate_A is None else x_TD.new_empty(gate_A.shape[0])
        gradients = _WeightGradients(w1_EFD, w2_EDF, blocks, widest) if want_weights else None
        x_buffer_MD, dy_buffer_MD, dx_buffer_MD = (x_TD.new_empty(widest, dim) for _ in range(3))
        act_buffer_MF, dpre_buffer_MF = (x_TD.new_empty(widest, hidden_dim) for _ in range(2))
        for block in blocks:
            e, size = block.expert, block.hi - block.lo
            pre_MF, dpre_MF = pre_NF[block.lo : block.hi], dpre_buffer_MF[:size]
            dy_MD = _gathered(dy_TD, plan, block, dy_buffer_MD)
            act_MF = _activate(pre_MF, activation, out_MF=act_buffer_MF[:size])
            dact_MF = torch.mm(dy_MD, w2_EDF[e], out=dpre_MF)
            if gate_A is not None and dgate_A is not None:
                # sum over D of dy * out, with out = act w2^T + b2 not saved: (dy w2) . act + dy . b2
                dgate_M = torch.linalg.vecdot(dact_MF, act_MF) + dy_MD @ b2_ED[e]
                _put_of_block(dgate_A, dgate_M, plan, block)
                gate_M1 = _of_block(gate_A, plan, block)[:, None]
                dact_MF *= gate_M1
                dy_MD = dy_MD * gate_M1
            _activation_gradient(dact_MF, pre_MF, activation, out_MF=dpre_MF)
            if gradients is not None:
                x_MD = _gathered(x_TD, plan, block, x_buffer_MD)
                gradients.add(block, dpre_MF, x_MD, dy_MD, act_MF)
            dx_MD = dx_AD[block.lo : block.hi] if plan.source_row is None else dx_buffer_MD[:size]
            torch.mm(dpre_MF, w1_EFD[e], out=dx_MD)
            _scatter(dx_AD, dx_MD, None, plan, block)
        dweights = None if gradients is None else gradients.tensors()
        return FFNGradients(sum_choices(dx_AD, plan.top_k), dgate_A, dweights)

    def grouped_linear(self, plan: DispatchPlan, rows: int) -> GroupedLinear:
        def linear(rows_NI: Tensor, weight_EJI: Tensor, bias_EJ: Tensor | None) -> Tensor:
            return grouped_linear(rows_NI.contiguous(), weight_EJI, bias_EJ, plan.offsets)

        return linear


@dataclass(frozen=True)
class _Block:
    """Rows lo .. hi of the plan, all of one expert."""

    expert: int
    lo: int
    hi: int
    first: bool
    last: bool
    """Whether no block of this expert came before, or comes after."""


def _blocks(offsets_E1: Tensor) -> tuple[list[_Block], int]:
    """The blocks, and the rows of the longest."""
    blocks = list(_walk(offsets_E1.tolist()))
    return blocks, max((block.hi - block.lo for block in blocks), default=0)


def _walk(bounds: list[int]) -> Iterator[_Block]:
    for expert, (start, end) in enumerate(pairwise(bounds)):
        for lo in range(start, end, BLOCK_ROWS):
            hi = min(lo + BLOCK_ROWS, end)
            yield _Block(expert, lo, hi, lo == start, hi == end)


class _WeightGradients:
    """dw1, db1, dw2, db2: an expert's first block writes, later ones add; without rows all are zero.

    In 16 bits the blocks of an expert are summed in float32, and rounded once: an error that grew with the
    rows would be several times that of one product over all of them.
    """

    def __init__(self, w1_EFD: Tensor, w2_EDF: Tensor, blocks: list[_Block], widest: int) -> None:
        self.dw1_EFD, self.dw2_EDF = w1_EFD.new_empty(w1_EFD.shape), w2_EDF.new_empty(w2_EDF.shape)
        self.db1_EF, self.db2_ED = w1_EFD.new_empty(w1_EFD.shape[:2]), w2_EDF.new_empty(w2_EDF.shape[:2])
        self._sums: list[Tensor] = []
        if w1_EFD.dtype in (torch.bfloat16, torch.float16):
            self._sums = [torch.empty_like(g[0], dtype=torch.float32) for g in self.tensors()]
        self._ones_M = w1_EFD.new_ones(widest)
        for expert in set(range(w1_EFD.shape[0])) - {block.expert for block in blocks}:
            for gradient in self.tensors():
                gradient[expert].zero_()

    def add(self, block: _Block, dpre_MF: Tensor, x_MD: Tensor, dy_MD: Tensor, act_MF: Tensor) -> None:
        if self._sums:
            self._add_in_float32(block, dpre_MF, x_MD, dy_MD, act_MF)
            return
        e, beta = block.expert, 0.0 if block.first else 1.0
        # beta = 0 ignores what is there, NaN included
        torch.addmm(self.dw1_EFD[e], dpre_MF.t(), x_MD, beta=beta, out=self.dw1_EFD[e])
        torch.addmm(self.dw2_EDF[e], dy_MD.t(), act_MF, beta=beta, out=self.dw2_EDF[e])
        ones_M = self._ones_M[: block.hi - block.lo]  # a product reads the rows once; a sum is slower
        torch.addmv(self.db1_EF[e], dpre_MF.t(), ones_M, beta=beta, out=self.db1_EF[e])
        torch.addmv(self.db2_ED[e], dy_MD.t(), ones_M, beta=beta, out=self.db2_ED[e])

    def _add_in_float32(
        self, block: _Block, dpre_MF: Tensor, x_MD: Tensor, dy_MD: Tensor, act_MF: Tensor
    ) -> None:
        of_block = (
            torch.mm(dpre_MF.t(), x_MD), dpre_MF.sum(0, dtype=torch.float32),
            torch.mm(dy_MD.t(), act_MF), dy_MD.sum(0, dtype=torch.float32),
        )  # fmt: skip
        for gradient, total, part in zip(self.tensors(), self._sums, of_block, strict=True):
            if block.first:
                total.copy_(part)
            else:
                total += part
            if block.last:
                gradient[block.expert] = total

    def tensors(self) -> ExpertWeights:
        return ExpertWeights(self.dw1_EFD, self.db1_EF, self.dw2_EDF, self.db2_ED)


def _gathered(x_TD: Tensor, plan: DispatchPlan, block: _Block, buffer_MD: Tensor) -> Tensor:
    if plan.source_row is None:
        return x_TD[block.lo : block.hi]
    row_M = plan.source_row[block.lo : block.hi]
    token_M = row_M if plan.top_k == 1 else row_M // plan.top_k
    return torch.index_select(x_TD, 0, token_M, out=buffer_MD[: block.hi - block.lo])


def _scatter(y_AD: Tensor, out_MD: Tensor, gate_A: Tensor | None, plan: DispatchPlan, block: _Block) -> None:
    if gate_A is not None:
        out_MD *= _of_block(gate_A, plan, block)[:, None]
    if plan.source_row is not None:
        y_AD.index_copy_(0, plan.source_row[block.lo : block.hi].long(), out_MD)


def _of_block(values_A: Tensor, plan: DispatchPlan, block: _Block) -> Tensor:
    if plan.source_row is None:
        return values_A[block.lo : block.hi]
    return values_A.index_select(0, plan.source_row[block.lo : block.hi])


def _put_of_block(values_A: Tensor, new_M: Tensor, plan: DispatchPlan, block: _Block) -> None:
    if plan.source_row is None:
        values_A[block.lo : block.hi] = new_M
    else:
        values_A.index_copy_(0, plan.source_row[block.lo : block.hi].long(), new_M)


def _activate(pre_MF: Tensor, activation: str, *, out_MF: Tensor) -> Tensor:
    if activation == "relu":
        return torch.clamp(pre_MF, min=0, out=out_MF)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu.out(pre_MF, approximate=approximate, out=out_MF)


def _activation_gradient(dact_MF: Tensor, pre_MF: Tensor, activation: str, *, out_MF: Tensor) -> Tensor:
    if activation == "relu":
        return torch.mul(dact_MF, pre_MF > 0, out=out_MF)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward.grad_input(
        dact_MF, pre_MF, approximate=approximate, grad_input=out_MF
    )
