"""What ranks share inside a loss, where torch.distributed runs; a process alone has it all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """This rank's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks, on every rank, with a gradient; a collective call, in backward too.

    Where each rank minimises its own loss and gradients are averaged over ranks, a value that all ranks share
    gets the gradient of all their losses.
    """
    return _Sum.apply(values) if rank_and_size()[1] > 1 else values


@torch.no_grad()
def gather_rows(own: Tensor) -> Tensor:
    """Rows of all ranks, which have equally many, in rank order; a collective call."""
    size = rank_and_size()[1]
    if size == 1:
        return own
    everyone = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(everyone, own.contiguous())
    return torch.cat(everyone)


@torch.no_grad()
def of_first_rank(own: Tensor) -> Tensor:
    """What rank 0 has, on every rank; a collective call."""
    if rank_and_size()[1] > 1:
        dist.broadcast(own, src=0)
    return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient
