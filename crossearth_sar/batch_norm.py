"""Batch normalisation, where the batch is a rank's part of it: statistics of all ranks, and what stands in.

B batch, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
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


def use_group_norms(module: nn.Module) -> None:
    """Puts a group norm in place of every batch norm below `module`: an image's values alone decide."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                channels = child.num_features
                groups = channels // math.gcd(channels, GROUP_CHANNELS)
                setattr(parent, name, nn.GroupNorm(groups, channels, device=child.weight.device))
