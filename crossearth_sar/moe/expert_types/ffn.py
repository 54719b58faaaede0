"""The expert type "ffn": linear, activation, linear, the FFN of DINOv2; its operation is fused.

T tokens, N routed rows, A assignments, D dim, F hidden, E experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.backends.base import DispatchPlan, ExpertWeights, FusedBackend, GroupedLinear
from crossearth_sar.moe.expert_types.base import DenseFFN, ExpertType, Weights
from crossearth_sar.moe.ffn_op import fused_ffn
from crossearth_sar.moe.precision import operands
from crossearth_sar.moe.surgery.mlp import read_mlp

PARAMETER = {"fc1.weight": "w1", "fc1.bias": "b1", "fc2.weight": "w2", "fc2.bias": "b2"}


class FFN(ExpertType):
    """w1 (E, F, D), b1 (E, F), w2 (E, D, F), b2 (E, D): act(x w1^T + b1) w2^T + b2."""

    kind = "ffn"
    silencing = ("w2", "b2")

    def shapes(self, num_experts: int, dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "w1": (num_experts, hidden_dim, dim),
            "b1": (num_experts, hidden_dim),
            "w2": (num_experts, dim, hidden_dim),
            "b2": (num_experts, dim),
        }
        return {name: shape for name, shape in shapes.items() if self.bias or len(shape) > 2}

    def forward(self, rows_ND: Tensor, linear: GroupedLinear, weights: Weights) -> Tensor:
        hidden_NF = ACTIVATIONS[self.activation](linear(rows_ND, weights["w1"], weights.get("b1")))
        return linear(hidden_NF, weights["w2"], weights.get("b2"))

    def run(self, x_TD: Tensor, gate_A: Tensor | None, plan: DispatchPlan, weights: Weights) -> Tensor:
        if not isinstance(plan.backend, FusedBackend):
            return super().run(x_TD, gate_A, plan, weights)
        x_TD, gate_A, own = operands(x_TD, gate_A, weights)
        w1_EFD, w2_EDF = own["w1"], own["w2"]
        b1_EF, b2_ED = (
            (own["b1"], own["b2"]) if self.bias else (w.new_zeros(w.shape[:2]) for w in (w1_EFD, w2_EDF))
        )
        stacked = ExpertWeights(w1_EFD, b1_EF, w2_EDF, b2_ED)
        return fused_ffn(x_TD, gate_A, plan, stacked, self.activation)

    def read_dense(self, module: nn.Module, path: str) -> DenseFFN:
        """fc1, one activation, fc2; a missing bias becomes zeros."""
        fc1, fc2, activation = read_mlp(module, path)
        weights: dict[str, Tensor] = {}
        for name, linear in {"fc1": fc1, "fc2": fc2}.items():
            weights[f"{name}.weight"] = linear.weight
            if linear.bias is not None:
                weights[f"{name}.bias"] = linear.bias
            elif self.bias:
                weights[f"{name}.bias"] = linear.weight.new_zeros(linear.out_features).requires_grad_()
        return DenseFFN(
            module=module,
            expert=FFN(activation, self.bias),
            dim=fc1.in_features,
            hidden_dim=fc1.out_features,
            weights=weights,
        )

    def from_dense(self, name: str, value: Tensor) -> dict[str, Tensor]:
        return {PARAMETER[name]: value} if name in PARAMETER else {}
