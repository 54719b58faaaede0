"""The experts' two GEMMs over rows grouped by expert. Reference form: one GEMM pair per contiguous slice.

N routed rows, E experts, D dim, F hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def grouped_ffn_reference(
    rows_ND: Tensor,
    counts: list[int],
    w1_EFD: Tensor,
    b1_EF: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    activation: str,
) -> Tensor:
    """(N, D) grouped rows -> (N, D): act(x w1_e^T + b1_e) w2_e^T + b2_e for the rows of each expert e.

    Args:
        counts: rows per expert, summing to N; zeros are fine, and an unused expert gets a zero gradient.
    """
    act = ACTIVATIONS[activation]
    # unbind, not indexing: its backward stacks the experts' gradients once, where E slices' backwards
    # would each fill and add a gradient of the whole stack.
    parameters = zip(w1_EFD.unbind(0), b1_EF.unbind(0), w2_EDF.unbind(0), b2_ED.unbind(0), strict=True)
    outputs = [
        F.linear(act(F.linear(rows, w1, b1)), w2, b2)
        for rows, (w1, b1, w2, b2) in zip(rows_ND.split(counts), parameters, strict=True)
    ]
    return torch.cat(outputs)
