"""Signals: remembered by the training process, and not the end of its loader's workers."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import torch
from torch.utils.data import DataLoader, Dataset

from crossearth_sar.engine.stopping import StopRequest, leave_stopping_to_training


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
