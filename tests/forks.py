"""Work in children of this process, which has imported everything and may be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from crossearth_sar.folder_lock import FolderLock


def in_a_child(work: Callable[[], object]) -> int:
    """Its exit code, negative for a signal; what it says is not shown."""
    return os.waitstatus_to_exitcode(os.waitpid(start(work), 0)[1])


def start(work: Callable[[], object]) -> int:
    """The number of a child that does it: its exit code is 0, or what `work` hands to sys.exit."""
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.set_num_threads(1)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)
    return child


@contextmanager
def another_process(folder: Path, owner: str, *, shared: bool = False) -> Iterator[int]:
    """That has the folder until it is killed at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            FolderLock(folder, owner, shared=shared)
            os.write(writing, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"."
    os.close(reading)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
