"""A file is whole or absent: written aside under a name of its own, then given the name it is to have.

Where a full disk does not always say so, what is written is read again before (`evaluation/maps/files.py`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from crossearth_sar.errors import InputError


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
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as folder:
            part = Path(folder) / target.name
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
