"""`PhysicsGuidedMoE`: the drop-in replacement of a transformer's feed-forward network.

B batch, T tokens, D dim, P descriptors, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossearth_sar.backend import auto_moe_backend_for_call, moe_backend_on_cpu, resolve_moe_backend
from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends import BACKENDS, REFERENCE, Backend
from crossearth_sar.moe.expert_spec import ExpertSpec
from crossearth_sar.moe.experts import SharedExpert, StackedExperts
from crossearth_sar.moe.exported import looped_experts
from crossearth_sar.moe.forward_mode import refuse_tangents
from crossearth_sar.moe.precision import compute_dtype
from crossearth_sar.moe.router import Gate, PhysicsGuidedRouter, RoutingInfo
from crossearth_sar.moe.weight_decay import stacked_biases


class PhysicsGuidedMoE(nn.Module):
    """A sparse mixture of E feed-forward experts, METHOD eq. (8)-(12): dropless, K active per token.

    Parameters: router.weight (E, dim + num_descriptors), router.bias (E,), experts.w1 (E, hidden, dim),
    experts.b1 (E, hidden), experts.w2 (E, dim, hidden), experts.b2 (E, dim); other experts have their own.

    On the gate. The layer's default is the paper's, "normalized": with one expert a token the gate is then
    the constant 1, so the task's loss sends the router no gradient, and balance_loss alone trains it. Whole
    models (presets.MoEConfig) default to "straight_through": the same output to the last bit, and the
    probabilities' gradient for the router. The layer stays literal because it is what eq. (9) says, and costs
    nothing in the experts' operation; whole models follow the ablations, where it was never worse.

    Args:
        dim: D of the tokens.
        hidden_dim: of each expert; 4 * dim when not given.
        num_experts: E.
        top_k: experts per token, K.
        num_descriptors: P, standardised numbers per image or per token that the router sees; 0 for none.
        gate: "normalized" (eq. 9) | "straight_through" | "probability", see PhysicsGuidedRouter.
        activation: of the default experts: "gelu" | "gelu_tanh" | "relu".
        expert: what an expert is, its activation included; None is linear, `activation`, linear.
        backend: "auto" | "reference" | "cpu" | "triton" | "megablocks" | "grouped_mm", resolved here, once.
            "auto" takes the best that works for tokens where they are, and the reference in a dtype that the
            best is not made for. A backend asked for by name is never replaced, but in what torch.export
            writes: that is plain torch whatever is asked for, to run where this package is not.
        device, dtype: of the parameters. On "meta" nothing is drawn: `to_empty(device=…)` is to follow, then
            `reset_parameters()` or a state dict.

    Raises:
        InputError (a ValueError): for arguments out of range, or a backend that does not work here.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        *,
        num_experts: int = 6,
        top_k: int = 1,
        num_descriptors: int = 3,
        gate: Gate = "normalized",
        activation: str = "gelu",
        expert: ExpertSpec | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or 4 * dim
        spec = _spec(expert, activation)
        sizes = (dim, hidden_dim, spec.kind)
        self.backend = BACKENDS[resolve_moe_backend(backend, *sizes, num_experts, spec.activation)]
        self.backend_on_cpu = moe_backend_on_cpu(*sizes, spec.activation)
        self.is_auto = backend == "auto"
        self.router = PhysicsGuidedRouter(
            dim,
            num_experts,
            top_k=top_k,
            num_descriptors=num_descriptors,
            gate=gate,
            device=device,
            dtype=dtype,
        )
        self.experts = StackedExperts(num_experts, dim, hidden_dim, spec.make(), device=device, dtype=dtype)
        self.shared: SharedExpert | None = None
        if spec.shared:
            width = spec.shared * hidden_dim
            self.shared = SharedExpert(dim, width, spec.make(), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as they were drawn when the layer was built."""
        for part in (self.router, self.experts, self.shared):
            if part is not None:
                part.reset_parameters()

    def forward(self, x_BTD: Tensor, descriptors: Tensor | None = None) -> tuple[Tensor, RoutingInfo]:
        """Routes every token and runs its experts.

        Args:
            x_BTD: (B, T, D) tokens; B and T may be 0.
            descriptors: standardised, (B, P) of each image or (B, T, P) of each token; None counts as zeros,
                their mean.

        Returns:
            y (B, T, D) and the RoutingInfo of this call; auxiliary losses come from the latter.
        """
        if x_BTD.ndim != 3 or x_BTD.shape[-1] != self.router.dim:
            raise InputError(
                "tokens do not fit the layer",
                got=f"shape {tuple(x_BTD.shape)}",
                expected=f"(B, T, {self.router.dim})",
            )
        refuse_tangents((x_BTD, *self.parameters()))
        exporting = torch.compiler.is_exporting()
        backend = REFERENCE if exporting else self.backend_of(x_BTD)
        routing = self.router(x_BTD, descriptors, backend)
        gate_BTK = None if self.router.gate_is_one else routing.gate
        x_TD = x_BTD.flatten(0, 1)
        if exporting:
            gate_TK = None if gate_BTK is None else gate_BTK.flatten(0, 1)
            y_TD = looped_experts(self.experts, x_TD, gate_TK, routing.expert_index.flatten(0, 1))
        else:
            plan = backend.make_plan(routing.expert_index, self.router.num_experts)
            y_TD = self.experts(x_TD, gate_BTK, plan)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BTD), routing

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay should leave out though they have two axes, as timm asks for them."""
        return stacked_biases(self)

    def backend_of(self, x_BTD: Tensor) -> Backend:
        """What runs a call with these tokens: the one decision that they meet."""
        if not self.is_auto:
            return self.backend
        name = auto_moe_backend_for_call(
            self.backend.name, x_BTD.device.type, compute_dtype(x_BTD), self.backend_on_cpu
        )
        return BACKENDS[name]

    def extra_repr(self) -> str:
        return f"backend={self.backend.name!r}"


def _spec(expert: ExpertSpec | None, activation: str) -> ExpertSpec:
    if expert is None:
        return ExpertSpec(activation=activation)
    if activation != "gelu":
        raise InputError(
            "the activation is said twice",
            got=f"activation={activation!r} beside {expert}",
            fix="say it in the ExpertSpec alone",
        )
    return expert
