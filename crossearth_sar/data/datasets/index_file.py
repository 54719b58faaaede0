"""Reading the CSV index of a folder: rows that are too short or too long are refused, not guessed at."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from crossearth_sar.errors import InputError, nearest


def read_index(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(row number, row by its columns) of a CSV file with a header line, which is row 1.

    Raises:
        InputError: it cannot be read, lacks a column of `needed` or has one twice, or a row has another
            number of cells than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except OSError as error:
        raise InputError(
            f"cannot read the index {path}", got=error.strerror, fix="correct index or root"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"the index {path} is no CSV file", got=str(error), expected="UTF-8 with a header line"
        ) from error
    for column in needed:
        if header.count(column) != 1:
            raise InputError(
                f"the index {path} has {'no' if column not in header else 'more than one'} column "
                f"{column!r}{nearest(column, header) if column not in header else ''}",
                got=", ".join(header),
                fix="correct image_column, label_column, pixel_m_column or where",
            )
    numbered = [(number, row) for number, row in enumerate(rows, 2) if row]  # csv's empty lines
    for number, row in numbered:
        if len(row) != len(header):
            raise InputError(
                f"the index {path} has a row of {len(row)} cells",
                got=f"row {number}: {listed(row)}",
                expected=f"{len(header)}, as the header has",
                fix="write every cell, empty ones too, and quote what holds a comma",
            )
    return [(number, dict(zip(header, row, strict=True))) for number, row in numbered]


def listed(names: Sequence[str], limit: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
