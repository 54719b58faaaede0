"""Named rows: those of the package, those that a call adds, and those of other installed packages.

A package offers its datasets, tasks and benchmarks by an entry point of the group `crossearth_sar.datasets`
that names a function without arguments; it is called once, when a name is asked for that nothing else knows,
and calls `register` for each of its rows:

    [project.entry-points."crossearth_sar.datasets"]
    my-archive = "my_archive.sar:register_all"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Generic, Protocol, TypeVar

from crossearth_sar.errors import InputError, nearest

GROUP = "crossearth_sar.datasets"
"""The entry points that are looked at."""


class Row(Protocol):
    """What has a name that a user types."""

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Row)

_called: set[tuple[str, str]] = set()


class Rows(Generic[R]):
    """Rows of one kind by their keys.

    Args:
        kind: what to call a row in a message: «dataset».
        built_in: the package's own; they cannot be replaced.
    """

    def __init__(self, kind: str, built_in: Mapping[str, R]) -> None:
        self.kind, self._built_in = kind, built_in
        self._added: dict[str, R] = {}

    def add(self, row: R) -> None:
        """Adds a row; the same one twice is no mistake.

        Raises:
            InputError: another row has its key.
        """
        known = self._built_in.get(row.key, self._added.get(row.key))
        if known is not None and known != row:
            raise InputError(
                f"there is another {self.kind} {row.key!r}",
                got="two rows of one key that differ",
                fix="give yours another key; single fields of a known row are changed by the data file",
            )
        if known is None:
            self._added[row.key] = row

    def find(self, key: str) -> R:
        """The row `key`; entry points are looked at where it is unknown.

        Raises:
            InputError: nobody knows it; the message names the nearest.
        """
        if key not in self._built_in and key not in self._added:
            call_entry_points()
        rows = {**self._built_in, **self._added}
        if key not in rows:
            raise InputError(
                f"no {self.kind} {key!r}{nearest(key, rows)}",
                expected=f"one of {', '.join(rows)}",
                fix=f"correct the name, or register a {self.kind} of your own: docs/BENCHMARKS.md",
            )
        return rows[key]

    def all(self) -> dict[str, R]:
        """Every row, those of other packages too; the package's own come first."""
        call_entry_points()
        return {**self._built_in, **self._added}


def call_entry_points() -> None:
    """Calls what other packages offer in GROUP, each once.

    Raises:
        InputError: an entry point leads nowhere, or to something that cannot be called.
    """
    for entry in metadata.entry_points(group=GROUP):
        if (entry.name, entry.value) in _called:
            continue
        try:
            register_all = entry.load()
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"the entry point {entry.name!r} of {GROUP} leads nowhere",
                got=f"{entry.value}: {error}",
                fix="mend or remove the package that declares it",
            ) from error
        if not callable(register_all):
            raise InputError(
                f"the entry point {entry.name!r} of {GROUP} cannot be called",
                got=f"{entry.value} is {type(register_all).__name__}",
                expected="a function without arguments that registers rows",
            )
        _called.add((entry.name, entry.value))  # before the call, which may ask for names itself
        register_all()
