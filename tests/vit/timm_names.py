"""A vision transformer written down a second time: timm's names, plain functions, random weights.

Only what timm's `vit_small_patch16_224` and `vit_base_patch16_224`, MAE's encoder and torchgeo's have: no
LayerScale, a class token with a position of its own. B batch, T tokens, D dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(dim: int, depth: int, *, channels: int, patch: int = 16, grid: int = 14) -> State:
    """The keys and shapes, of healthy scale."""
    state: State = {
        "cls_token": torch.randn(1, 1, dim),
        "pos_embed": 0.3 * torch.randn(1, 1 + grid * grid, dim),
        "patch_embed.proj.weight": torch.randn(dim, channels, patch, patch) / (channels**0.5 * patch),
        "patch_embed.proj.bias": 0.1 * torch.randn(dim),
    }
    for block in range(depth):
        name = f"blocks.{block}"
        state |= _norm(f"{name}.norm1", dim) | _norm(f"{name}.norm2", dim)
        state |= _linear(f"{name}.attn.qkv", 3 * dim, dim) | _linear(f"{name}.attn.proj", dim, dim)
        state |= _linear(f"{name}.mlp.fc1", 4 * dim, dim) | _linear(f"{name}.mlp.fc2", dim, 4 * dim)
    return state | _norm("norm", dim)


def tokens(state: State, image_BCHW: Tensor, heads: int) -> Tensor:
    """(B, 1 + h*w, D) after the final norm, of an image of the size that the positions are for."""
    kernel = state["patch_embed.proj.weight"]
    patches = F.conv2d(image_BCHW, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1])
    batch, dim = patches.shape[:2]
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + state["pos_embed"]
    for block in range(sum(key.endswith("attn.qkv.weight") for key in state)):
        name = f"blocks.{block}"
        qkv = _apply(state, f"{name}.attn.qkv", _normed(state, f"{name}.norm1", x))
        q, k, v = qkv.view(batch, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(-1)
        x = x + _apply(state, f"{name}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(_apply(state, f"{name}.mlp.fc1", _normed(state, f"{name}.norm2", x)))
        x = x + _apply(state, f"{name}.mlp.fc2", hidden)
    return _normed(state, "norm", x)


def _apply(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _normed(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def _linear(name: str, wide: int, given: int) -> State:
    weight = torch.randn(wide, given) * given**-0.5
    return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(wide)}


def _norm(name: str, dim: int) -> State:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(dim), f"{name}.bias": 0.1 * torch.randn(dim)}
