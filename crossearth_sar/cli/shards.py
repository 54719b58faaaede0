"""Which of several processes takes which images: --shard of a job array, or the ranks of torchrun.

Nothing is exchanged while they work: they take every n-th image, and the folder of maps is what they share.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from crossearth_sar.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 1, of `count`; in_group: whether a launcher started them together."""

    index: int = 1
    count: int = 1
    in_group: bool = False

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}: " if self.count > 1 else ""

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every count-th item."""
        return items[self.index - 1 :: self.count]

    def wait_for_others(self) -> None:
        """Launchers end all ranks when one ends with an error: so none ends before the last has worked."""
        if self.in_group and self.count > 1:
            dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
            dist.barrier()
            dist.destroy_process_group()


def shard_of(given: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The part that `--shard i/n` names, or RANK and WORLD_SIZE in the environment; all without either.

    Raises:
        InputError: for another text, i out of 1 .. n, or both ways at once.
    """
    size = int(environment.get("WORLD_SIZE", "1")) if "RANK" in environment else 1
    if given is None:
        return (
            Shard(int(environment["RANK"]) + 1, size, "MASTER_ADDR" in environment) if size > 1 else Shard()
        )
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError("--shard names no part", got=given, expected="I/N, I from 1 to N: --shard 2/8")
    if size > 1:
        raise InputError(
            "--shard under a launcher that started several processes",
            got=f"--shard {given}, WORLD_SIZE {size}",
            fix="leave --shard out: ranks are parts already",
        )
    return Shard(int(found[1]), int(found[2]))


def device_of_rank(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """`cuda` is the GPU of this rank of a launcher, `cuda:1` that one."""
    local = environment.get("LOCAL_RANK")
    return f"cuda:{int(local) % torch.cuda.device_count()}" if name == "cuda" and local is not None else name
