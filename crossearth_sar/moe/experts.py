"""E experts as stacked tensors: one grouped GEMM, and expert parallelism is a slice.

B batch, T tokens, N routed rows, A = T*K assignments, E experts, D dim, F hidden, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossearth_sar.moe.dispatch import DispatchPlan
from crossearth_sar.moe.expert_types.base import ExpertType, only_expert


class ExpertParameters(nn.Module):
    """The parameters of E experts as their type `expert` says, stacked: E is the first dimension of each."""

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden_dim: int,
        expert: ExpertType,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts, self.dim, self.hidden_dim = num_experts, dim, hidden_dim
        self.expert = expert
        for name, shape in expert.shapes(num_experts, dim, hidden_dim).items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all of them anew, in the order of their names."""
        for name in self.parameter_names:
            self.expert.initialise(name, self.get_parameter(name))

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.expert.shapes(self.num_experts, self.dim, self.hidden_dim))

    @property
    def decayed_parameters(self) -> frozenset[str]:
        """The names of those that weight decay is for."""
        shapes = self.expert.shapes(self.num_experts, self.dim, self.hidden_dim)
        return frozenset(name for name, shape in shapes.items() if self.expert.decays(name, shape))

    def weights(self) -> dict[str, Tensor]:
        """The parameters by name, as `expert` wants them."""
        return {name: getattr(self, name) for name in self.parameter_names}

    def extra_repr(self) -> str:
        sizes = f"num_experts={self.num_experts}, dim={self.dim}, hidden_dim={self.hidden_dim}"
        return f"{sizes}, {self.expert!r}"


class StackedExperts(ExpertParameters):
    """Experts that tokens are routed to; of type «ffn» w1 (E, F, D), b1 (E, F), w2 (E, D, F), b2 (E, D)."""

    def forward(self, x_TD: Tensor, gate_BTK: Tensor | None, plan: DispatchPlan) -> Tensor:
        """(B*T, D) tokens -> (B*T, D): the gated sum of the chosen experts' outputs, in token order.

        `gate_BTK=None` says that every gate is 1, and that none wants a gradient.
        """
        gate_A = None if gate_BTK is None else gate_BTK.flatten()
        return self.expert.run(x_TD, gate_A, plan, self.weights())


class SharedExpert(ExpertParameters):
    """One expert that every token passes, ungated; its output is 0 until it is trained."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        expert: ExpertType,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, dim, hidden_dim, expert, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name in self.expert.silencing:
            if name in self.parameter_names:
                nn.init.zeros_(self.get_parameter(name))

    def forward(self, x_TD: Tensor) -> Tensor:
        """(B*T, D) -> (B*T, D)."""
        return self.expert.forward(x_TD, only_expert, self.weights())
