"""E feed-forward experts as four stacked tensors: one grouped GEMM, and expert parallelism is a slice.

B batch, T tokens, N routed rows, E experts, D dim, F hidden, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossearth_sar.config import require
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.dispatch import DispatchPlan
from crossearth_sar.moe.grouped_gemm import grouped_ffn


class StackedExperts(nn.Module):
    """w1 (E, F, D), b1 (E, F), w2 (E, D, F), b2 (E, D); each expert is linear, activation, linear."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int, *, activation: str = "gelu") -> None:
        super().__init__()
        require(activation in ACTIVATIONS, "activation", activation, " | ".join(ACTIVATIONS))
        self.activation = activation
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.b1 = nn.Parameter(torch.zeros(num_experts, hidden_dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.b2 = nn.Parameter(torch.zeros(num_experts, dim))
        nn.init.trunc_normal_(self.w1, std=0.02)
        nn.init.trunc_normal_(self.w2, std=0.02)

    def forward(self, x_TD: Tensor, gate_BTK: Tensor | None, plan: DispatchPlan) -> Tensor:
        """(B*T, D) tokens -> (B*T, D): the gated sum of the chosen experts' outputs, in token order.

        `gate_BTK=None` says that every gate is 1, and that none wants a gradient.
        """
        gate_A = None if gate_BTK is None else gate_BTK.flatten()
        return grouped_ffn(x_TD, gate_A, plan, self.w1, self.b1, self.w2, self.b2, self.activation)

    def extra_repr(self) -> str:
        experts, hidden, dim = self.w1.shape
        return f"num_experts={experts}, dim={dim}, hidden_dim={hidden}, activation={self.activation!r}"
