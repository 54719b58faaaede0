"""The backend "triton": the router, the grouping and experts of type «ffn» by the kernels of kernels/.

The router's probabilities are one kernel too: logits and softmax in float32, the tokens read once. In plain
torch the tokens are first copied to float32, which moves more memory than the product itself. Its backward is
small, E = 6 columns, and stays with torch.

B batch, T tokens (of an image in BT, of all images alone), N routed rows, A = T*K assignments, D dim,
F hidden, E experts, E1 = E + 1, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from crossearth_sar.moe.backends.base import DispatchPlan, ExpertWeights, FFNGradients, FusedBackend


class Triton(FusedBackend):
    """See the module's docstring; the kernels are imported where they are first run."""

    name = "triton"

    def router_probability(self, x_BTD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor) -> Tensor:
        """As Backend's. Of the same 16-bit type, tokens and weight meet on the tensor cores, accumulated in
        float32: their products are exact there."""
        if weight_ED.dtype != x_BTD.dtype:
            weight_ED = weight_ED.to(image_bias_BE.dtype)
        batch, tokens, _ = x_BTD.shape
        probability_TE = router_probability_op(
            x_BTD.flatten(0, 1), weight_ED.contiguous(), image_bias_BE.contiguous(), tokens
        )
        return probability_TE.view(batch, tokens, weight_ED.shape[0])

    def make_plan(self, expert_index_BTK: Tensor, num_experts: int) -> DispatchPlan:
        from crossearth_sar.kernels.routing import group_by_expert

        source_row_N, offsets_E1 = group_by_expert(expert_index_BTK.flatten(), num_experts)
        return DispatchPlan(source_row_N, offsets_E1, expert_index_BTK.shape[-1], self)

    def forward(
        self,
        x_TD: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        save_pre: bool,
    ) -> tuple[Tensor, Tensor | None]:
        from crossearth_sar.kernels.grouped_forward import grouped_down, grouped_up

        index, top_k = (plan.source_row, plan.offsets), plan.top_k
        act_NF, pre_NF = grouped_up(
            x_TD, *index, weights.w1_EFD, weights.b1_EF,
            top_k=top_k, activation=activation, save_pre=save_pre,
        )  # fmt: skip
        return grouped_down(act_NF, *index, weights.w2_EDF, weights.b2_ED, gate_A, top_k=top_k), pre_NF

    def backward(
        self,
        dy_TD: Tensor,
        x_TD: Tensor,
        pre_NF: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        want_weights: bool,
    ) -> FFNGradients:
        from crossearth_sar.kernels.grouped_dgrad import grouped_down_dgrad, grouped_up_dgrad
        from crossearth_sar.kernels.grouped_wgrad import grouped_wgrad

        index, top_k = (plan.source_row, plan.offsets), plan.top_k
        dpre_NF, act_NF, dgate_A = grouped_down_dgrad(
            dy_TD, *index, weights.w2_EDF, weights.b2_ED, gate_A, pre_NF,
            top_k=top_k, activation=activation, want_gate_grad=gate_A is not None,
        )  # fmt: skip
        dx_TD = grouped_up_dgrad(dpre_NF, *index, weights.w1_EFD, top_k=top_k)
        if not want_weights:
            return FFNGradients(dx_TD, dgate_A, None)
        routed: dict[str, Any] = {"num_experts": weights.w1_EFD.shape[0], "top_k": top_k}
        gathers = plan.source_row is not None
        dw1_db1 = grouped_wgrad(
            dpre_NF, x_TD, *index, gather="right" if gathers else None, gate_A=None, **routed
        )
        dw2_db2 = grouped_wgrad(
            dy_TD, act_NF, *index, gather="left" if gathers else None, gate_A=gate_A, **routed
        )
        return FFNGradients(dx_TD, dgate_A, ExpertWeights(*dw1_db1, *dw2_db2))


@torch.library.custom_op("crossearth_sar::router_probability", mutates_args=())
def router_probability_op(
    x_TD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor, tokens_per_image: int
) -> Tensor:
    """(B * T, D) tokens -> (B * T, E) float32."""
    from crossearth_sar.kernels.routing import router_probability

    return router_probability(x_TD.contiguous(), weight_ED, image_bias_BE, tokens_per_image=tokens_per_image)


@router_probability_op.register_fake
def _(x_TD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor, tokens_per_image: int) -> Tensor:
    return x_TD.new_empty(x_TD.shape[0], weight_ED.shape[0], dtype=torch.float32)


@register_flop_formula(torch.ops.crossearth_sar.router_probability)
def _router_flop(x_TD: Any, weight_ED: Any, *_: Any, **__: Any) -> int:
    """Arguments are the op's, tensors as their shapes."""
    return int(2 * x_TD[0] * x_TD[1] * weight_ED[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_TD, weight_ED, image_bias_BE, ctx.tokens_per_image = inputs
    ctx.save_for_backward(x_TD, weight_ED, output)
    ctx.images = image_bias_BE.shape[0]


def _backward(ctx: Any, dprobability_TE: Tensor) -> tuple[Tensor | None, ...]:
    x_TD, weight_ED, probability_TE = ctx.saved_tensors
    inner_T1 = (dprobability_TE * probability_TE).sum(-1, keepdim=True)
    dlogits_TE = probability_TE * (dprobability_TE - inner_T1)
    # The product of the two narrow ones in x's dtype: a float32 copy of x is what this file avoids.
    narrow_TE = dlogits_TE.to(x_TD.dtype)
    dx_TD = narrow_TE @ weight_ED.to(x_TD.dtype) if ctx.needs_input_grad[0] else None
    dweight_ED = (narrow_TE.t() @ x_TD).to(weight_ED.dtype) if ctx.needs_input_grad[1] else None
    dlogits_BTE = dlogits_TE.view(ctx.images, ctx.tokens_per_image, weight_ED.shape[0])
    return dx_TD, dweight_ED, dlogits_BTE.sum(1), None


router_probability_op.register_autograd(_backward, setup_context=_setup_context)
