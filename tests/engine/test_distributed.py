"""Ranks: how many share the experts, and what they tell each other."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
from ranks import RankPool, shared_pool

from crossearth_sar.engine.distributed import (
    any_rank,
    choose_ep_size,
    decided_by_main,
    first_error,
    mean_over_ranks,
    place_among_ranks,
    start_ranks,
    sum_over_ranks,
    threads_of_rank,
    usable_cores,
)
from crossearth_sar.errors import InputError


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


@pytest.mark.parametrize(
    ("experts", "ranks", "expected"),
    [(6, 1, 1), (6, 2, 2), (6, 3, 3), (6, 4, 2), (6, 8, 2), (6, 6, 6), (6, 12, 6), (1, 4, 1), (5, 2, 1)],
)
def test_auto_is_the_largest_that_divides_both(experts: int, ranks: int, expected: int) -> None:
    assert choose_ep_size("auto", experts, ranks) == expected


def test_a_size_that_fits_is_taken() -> None:
    assert [choose_ep_size(size, 6, 12) for size in (1, 2, 3, 6)] == [1, 2, 3, 6]


@pytest.mark.parametrize("size", [0, -2, 4, 5, 12])
def test_a_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=r"6 experts and of 4 ranks[\s\S]*ep_size=2"):
        choose_ep_size(size, 6, 4)


@pytest.mark.parametrize(
    ("environment", "cores", "threads"),
    [
        ({}, 16, 16),
        ({"LOCAL_SIZE": "4"}, 16, 4),
        ({"LOCAL_WORLD_SIZE": "4"}, 2, 1),
        ({"OMP_NUM_THREADS": "3", "LOCAL_SIZE": "4"}, 16, None),
    ],
)
def test_threads_of_a_rank(environment: dict[str, str], cores: int, threads: int | None) -> None:
    assert threads_of_rank(environment, cores) == threads


def test_cores_that_taskset_leaves() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def who_am_i() -> dict[str, Any]:
    from deepspeed.ops import __compatible_ops__

    torch.set_num_threads(5)
    ranks = start_ranks()
    again = start_ranks()
    return {
        "ranks": (ranks.rank, ranks.size, ranks.device.type, ranks.is_main),
        "again": again == ranks,
        "compiles shm": __compatible_ops__["deepspeed_shm_comm"],
        "threads": torch.get_num_threads(),
    }


def test_start_ranks(two_ranks: RankPool) -> None:
    found = two_ranks(who_am_i)
    assert [f["ranks"] for f in found] == [(0, 2, "cpu", True), (1, 2, "cpu", False)]
    for f in found:
        assert f["again"]
        assert f["compiles shm"] is False, "over a minute of compiling at first use"
        assert f["threads"] == 5, "as they were: OMP_NUM_THREADS is set here"


def test_start_ranks_without_a_launcher() -> None:
    pytest.importorskip("deepspeed")
    assert shared_pool(1)(who_am_i)[0]["ranks"] == (0, 1, "cpu", True)


SRUN = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}


def test_srun_tells_the_place() -> None:
    told = place_among_ranks({**SRUN, "MASTER_ADDR": "node1", "MASTER_PORT": "29600"})
    place = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_SIZE": "8", "MASTER_PORT": "29600"}
    assert told == place


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (SRUN, r"16 tasks that do not know where to meet[\s\S]*export MASTER_ADDR="),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, r"4 processes without RANK[\s\S]*torchrun or srun"),
        ({"PMI_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"}, "2 processes without RANK"),
    ],
    ids=["srun", "mpirun", "another mpirun"],
)
def test_several_processes_never_train_alone(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        place_among_ranks(environment)


def test_one_process_of_a_slurm_job_is_alone() -> None:
    """As in a batch script: the job has more tasks, this step has not."""
    for environment in ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}):
        assert place_among_ranks(environment)["WORLD_SIZE"] == "1"


def refuse() -> None:
    raise InputError("no", fix="yes")


def decisions() -> list[Any]:
    ranks = start_ranks()
    heard: list[Any] = [decided_by_main(lambda: f"rank {ranks.rank} says", ranks)]
    try:
        decided_by_main(refuse, ranks)
    except InputError as error:
        heard.append(str(error))
    return heard


def test_the_main_rank_decides_for_all(two_ranks: RankPool) -> None:
    assert two_ranks(decisions) == [["rank 0 says", "no\n  to do: yes"]] * 2


def conversation() -> dict[str, Any]:
    ranks = start_ranks()
    own = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
    fault = InputError("rank one is unwell", fix="rest")
    return {
        "mean": mean_over_ranks(own).tolist(),
        "sum": sum_over_ranks(own).tolist(),
        "counts": sum_over_ranks(torch.tensor([2**40 + ranks.rank])).tolist(),
        "own": own.tolist(),
        "nobody": any_rank(False, ranks),
        "somebody": any_rank(ranks.rank == 1, ranks),
        "no error": first_error(None),
        "one": first_error(fault if ranks.rank == 1 else None),
        "both": first_error(InputError(f"from rank {ranks.rank}")),
    }


def test_what_ranks_tell_each_other(two_ranks: RankPool) -> None:
    for rank, heard in enumerate(two_ranks(conversation)):
        assert heard == {
            "mean": [1.5, 15.0],
            "sum": [3.0, 30.0],
            "counts": [2**41 + 1],
            "own": [rank + 1.0, 10.0 * (rank + 1)],
            "nobody": False,
            "somebody": True,
            "no error": None,
            "one": "rank one is unwell\n  to do: rest",
            "both": "from rank 0",
        }


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        here = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
        for name, value in {**here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}") as caught:
            start_ranks()
    assert "--master_port" in str(caught.value)
