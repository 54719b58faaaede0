"""The deliberately dumb form of the MoE layer, a loop over tokens in double precision. For tests only."""

from __future__ import annotations

import torch
from torch import Tensor

from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.layer import PhysicsGuidedMoE


def moe_oracle(moe: PhysicsGuidedMoE, x_BTD: Tensor, descriptors_BP: Tensor | None = None) -> Tensor:
    """What `moe(x, descriptors)[0]` must be: eq. (8)-(11) word by word, token by token, in float64."""
    router, experts = moe.router, moe.experts
    w1, b1, w2, b2 = (p.detach().double() for p in (experts.w1, experts.b1, experts.w2, experts.b2))
    act = ACTIVATIONS[experts.activation]
    out = torch.zeros(x_BTD.shape, dtype=torch.float64)
    for b in range(x_BTD.shape[0]):
        physics = torch.zeros(router.num_descriptors, dtype=torch.float64)
        if descriptors_BP is not None:
            physics = descriptors_BP[b].double()
        for t in range(x_BTD.shape[1]):
            z = x_BTD[b, t].detach().double()
            logits = router.weight.detach().double() @ torch.cat([z, physics]) + router.bias.detach().double()
            pi = torch.softmax(logits, 0).tolist()
            chosen = sorted(range(len(pi)), key=lambda e: (-pi[e], e))[: router.top_k]
            total = 1.0 if router.gate == "probability" else sum(pi[e] for e in chosen)
            for e in chosen:
                hidden = act(w1[e] @ z + b1[e])
                out[b, t] += pi[e] / total * (w2[e] @ hidden + b2[e])
    return out
