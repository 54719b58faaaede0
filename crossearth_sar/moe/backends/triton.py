"""The router's probabilities as one Triton kernel: logits and softmax in float32, the tokens read once.

In plain torch the tokens are first copied to float32, which moves more memory than the product itself. The
backward is small, E = 6 columns, and stays with torch.

B batch, T tokens of an image, D dim, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fused_router_probability(x_BTD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor) -> Tensor:
    """softmax(x W^T + image_bias) over E: (B, T, E) float32; the bias in float32, the weight there or as x.

    Of the same 16-bit type, tokens and weight meet on the tensor cores, accumulated in float32.
    """
    batch, tokens, _ = x_BTD.shape
    probability = router_probability_op(
        x_BTD.flatten(0, 1), weight_ED.contiguous(), image_bias_BE.contiguous(), tokens
    )
    return probability.view(batch, tokens, weight_ED.shape[0])


@torch.library.custom_op("crossearth_sar::router_probability", mutates_args=())
def router_probability_op(x: Tensor, weight: Tensor, image_bias: Tensor, tokens_per_image: int) -> Tensor:
    """(B * T, D) tokens -> (B * T, E) float32."""
    from crossearth_sar.kernels.routing import router_probability

    return router_probability(x.contiguous(), weight, image_bias, tokens_per_image=tokens_per_image)


@router_probability_op.register_fake
def _(x: Tensor, weight: Tensor, image_bias: Tensor, tokens_per_image: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, image_bias, ctx.tokens_per_image = inputs
    ctx.save_for_backward(x, weight, output)
    ctx.images = image_bias.shape[0]


def _backward(ctx: Any, dprobability_TE: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, probability_TE = ctx.saved_tensors
    inner = (dprobability_TE * probability_TE).sum(-1, keepdim=True)
    dlogits_TE = probability_TE * (dprobability_TE - inner)
    # The product of the two narrow ones in x's dtype: a float32 copy of x is what this file avoids.
    narrow_TE = dlogits_TE.to(x.dtype)
    dx = narrow_TE @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
    dweight = (narrow_TE.t() @ x).to(weight.dtype) if ctx.needs_input_grad[1] else None
    dimage_bias = dlogits_TE.view(ctx.images, ctx.tokens_per_image, weight.shape[0]).sum(1)
    return dx, dweight, dimage_bias, None


router_probability_op.register_autograd(_backward, setup_context=_setup_context)
