"""The experts' activations inside kernels: fp32 in, fp32 out. ACTIVATION is one of `ACTIVATIONS`.

gelu comes in two forms. EXACT calls erf: about 30 instructions an element, as long as a tile's products over
a depth of 384. Where the result is rounded to 16 bits, the tail of the normal distribution is 2 to a
polynomial instead, within 1e-5 of its value (fp16 rounds to 5e-4, bf16 to 4e-3), at a third of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""The torch form of each, for the references."""


@triton.jit
def normal_tail(distance):
    """P(X > distance) of a standard normal X for distance >= 0, relative error below 1e-5 up to 5.

    The exponent is log2 of the tail, fitted on [0, 6] for the least largest error; past 6 it goes on falling,
    so the tail still goes to 0.
    """
    exponent = distance * -1.6114663e-06 + 5.797830e-05
    exponent = exponent * distance - 9.0786359e-04
    exponent = exponent * distance + 8.4389626e-03
    exponent = exponent * distance - 5.3855086e-02
    exponent = exponent * distance - 4.5853822e-01
    exponent = exponent * distance - 1.1512323e00
    exponent = exponent * distance - 9.9999608e-01
    return tl.exp2(exponent)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr = True):
    """act(x) for fp32 x: gelu is x Phi(x), gelu_tanh its tanh form written as a sigmoid."""
    if ACTIVATION == "gelu":
        if EXACT:
            return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
        else:
            # x Phi(x) = max(x, 0) - |x| P(X > |x|)
            return tl.maximum(x, 0.0) - tl.abs(x) * normal_tail(tl.abs(x))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(ACTIVATION == "relu")
        return tl.maximum(x, 0.0)


@triton.jit
def activate_with_derivative(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr = True):
    """(act(x), act'(x)) for fp32 x; relu'(0) = 0, as torch has it."""
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
        if EXACT:
            cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        else:
            tail = normal_tail(tl.abs(x))
            cdf = tl.where(x > 0.0, 1.0 - tail, tail)
        return x * cdf, cdf + x * density
    elif ACTIVATION == "gelu_tanh":
        # sigmoid(2 u) (1 - sigmoid(2 u)) = exp(-2 u) sigmoid(2 u)^2, without the difference that cancels.
        decay = tl.exp(tl.minimum(-1.5957691216057308 * (x + 0.044715 * x * x * x), 80.0))
        share = 1.0 / (1.0 + decay)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        return x * share, share + x * slope * (decay * share * share)
    else:
        tl.static_assert(ACTIVATION == "relu")
        return tl.maximum(x, 0.0), tl.where(x > 0.0, 1.0, 0.0)
