"""What an expert type is: the parameters of E experts, what they compute, which dense FFN they can start as.

A type is one subclass of ExpertType in one file, and a line in `expert_types.EXPERT_TYPES`; one from outside
the package calls `register_expert`.

T tokens, N routed rows, A assignments, D dim, F hidden, E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from crossearth_sar.config import require
from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.backends.base import ComposingBackend, DispatchPlan, GroupedLinear
from crossearth_sar.moe.dispatch import combine_rows, gather_rows
from crossearth_sar.moe.precision import operands

Weights = Mapping[str, Tensor]
"""The stacked parameters by name, E first."""


class ExpertType(ABC):
    """One type of expert with its options; holds no tensor. A subclass gives `kind`, `shapes` and `forward`.

    kind: its name in `--set model.moe.expert.kind=…`.
    activations: what `activation` may be, the default first.
    silencing: parameters that make an expert's output 0 where they are 0; without any, no expert of this type
        can be a shared one.

    Args:
        activation: one of `activations`; None takes the first.
        bias: whether its linear maps have biases. A type that has no choice refuses the other one.

    Raises:
        InputError: for an activation that the type has not.
    """

    kind: ClassVar[str]
    activations: ClassVar[tuple[str, ...]] = tuple(ACTIVATIONS)
    silencing: ClassVar[tuple[str, ...]] = ()

    def __init__(self, activation: str | None = None, bias: bool = True) -> None:
        activation = self.activations[0] if activation is None else activation
        require(activation in self.activations, "activation", activation, " | ".join(self.activations))
        self.activation, self.bias = activation, bias

    @abstractmethod
    def shapes(self, num_experts: int, dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
        """Of the stacked parameters by name, E first, in the order in which they are registered and drawn."""

    @abstractmethod
    def forward(self, rows_ND: Tensor, linear: GroupedLinear, weights: Weights) -> Tensor:
        """(N, D) -> (N, D): each row by its expert. `linear(rows, weights["…"], bias or None)` is the one
        way to mix columns; what else happens here treats every row alike."""

    def decays(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the optimizer's weight decay reaches the parameter: matrices, not biases."""
        return len(shape) > 2

    def initialise(self, name: str, parameter: Tensor) -> None:
        """Fills a fresh stacked parameter: matrices from a truncated normal of 0.02, biases with zeros."""
        if parameter.ndim > 2:
            nn.init.trunc_normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)

    def run(self, x_TD: Tensor, gate_A: Tensor | None, plan: DispatchPlan, weights: Weights) -> Tensor:
        """(T, D) tokens -> (T, D), the gated sum of their experts; composed, autograd does the backward.

        Rows are grouped by expert already, and stay so, where plan.source_row is None. gate_A None is 1.
        """
        backend = plan.backend
        assert isinstance(backend, ComposingBackend), f"backend.py gives {backend} to experts it has"
        x_TD, gate_A, weights = operands(x_TD, gate_A, weights)
        grouped = plan.source_row is None
        rows_ND = x_TD if grouped else gather_rows(x_TD, plan)
        out_ND = self.forward(rows_ND, backend.grouped_linear(plan, rows_ND.shape[0]), weights)
        if grouped:
            return out_ND if gate_A is None else out_ND * gate_A[:, None]
        return combine_rows(out_ND, gate_A, plan)

    def read_dense(self, module: nn.Module, path: str) -> DenseFFN:
        """`module`, the dense FFN at `path` of somebody's model, for experts of this type to start as.

        Raises:
            InputError: if it is anything else than such an FFN, or the type cannot start as a dense one.
        """
        raise InputError(
            f"experts of type {self.kind!r} do not start as a dense FFN",
            got=f"{path!r}",
            fix="train them anew",
        )

    def from_dense(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """What the dense FFN's tensor `name` is in one expert: {parameter: value}; {} if it is not the FFN's.

        Each tensor by itself, since a checkpoint is read one by one: one may become several parameters,
        several cannot become one.
        """
        return {}

    def __repr__(self) -> str:
        return f"{self.kind}({self.activation}{'' if self.bias else ', no bias'})"


@dataclass(frozen=True, kw_only=True)
class DenseFFN:
    """A dense FFN (D -> F -> D) that was read.

    expert: the type, with the options found in `module`.
    weights: by the names that `expert.from_dense` takes; where they are frozen, the experts' are.
    """

    module: nn.Module
    expert: ExpertType
    dim: int
    hidden_dim: int
    weights: Mapping[str, Tensor]

    @torch.no_grad()
    def as_expert(self) -> dict[str, Tensor]:
        """One expert's parameters, without E, by name."""
        parts: dict[str, Tensor] = {}
        for name, value in self.weights.items():
            parts |= self.expert.from_dense(name, value)
        return parts


def only_expert(rows_ND: Tensor, weight_1JI: Tensor, bias_1J: Tensor | None) -> Tensor:
    """The GroupedLinear of a stack of one: every row is its expert's."""
    return nn.functional.linear(rows_ND, weight_1JI[0], None if bias_1J is None else bias_1J[0])


def compute_dense(dense: DenseFFN, x_BTD: Tensor) -> Tensor:
    """What an expert that starts as `dense` makes of the tokens."""
    weights = {name: value[None] for name, value in dense.as_expert().items()}
    return dense.expert.forward(x_BTD, only_expert, weights)
