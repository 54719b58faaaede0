"""The experts in an exported program: plain torch, without this package's operation and without sorting.

What torch.export writes then runs where this package is not, and ONNX has every step of it. Experts get as
many rows as the tokens of a call send them, as everywhere.

T tokens, N rows of an expert, D dim, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossearth_sar.moe.expert_types.base import only_expert
from crossearth_sar.moe.experts import StackedExperts
from crossearth_sar.moe.precision import operands


def looped_experts(
    experts: StackedExperts, x_TD: Tensor, gate_TK: Tensor | None, expert_index_TK: Tensor
) -> Tensor:
    """(T, D) tokens -> (T, D): one expert after the other on its tokens; `gate_TK=None` is 1 everywhere."""
    x_TD, gate_TK, weights = operands(x_TD, gate_TK, experts.weights())
    y_TD = torch.zeros_like(x_TD)
    for number in range(experts.num_experts):
        chosen_TK = expert_index_TK == number
        (row_N,) = chosen_TK.any(1).nonzero(as_tuple=True)
        own = {name: weight[number : number + 1] for name, weight in weights.items()}
        out_ND = experts.expert.forward(x_TD[row_N], only_expert, own)
        if gate_TK is not None:
            out_ND = out_ND * (gate_TK * chosen_TK).sum(1)[row_N][:, None]
        y_TD = y_TD.index_put((row_N,), out_ND, accumulate=True)
    return y_TD
