"""Batch normalisation, where the batch is a rank's part of it: statistics of all ranks, and what stands in.

B batch, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

GROUP_CHANNELS = 16
"""Channels that a group norm takes together (Wu and He 2018 try this beside 32 groups): enough that the 1 x 1
maps of a pooling pyramid have a spread."""


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Every batch norm in `module`."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def average_over_ranks(module: nn.Module) -> None:
    """Makes the running statistics of batch norms in training the mean of all ranks'; one collective call.

    So a model is the same on every rank, whoever validates or saves it. What normalises a training batch is
    still the rank's own part: two ranks with half the images each do not compute what one does.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    kept = [
        buffer
        for norm in batch_norms(module)
        if norm.training and norm.track_running_stats
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    if not kept:
        return
    flat = torch.cat([buffer.float() for buffer in kept])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, values in zip(kept, flat.split([buffer.numel() for buffer in kept]), strict=True):
        buffer.data.copy_(values)  # autograd keeps it of the forward pass, and reads it in eval alone


@contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """Within, batch norms in training normalise by the batch and leave their running statistics as they are:
    for what is computed a second time. (Switched off they would save other tensors, which checkpointing
    refuses; so they move by nothing.)"""
    norms = [norm for norm in batch_norms(module) if norm.training and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, whose running statistics stay float32 in a model of half precision.

    There torch wants weights and statistics of one type; what casts a model (`.bfloat16()`, DeepSpeed by its
    version) leaves them in one or in two, and a statistic in bf16 would not follow small changes.
    """

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight, bias = (
            None if p is None else p.to(self.running_mean.dtype) for p in (self.weight, self.bias)
        )
        return F.batch_norm(
            input, self.running_mean, self.running_var, weight, bias, self.training, self.momentum or 0.0,
            self.eps,
        )  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {id(buffer) for buffer in self.buffers()}

        def cast(tensor: Tensor) -> Tensor:
            cast_tensor = fn(tensor)
            half = cast_tensor.dtype in (torch.bfloat16, torch.float16)
            return tensor.to(cast_tensor.device) if half and id(tensor) in kept else cast_tensor

        return super()._apply(cast, recurse)


def keep_statistics_float32(module: nn.Module) -> None:
    """Puts `BatchNorm2d` of this file in place of every fresh batch norm below `module`."""
    _replace(
        module,
        lambda norm: BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device=norm.weight.device),
    )


def use_group_norms(module: nn.Module) -> None:
    """Puts a group norm in place of every batch norm below `module`: an image's values alone decide."""

    def group_norm(norm: _BatchNorm) -> nn.Module:
        groups = norm.num_features // math.gcd(norm.num_features, GROUP_CHANNELS)
        return nn.GroupNorm(groups, norm.num_features, device=norm.weight.device)

    _replace(module, group_norm)


def _replace(module: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, make(child))
