"""One transformer block and its dense feed-forward network. The FFN is injected: sparse or dense, no branch.

B batch, T tokens, D dim, P descriptors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.vit.attention import Attention


class DenseFFN(nn.Module):
    """linear, GELU, linear, under DINOv2's names fc1 and fc2; the signature of a sparse one."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x_BTD: Tensor, descriptors: Tensor | None = None) -> tuple[Tensor, None]:
        """(B, T, D) -> (B, T, D) and no routing; descriptors are not looked at."""
        return self.fc2(F.gelu(self.fc1(x_BTD))), None


class LayerScale(nn.Module):
    """A learnt factor per channel on a residual branch."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and FFN, each scaled and added: x + ls1 attn(norm1 x), x + ls2 ffn(norm2 x).

    `ffn(x_BTD, descriptors) -> (y_BTD, routing)` is dense or sparse; its routing is handed on.
    """

    def __init__(self, dim: int, num_heads: int, ffn: nn.Module, *, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ffn
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x_BTD: Tensor, descriptors: Tensor | None = None) -> tuple[Tensor, Any]:
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        y_BTD, routing = self.mlp(self.norm2(x_BTD), descriptors)
        return x_BTD + self.ls2(y_BTD), routing
