"""When a rank fails: who, why, and how the others learn of it.

A rank with an error of its own leaves its words in the run's folder and ends. The others meet a broken
connection in their next collective call, look for those words, and end with them; for a rank that was
killed without a word they look whether its process is still there. So a job ends at once and says why; the
launcher ends what is left. A collective call also fails for this rank's own reasons, memory for NCCL, say:
when nobody else has a word, the error is told whole.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from crossearth_sar.engine.distributed import of_all_ranks
from crossearth_sar.errors import InputError
from crossearth_sar.folder_lock import FolderLock

WAIT_FOR_WORDS_S = 5.0
_LOST_CONNECTION = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "timed out",
    "nccl",
    "gloo",
)


@dataclass(frozen=True)
class Peer:
    """A rank's process: where it runs and its number there."""

    rank: int
    host: str
    pid: int


def meet_peers() -> list[Peer]:
    """All ranks' processes, in rank order; a collective call."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return of_all_ranks(Peer(rank, socket.gethostname(), os.getpid()))


def remove_old_words(output: Path, owner: str) -> None:
    """Of an earlier run of the command `owner` in this folder; those of a live one, or another's, stay."""
    old = sorted(output.glob("failure-rank*.txt"))
    if old:
        with suppress(InputError), FolderLock(output, owner):  # a refusal is said when the run takes it
            for path in old:
                path.unlink()


@dataclass(frozen=True)
class Reason:
    """Why this rank ends. own: the error is its own, not the loss of others."""

    words: str
    own: bool


def explain(error: BaseException, output: Path, rank: int, peers: list[Peer], step: int) -> Reason:
    """The reason to print on this rank, left in `output` for the others when it is this rank's own.

    Waits some seconds for others' words when the connection to them was lost.
    """
    if _is_lost_connection(error):
        others = _others_words(output, rank, peers)
        if others:
            return Reason(f"rank {rank} lost its peers at step {step}: {others}", own=False)
    words = f"rank {rank} failed at step {step}: {type(error).__name__}: {error}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        trace = "".join(traceback.format_exception(error))
        (output / f"failure-rank{rank}.txt").write_text(f"{words}\n\n{trace}", encoding="utf-8")
    except OSError as problem:  # a full disk, say: then the launcher's output alone has the words
        words += f" (and the reason could not be left in {output}: {problem.strerror})"
    return Reason(words, own=True)


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST_CONNECTION)


def _others_words(output: Path, rank: int, peers: list[Peer]) -> str:
    end = time.monotonic() + WAIT_FOR_WORDS_S
    while time.monotonic() < end:
        found = [path for path in sorted(output.glob("failure-rank*.txt")) if f"rank{rank}." not in path.name]
        if found:
            return "; ".join(path.read_text(encoding="utf-8").partition("\n")[0] for path in found)
        gone = [peer for peer in peers if _is_gone(peer)]
        if gone:
            return "; ".join(
                f"rank {peer.rank} (process {peer.pid} on {peer.host}) is gone without a word: killed, "
                "perhaps for memory (see dmesg)"
                for peer in gone
            )
        time.sleep(0.2)
    return ""


def _is_gone(peer: Peer) -> bool:
    """Whether a process of this machine has ended; those of others count as there."""
    if peer.host != socket.gethostname():
        return False
    try:
        state = Path(f"/proc/{peer.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"
