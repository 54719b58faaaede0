"""The backend "cpu": experts of type «ffn» in C++ (csrc/ffn_*), float32, the GELU by erf, AVX2 or AVX-512.

The forward gathers an expert's rows, multiplies, activates and multiplies again while they are in cache; the
backward does the same with the gradients. Results do not depend on the number of threads. Where it works, and
where "auto" takes it, backend.py says.

T tokens, N routed rows, A = T*K assignments, D dim, F hidden, E experts, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends.base import (
    DispatchPlan,
    ExpertWeights,
    FFNGradients,
    FusedBackend,
    sum_choices,
)
from crossearth_sar.native import native_extension


class Cpu(FusedBackend):
    """See the module's docstring. Raises InputError for tensors elsewhere than on a CPU, another dtype than
    float32, another activation than "gelu"."""

    name = "cpu"

    def forward(
        self,
        x_TD: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        save_pre: bool,
    ) -> tuple[Tensor, Tensor | None]:
        _require_what_it_knows(x_TD, activation)
        x_TD, gate_A, weights = x_TD.contiguous(), _dense(gate_A), _row_major(weights)
        hidden_dim, dim = weights.w1_EFD.shape[1:]
        rows, source_row_N = x_TD.shape[0] * plan.top_k, _source_row(plan)
        y_AD = x_TD.new_empty(rows, dim)
        pre_NF = x_TD.new_empty(rows, hidden_dim) if save_pre else None
        native_extension().ffn_forward(
            _routed(plan, source_row_N), _experts(weights), _address(x_TD), _address(gate_A),
            torch.get_num_threads(), instruction_set(), _address(y_AD), _address(pre_NF),
        )  # fmt: skip
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
        _require_what_it_knows(x_TD, activation)
        dy_TD, x_TD, pre_NF = (t.contiguous() for t in (dy_TD, x_TD, pre_NF))
        gate_A, weights = _dense(gate_A), _row_major(weights)
        source_row_N = _source_row(plan)
        dx_AD = x_TD.new_empty(x_TD.shape[0] * plan.top_k, x_TD.shape[1])
        dgate_A = None if gate_A is None else torch.empty_like(gate_A)
        dweights = ExpertWeights(*map(torch.empty_like, weights)) if want_weights else None
        extension = native_extension()
        extension.ffn_backward(
            _routed(plan, source_row_N), _experts(weights), *map(_address, (dy_TD, x_TD, pre_NF, gate_A)),
            torch.get_num_threads(), instruction_set(),
            extension.FfnGradients(*map(_address, (dx_AD, dgate_A, *(dweights or (None,) * 4)))),
        )  # fmt: skip
        return FFNGradients(sum_choices(dx_AD, plan.top_k), dgate_A, dweights)


def instruction_set() -> str:
    """The best that this processor has, "avx512" or "avx2"."""
    best: str = native_extension().ffn_instruction_sets()[0]
    return best


def _require_what_it_knows(x_TD: Tensor, activation: str) -> None:
    if x_TD.device.type != "cpu" or x_TD.dtype != torch.float32 or activation != "gelu":
        raise InputError(
            "the MoE backend 'cpu' does not know these operands",
            got=f"{x_TD.dtype} on {x_TD.device}, activation {activation!r}",
            expected="torch.float32 on cpu, activation 'gelu'",
            fix="backend='auto' or 'reference' takes any",
        )


def _routed(plan: DispatchPlan, source_row_N: Tensor | None) -> Any:
    experts = plan.offsets.shape[0] - 1
    return native_extension().RoutedRows(_address(source_row_N), _address(plan.offsets), experts, plan.top_k)


def _experts(weights: ExpertWeights) -> Any:
    hidden_dim, dim = weights.w1_EFD.shape[1:]
    return native_extension().Experts(*map(_address, weights), dim, hidden_dim)


def _source_row(plan: DispatchPlan) -> Tensor | None:
    return None if plan.source_row is None else plan.source_row.long().contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(gate_A: Tensor | None) -> Tensor | None:
    return None if gate_A is None else gate_A.contiguous()


def _row_major(weights: ExpertWeights) -> ExpertWeights:
    return ExpertWeights(*(weight.contiguous() for weight in weights))
