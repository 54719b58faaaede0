"""The expert type "swiglu": the gated FFN of DINOv2-g, EVA-02 and the large DINOv3.

N routed rows, D dim, F hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.backends.base import GroupedLinear
from crossearth_sar.moe.expert_types.base import DenseFFN, ExpertType, Weights
from crossearth_sar.moe.surgery.mlp import activation_name, find_activation

GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, **ACTIVATIONS}

PARTS = {
    "w12": ("gate", "up"),
    "w3": ("down",),
    "weights_in": ("gate", "up"),
    "weights_out": ("down",),
    "fc1": ("gate", "up"),
    "fc2": ("down",),
    "fc1_g": ("gate",),
    "fc1_x": ("up",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
}
"""What a linear map of a gated FFN holds, by its name in DINOv2, transformers and timm; two parts are halves
of its outputs."""

WANTED = "two linear maps into the hidden width, or one twice as wide, an activation, and one back"


class SwiGLU(ExpertType):
    """w_gate, w_up (E, F, D), w_down (E, D, F), biases b_*: (act(x w_gate^T) * (x w_up^T)) w_down^T."""

    kind = "swiglu"
    activations = tuple(GATES)
    silencing = ("w_down", "b_down")

    def shapes(self, num_experts: int, dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
        up, down = (num_experts, hidden_dim, dim), (num_experts, dim, hidden_dim)
        shapes: dict[str, tuple[int, ...]] = {"w_gate": up, "b_gate": up[:2], "w_up": up, "b_up": up[:2]}
        shapes |= {"w_down": down, "b_down": down[:2]}
        return {name: shape for name, shape in shapes.items() if self.bias or len(shape) > 2}

    def forward(self, rows_ND: Tensor, linear: GroupedLinear, weights: Weights) -> Tensor:
        gate_NF, up_NF = (linear(rows_ND, weights[f"w_{p}"], weights.get(f"b_{p}")) for p in ("gate", "up"))
        return linear(GATES[self.activation](gate_NF) * up_NF, weights["w_down"], weights.get("b_down"))

    def read_dense(self, module: nn.Module, path: str) -> DenseFFN:
        """By the names of PARTS; halves may stand the other way round (timm's gate_last). A missing bias
        becomes zeros."""
        linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
        parts = [part for name in linears for part in PARTS.get(name, ("?",))]
        if sorted(parts) != ["down", "gate", "up"] or any(type(m) is not nn.Linear for m in linears.values()):
            raise InputError(
                f"{path!r} is no gated FFN",
                got=f"{type(module).__name__} with {', '.join(dict(module.named_children())) or 'no child'}",
                expected=WANTED,
            )
        weights: dict[str, Tensor] = {}
        for name, layer in linears.items():
            bias = layer.bias
            if bias is None and self.bias:
                bias = layer.weight.new_zeros(layer.out_features).requires_grad_()
            for kind, value in (("weight", layer.weight), ("bias", bias)):
                if value is not None:
                    weights |= _whole_parts(name, kind, value, swapped=bool(getattr(module, "gate_last", 0)))
        down = next(layer for name, layer in linears.items() if PARTS[name] == ("down",))
        return DenseFFN(
            module=module, expert=SwiGLU(_activation(module, path), self.bias), dim=down.out_features,
            hidden_dim=down.in_features, weights=weights,
        )  # fmt: skip

    def from_dense(self, name: str, value: Tensor) -> dict[str, Tensor]:
        part, _, kind = name.partition(".")
        if part not in PARTS or kind not in ("weight", "bias"):
            return {}
        roles = PARTS[part]
        return {f"{kind[0]}_{role}": half for role, half in zip(roles, value.chunk(len(roles)), strict=True)}


def _whole_parts(name: str, kind: str, value: Tensor, *, swapped: bool) -> dict[str, Tensor]:
    """The tensor by a name that `from_dense` reads; halves that stand the other way round each by its own."""
    if len(PARTS[name]) == 1 or not swapped:
        return {f"{name}.{kind}": value}
    up, gate = value.chunk(2)
    return {f"gate_proj.{kind}": gate, f"up_proj.{kind}": up}


def _activation(module: nn.Module, path: str) -> str:
    """Of its one activation module; SiLU where it is called as a function. What it computes is compared."""
    if any(not isinstance(m, nn.Linear | nn.Identity | nn.Dropout) for m in module.children()):
        return activation_name(find_activation(module, path), path, GATES)
    return "silu"
