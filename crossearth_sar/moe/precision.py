"""Which dtype the experts compute in, and their operands brought to it.

T tokens, A assignments, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that the experts compute `tensor` in: its own or, under autocast, that of autocast."""
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return tensor.dtype
    return torch.get_autocast_dtype(kind)


def operands(
    x_TD: Tensor, gate_A: Tensor | None, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """The same, contiguous and in the compute dtype; the gate in that of x.

    Done outside the operations, where the compiler sees the copies: kernels read dense rows, whatever view
    the model hands over.
    """
    x_TD = x_TD.to(compute_dtype(x_TD)).contiguous()
    gate_A = None if gate_A is None else gate_A.to(x_TD.dtype).contiguous()
    weights = {name: w.to(compute_dtype(w)).contiguous() for name, w in weights.items()}
    return x_TD, gate_A, weights
