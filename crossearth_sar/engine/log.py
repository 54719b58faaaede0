"""The record of a run: train.csv, validation.csv and TensorBoard, continued without a seam on resume."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(buffer.getvalue())

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
        self._writer = SummaryWriter(str(folder), purge_step=resume_step or None)

    def scalars(self, prefix: str, row: Row, step: int) -> None:
        if self._writer is None:
            return
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{prefix}/{key}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
