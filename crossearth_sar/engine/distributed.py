"""Ranks: where this process stands among them, and the few things it asks the others."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from crossearth_sar.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """rank of size processes; device this one computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_ranks(timeout_minutes: float = 30.0, *, deepspeed: bool = True) -> Ranks:
    """Joins the process group that the launcher or srun prepared.

    Alone, DeepSpeed wants a group of one, and the light executor none. On a CPU the cores that this process
    may use are shared among the local ranks, unless OMP_NUM_THREADS says how many each takes. A collective
    call of the default group that some rank does not join is an error after `timeout_minutes`. DeepSpeed's
    groups have torch's limits.

    Raises:
        InputError: for processes that were started as several but not told how to meet.
    """
    on_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        place = place_among_ranks(os.environ)
        if place["WORLD_SIZE"] == "1" and not deepspeed:
            return Ranks(0, 1, torch.device("cuda" if on_gpu else "cpu"))
        os.environ.update(place)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"local rank {local_rank} has no GPU of its own",
                got=f"{torch.cuda.device_count()} to be seen here",
                expected="one for each rank of the node, and all of them to be seen by each",
                fix="fewer ranks per node; under srun, --gpu-bind=none",
            )
        torch.cuda.set_device(local_rank)
    else:
        threads = threads_of_rank(os.environ, usable_cores())
        if threads is not None:
            torch.set_num_threads(threads)
    _join_group("nccl" if on_gpu else "gloo", datetime.timedelta(minutes=timeout_minutes), deepspeed)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _join_group(backend: str, timeout: datetime.timedelta, deepspeed: bool) -> None:
    try:
        if not dist.is_initialized() and not deepspeed:
            dist.init_process_group(backend, timeout=timeout)
        if deepspeed:
            from deepspeed import init_distributed

            if backend == "gloo":
                _leave_collectives_to_gloo()
            init_distributed(dist_backend=backend, timeout=timeout, verbose=False)  # joins one that is there
    except dist.DistNetworkError as error:
        raise InputError(
            f"ranks cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            got=str(error).splitlines()[0],
            fix="another run may hold the port: deepspeed --master_port 29501 train/cpt.py …",
        ) from error


def usable_cores() -> int:
    """The cores that this process may run on: fewer than the machine's under taskset, or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_rank(environment: Mapping[str, str], cores: int) -> int | None:
    """A rank's share of the cores; None where OMP_NUM_THREADS has told torch already (torchrun says 1 there
    where its user says nothing)."""
    if "OMP_NUM_THREADS" in environment:
        return None
    local_size = int(environment.get("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, cores // local_size)


def place_among_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a launcher sets, for a process without: from srun's own, or a group of one.

    Raises:
        InputError: for one of several tasks of srun without MASTER_ADDR, or of several processes of mpirun.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    by_mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", environment.get("PMI_SIZE", "1")))
    port = environment.get("MASTER_PORT", "29513")
    if tasks > 1 and "SLURM_PROCID" in environment:
        if "MASTER_ADDR" not in environment:
            raise InputError(
                f"srun started {tasks} tasks that do not know where to meet",
                got="no MASTER_ADDR",
                expected="the name of the first node in it",
                fix='export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)',
            )
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": str(tasks),
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_SIZE": str(math.ceil(tasks / nodes)),
            "MASTER_PORT": port,
        }
    if by_mpi > 1:
        raise InputError(
            "mpirun started processes that would each train alone",
            got=f"{by_mpi} processes without RANK",
            expected="RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which mpirun does not set",
            fix="start with deepspeed --hostfile …, torchrun or srun: docs/TRAINING.md, Several nodes",
        )
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    return {**one, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


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
    return sum_over_ranks(values) / _size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks, on every rank; a collective call."""
    values = values.clone()
    if _size() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is up on any rank; a collective call."""
    if ranks.size == 1:
        return flag
    value = torch.tensor([float(flag)], device=ranks.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def of_all_ranks(own: T) -> list[T]:
    """What each rank has, in rank order, on every rank; a collective call."""
    if _size() == 1:
        return [own]
    everyone: list[Any] = [None] * _size()
    dist.all_gather_object(everyone, own)
    return everyone


def wait_for_all() -> None:
    """A barrier; a collective call."""
    if _size() > 1:
        dist.barrier()


def first_error(error: Exception | None) -> str | None:
    """The message of the first rank that has one, on every rank; a collective call.

    So that a fault one rank finds ends all of them with its words, instead of leaving the others waiting.
    """
    messages = of_all_ranks(None if error is None else str(error))
    return next((message for message in messages if message is not None), None)


def decided_by_main(decide: Callable[[], T], ranks: Ranks) -> T:
    """What `decide` gives on rank 0, or its InputError, on every rank; a collective call."""
    if ranks.size == 1:
        return decide()
    found: list[Any] = [None, None]
    if ranks.is_main:
        try:
            found[0] = decide()
        except InputError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found)
    decision, fault = found
    if fault is not None:
        raise InputError(fault)
    return decision


def _size() -> int:
    """Of the process group; a process alone has none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _leave_collectives_to_gloo() -> None:
    """DeepSpeed would compile a shared-memory collective at first use, for over a minute; gloo serves."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
