"""The heads of DI3CL: two linear layers, a norm between them or none.

M rows, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.selfsup.config import Norm
from crossearth_sar.selfsup.losses import at_least_float32
from crossearth_sar.selfsup.ranks import sum_over_ranks


class Head(nn.Module):
    """(M, in) -> (M, out): linear, norm, ReLU, linear; a projector, or a predictor."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, norm: Norm) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim, hidden_dim)
        self.norm = _make_norm(norm, hidden_dim)
        self.last = nn.Linear(hidden_dim, out_dim)

    def forward(self, x_MD: Tensor, counted_M: Tensor | None = None) -> Tensor:
        """counted_M: bool, rows that count in statistics over rows; None: all."""
        hidden = self.first(x_MD.to(self.first.weight.dtype))
        hidden = (
            self.norm(hidden, counted_M) if isinstance(self.norm, BatchNormOfRanks) else self.norm(hidden)
        )
        return self.last(F.relu(hidden))


class BatchNormOfRanks(nn.Module):
    """Batch normalisation over the counted rows of all ranks, which may have unlike numbers of them, or none.

    Unlike torch's, it has no running statistics (a head is not used after training), works on CPUs, and takes
    a single row, which becomes the bias. Collective calls, in forward and in backward.
    """

    epsilon = 1e-5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x_MD: Tensor, counted_M: Tensor | None = None) -> Tensor:
        """In float32 at least, also under autocast; comes back in the type that came."""
        with torch.autocast(x_MD.device.type, enabled=False):
            x = at_least_float32(x_MD)
            counted_M = x.new_ones(len(x)) if counted_M is None else counted_M.to(x)
            sums = sum_over_ranks(torch.cat([counted_M.sum()[None], counted_M @ x]))
            number = sums[0].clamp(min=1)
            x = x - sums[1:] / number
            variance = sum_over_ranks(counted_M @ x.square()) / number
            scaled = x * torch.rsqrt(variance + self.epsilon) * self.weight.to(x) + self.bias.to(x)
        return scaled.to(x_MD.dtype)


def _make_norm(norm: Norm, dim: int) -> nn.Module:
    if norm == "batch":
        return BatchNormOfRanks(dim)
    return nn.LayerNorm(dim) if norm == "layer" else nn.Identity()
