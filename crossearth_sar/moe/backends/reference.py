"""The experts' two GEMMs as a loop over experts, forward and backward: the backend "reference".

Each expert's rows are contiguous in the plan, so an expert is a handful of GEMMs on a block of rows, and the
blocks share one set of buffers that stays in cache: fresh memory costs a CPU more than the activation. The
backward writes each expert's gradient where it belongs; autograd on slices of the stacked parameters would
fill a gradient of the whole stack for every expert. Reading the offsets is a host synchronisation on a GPU.

T tokens, N routed rows, A = T*K assignments, D dim, F hidden, E experts, K top-k, M rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

BLOCK_ROWS = 2048
"""Rows of a block at most: enough for the GEMM's full speed, few enough for the buffers to stay warm."""


@dataclass(frozen=True)
class _Block:
    """Rows lo .. hi of the plan, all of one expert."""

    expert: int
    lo: int
    hi: int
    first: bool
    last: bool
    """Whether no block of this expert came before, or comes after."""


def _blocks(offsets: Tensor) -> Iterator[_Block]:
    bounds = offsets.tolist()
    for expert, (start, end) in enumerate(pairwise(bounds)):
        for lo in range(start, end, BLOCK_ROWS):
            hi = min(lo + BLOCK_ROWS, end)
            yield _Block(expert, lo, hi, lo == start, hi == end)


def forward(
    x_TD: Tensor,
    gate_A: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    top_k: int,
    activation: str,
    save_pre: bool,
) -> tuple[Tensor, Tensor]:
    """(T, D) -> the gated outputs (T, D), and the pre-activation (N, F) for the backward, or (0, F)."""
    rows = x_TD.shape[0] * top_k
    hidden_dim, dim = w1_EFD.shape[1:]
    blocks = list(_blocks(offsets))
    widest = max((block.hi - block.lo for block in blocks), default=0)
    y_AD = x_TD.new_empty(rows, dim)
    pre_NF = x_TD.new_empty(rows if save_pre else 0, hidden_dim)
    x_buffer, out_buffer = x_TD.new_empty(widest, dim), x_TD.new_empty(widest, dim)
    act_buffer = x_TD.new_empty(widest, hidden_dim)
    for block in blocks:
        e, size = block.expert, block.hi - block.lo
        x_MD = _gathered(x_TD, source_row, block, top_k, x_buffer)
        pre_MF = pre_NF[block.lo : block.hi] if save_pre else act_buffer[:size]
        torch.addmm(b1_EF[e], x_MD, w1_EFD[e].t(), out=pre_MF)
        act_MF = _activate(pre_MF, activation, out=act_buffer[:size])
        in_place = source_row is None
        out_MD = y_AD[block.lo : block.hi] if in_place else out_buffer[:size]
        torch.addmm(b2_ED[e], act_MF, w2_EDF[e].t(), out=out_MD)
        _scatter(y_AD, out_MD, gate_A, source_row, block)
    return _sum_choices(y_AD, top_k), pre_NF


def backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    pre_NF: Tensor,
    gate_A: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1_EFD: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    top_k: int,
    activation: str,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (T, D), gate (A,), w1, b1, w2, b2; without `want_weights` the last four are empty."""
    hidden_dim, dim = w1_EFD.shape[1:]
    blocks = list(_blocks(offsets))
    widest = max((block.hi - block.lo for block in blocks), default=0)
    dx_AD = x_TD.new_empty(x_TD.shape[0] * top_k, dim)
    dgate_A = x_TD.new_empty(0 if gate_A is None else gate_A.shape[0])
    gradients = _WeightGradients(w1_EFD, w2_EDF, blocks) if want_weights else None
    x_buffer, dy_buffer, dx_buffer = (x_TD.new_empty(widest, dim) for _ in range(3))
    act_buffer, dpre_buffer = (x_TD.new_empty(widest, hidden_dim) for _ in range(2))
    for block in blocks:
        e, size = block.expert, block.hi - block.lo
        pre_MF = pre_NF[block.lo : block.hi]
        dy_MD = _gathered(dy_TD, source_row, block, top_k, dy_buffer)
        act_MF = _activate(pre_MF, activation, out=act_buffer[:size])
        dpre_MF = dpre_buffer[:size]
        if gate_A is not None:
            gate_M1 = _of_block(gate_A, source_row, block)[:, None]
            dact_MF = torch.mm(dy_MD, w2_EDF[e], out=dpre_MF)
            # sum over D of dy * out, with out = act w2^T + b2 not saved: (dy w2) . act + dy . b2
            dgate_M = torch.linalg.vecdot(dact_MF, act_MF) + dy_MD @ b2_ED[e]
            _put_of_block(dgate_A, dgate_M, source_row, block)
            dact_MF *= gate_M1
            dy_MD = dy_MD * gate_M1
        else:
            dact_MF = torch.mm(dy_MD, w2_EDF[e], out=dpre_MF)
        _activation_gradient(dact_MF, pre_MF, activation, out=dpre_MF)
        if gradients is not None:
            x_MD = _gathered(x_TD, source_row, block, top_k, x_buffer)
            gradients.add(block, dpre_MF, x_MD, dy_MD, act_MF)
        dx_MD = dx_AD[block.lo : block.hi] if source_row is None else dx_buffer[:size]
        torch.mm(dpre_MF, w1_EFD[e], out=dx_MD)
        _scatter(dx_AD, dx_MD, None, source_row, block)
    dw = gradients.tensors() if gradients is not None else tuple(x_TD.new_empty(0) for _ in range(4))
    return _sum_choices(dx_AD, top_k), dgate_A, dw[0], dw[1], dw[2], dw[3]


class _WeightGradients:
    """dw1, db1, dw2, db2: an expert's first block writes, later ones add; without rows all are zero.

    In 16 bits the blocks of an expert are summed in float32, and rounded once: an error that grew with the
    rows would be several times that of one product over all of them.
    """

    def __init__(self, w1_EFD: Tensor, w2_EDF: Tensor, blocks: list[_Block]) -> None:
        self.dw1, self.dw2 = w1_EFD.new_empty(w1_EFD.shape), w2_EDF.new_empty(w2_EDF.shape)
        self.db1, self.db2 = w1_EFD.new_empty(w1_EFD.shape[:2]), w2_EDF.new_empty(w2_EDF.shape[:2])
        self._sums: list[Tensor] = []
        if w1_EFD.dtype in (torch.bfloat16, torch.float16):
            self._sums = [torch.empty_like(g[0], dtype=torch.float32) for g in self.tensors()]
        self._ones = w1_EFD.new_ones(max((block.hi - block.lo for block in blocks), default=0))
        for expert in set(range(w1_EFD.shape[0])) - {block.expert for block in blocks}:
            for gradient in self.tensors():
                gradient[expert].zero_()

    def add(self, block: _Block, dpre_MF: Tensor, x_MD: Tensor, dy_MD: Tensor, act_MF: Tensor) -> None:
        if self._sums:
            self._add_in_float32(block, dpre_MF, x_MD, dy_MD, act_MF)
            return
        e, beta = block.expert, 0.0 if block.first else 1.0
        # beta = 0 ignores what is there, NaN included
        torch.addmm(self.dw1[e], dpre_MF.t(), x_MD, beta=beta, out=self.dw1[e])
        torch.addmm(self.dw2[e], dy_MD.t(), act_MF, beta=beta, out=self.dw2[e])
        ones_M = self._ones[: block.hi - block.lo]  # a product reads the rows once; a sum over rows is slower
        torch.addmv(self.db1[e], dpre_MF.t(), ones_M, beta=beta, out=self.db1[e])
        torch.addmv(self.db2[e], dy_MD.t(), ones_M, beta=beta, out=self.db2[e])

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

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.dw1, self.db1, self.dw2, self.db2


def _gathered(x_TD: Tensor, source_row: Tensor | None, block: _Block, top_k: int, buffer: Tensor) -> Tensor:
    if source_row is None:
        return x_TD[block.lo : block.hi]
    row = source_row[block.lo : block.hi]
    token = row if top_k == 1 else row // top_k
    return torch.index_select(x_TD, 0, token, out=buffer[: block.hi - block.lo])


def _scatter(
    y_AD: Tensor, out_MD: Tensor, gate_A: Tensor | None, source_row: Tensor | None, block: _Block
) -> None:
    if gate_A is not None:
        out_MD *= _of_block(gate_A, source_row, block)[:, None]
    if source_row is not None:
        y_AD.index_copy_(0, source_row[block.lo : block.hi].long(), out_MD)


def _of_block(values_A: Tensor, source_row: Tensor | None, block: _Block) -> Tensor:
    if source_row is None:
        return values_A[block.lo : block.hi]
    return values_A.index_select(0, source_row[block.lo : block.hi])


def _put_of_block(values_A: Tensor, new_M: Tensor, source_row: Tensor | None, block: _Block) -> None:
    if source_row is None:
        values_A[block.lo : block.hi] = new_M
    else:
        values_A.index_copy_(0, source_row[block.lo : block.hi].long(), new_M)


def _sum_choices(rows_AD: Tensor, top_k: int) -> Tensor:
    return rows_AD if top_k == 1 else rows_AD.unflatten(0, (-1, top_k)).sum(1)


def _activate(pre: Tensor, activation: str, *, out: Tensor) -> Tensor:
    if activation == "relu":
        return torch.clamp(pre, min=0, out=out)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu.out(pre, approximate=approximate, out=out)


def _activation_gradient(dact: Tensor, pre: Tensor, activation: str, *, out: Tensor) -> Tensor:
    if activation == "relu":
        return torch.mul(dact, pre > 0, out=out)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward.grad_input(dact, pre, approximate=approximate, grad_input=out)
