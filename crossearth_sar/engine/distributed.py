"""Ranks: where this process stands among them, and the few things it asks the others."""

from __future__ import annotations

import datetime
import math
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from crossearth_sar.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """rank of size processes; device this one computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_ranks(timeout_minutes: float = 30.0) -> Ranks:
    """Joins the process group that the launcher prepared; alone, without a launcher, is a group of one.

    On a CPU the machine's threads are shared among the local ranks. A collective call that some rank does
    not join is an error after `timeout_minutes`; one that has died is noticed at once.
    """
    import deepspeed

    on_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        os.environ.update(
            {
                "RANK": "0",
                "WORLD_SIZE": "1",
                "LOCAL_RANK": "0",
                "LOCAL_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": os.environ.get("MASTER_PORT", "29513"),
            }
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        local_size = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
        _leave_collectives_to_gloo()
    if not dist.is_initialized():
        try:
            deepspeed.init_distributed(
                dist_backend="nccl" if on_gpu else "gloo",
                timeout=datetime.timedelta(minutes=timeout_minutes),
                verbose=False,
            )
        except dist.DistNetworkError as error:
            raise InputError(
                f"ranks cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
                got=str(error).splitlines()[0],
                fix="another run may hold the port: deepspeed --master_port 29501 train/cpt.py …",
            ) from error
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def choose_ep_size(requested: int | str, num_experts: int, ranks: int) -> int:
    """The expert-parallel size; "auto" is the largest that divides experts and ranks alike.

    Raises:
        InputError: for a size that does not divide both.
    """
    if requested == "auto":
        return math.gcd(num_experts, ranks)
    size = int(requested)
    if size < 1 or num_experts % size or ranks % size:
        raise InputError(
            "parallel.ep_size does not divide experts and ranks",
            got=size,
            expected=f"a divisor of {num_experts} experts and of {ranks} ranks",
            fix=f"--set parallel.ep_size={math.gcd(num_experts, ranks)}, or auto",
        )
    return size


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over ranks, on every rank; a collective call."""
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks, on every rank; a collective call."""
    values = values.clone()
    dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any rank; a collective call."""
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def first_error(error: Exception | None) -> str | None:
    """The message of the first rank that has one, on every rank; a collective call.

    So that a fault one rank finds ends all of them with its words, instead of leaving the others waiting.
    """
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, None if error is None else str(error))
    return next((message for message in messages if message is not None), None)


def _leave_collectives_to_gloo() -> None:
    """DeepSpeed would compile a shared-memory collective at first use, for over a minute; gloo serves."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
