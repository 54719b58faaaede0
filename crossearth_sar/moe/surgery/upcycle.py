"""Sparse upcycling: every expert starts as the dense FFN it replaces, so the model computes what it did.

E experts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from crossearth_sar.config import require

_EXPERT_NAME = {"fc1.weight": "w1", "fc1.bias": "b1", "fc2.weight": "w2", "fc2.bias": "b2"}


def upcycle_state_dict(
    dense: Mapping[str, Tensor], num_experts: int, *, expert_noise: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """A dense ViT's state dict with every `….mlp.fc*` turned into `….mlp.experts.*`, copied to E experts.

    Routers are not in it: they are new, and with K = 1 and the "normalized" or "straight_through" gate any
    router gives the dense output. Keys without an FFN are passed through.

    Args:
        expert_noise: standard deviation of normal noise added to each expert's copy, as a share of the
            tensor's own. With equal experts the task tells the router nothing; noise breaks that symmetry.
            0 keeps the dense function exactly.
        seed: of the noise, which depends on it and on a tensor's name alone.
    """
    require(expert_noise >= 0, "expert_noise", expert_noise, "0 or more")
    sparse: dict[str, Tensor] = {}
    for key, value in dense.items():
        block, dot, name = key.partition(".mlp.")
        if dot and name in _EXPERT_NAME:
            copies = torch.stack([value] * num_experts)
            if expert_noise > 0:
                copies = copies + expert_noise * _noise_like(value, num_experts, key, seed)
            sparse[f"{block}.mlp.experts.{_EXPERT_NAME[name]}"] = copies
        else:
            sparse[key] = value
    return sparse


def _noise_like(value: Tensor, num_experts: int, key: str, seed: int) -> Tensor:
    """(E, *value.shape) normal noise of the standard deviation of `value`."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {key}".encode()))
    noise = torch.randn(num_experts, *value.shape, generator=generator)
    return (noise * value.float().std(correction=0).cpu()).to(value)
