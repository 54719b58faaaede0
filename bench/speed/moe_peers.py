"""What an MoE layer is timed against: every contender computes the same routed FFN from the same tensors.

Two scopes: «layer» takes tokens and includes the router, «experts» is given the routing. A dense FFN, the
same in both scopes, is one expert's FFN over all tokens: equal active FLOPs, another function by nature, so
it is checked against its own reference. Each peer keeps its parameters as its users would, one tensor per
expert or stacks. Whether it waits for the host is said: such a call cannot be captured in a CUDA graph.

T tokens, D dim, F hidden, E experts. Top-1 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.speed.moe_others import OTHERS
from bench.speed.moe_problem import NUM_EXPERTS, Absent, Contender, Problem, Scope, route
from crossearth_sar import PhysicsGuidedMoE
from crossearth_sar.backend import MOE_BACKENDS, moe_backend_status
from crossearth_sar.moe.backends.grouped_mm import bias_rows

TOKENS_PER_IMAGE = 1024
"""Of a 512 x 512 image in patches of 16: how tokens are cut into images where the count allows."""


def build_contenders(
    problem: Problem, scope: Scope, *, compiled: bool, only: Sequence[str] = ()
) -> list[Contender | Absent]:
    """Everything that is timed in a scope; `only` keeps the names that contain one of its words."""
    makers: list[tuple[str, Callable[[], Contender | Absent]]] = []
    for activation in ("gelu", "gelu_tanh") if problem.x_TD.is_cuda else ("gelu",):
        for backend in MOE_BACKENDS:
            name = _own_name(backend, activation)
            makers.append((name, partial(_own, name, problem, scope, backend, activation)))
    makers += [
        ("dense, eager", partial(_dense, problem)),
        ("dense, torch.compile", partial(_dense_compiled, problem, compiled)),
        ("dense, _addmm_activation", partial(_dense_fused, problem)),
        ("loop, splits known", partial(_loop, problem, scope, synchronising=False)),
        ("loop, host sync", partial(_loop, problem, scope, synchronising=True)),
        ("mask loop", partial(_mask_loop, problem, scope)),
        ("sorted loop on stacks", partial(_stacked_loop, problem, scope)),
        ("F.grouped_mm", partial(_grouped_mm, problem, scope)),
        *((name, partial(make, problem, scope)) for name, make in OTHERS.items()),
    ]
    chosen = [(name, make) for name, make in makers if not only or any(word in name for word in only)]
    return [_attempt(name, make) for name, make in chosen]


def _own_name(backend: str, activation: str) -> str:
    return f"ours, {backend}" + (", tanh" if activation == "gelu_tanh" else "")


def _attempt(name: str, make: Callable[[], Contender | Absent]) -> Contender | Absent:
    """What does not build is a row with its reason."""
    try:
        return make()
    except (ImportError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        return Absent(name, first_line(error))


def first_line(error: BaseException) -> str:
    """«RuntimeError: first line of it», for a table's cell."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _stacks(problem: Problem) -> dict[str, list[Tensor]]:
    return {name: [_leaf(value)] for name, value in problem.weights.items()}


def _per_expert(problem: Problem) -> dict[str, list[Tensor]]:
    return {name: [_leaf(part) for part in value] for name, value in problem.weights.items()}


# This project's layer


def _own(name: str, problem: Problem, scope: Scope, backend: str, activation: str) -> Contender | Absent:
    status = {s.name: s for s in moe_backend_status()}[backend]
    if not status.usable:
        return Absent(name, status.reason)
    experts, hidden, dim = problem.weights["w1"].shape
    layer = PhysicsGuidedMoE(
        dim, hidden, num_experts=experts, gate=problem.gate, activation=activation, backend=backend
    ).to(problem.x_TD)
    with torch.no_grad():
        layer.router.weight.zero_()[:, :dim] = problem.router_ED  # and 0 for the descriptors' columns
        for key, value in problem.weights.items():
            getattr(layer.experts, key).copy_(value)
    images = max(1, problem.x_TD.shape[0] // TOKENS_PER_IMAGE)
    images = images if problem.x_TD.shape[0] % images == 0 else 1
    physics_BP = torch.randn(images, 3, device=problem.x_TD.device)

    def whole(x_TD: Tensor) -> Tensor:
        y_BTD, _ = layer(x_TD.view(images, -1, dim), physics_BP)
        return y_BTD.view_as(x_TD)

    forward = whole if scope == "layer" else _given_routing(layer, whole, problem)
    parameters = {key: [getattr(layer.experts, key)] for key in problem.weights}
    syncs = backend in ("reference", "megablocks")
    return Contender(name, forward, parameters, activation=activation, host_sync=syncs, own=True)


def _given_routing(
    layer: PhysicsGuidedMoE, whole: Callable[[Tensor], Tensor], problem: Problem
) -> Callable[[Tensor], Tensor]:
    """The layer's experts under the gate and the plan that the layer itself hands them, made once."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = layer.experts.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        whole(problem.x_TD)
        routed = layer.router(problem.x_TD[None]).expert_index.flatten()
    hook.remove()
    assert torch.equal(routed, problem.expert_T), "the router does not choose what the problem prescribes"
    ((_, *given), named), *_ = seen
    return lambda x_TD: layer.experts(x_TD, *given, **named)


# Dense FFN of one expert's size


def _dense_weights(problem: Problem) -> dict[str, list[Tensor]]:
    return {name: [_leaf(value[0])] for name, value in problem.weights.items()}


def _dense_ffn(x_TD: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x_TD, w1, b1)), w2, b2)


def _dense(problem: Problem) -> Contender:
    own = _dense_weights(problem)
    return Contender("dense, eager", lambda x: _dense_ffn(x, *_flat(own)), own, family="dense")


@cache
def _compiled_ffn() -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = 128  # sizes, with and without gradient
    compiled: Callable[..., Tensor] = torch.compile(_dense_ffn)
    return compiled


def _dense_compiled(problem: Problem, wanted: bool) -> Contender | Absent:
    if not wanted:
        return Absent("dense, torch.compile", "left out by --no-compile")
    own = _dense_weights(problem)
    return Contender("dense, torch.compile", lambda x: _compiled_ffn()(x, *_flat(own)), own, family="dense")


class _FusedGeluFFN(torch.autograd.Function):
    """Bias and tanh GELU in cuBLASLt's epilogue. The epilogue gives the activation only, so training has to
    compute the pre-activation apart; PyTorch has no fused backward either."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(x, w1, b1, w2)
        return F.linear(torch._addmm_activation(b1, x, w1.t(), use_gelu=True), w2, b2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, w1, b1, w2 = ctx.saved_tensors
        pre = F.linear(x, w1, b1)
        act = F.gelu(pre, approximate="tanh")
        dpre = torch.ops.aten.gelu_backward(dy @ w2, pre, approximate="tanh")
        return dpre @ w1, dpre.t() @ x, dpre.sum(0), dy.t() @ act, dy.sum(0)


def _dense_fused(problem: Problem) -> Contender | Absent:
    name = "dense, _addmm_activation"
    if not problem.x_TD.is_cuda:
        return Absent(
            name, "its fused epilogue is cuBLASLt's; on a CPU it is another GELU (erf) and not fused"
        )
    own = _dense_weights(problem)
    return Contender(
        name, lambda x: _FusedGeluFFN.apply(x, *_flat(own)), own, activation="gelu_tanh", family="dense"
    )


def _flat(parameters: dict[str, list[Tensor]]) -> list[Tensor]:
    return [tensor for tensors in parameters.values() for tensor in tensors]


# Routed loops in plain torch


@dataclass(frozen=True)
class _Order:
    """Grouped row n is token order[n]; token t is grouped row back[t]."""

    order: Tensor
    back: Tensor
    counts: Tensor


def _sorted(expert_T: Tensor) -> _Order:
    order = expert_T.argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    return _Order(order, back, F.one_hot(expert_T, NUM_EXPERTS).sum(0))


def _grouped(
    problem: Problem, scope: Scope, ffn: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """x -> y around ffn(rows grouped by expert, counts); the sort counts to the layer, not to the experts."""
    given = _sorted(problem.expert_T)

    def forward(x_TD: Tensor) -> Tensor:
        expert_T, gate_T = route(problem, scope, x_TD)
        plan = given if scope == "experts" else _sorted(expert_T)
        y_TD = ffn(x_TD.index_select(0, plan.order), plan.counts).index_select(0, plan.back)
        return y_TD if gate_T is None else y_TD * gate_T[:, None]

    return forward


def _loop(problem: Problem, scope: Scope, *, synchronising: bool) -> Contender:
    own = _per_expert(problem)

    def ffn(rows: Tensor, counts: Tensor) -> Tensor:
        splits = counts.tolist() if synchronising else problem.splits
        parts = zip(rows.split(splits), *own.values(), strict=True)
        return torch.cat(
            [F.linear(problem.act(F.linear(part, w1, b1)), w2, b2) for part, w1, b1, w2, b2 in parts]
        )

    name = "loop, host sync" if synchronising else "loop, splits known"
    return Contender(name, _grouped(problem, scope, ffn), own, host_sync=synchronising)


def _stacked_loop(problem: Problem, scope: Scope) -> Contender:
    own = _stacks(problem)

    def ffn(rows: Tensor, counts: Tensor) -> Tensor:
        (w1,), (b1,), (w2,), (b2,) = own.values()
        parts = enumerate(rows.split(counts.tolist()))
        return torch.cat(
            [F.linear(problem.act(F.linear(part, w1[e], b1[e])), w2[e], b2[e]) for e, part in parts]
        )

    return Contender("sorted loop on stacks", _grouped(problem, scope, ffn), own, host_sync=True)


def _mask_loop(problem: Problem, scope: Scope) -> Contender:
    own = _per_expert(problem)

    def forward(x_TD: Tensor) -> Tensor:
        expert_T, gate_T = route(problem, scope, x_TD)
        y_TD = torch.zeros_like(x_TD)
        for e, (w1, b1, w2, b2) in enumerate(zip(*own.values(), strict=True)):
            mask = expert_T == e
            part = F.linear(problem.act(F.linear(x_TD[mask], w1, b1)), w2, b2)
            y_TD[mask] = part if gate_T is None else part * gate_T[mask, None]
        return y_TD

    return Contender("mask loop", forward, own, host_sync=True)


def _grouped_mm(problem: Problem, scope: Scope) -> Contender:
    own = _stacks(problem)

    def ffn(rows: Tensor, counts: Tensor) -> Tensor:
        (w1,), (b1,), (w2,), (b2,) = own.values()
        ends = counts.cumsum(0)
        expert_N = torch.searchsorted(ends, torch.arange(rows.shape[0], device=rows.device), right=True)
        offs = ends.to(torch.int32)
        hidden = problem.act(F.grouped_mm(rows, w1.transpose(1, 2), offs=offs) + bias_rows(b1, expert_N))
        return F.grouped_mm(hidden, w2.transpose(1, 2), offs=offs) + bias_rows(b2, expert_N)

    return Contender("F.grouped_mm", _grouped(problem, scope, ffn), own)
