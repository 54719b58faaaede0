"""The physics-guided router, METHOD eq. (8)-(10): pi = softmax(W_r [Z || S] + b_r), top-k, gate.

It never concatenates: W_r [Z || S] = W_z Z + W_s S. Where S is one row per image, its product is a bias per
image on E logits; where it is one per token (local physics), a bias per token.

B batch, T tokens, D dim, P descriptors, E experts, K top-k.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.config import require
from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends import REFERENCE, Backend

Gate = Literal["normalized", "straight_through", "probability"]
GATES: tuple[str, ...] = ("normalized", "straight_through", "probability")


class RoutingInfo(NamedTuple):
    """What one MoE layer decided, returned beside its output; a tuple, into which hooks, DDP and export look.

    expert_index: (B, T, K) int64, by falling probability, ties to the lower index.
    gate: (B, T, K), what each expert's output is multiplied by.
    expert_fraction: (E,) share of assignments per expert, f of eq. (12); no gradient.
    expert_probability: (E,) mean router probability per expert, p of eq. (12).
    """

    expert_index: Tensor
    gate: Tensor
    expert_fraction: Tensor
    expert_probability: Tensor

    def balance_loss(self, weight: float = 0.005) -> Tensor:
        """L_BC = weight * E * sum_e f_e p_e, eq. (12): `weight` when balanced, E * weight when collapsed."""
        num_experts = self.expert_fraction.shape[0]
        return weight * num_experts * (self.expert_fraction * self.expert_probability).sum()


class PhysicsGuidedRouter(nn.Module):
    """Chooses K of E experts for every token, from the token and the descriptors of its image or its own.

    Args:
        dim: D of the tokens.
        num_experts: E.
        top_k: K.
        num_descriptors: P; 0 makes a router without physics.
        gate: "normalized" divides the chosen probabilities by their sum (eq. 9): with K = 1 that is
            exactly 1, and the task loss sends the router no gradient. "straight_through" has the same
            values and passes the gradient of the probabilities. "probability" is the plain probability.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        top_k: int = 1,
        num_descriptors: int = 3,
        gate: Gate = "normalized",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require(num_experts >= 1, "num_experts", num_experts, "at least 1")
        require(1 <= top_k <= num_experts, "top_k", top_k, f"1 .. num_experts = {num_experts}")
        require(gate in GATES, "gate", gate, " | ".join(GATES))
        require(num_descriptors >= 0, "num_descriptors", num_descriptors, "0 or more")
        self.dim, self.num_experts, self.top_k = dim, num_experts, top_k
        self.num_descriptors, self.gate = num_descriptors, gate
        size = num_experts, dim + num_descriptors
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_experts, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight anew, of 0.02; the bias is 0."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    @property
    def gate_is_one(self) -> bool:
        """Whether every gate is the constant 1: eq. (9) with one expert a token."""
        return self.gate == "normalized" and self.top_k == 1

    def probability(
        self, x_BTD: Tensor, descriptors: Tensor | None = None, backend: Backend = REFERENCE
    ) -> Tensor:
        """pi of eq. (8): (B, T, E), float32 at least; without descriptors they count as zeros, their mean."""
        precision = torch.promote_types(x_BTD.dtype, torch.float32)
        weight_ED, weight_EP = self.weight.split([self.dim, self.num_descriptors], dim=1)
        bias_E = self.bias.to(precision)
        if descriptors is None or not self.num_descriptors:
            return backend.router_probability(x_BTD, weight_ED, bias_E.expand(x_BTD.shape[0], -1))
        self._require_fit(descriptors, x_BTD)
        bias_BE = bias_E + F.linear(descriptors.to(precision), weight_EP.to(precision))
        if descriptors.ndim == 2:
            return backend.router_probability(x_BTD, weight_ED, bias_BE)
        # A bias per token: to a backend every token is then an image of its own.
        x_T1D, bias_TE = x_BTD.flatten(0, 1)[:, None], bias_BE.flatten(0, 1)
        return backend.router_probability(x_T1D, weight_ED, bias_TE).view(bias_BE.shape)

    def _require_fit(self, descriptors: Tensor, x_BTD: Tensor) -> None:
        batch, tokens, _ = x_BTD.shape
        allowed = ((batch, self.num_descriptors), (batch, tokens, self.num_descriptors))
        if tuple(descriptors.shape) not in allowed:
            raise InputError(
                "descriptors do not fit the tokens",
                got=f"shape {tuple(descriptors.shape)}",
                expected=f"(B, P) = {allowed[0]} or (B, T, P) = {allowed[1]}",
                fix="one row per image of the batch, or one per token",
            )

    def forward(
        self, x_BTD: Tensor, descriptors: Tensor | None = None, backend: Backend = REFERENCE
    ) -> RoutingInfo:
        """Routes (B, T, D) tokens by themselves and descriptors, (B, P) of images or (B, T, P) of tokens."""
        # Under autocast too: a routing in bfloat16 would depend on rounding.
        with torch.autocast(x_BTD.device.type, enabled=False):
            probability_BTE = self.probability(x_BTD, descriptors, backend)
        expert_index_BTK = _top_k(probability_BTE.detach(), self.top_k)
        gate_BTK = _gate(probability_BTE.gather(-1, expert_index_BTK), self.gate)
        counts_E = F.one_hot(expert_index_BTK.flatten(), self.num_experts).sum(0)
        tokens = expert_index_BTK[..., 0].numel()
        return RoutingInfo(
            expert_index=expert_index_BTK,
            gate=gate_BTK.to(x_BTD.dtype),
            expert_fraction=counts_E / max(expert_index_BTK.numel(), 1),
            expert_probability=probability_BTE.flatten(0, 1).sum(0) / max(tokens, 1),
        )

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, top_k={self.top_k}, "
            f"num_descriptors={self.num_descriptors}, gate={self.gate!r}"
        )


def _top_k(probability_BTE: Tensor, top_k: int) -> Tensor:
    if top_k == 1:
        return probability_BTE.argmax(dim=-1, keepdim=True)  # the first of equal maxima, as documented
    if torch.compiler.is_exporting():  # ONNX has no stable sort, and its own top-k takes the lower of equals
        return probability_BTE.topk(top_k, dim=-1).indices
    # torch.topk promises no order among equals; a stable sort does.
    return probability_BTE.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]


def _gate(chosen_BTK: Tensor, kind: str) -> Tensor:
    if kind == "probability":
        return chosen_BTK
    if kind == "normalized":
        if chosen_BTK.shape[-1] == 1:  # pi / pi, without the rounding of its vanishing gradient
            return torch.ones_like(chosen_BTK)
        return chosen_BTK / chosen_BTK.sum(-1, keepdim=True)
    value_BTK = chosen_BTK.detach()
    # Not 0: a second choice's probability can underflow.
    safe_BTK = value_BTK.clamp(min=torch.finfo(value_BTK.dtype).tiny)
    return value_BTK / value_BTK.sum(-1, keepdim=True) * (chosen_BTK / safe_BTK)
