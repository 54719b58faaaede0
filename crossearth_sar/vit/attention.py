"""Multi-head self-attention with DINOv2's parameter names (qkv, proj).

B batch, T tokens, D dim, h heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.config import require


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D/h)) v over all tokens, then a projection; (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        require(dim % num_heads == 0, "num_heads", num_heads, f"a divisor of dim = {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended_BhTd = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(attended_BhTd.transpose(1, 2).flatten(2))
