"""The run's folder: one that all ranks see, and one job's at a time (`folder_lock.py`).

Found out at the start, since a checkpoint is written by all ranks together: on storage that each node has
for itself every save would fail, after hours of training.
"""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from crossearth_sar.engine.distributed import Ranks, decided_by_main, first_error
from crossearth_sar.errors import InputError
from crossearth_sar.folder_lock import FolderLock

WAIT_FOR_TOKEN_S = 5.0
"""A network file system may show a new file late."""


class Claim:
    """A folder that is this job's until `release`, or until its processes end."""

    def __init__(self, output: Path, owner: str) -> None:
        self._output, self._owner = output, owner
        self._lock: FolderLock | None = None

    def take(self) -> str:
        """Rank 0's part: the lock, and the name of a file for the others to look for; errors as
        FolderLock."""
        self._lock = FolderLock(self._output, self._owner)
        token = f".seen-by-all-{secrets.token_hex(8)}"
        try:
            (self._output / token).touch()
        except OSError as error:
            self.release()
            raise InputError(f"the output folder {self._output} cannot be written", got=str(error)) from error
        return token

    def release(self) -> None:
        """Another job may have the folder; nothing happens on ranks that hold no lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def claim(output: Path, ranks: Ranks, owner: str = "train") -> Claim:
    """Makes `output` this job's; a collective call.

    Args:
        owner: the command, as crossearth-sar calls it.

    Raises:
        InputError: on all ranks, where it cannot be written, another job or command has it, or a rank sees
            another one.
    """
    held = Claim(output, owner)
    token = decided_by_main(held.take, ranks)
    missing = None
    if not _appears(output / token):
        missing = InputError(
            f"the output folder is not the same for all ranks: rank {ranks.rank} does not see rank 0's files",
            got=f"{output.absolute()} on {socket.gethostname()}",
            expected="a folder on storage that all nodes share: each rank writes a part of a checkpoint",
            fix="--set output=/a/shared/folder",
        )
    message = first_error(missing)
    if ranks.is_main:
        (output / token).unlink(missing_ok=True)
    if message is not None:
        held.release()
        raise InputError(message)
    return held


def _appears(path: Path) -> bool:
    end = time.monotonic() + WAIT_FOR_TOKEN_S
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
