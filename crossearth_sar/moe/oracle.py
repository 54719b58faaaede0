"""The deliberately dumb form of the MoE layer with experts of type «ffn», a loop over tokens in double
precision. For tests only.

B batch, T tokens, D dim, F hidden, P descriptors, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.layer import PhysicsGuidedMoE


def moe_oracle(moe: PhysicsGuidedMoE, x_BTD: Tensor, descriptors: Tensor | None = None) -> Tensor:
    """What `moe(x, descriptors)[0]` must be: eq. (8)-(11) word by word, token by token, in float64."""
    router, experts = moe.router, moe.experts
    w1_EFD, b1_EF, w2_EDF, b2_ED = (p.detach().double() for p in experts.weights().values())
    act = ACTIVATIONS[experts.expert.activation]
    router_weight, router_bias = router.weight.detach().double(), router.bias.detach().double()
    out_BTD = torch.zeros(x_BTD.shape, dtype=torch.float64)
    for b in range(x_BTD.shape[0]):
        physics_P = torch.zeros(router.num_descriptors, dtype=torch.float64)
        for t in range(x_BTD.shape[1]):
            if descriptors is not None:
                physics_P = (descriptors[b] if descriptors.ndim == 2 else descriptors[b, t]).double()
            z_D = x_BTD[b, t].detach().double()
            logits_E = router_weight @ torch.cat([z_D, physics_P]) + router_bias
            pi = torch.softmax(logits_E, 0).tolist()
            chosen = sorted(range(len(pi)), key=lambda e: (-pi[e], e))[: router.top_k]
            total = 1.0 if router.gate == "probability" else sum(pi[e] for e in chosen)
            for e in chosen:
                hidden_F = act(w1_EFD[e] @ z_D + b1_EF[e])
                out_BTD[b, t] += pi[e] / total * (w2_EDF[e] @ hidden_F + b2_ED[e])
    return out_BTD
