"""Expert parallelism: each rank of a group holds E / ep_size experts, rows travel to them and back.

One all-to-all each way with uneven splits (and one of E counts before them). Dropless; a rank or an expert
without a row takes part with zero rows, so that the graph is the same everywhere. The host waits for the
device once a layer, for the splits; the backward has them already. Knows torch.distributed only; what
DeepSpeed needs to be told is in engine/executors/deepspeed/experts.py.

B batch, T tokens, N routed rows here, M rows received, A runs of rows, S senders, E experts, E1 = E + 1,
D dim, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.dispatch import DispatchPlan, combine_rows, gather_rows
from crossearth_sar.moe.experts import StackedExperts


class ExpertParallelExperts(StackedExperts):
    """This rank's contiguous slice of another StackedExperts, with the same call.

    Args:
        full: the experts of all ranks; equal on all ranks.
        group: the process group whose ranks hold a slice each, in rank order; its size divides E.
    """

    def __init__(self, full: StackedExperts, group: Any) -> None:
        nn.Module.__init__(self)
        self.expert, self.group = full.expert, group
        self.ep_size, self.ep_rank = dist.get_world_size(group), dist.get_rank(group)
        self.num_experts, self.dim, self.hidden_dim = full.num_experts, full.dim, full.hidden_dim
        if self.num_experts % self.ep_size:
            raise InputError(
                "experts do not divide among ranks",
                got=f"ep_size {self.ep_size}",
                expected=f"a divisor of num_experts = {self.num_experts}",
            )
        for name, value in full.named_parameters():
            setattr(self, name, nn.Parameter(self.own_slice(value.detach()).clone()))

    def own_slice(self, full: Tensor) -> Tensor:
        """(E, …) -> this rank's (E / ep_size, …)."""
        return full.chunk(self.ep_size)[self.ep_rank]

    @torch.no_grad()
    def gather(self, own: Tensor) -> Tensor:
        """The inverse of `own_slice`: every rank's slice, joined; a collective call of the group."""
        parts = [torch.empty_like(own) for _ in range(self.ep_size)]
        dist.all_gather(parts, own.detach().contiguous(), group=self.group)
        return torch.cat(parts)

    def forward(self, x_TD: Tensor, gate_BTK: Tensor | None, plan: DispatchPlan) -> Tensor:
        """As StackedExperts.forward; a collective call of the group."""
        sent_SE = plan.offsets.diff().view(self.ep_size, -1)  # (rank, its expert): rows lie in this order
        received_SE = torch.empty_like(sent_SE)
        counts_travel = dist.all_to_all_single(received_SE, sent_SE, group=self.group, async_op=True)
        rows_ND = gather_rows(x_TD, plan)  # meanwhile
        counts_travel.wait()
        send, receive = torch.stack((sent_SE.sum(1), received_SE.sum(1))).tolist()  # the one wait
        rows_MD = _exchange(rows_ND, send, receive, self.group)
        out_MD = super().forward(rows_MD, None, _plan_of_arrived(received_SE, sum(receive), plan))
        return combine_rows(_exchange(out_MD, receive, send, self.group), gate_BTK, plan)


def _plan_of_arrived(counts_SE: Tensor, rows: int, plan: DispatchPlan) -> DispatchPlan:
    """Of `rows` rows in runs of (sender, expert), `counts_SE[s, e]` long; `plan` is what they were sent by.

    Example, two senders, two experts, counts [[1, 2], [3, 0]], rows 0 | 1 2 | 3 4 5 |:

        source_row [0, 3, 4, 5, 1, 2]   expert 0's rows, then expert 1's
        offsets    [0, 4, 6]

    The experts gather by it and put their outputs back in the order of arrival.
    """
    # A run's rows keep their distances, so each is its place among the sorted plus its run's shift. All is
    # int32, as the kernels want it.
    length_A = counts_SE.t().flatten()
    arrived_at_A = _starts(counts_SE.flatten()).view_as(counts_SE).t().flatten()
    shift_A = arrived_at_A - _starts(length_A)
    # Without output_size the host would ask the device for the sum of the lengths.
    shift_M = shift_A.repeat_interleave(length_A, output_size=rows)
    offsets_E1 = F.pad(counts_SE.sum(0).cumsum(0), (1, 0)).int()
    source_row_M = torch.arange(rows, dtype=torch.int32, device=counts_SE.device) + shift_M
    return DispatchPlan(source_row_M, offsets_E1, top_k=1, backend=plan.backend)


def _starts(length_A: Tensor) -> Tensor:
    """Where each of the runs of these lengths begins, (A,) int32."""
    return length_A.cumsum(0, dtype=torch.int32) - length_A


def _exchange(rows_ND: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
    return _AllToAllRows.apply(rows_ND, send, receive, group)


class _AllToAllRows(torch.autograd.Function):
    """Rows to their ranks; the gradient is the same exchange the other way round."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        received_MD = rows_ND.new_empty(sum(receive), rows_ND.shape[1])
        dist.all_to_all_single(received_MD, rows_ND.contiguous(), receive, send, group=group)
        return received_MD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _AllToAllRows.apply(grads[0], ctx.receive, ctx.send, ctx.group), None, None, None


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """`model.state_dict()` with every rank's experts joined; a collective call where experts are split."""
    state = model.state_dict()
    for prefix, module in model.named_modules():
        if isinstance(module, ExpertParallelExperts):
            for name, own in module.named_parameters():
                state[f"{prefix}.{name}"] = module.gather(own)
    return state


def load_full_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads what `full_state_dict` gave, at this or another ep_size, each rank keeping its slice."""
    own = dict(state)
    for prefix, module in model.named_modules():
        if isinstance(module, ExpertParallelExperts):
            for name, _ in module.named_parameters():
                own[f"{prefix}.{name}"] = module.own_slice(own[f"{prefix}.{name}"])
    model.load_state_dict(own)
