"""Forward-mode automatic differentiation, which the experts' operations do not have: refused, for torch would
give their outputs a tangent of 0 without a word."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crossearth_sar.errors import InputError


def refuse_tangents(tensors: Iterable[Tensor]) -> None:
    """Raises InputError where one of them carries a tangent, as within torch.func.jvp or jacfwd."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise InputError(
            "the MoE layer has no forward-mode derivative",
            got="a dual tensor: torch.func.jvp, jacfwd or torch.autograd.forward_ad",
            expected="reverse mode",
            fix="take torch.func.vjp, jacrev or torch.autograd.grad",
        )
