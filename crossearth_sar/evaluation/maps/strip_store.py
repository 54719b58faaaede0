"""Finished rows of an unfinished map, kept on disk: memory does not hold them, a stop does not lose them.

`.NAME.rows` has the bands one after the other, a byte a pixel; `.NAME.rows.json` says how many rows are
finished, and of what. Rows are written with plain writes: a full disk is an error then, and not the end of
the process as it would be in a mapped file.

B bands, H W pixels, h rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from crossearth_sar.errors import InputError
from crossearth_sar.whole import NotWritten

NOTE_EVERY_S = 5.0
"""A stop loses no more than what was computed in this time."""


class StripStore:
    """Rows of one map; one process at a time has it.

    Attributes:
        next_row: the first that is not finished.
    """

    def __init__(self, target: Path, shape: tuple[int, int, int], made_of: dict[str, Any]) -> None:
        """Opens the store of `target`'s rows; what is in it counts if it was `made_of` the same.

        Args:
            shape: (B, H, W).

        Raises:
            InputError: another process has it, or nothing can be written there.
        """
        self.path = target.with_name(f".{target.name}.rows")
        self.note = self.path.with_name(f"{self.path.name}.json")
        self.shape = shape
        self.made_of = json.loads(json.dumps({**made_of, "shape": shape}))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "rb+", buffering=0)
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise InputError(f"another process is making {target}", fix="leave it to that one") from error
        except OSError as error:
            raise InputError(
                f"{target} cannot be written", got=error.strerror, fix="give another --output"
            ) from error
        self.next_row = self._noted()
        self._noted_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever ends the block, finished rows stay; `remove` takes them away."""
        if not self.file.closed:
            self._write_note()
            self.file.close()

    def write(self, rows: slice, strip_BhW: np.ndarray) -> None:
        """Keeps the next rows.

        Raises:
            NotWritten: the disk is full.
        """
        assert rows.start == self.next_row
        _, height, width = self.shape
        try:
            for band, part in enumerate(strip_BhW):
                self.file.seek((band * height + rows.start) * width)
                _write_all(self.file.fileno(), np.ascontiguousarray(part).tobytes())
        except OSError as error:
            raise NotWritten(
                f"rows of {self.path} cannot be written",
                got=error.strerror,
                fix="make room on the disk; the same command goes on",
            ) from error
        self.next_row = rows.stop
        if time.monotonic() - self._noted_at > NOTE_EVERY_S:
            self._write_note()

    def array(self) -> np.ndarray:
        """(B, H, W) uint8, mapped from the file; all rows must be finished."""
        assert self.next_row == self.shape[1]
        return np.memmap(self.path, np.uint8, "r", shape=self.shape)

    def remove(self) -> None:
        """The map is written, or will never be."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.file.close()

    def _noted(self) -> int:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return int(note["rows"]) if note["made_of"] == self.made_of else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _write_note(self) -> None:
        """The rows reach the disk before the word that they are there."""
        try:
            os.fsync(self.file.fileno())
            part = self.note.with_name(f"{self.note.name}.part")
            part.write_text(json.dumps({"rows": self.next_row, "made_of": self.made_of}), encoding="utf-8")
            os.replace(part, self.note)
        except OSError:
            self.note.unlink(missing_ok=True)  # then nothing is taken for finished
        self._noted_at = time.monotonic()


def _write_all(descriptor: int, data: bytes) -> None:
    """One write may take a part alone."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
