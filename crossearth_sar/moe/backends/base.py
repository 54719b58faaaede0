"""What a backend is: an object that says how tokens are routed, grouped and multiplied; and its plan.

N = B*T*K routed rows, A = T*K assignments, B batch, T tokens, D dim, F hidden, E experts, E1 = E + 1,
K top-k, I and J: widths in and out of a product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GroupedLinear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(rows_NI, weight_EJI, bias_EJ or None) -> rows_NJ: each row through the linear map of its expert."""


@dataclass(frozen=True)
class DispatchPlan:
    """Routed rows grouped by expert, the order of tokens kept within an expert.

    Example, four tokens, three experts, top-1 choices [2, 0, 2, 0]:

        source_row [1, 3, 0, 2]   grouped row n is assignment source_row[n] (token source_row[n] // K)
        offsets    [0, 2, 2, 4]   rows of expert e are offsets[e] .. offsets[e + 1]; expert 1 is empty

    source_row: (N,) int64 or int32; None where the rows already lie grouped by expert.
    offsets: (E + 1,) int32, on the device of the rows.
    backend: the one that made the plan and will run it.
    """

    source_row: Tensor | None
    offsets: Tensor
    top_k: int
    backend: Backend


class ExpertWeights(NamedTuple):
    """The stacked experts of type «ffn», or their gradients."""

    w1_EFD: Tensor
    b1_EF: Tensor
    w2_EDF: Tensor
    b2_ED: Tensor


class FFNGradients(NamedTuple):
    """dgate_A is None without a gate, dweights unless they were wanted."""

    dx_TD: Tensor
    dgate_A: Tensor | None
    dweights: ExpertWeights | None


class Backend:
    """Routes and groups in plain torch; a backend replaces what it does better. Has no state.

    Beside this it has a form of the experts: FusedBackend, ComposingBackend, or both.
    """

    name: ClassVar[str]

    def router_probability(self, x_BTD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor) -> Tensor:
        """softmax(x W^T + image_bias) over E, (B, T, E) in the dtype of the bias: float32 at least."""
        precision = image_bias_BE.dtype
        logits_BTE = F.linear(x_BTD.to(precision), weight_ED.to(precision)) + image_bias_BE[:, None]
        return logits_BTE.softmax(dim=-1)

    def make_plan(self, expert_index_BTK: Tensor, num_experts: int) -> DispatchPlan:
        """The plan for the router's choices; stable, so the same input gives the same plan."""
        expert_A, top_k = expert_index_BTK.flatten(), expert_index_BTK.shape[-1]
        sorted_A, source_row_N = expert_A.sort(stable=True)
        # Where each expert's run begins, by binary search: nothing of it waits for the device.
        experts_E1 = torch.arange(num_experts + 1, device=expert_A.device)
        offsets_E1 = torch.searchsorted(sorted_A, experts_E1, out_int32=True)
        return DispatchPlan(source_row_N, offsets_E1, top_k, self)

    def __repr__(self) -> str:
        return self.name


class FusedBackend(Backend, ABC):
    """Has experts of type «ffn» as one operation, whose two halves these are; moe/ffn_op.py registers it.

    Tensors are contiguous and of one dtype. Rows already grouped by expert (T = N) where plan.source_row is
    None.
    """

    @abstractmethod
    def forward(
        self,
        x_TD: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        save_pre: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The gated outputs (T, D); and with `save_pre` the pre-activation (N, F), for the backward."""

    @abstractmethod
    def backward(
        self,
        dy_TD: Tensor,
        x_TD: Tensor,
        pre_NF: Tensor,
        gate_A: Tensor | None,
        plan: DispatchPlan,
        weights: ExpertWeights,
        activation: str,
        want_weights: bool,
    ) -> FFNGradients:
        """The gradients of what `forward` was given."""


class ComposingBackend(Backend, ABC):
    """Has a grouped linear map, of which experts of any type are composed; autograd does the backward."""

    @abstractmethod
    def grouped_linear(self, plan: DispatchPlan, rows: int) -> GroupedLinear:
        """The linear map of `rows` = N rows grouped as in `plan`; what all its calls share is done here."""


def sum_choices(rows_AD: Tensor, top_k: int) -> Tensor:
    """(T * K, D) rows of assignments -> (T, D): each token's choices added up."""
    return rows_AD if top_k == 1 else rows_AD.unflatten(0, (-1, top_k)).sum(1)
