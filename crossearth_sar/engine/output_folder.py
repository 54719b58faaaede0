"""The run's folder: one that all ranks see, and one job's at a time.

Found out at the start, since a checkpoint is written by all ranks together: on storage that each node has
for itself every save would fail, after hours of training.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import secrets
import socket
import time
from pathlib import Path
from typing import TextIO

from crossearth_sar.engine.distributed import Ranks, decided_by_main, first_error
from crossearth_sar.errors import InputError

LOCK_FILE = ".in-use"
WAIT_FOR_TOKEN_S = 5.0
"""A network file system may show a new file late."""

logger = logging.getLogger("crossearth_sar")

_held: dict[Path, TextIO] = {}


class Claim:
    """A folder that is this job's until `release`, or until its processes end."""

    def __init__(self, output: Path) -> None:
        self._folder = output.absolute()

    def release(self) -> None:
        """Another job may have the folder; nothing happens on ranks that hold no lock."""
        file = _held.pop(self._folder, None)
        if file is not None:
            file.close()


def claim(output: Path, ranks: Ranks) -> Claim:
    """Makes `output` this job's; a collective call.

    Raises:
        InputError: on all ranks, where it cannot be written, another job has it, or a rank sees another one.
    """
    token = decided_by_main(lambda: _take(output), ranks)
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
        Claim(output).release()
        raise InputError(message)
    return Claim(output)


def _take(output: Path) -> str:
    """Rank 0's part: the lock, and the name of a file for the others to look for."""
    token = f".seen-by-all-{secrets.token_hex(8)}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        _lock(output)
        (output / token).touch()
    except OSError as error:
        raise InputError(f"the output folder {output} cannot be written", got=str(error)) from error
    return token


def _lock(output: Path) -> None:
    """A POSIX lock: the loader's workers do not inherit it, and it ends with the process, even killed.

    It does not keep a process from itself, so that a second run of this process is looked for first.
    """
    if output.absolute() in _held:
        raise _in_use(output)
    file = (output / LOCK_FILE).open("a", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise _in_use(output) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        logger.warning("%s has no file locks: see to it that no other job trains into it", output)
    _held[output.absolute()] = file  # closing any handle of the file would end the lock


def _in_use(output: Path) -> InputError:
    return InputError(
        f"{output} is in use",
        got="another run that trains into it",
        expected="one run to a folder: two would remove each other's checkpoints",
        fix="wait for it, end it, or --set output=runs/other",
    )


def _appears(path: Path) -> bool:
    end = time.monotonic() + WAIT_FOR_TOKEN_S
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
