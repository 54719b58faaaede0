"""A file is whole or absent: written aside under a name of its own, then given the name it is to have.

Where a full disk does not always say so, what is written is read again before (`evaluation/maps/files.py`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from crossearth_sar.errors import InputError

_WRITING = ".writing."
"""Before the names of folders that `aside` writes in."""


class NotWritten(InputError):
    """A file could not be written whole; what it was to hold may be there still."""


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A path in a folder beside `target` that no other process uses; it goes afterwards, with all it holds.

    After the block, what was written at the path is `target`, and on the disk.

    Raises:
        NotWritten: for an OSError within the block, a full disk for instance; then `target` is as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _own_folder(target.parent) as folder:
            part = folder / target.name
            yield part
            flush(part)
            os.replace(part, target)
            flush(target.parent)
    except OSError as error:
        raise NotWritten(
            f"{target} cannot be written whole",
            got=error.strerror or str(error),
            fix="make room on the disk, or give another --output; the same command goes on",
        ) from error


@contextmanager
def _own_folder(beside: Path) -> Iterator[Path]:
    """Locked, so that `remove_left_over` knows it from that of a process that was killed."""
    with one_writer(beside):
        made = tempfile.TemporaryDirectory(prefix=_WRITING, dir=beside)
        descriptor = os.open(made.name, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with made as folder:
            yield Path(folder)
    finally:
        os.close(descriptor)


def remove_left_over(folder: Path) -> None:
    """Removes, anywhere below, what `aside` was writing in processes that are gone."""
    for left in [*folder.rglob(f"{_WRITING}*")]:
        with suppress(OSError), one_writer(left.parent):  # one that cannot be removed is in nobody's way
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """One process in the block for this folder, others wait. It leaves no file: for what goes on to others.

    Raises:
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # where a folder cannot be locked, as on NFS, two may still meet
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_text(target: Path, text: str) -> Path:
    """A small file, whole or absent; errors as `aside`."""
    with aside(target) as part:
        part.write_text(text, encoding="utf-8")
    return target


@contextmanager
def table(target: Path) -> Iterator[TextIO]:
    """A file for `csv` to write, whole or absent; errors as `aside`."""
    with aside(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield file


def flush(path: Path) -> None:
    """What was written to a file, or the names in a folder, reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
