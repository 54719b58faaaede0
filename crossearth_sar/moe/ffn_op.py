"""Experts of type «ffn» over routed tokens as one differentiable operation, run by a FusedBackend.

    y[t] = sum_k gate[t, k] * (act(x[t] w1_e^T + b1_e) w2_e^T + b2_e),   e the k-th expert of token t

The custom op `crossearth_sar::moe_ffn` is opaque to torch.compile, so it compiles fullgraph, and has a
backward of its own that saves the tokens and the pre-activation and recomputes the activation: (D + F)
numbers a token. An op takes tensors and strings only, so here the bundles are opened, and the backend is
looked up by its name.

T tokens, N routed rows, A = T*K assignments, D dim, F hidden, E experts, E1 = E + 1, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from crossearth_sar.moe.backends import BACKENDS
from crossearth_sar.moe.backends.base import DispatchPlan, ExpertWeights, FusedBackend


def fused_ffn(
    x_TD: Tensor, gate_A: Tensor | None, plan: DispatchPlan, weights: ExpertWeights, activation: str
) -> Tensor:
    """Runs every token through its experts; differentiable once, in all tensors, which are contiguous.

    Args:
        x_TD: (T, D); rows already grouped by expert (T = N) where plan.source_row is None.
        gate_A: (T * K,), what each assignment's output is multiplied by; None is 1 everywhere.
        plan: made by a FusedBackend.
        activation: a key of ACTIVATIONS.

    Returns:
        (T, D) in the order of the tokens, in x's dtype.
    """
    differentiable = [t for t in (x_TD, gate_A, *weights) if t is not None]
    save_pre = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    y_TD, _ = moe_ffn(
        x_TD, gate_A, plan.source_row, plan.offsets, *weights,
        plan.top_k, activation, plan.backend.name, save_pre,
    )  # fmt: skip
    return y_TD


@torch.library.custom_op("crossearth_sar::moe_ffn", mutates_args=())
def moe_ffn(
    x_TD: Tensor,
    gate_A: Tensor | None,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    save_pre: bool,
) -> tuple[Tensor, Tensor]:
    """(y (T, D), pre-activation (N, F), or (0, F) without `save_pre`); arguments as `fused_ffn`'s."""
    runs = _fused(backend)
    plan = DispatchPlan(source_row_N, offsets_E1, top_k, runs)
    weights = ExpertWeights(w1_EFD, b1_EF, w2_EDF, b2_ED)
    y_TD, pre_NF = runs.forward(x_TD, gate_A, plan, weights, activation, save_pre)
    return y_TD, x_TD.new_empty(0, w1_EFD.shape[1]) if pre_NF is None else pre_NF


@moe_ffn.register_fake
def _(
    x_TD: Tensor,
    gate_A: Tensor | None,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    save_pre: bool,
) -> tuple[Tensor, Tensor]:
    rows = x_TD.shape[0] * top_k if save_pre else 0
    return x_TD.new_empty(x_TD.shape[0], w2_EDF.shape[1]), x_TD.new_empty(rows, w1_EFD.shape[1])


@torch.library.custom_op("crossearth_sar::moe_ffn_backward", mutates_args=())
def moe_ffn_backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    pre_NF: Tensor,
    gate_A: Tensor | None,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dgate, dw1, db1, dw2, db2); dgate is empty without a gate, the rest without `want_weights`."""
    runs = _fused(backend)
    plan = DispatchPlan(source_row_N, offsets_E1, top_k, runs)
    weights = ExpertWeights(w1_EFD, b1_EF, w2_EDF, b2_ED)
    dx_TD, dgate_A, dweights = runs.backward(
        dy_TD.contiguous(), x_TD, pre_NF, gate_A, plan, weights, activation, want_weights
    )
    dgate_A = x_TD.new_empty(0) if dgate_A is None else dgate_A
    if dweights is None:
        return (dx_TD, dgate_A, *(x_TD.new_empty(0) for _ in range(4)))  # type: ignore[return-value]
    return dx_TD, dgate_A, *dweights


@moe_ffn_backward.register_fake
def _(
    dy_TD: Tensor,
    x_TD: Tensor,
    pre_NF: Tensor,
    gate_A: Tensor | None,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Contiguous, as the kernels write them: empty_like would follow an input's strides.
    dx_TD, dgate_A = x_TD.new_empty(x_TD.shape), x_TD.new_empty(0 if gate_A is None else gate_A.shape[0])
    weights = (w1_EFD, b1_EF, w2_EDF, b2_ED)
    like = [w.new_empty(w.shape if want_weights else 0) for w in weights]
    return (dx_TD, dgate_A, *like)  # type: ignore[return-value]


def _fused(name: str) -> FusedBackend:
    backend = BACKENDS[name]
    assert isinstance(backend, FusedBackend), name
    return backend


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_TD, gate_A, source_row_N, offsets_E1, *weights, top_k, activation, backend, _ = inputs
    ctx.save_for_backward(x_TD, output[1], gate_A, source_row_N, offsets_E1, *weights)
    ctx.static = (top_k, activation, backend)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy_TD: Tensor | None, _dpre_NF: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_TD is None:
        return (None,) * 12
    want_weights = any(ctx.needs_input_grad[4:8])
    saved = ctx.saved_tensors  # once: under checkpointing, to ask is to recompute
    has_gate = saved[2] is not None
    dx_TD, dgate_A, *dweights = moe_ffn_backward(dy_TD, *saved, *ctx.static, want_weights)
    if not want_weights:
        dweights = [None] * 4
    return dx_TD, dgate_A if has_gate else None, None, None, *dweights, None, None, None, None


moe_ffn.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.crossearth_sar.moe_ffn)
def _forward_flop(x_TD: Any, gate_A: Any, *others: Any, **_: Any) -> int:
    """Two products of every assignment; arguments are the op's, tensors as their shapes."""
    w1_EFD, w2_EDF, top_k = others[2], others[4], others[6]
    return int(2 * x_TD[0] * top_k * w1_EFD[1] * (w1_EFD[2] + w2_EDF[1]))


@register_flop_formula(torch.ops.crossearth_sar.moe_ffn_backward)
def _backward_flop(dy_TD: Any, x_TD: Any, pre_NF: Any, gate_A: Any, *others: Any, **_: Any) -> int:
    """Nothing is computed again that a product gives: as often as forward by the tokens and the weights."""
    want_weights = others[-1]
    return (2 if want_weights else 1) * _forward_flop(x_TD, gate_A, *others)
