"""The experts' feed-forward networks over routed tokens, as one differentiable operation, several backends.

    y[t] = sum_k gate[t, k] * (act(x[t] w1_e^T + b1_e) w2_e^T + b2_e),   e the k-th expert of token t

`reference` (moe/sorted_loop.py) and `triton` (kernels/) are one custom op, `crossearth_sar::moe_ffn`: opaque
to torch.compile, so it compiles fullgraph, and with a backward of its own that saves the tokens and the
pre-activation and recomputes the activation: (D + F) numbers a token. `grouped_mm` and `megablocks` are made
of torch's own operations and leave the backward to autograd.

T tokens, N routed rows, A = T*K assignments, D dim, F hidden, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crossearth_sar.moe.dispatch import DispatchPlan
from crossearth_sar.moe.grouped_mm import grouped_mm_ffn
from crossearth_sar.moe.megablocks import megablocks_ffn
from crossearth_sar.moe.sorted_loop import backward as loop_backward
from crossearth_sar.moe.sorted_loop import forward as loop_forward


def grouped_ffn(
    x_TD: Tensor,
    gate_A: Tensor | None,
    plan: DispatchPlan,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    activation: str,
) -> Tensor:
    """Runs every token through its experts; differentiable once, in all tensors.

    Args:
        x_TD: (T, D); rows already grouped by expert (T = N) where plan.source_row is None.
        gate_A: (T * K,), what each assignment's output is multiplied by; None is 1 everywhere.
        plan: from `make_dispatch_plan`; it names the backend, resolved in backend.py.
        w1_EFD, b1_EF, w2_EDF, b2_ED: the stacked experts.
        activation: a key of ACTIVATIONS.

    Returns:
        (T, D) in the order of the tokens, in x's dtype or, under autocast, in autocast's.
    """
    tensors = [x_TD, w1_EFD, b1_EF, w2_EDF, b2_ED]
    if torch.is_autocast_enabled(x_TD.device.type):
        tensors = [t.to(compute_dtype(t)) for t in tensors]
    # Out here, where the compiler sees the copy: kernels read dense rows, whatever view the model hands over.
    x_TD, w1_EFD, b1_EF, w2_EDF, b2_ED = tensors = [t.contiguous() for t in tensors]
    if gate_A is not None:
        gate_A = gate_A.to(x_TD.dtype).contiguous()
    if plan.backend in _COMPOSITES:
        return _COMPOSITES[plan.backend](x_TD, gate_A, plan, w1_EFD, b1_EF, w2_EDF, b2_ED, activation)
    differentiable = [t for t in (*tensors, gate_A) if t is not None]
    save_pre = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    y_TD, _ = moe_ffn(
        x_TD, gate_A, plan.source_row, plan.offsets, w1_EFD, b1_EF, w2_EDF, b2_ED,
        plan.top_k, activation, plan.backend, save_pre,
    )  # fmt: skip
    return y_TD


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that the experts compute `tensor` in: its own or, under autocast, that of autocast."""
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return tensor.dtype
    return torch.get_autocast_dtype(kind)


@torch.library.custom_op("crossearth_sar::moe_ffn", mutates_args=())
def moe_ffn(
    x: Tensor,
    gate: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    save_pre: bool,
) -> tuple[Tensor, Tensor]:
    """(y (T, D), pre-activation (N, F), or (0, F) without `save_pre`); arguments as `grouped_ffn`'s."""
    if backend == "triton":
        from crossearth_sar.kernels.grouped_forward import grouped_down, grouped_up

        act, pre = grouped_up(
            x, source_row, offsets, w1, b1, top_k=top_k, activation=activation, save_pre=save_pre
        )
        y = grouped_down(act, source_row, offsets, w2, b2, gate, top_k=top_k)
        return y, act.new_empty(0, w1.shape[1]) if pre is None else pre
    assert backend == "reference", backend
    return loop_forward(x, gate, source_row, offsets, w1, b1, w2, b2, top_k, activation, save_pre)


@moe_ffn.register_fake
def _(
    x: Tensor,
    gate: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    save_pre: bool,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[0] * top_k if save_pre else 0
    return x.new_empty(x.shape[0], w2.shape[1]), x.new_empty(rows, w1.shape[1])


@torch.library.custom_op("crossearth_sar::moe_ffn_backward", mutates_args=())
def moe_ffn_backward(
    dy: Tensor,
    x: Tensor,
    pre: Tensor,
    gate: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1: Tensor,
    w2: Tensor,
    b2: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dgate, dw1, db1, dw2, db2); dgate is empty without a gate, the rest without `want_weights`."""
    dy = dy.contiguous()
    if backend == "triton":
        return _triton_backward(
            dy, x, pre, gate, source_row, offsets, w1, w2, b2, top_k, activation, want_weights
        )
    assert backend == "reference", backend
    return loop_backward(dy, x, pre, gate, source_row, offsets, w1, w2, b2, top_k, activation, want_weights)


@moe_ffn_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    pre: Tensor,
    gate: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1: Tensor,
    w2: Tensor,
    b2: Tensor,
    top_k: int,
    activation: str,
    backend: str,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Contiguous, as the kernels write them: empty_like would follow an input's strides.
    dx, dgate = x.new_empty(x.shape), x.new_empty(0 if gate is None else gate.shape[0])
    if not want_weights:
        return (dx, dgate, *(x.new_empty(0) for _ in range(4)))  # type: ignore[return-value]
    dw1, dw2 = w1.new_empty(w1.shape), w2.new_empty(w2.shape)
    return dx, dgate, dw1, w1.new_empty(w1.shape[:2]), dw2, b2.new_empty(b2.shape)


def _triton_backward(
    dy: Tensor,
    x: Tensor,
    pre: Tensor,
    gate: Tensor | None,
    source_row: Tensor | None,
    offsets: Tensor,
    w1: Tensor,
    w2: Tensor,
    b2: Tensor,
    top_k: int,
    activation: str,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from crossearth_sar.kernels.grouped_dgrad import grouped_down_dgrad, grouped_up_dgrad
    from crossearth_sar.kernels.grouped_wgrad import grouped_wgrad

    dpre, act, dgate = grouped_down_dgrad(
        dy, source_row, offsets, w2, b2, gate, pre,
        top_k=top_k, activation=activation, want_gate_grad=gate is not None,
    )  # fmt: skip
    dx = grouped_up_dgrad(dpre, source_row, offsets, w1, top_k=top_k)
    dgate = x.new_empty(0) if dgate is None else dgate
    if not want_weights:
        return (dx, dgate, *(x.new_empty(0) for _ in range(4)))  # type: ignore[return-value]
    routed: dict[str, Any] = {"num_experts": w1.shape[0], "top_k": top_k}
    gathers = source_row is not None
    dw1, db1 = grouped_wgrad(
        dpre, x, source_row, offsets, gather="right" if gathers else None, gate=None, **routed
    )
    dw2, db2 = grouped_wgrad(
        dy, act, source_row, offsets, gather="left" if gathers else None, gate=gate, **routed
    )
    return dx, dgate, dw1, db1, dw2, db2


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate, source_row, offsets, w1, _, w2, b2, top_k, activation, backend, _ = inputs
    ctx.save_for_backward(x, output[1], gate, source_row, offsets, w1, w2, b2)
    ctx.static = (top_k, activation, backend)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _dpre: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 12
    x, pre, gate, source_row, offsets, w1, w2, b2 = ctx.saved_tensors
    want_weights = any(ctx.needs_input_grad[4:8])
    dx, dgate, *dw = moe_ffn_backward(
        dy, x, pre, gate, source_row, offsets, w1, w2, b2, *ctx.static, want_weights
    )
    dw1, db1, dw2, db2 = dw if want_weights else (None,) * 4
    return dx, None if gate is None else dgate, None, None, dw1, db1, dw2, db2, None, None, None, None


moe_ffn.register_autograd(_backward, setup_context=_setup_context)


_COMPOSITES: dict[str, Callable[..., Tensor]] = {
    "grouped_mm": grouped_mm_ffn,
    "megablocks": megablocks_ffn,
}
