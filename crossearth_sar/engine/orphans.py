"""No process of a job outlives what started it: ranks end with their launcher, loader's workers with a rank.

A launcher that is killed by kill -9, or for memory, tells nobody. Its ranks would train on unseen, or hold
GPUs and the folder while they wait for each other. Linux alone; elsewhere a launcher's ranks are its own
business.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

LOOK_EVERY_S = 1.0
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "torch/distributed", "accelerate")
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """This process is killed when the thread that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_launcher() -> None:
    """Ends this rank within moments when one of the launchers above it ends: what was saved is safe at any
    moment, and the other ranks see the same."""
    launchers = _launchers_above(os.getpid()) if "RANK" in os.environ else []
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), daemon=True).start()


def _watch(launchers: list[tuple[int, str]]) -> None:
    while all(_started(number) == at for number, at in launchers):
        time.sleep(LOOK_EVERY_S)
    try:
        words = f"\nerror: the launcher of rank {os.environ['RANK']} is gone, and so this rank ends\n"
        os.write(2, words.encode())
    finally:
        os._exit(1)


def _launchers_above(number: int) -> list[tuple[int, str]]:
    """(process, when it started) of the launchers that started it, one above the other: deepspeed starts a
    launcher of its own on each node. A shell above them may end before the job."""
    found = []
    while (number := _parent(number)) > 1 and _is_launcher(number):
        found.append((number, _started(number)))
    return found


def _is_launcher(number: int) -> bool:
    """Whether it is Python with one of the launchers as its program."""
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    program = " ".join(word for word in words[1:5] if word)
    return "python" in Path(words[0]).name and any(name in program for name in _LAUNCHERS)


def _parent(number: int) -> int:
    fields = _fields(number)
    return int(fields[1]) if fields else 0


def _started(number: int) -> str:
    """Which tells it from a later process of that number; empty for one that is gone."""
    fields = _fields(number)
    return fields[19] if fields and fields[0] != "Z" else ""


def _fields(number: int) -> list[str]:
    """Of /proc/N/stat, from the state on."""
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []
