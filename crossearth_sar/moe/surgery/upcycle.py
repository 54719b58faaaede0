"""Sparse upcycling: every expert starts as the dense FFN it replaces, so the model computes what it did.

E experts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.moe.expert_spec import ExpertSpec


def upcycle_state_dict(
    dense: Mapping[str, Tensor],
    num_experts: int,
    *,
    expert_noise: float = 0.0,
    seed: int = 0,
    expert: ExpertSpec | None = None,
) -> dict[str, Tensor]:
    """A dense ViT's state dict with every `….mlp.fc*` turned into `….mlp.experts.*`, copied to E experts.

    Routers are not in it: they are new, and with K = 1 and the "normalized" or "straight_through" gate any
    router gives the dense output; nor are shared experts, which give nothing at first. Keys that the expert
    type does not know as an FFN's are passed through.

    Args:
        expert_noise: standard deviation of normal noise added to each expert's copy, as a share of the
            tensor's own. With equal experts the task tells the router nothing; noise breaks that symmetry.
            0 keeps the dense function exactly.
        seed: of the noise, which depends on it and on a tensor's name alone.
        expert: what an expert is; its type says what each of the dense FFN's tensors becomes.
    """
    require(expert_noise >= 0, "expert_noise", expert_noise, "0 or more")
    from_dense = (expert or ExpertSpec()).make().from_dense
    sparse: dict[str, Tensor] = {}
    for key, value in dense.items():
        block, dot, name = key.partition(".mlp.")
        parts = from_dense(name, value) if dot else {}
        if not parts:
            sparse[key] = value
        for parameter, part in parts.items():
            copies = torch.stack([part] * num_experts)
            if expert_noise > 0:
                source = key if len(parts) == 1 else f"{key} {parameter}"
                copies = copies + expert_noise * _noise_like(part, num_experts, source, seed)
            sparse[f"{block}.mlp.experts.{parameter}"] = copies
    return sparse


def _noise_like(value: Tensor, num_experts: int, key: str, seed: int) -> Tensor:
    """(E, *value.shape) normal noise of the standard deviation of `value`."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {key}".encode()))
    noise = torch.randn(num_experts, *value.shape, generator=generator)
    return (noise * value.float().std(correction=0).cpu()).to(value)
