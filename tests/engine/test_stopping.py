"""Signals: remembered by the training process, and not the end of its loader's workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from forks import start
from torch.utils.data import DataLoader, Dataset

from crossearth_sar.engine.stopping import StopRequest, leave_stopping_to_training

T = TypeVar("T")


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, os.getpid()])


def test_a_signal_is_remembered_until_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    assert stop.received is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == "SIGTERM"
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_outlive_the_signals_of_others_and_obey_their_own_process() -> None:
    """As launch.py sends them: from another process, to every process of a rank's tree."""
    loader = DataLoader(
        Numbers(), num_workers=2, persistent_workers=True, worker_init_fn=leave_stopping_to_training
    )
    batches = iter(loader)
    seen = [next(batches), next(batches)]  # one of each worker: both have begun
    workers = list(batches._workers)  # type: ignore[attr-defined]
    pids = [str(worker.pid) for worker in workers]
    for name in ("-INT", "-TERM", "-TERM"):
        subprocess.run(["kill", name, *pids], check=True)
    time.sleep(0.2)
    seen += list(batches)
    assert [int(batch[0, 0]) for batch in seen] == list(range(64))
    assert all(worker.is_alive() for worker in workers)
    started = time.monotonic()
    workers[0].terminate()  # as multiprocessing does with workers left at its end
    workers[0].join(timeout=4)
    assert workers[0].exitcode == 0
    del batches, loader
    assert not workers[1].is_alive()
    assert time.monotonic() - started < 4


class Hung(Dataset[torch.Tensor]):
    """As on storage that does not answer."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        (Path(os.environ["HUNG"]) / str(os.getpid())).touch()
        time.sleep(600)
        raise AssertionError


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a fork
def test_a_second_ctrl_c_ends_a_run_whose_loader_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUNG", str(tmp_path))

    def hang() -> None:
        StopRequest()
        list(DataLoader(Hung(), num_workers=1, worker_init_fn=leave_stopping_to_training))

    child = start(hang)
    worker = wait_for(lambda: [int(path.name) for path in tmp_path.iterdir()])[0]
    for pause in (0.1, 1.1):  # one Ctrl-C, which the launcher passes on
        os.kill(child, signal.SIGINT)
        time.sleep(pause)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "it waits for the step to end"
    os.kill(child, signal.SIGINT)
    wait_for(lambda: not is_alive(worker))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def wait_for(condition: Callable[[], T], seconds: float = 20.0) -> T:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def is_alive(process: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


RANK = """
import os, sys, time
from pathlib import Path
from crossearth_sar.engine.orphans import end_with_launcher
end_with_launcher()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_ends_when_a_launcher_above_it_is_killed(killed: int, tmp_path: Path) -> None:
    """deepspeed starts a second launcher, which does not end with the first."""
    (tmp_path / "deepspeed").write_text(LAUNCHER)
    (tmp_path / "torchrun").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK)
    names = [str(tmp_path / name) for name in ("deepspeed", "torchrun", "rank.py", "pid")]
    shell = subprocess.Popen([sys.executable, *names], env={**os.environ, "RANK": "0"})
    rank = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60))
    inner = parent(rank)
    try:
        assert parent(inner) == shell.pid
        os.kill((shell.pid, inner)[killed], signal.SIGKILL)
        wait_for(lambda: not is_alive(rank), 10)
    finally:
        for process in (shell.pid, inner, rank):
            if is_alive(process):
                os.kill(process, signal.SIGKILL)
        shell.wait()


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
