"""Whose a folder is: one command's at a time, or that of several processes of one that shares it.

`.in-use` in it names the command and carries the locks, which end with their process, even killed. The name
stays, so that no command writes over what another left: a run and an evaluation both have a metrics.json.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TextIO

from crossearth_sar.errors import InputError
from crossearth_sar.whole import remove_left_over

LOCK_FILE = ".in-use"
_FOLDER, _WITHIN = 0, 1
"""Which byte of the file stands for the folder, and which for `FolderLock.alone`."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

logger = logging.getLogger("crossearth_sar")

_held: dict[Path, TextIO] = {}
"""Closing any handle of a file would end its lock, so there is one."""


class FolderLock:
    """A folder that is this process's until `release`, the end of the block, or of the process; what killed
    ones left half-written in it is removed.

    A POSIX lock: forks, a loader's workers say, do not inherit it. It does not keep a process from itself, so
    a second lock within this process is looked for first.

    Args:
        folder: made where it is not there.
        owner: the command, as crossearth-sar calls it.
        shared: beside other processes of the same command that share it too.

    Raises:
        InputError: it cannot be written, another process has it, or it is another command's.
    """

    def __init__(self, folder: Path, owner: str, *, shared: bool = False) -> None:
        self._folder = folder.absolute()
        if self._folder in _held:
            raise _in_use(folder)
        self._made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take(folder, owner, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            remove_left_over(folder)
        except OSError as error:
            self.release()
            raise InputError(
                f"the output folder {folder} cannot be written",
                got=error.strerror or str(error),
                fix="make room, or give another one",
            ) from error
        except InputError:
            self.release()
            raise

    def release(self) -> None:
        """Another process may have the folder; where nothing was written into it, nothing is left of it."""
        file = _held.get(self._folder)
        if file is None:
            return
        with suppress(OSError):
            if [path.name for path in self._folder.iterdir()] == [LOCK_FILE]:
                self._try(fcntl.LOCK_EX | fcntl.LOCK_NB, _FOLDER)  # it is nobody else's either
                (self._folder / LOCK_FILE).unlink()
                if self._made:
                    self._folder.rmdir()
        file.close()
        del _held[self._folder]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process in the block of all that share the folder, others wait: what it leaves they find."""
        self._try(fcntl.LOCK_EX, _WITHIN)
        try:
            yield
        finally:
            self._try(fcntl.LOCK_UN, _WITHIN)

    def _take(self, folder: Path, owner: str, kind: int) -> None:
        path = folder / LOCK_FILE
        while True:
            self._file = _held[self._folder] = path.open("a+", encoding="utf-8")
            try:
                self._try(kind | fcntl.LOCK_NB, _FOLDER)
            except (BlockingIOError, PermissionError) as error:
                raise _in_use(folder, self._owner()) from error
            if _is_open_at(self._file, path):
                break
            self._file.close()  # another process has removed it meanwhile, in `release`
            folder.mkdir(parents=True, exist_ok=True)
        self._name(folder, owner)

    def _try(self, kind: int, byte: int) -> None:
        try:
            fcntl.lockf(self._file, kind, 1, byte)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s has no file locks: see to it that no other job writes there", self._folder)

    def _owner(self) -> str:
        self._file.seek(0)
        return self._file.readline().strip()

    def _name(self, folder: Path, owner: str) -> None:
        before = self._owner()
        if not before:
            name = f"{owner}\n".encode()
            os.write(self._file.fileno(), name)  # a buffer would fail once more when it is closed
        elif before != owner:
            raise InputError(
                f"{folder} is the folder of another command",
                got=f"crossearth-sar {before}",
                expected=f"one of crossearth-sar {owner}, or a new one: files of the two have the same names",
                fix="give another output folder, or remove this one if nothing in it is needed",
            )


def _is_open_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(folder: Path, owner: str = "") -> InputError:
    return InputError(
        f"{folder} is in use",
        got=f"another process{f', crossearth-sar {owner},' if owner else ''} that writes there",
        expected="one to a folder: two would replace each other's files",
        fix="wait for it, end it, or give another one: --set output=runs/other, or --output",
    )
