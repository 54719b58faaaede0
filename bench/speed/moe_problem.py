"""One case of an MoE layer's benchmark: tokens, weights and a prescribed routing, and what must come out.

T tokens, D dim, F hidden, E experts. Top-1 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scope = Literal["layer", "experts"]
Weights = dict[str, Tensor]

NUM_EXPERTS = 6
SHARES = {
    "uniform": (1 / 6,) * 6,
    "skewed": (0.40, 0.25, 0.15, 0.10, 0.07, 0.03),
    "one-expert": (0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
}


@dataclass(frozen=True)
class Problem:
    """One case: tokens whose routing the router's weights prescribe, and the experts' weights.

    x_TD, dy_TD: tokens and the gradient that comes back. expert_T: each token's expert. splits: rows per
    expert, on the host. router_ED: logits = x @ router^T; their margin makes the chosen probability 1 to
    rounding with gate "normalized", and about 0.4 to 0.8 with gate "probability". weights: w1 (E, F, D),
    b1 (E, F), w2 (E, D, F), b2 (E, D).
    """

    x_TD: Tensor
    dy_TD: Tensor
    expert_T: Tensor
    splits: list[int]
    router_ED: Tensor
    weights: Weights
    gate: str = "normalized"
    activation: str = "gelu"

    @property
    def flop(self) -> int:
        """Of the forward pass; forward and backward take three times as many."""
        tokens, dim = self.x_TD.shape
        return 4 * tokens * dim * self.weights["w1"].shape[1]

    def bytes_moved(self, *, backward: bool) -> int:
        """The fewest bytes of the two products, hidden rows through memory.

        Forward reads x and the weights, writes and reads the hidden rows, writes y. A backward pass adds dy
        twice, dx and x again; pre-activation, activation and gradient, nine times the hidden rows in all; the
        weights once more and their gradients.
        """
        tokens, dim = self.x_TD.shape
        experts, hidden, _ = self.weights["w1"].shape
        rows, middle, weights = tokens * dim, tokens * hidden, 2 * experts * hidden * dim
        elements = 6 * rows + 9 * middle + 3 * weights if backward else 2 * rows + 2 * middle + weights
        return elements * self.x_TD.element_size()

    def with_activation(self, activation: str) -> Problem:
        return replace(self, activation=activation)

    @property
    def act(self) -> Callable[[Tensor], Tensor]:
        return partial(F.gelu, approximate="tanh" if self.activation == "gelu_tanh" else "none")


@dataclass(frozen=True)
class Contender:
    """forward(x_TD) -> y_TD; parameters by name, each one stack or one tensor per expert.

    family: "moe" or "dense". biases: False for a peer that has none. own: this project's.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    parameters: dict[str, list[Tensor]] = field(default_factory=dict)
    activation: str = "gelu"
    family: str = "moe"
    biases: bool = True
    host_sync: bool = False
    own: bool = False


@dataclass(frozen=True)
class Absent:
    """A contender that cannot run here, and why."""

    name: str
    reason: str


def make_problem(
    tokens: int,
    dim: int,
    routing: str,
    *,
    hidden: int | None = None,
    device: torch.device,
    dtype: torch.dtype,
    gate: str = "normalized",
    seed: int = 0,
) -> Problem:
    """Random normal tokens and weights whose routing has the shares SHARES[routing], in random order.

    Tokens have no component in the span of E orthonormal directions but a positive one along their expert's,
    and the router's rows are those directions: so its choice is prescribed, whatever the rounding.
    """
    hidden = hidden or 4 * dim
    random = torch.Generator().manual_seed(seed)
    shares = torch.tensor(SHARES[routing], dtype=torch.float64)
    bounds = (shares.cumsum(0) * tokens).round().long()
    expert_T = torch.bucketize(torch.arange(tokens), bounds, right=True).clamp(max=NUM_EXPERTS - 1)
    expert_T = expert_T[torch.randperm(tokens, generator=random)]
    on_device = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=on_device, device=device)
    directions_ED = torch.linalg.qr(torch.randn(dim, NUM_EXPERTS, generator=random))[0].T.to(device)
    x_TD = normal(tokens, dim)
    x_TD -= (x_TD @ directions_ED.T) @ directions_ED
    expert_T = expert_T.to(device)
    x_TD += (3 + 3 * torch.rand(tokens, 1, generator=random).to(device)) * directions_ED[expert_T]
    weights = {
        "w1": normal(NUM_EXPERTS, hidden, dim) * dim**-0.5,
        "b1": normal(NUM_EXPERTS, hidden) * 0.5,
        "w2": normal(NUM_EXPERTS, dim, hidden) * hidden**-0.5,
        "b2": normal(NUM_EXPERTS, dim) * 0.5,
    }
    return Problem(
        x_TD=x_TD.to(dtype),
        dy_TD=normal(tokens, dim).to(dtype),
        expert_T=expert_T,
        splits=torch.bincount(expert_T, minlength=NUM_EXPERTS).tolist(),
        router_ED=((20.0 if gate == "normalized" else 0.5) * directions_ED).to(dtype),
        weights={name: value.to(dtype) for name, value in weights.items()},
        gate=gate,
    )


def reference(problem: Problem, scope: Scope, *, dense: bool, biases: bool) -> tuple[Tensor, Weights]:
    """y and the gradients of x and the weights, in float64 for float32 input and in float32 for half."""
    wide = torch.float64 if problem.x_TD.dtype == torch.float32 else torch.float32
    # Copies throughout: a leaf of its own even where the dtype is already wide.
    x_TD = problem.x_TD.detach().to(wide, copy=True).requires_grad_()
    weights = {k: v.detach().to(wide, copy=True).requires_grad_() for k, v in problem.weights.items()}
    b1, b2 = (weights[b] if biases else torch.zeros_like(weights[b]) for b in ("b1", "b2"))
    gate_T = prescribed_gate(problem, x_TD if scope == "layer" else x_TD.detach())
    y_TD = torch.zeros_like(x_TD)
    for e in range(1 if dense else NUM_EXPERTS):
        rows = slice(None) if dense else (problem.expert_T == e).nonzero()[:, 0]
        hidden = problem.act(F.linear(x_TD[rows], weights["w1"][e], b1[e]))
        part = F.linear(hidden, weights["w2"][e], b2[e])
        if not dense and gate_T is not None:
            part = part * gate_T[rows, None]
        y_TD = part if dense else y_TD.index_copy(0, rows, part)
    names = ["w1", "b1", "w2", "b2"] if biases else ["w1", "w2"]
    grads = torch.autograd.grad(y_TD, [x_TD, *(weights[n] for n in names)], problem.dy_TD.to(wide))
    gradients = dict(zip(["x", *names], grads, strict=True))
    if dense:
        gradients = {k: v if k == "x" else v[:1] for k, v in gradients.items()}
    return y_TD.detach(), gradients


def prescribed_gate(problem: Problem, x_TD: Tensor) -> Tensor | None:
    """(T,) the chosen probability, or None where the normalised top-1 gate is exactly 1."""
    if problem.gate == "normalized":
        return None
    probability = F.linear(x_TD, problem.router_ED.to(x_TD.dtype)).softmax(-1)
    return probability.gather(1, problem.expert_T[:, None])[:, 0]


def route(problem: Problem, scope: Scope, x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
    """(T,) expert and gate: the router in float32 as in the layer, or what was given."""
    if scope == "experts":
        with torch.no_grad():
            return problem.expert_T, prescribed_gate(problem, problem.x_TD)
    probability = F.linear(x_TD.float(), problem.router_ED.float()).softmax(-1)
    expert_T = probability.argmax(-1)
    if problem.gate == "normalized":
        return expert_T, None
    return expert_T, probability.gather(1, expert_T[:, None])[:, 0].to(x_TD.dtype)
