"""The record of a run: train.csv, validation.csv and TensorBoard, continued without a seam on resume."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crossearth_sar.whole import NotWritten

logger = logging.getLogger("crossearth_sar")

Row = Mapping[str, float | int | str]


class CsvLog:
    """A CSV file that grows by rows with a `step` column; rows of steps to be repeated are dropped first."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self.path = path
        self._columns: list[str] = []
        if resume_step == 0:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._rewrite([row for row in read_csv(path) if int(row["step"]) < resume_step])

    def append(self, row: Row) -> None:
        """Writes one row, whole, and flushes it; the first row's keys are the columns. A key that is new, as
        `mfu` is where a run goes on on a GPU, becomes a column that is empty in the rows before."""
        new = [key for key in row if key not in self._columns]
        if new and self._columns:
            self._columns += new
            self._rewrite(read_csv(self.path))
        self._columns = self._columns or new
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns)
        if not self.path.exists() or not self.path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(buffer.getvalue())
        except OSError:  # a full disk takes a part of it, to which the next row would be joined
            with suppress(OSError):
                os.truncate(self.path, before)
            raise

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """The file with these rows alone; a kill in here leaves it as it was."""
        path, columns = self.path, self._columns
        self.path, self._columns = path.with_name(f".{path.name}"), []
        self.path.unlink(missing_ok=True)
        self.path.touch()
        for row in rows:
            self.append({**row, **{key: "" for key in columns if key not in row}})
        self.path = self.path.replace(path)
        self._columns = self._columns or columns


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a log as text; a last row cut off by a kill is left out."""
    with path.open(encoding="utf-8", newline="") as file:
        whole = [line for line in file if line.endswith("\n")]
    rows = list(csv.DictReader(whole))
    return [row for row in rows if None not in row.values() and row.get("step", "").isdigit()]


def rows_left(path: Path) -> list[dict[str, str]]:
    """Of a log that may not have been written: none then."""
    try:
        return read_csv(path)
    except OSError:
        return []


@contextmanager
def told_if_lost(what: str) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, is a warning within: what is lost are words and
    pictures, never the run."""
    try:
        yield
    except (OSError, NotWritten) as error:
        why = error if isinstance(error, OSError) else error.__cause__
        logger.warning("%s cannot be written: %s", what, getattr(why, "strerror", None) or why)


class TensorBoard:
    """Scalars for TensorBoard where it is installed; `note` says so where it is not."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        self.note: str | None = None
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = (
                "TensorBoard is not installed (pip install tensorboard); train.csv has the same numbers"
            )
            return
        try:
            self._writer = SummaryWriter(str(folder), purge_step=resume_step or None)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
            logger.warning("TensorBoard's log cannot be written and is left out: %s", error)

    def scalars(self, prefix: str, row: Row, step: int) -> None:
        if self._writer is None:
            return
        try:
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(f"{prefix}/{key}", value, step)
        except Exception as error:  # noqa: BLE001 - as above; its writing thread keeps any kind for later
            logger.warning("TensorBoard's log failed at step %d and is left out: %s", step, error)
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as error:  # noqa: BLE001 - as above
                logger.warning("TensorBoard's log did not end well: %s", error)
