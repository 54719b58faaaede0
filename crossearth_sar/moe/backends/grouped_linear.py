"""A grouped linear map in plain torch, as one operation: what the reference composes experts of any type of.

A loop over the experts, whose rows are contiguous. Opaque to torch.compile and known to fake tensors, though
it reads the rows per expert; its backward writes each expert's gradient where it belongs, where autograd on
slices of the stack would fill a gradient of the whole stack for every expert.

N routed rows, M rows of an expert, E experts, E1 = E + 1, I and J: widths in and out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("crossearth_sar::grouped_linear", mutates_args=())
def grouped_linear(rows_NI: Tensor, weight_EJI: Tensor, bias_EJ: Tensor | None, offsets_E1: Tensor) -> Tensor:
    """(N, I) rows grouped by expert -> (N, J): each through the linear map of its expert."""
    out_NJ = rows_NI.new_empty(rows_NI.shape[0], weight_EJI.shape[1])
    for e, own in _experts(offsets_E1):
        if bias_EJ is None:
            torch.mm(rows_NI[own], weight_EJI[e].t(), out=out_NJ[own])
        else:
            torch.addmm(bias_EJ[e], rows_NI[own], weight_EJI[e].t(), out=out_NJ[own])
    return out_NJ


@grouped_linear.register_fake
def _(rows_NI: Tensor, weight_EJI: Tensor, bias_EJ: Tensor | None, offsets_E1: Tensor) -> Tensor:
    return rows_NI.new_empty(rows_NI.shape[0], weight_EJI.shape[1])


@torch.library.custom_op("crossearth_sar::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(
    dout_NJ: Tensor, rows_NI: Tensor, weight_EJI: Tensor, offsets_E1: Tensor, want_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(drows, dweight, dbias); the last two are empty without `want_weights`, and 0 where an expert is."""
    dout_NJ = dout_NJ.contiguous()
    drows_NI = rows_NI.new_empty(rows_NI.shape)
    dweight_EJI = weight_EJI.new_zeros(weight_EJI.shape if want_weights else 0)
    dbias_EJ = weight_EJI.new_zeros(weight_EJI.shape[:2] if want_weights else 0)
    for e, own in _experts(offsets_E1):
        torch.mm(dout_NJ[own], weight_EJI[e], out=drows_NI[own])
        if want_weights:
            torch.mm(dout_NJ[own].t(), rows_NI[own], out=dweight_EJI[e])
            torch.sum(dout_NJ[own], 0, out=dbias_EJ[e])
    return drows_NI, dweight_EJI, dbias_EJ


@grouped_linear_backward.register_fake
def _(
    dout_NJ: Tensor, rows_NI: Tensor, weight_EJI: Tensor, offsets_E1: Tensor, want_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dweight_EJI = weight_EJI.new_empty(weight_EJI.shape if want_weights else 0)
    dbias_EJ = weight_EJI.new_empty(weight_EJI.shape[:2] if want_weights else 0)
    return rows_NI.new_empty(rows_NI.shape), dweight_EJI, dbias_EJ


def _experts(offsets_E1: Tensor) -> Iterator[tuple[int, slice]]:
    """Every expert with rows, and which they are."""
    for expert, (start, end) in enumerate(pairwise(offsets_E1.tolist())):
        if end > start:
            yield expert, slice(start, end)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows_NI, weight_EJI, bias_EJ, offsets_E1 = inputs
    ctx.has_bias = bias_EJ is not None
    ctx.save_for_backward(rows_NI, weight_EJI, offsets_E1)


def _backward(ctx: Any, dout_NJ: Tensor) -> tuple[Tensor | None, ...]:
    want_weights = any(ctx.needs_input_grad[1:3])
    drows_NI, dweight_EJI, dbias_EJ = grouped_linear_backward(dout_NJ, *ctx.saved_tensors, want_weights)
    if not want_weights:
        return drows_NI, None, None, None
    return drows_NI, dweight_EJI, dbias_EJ if ctx.has_bias else None, None


grouped_linear.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.crossearth_sar.grouped_linear)
def _forward_flop(rows_NI: Any, weight_EJI: Any, *_: Any, **__: Any) -> int:
    """Arguments are the op's, tensors as their shapes."""
    return int(2 * rows_NI[0] * weight_EJI[1] * weight_EJI[2])


@register_flop_formula(torch.ops.crossearth_sar.grouped_linear_backward)
def _backward_flop(
    dout_NJ: Any, rows_NI: Any, weight_EJI: Any, offsets_E1: Any, want_weights: bool, **_: Any
) -> int:
    return (2 if want_weights else 1) * _forward_flop(rows_NI, weight_EJI)
