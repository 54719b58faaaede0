"""Sparse upcycling: every expert starts as the dense FFN it replaces, so the model computes what it did."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_EXPERT_NAME = {"fc1.weight": "w1", "fc1.bias": "b1", "fc2.weight": "w2", "fc2.bias": "b2"}


def upcycle_state_dict(dense: Mapping[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """A dense ViT's state dict with every `….mlp.fc*` turned into `….mlp.experts.*`, copied to E experts.

    Routers are not in it: they are new, and with K = 1 and the "normalized" or "straight_through" gate any
    router gives the dense output. Keys without an FFN are passed through.
    """
    sparse: dict[str, Tensor] = {}
    for key, value in dense.items():
        block, dot, name = key.partition(".mlp.")
        if dot and name in _EXPERT_NAME:
            sparse[f"{block}.mlp.experts.{_EXPERT_NAME[name]}"] = torch.stack([value] * num_experts)
        else:
            sparse[key] = value
    return sparse
