"""The one exception for what a user did: it says what came, what was expected and what to do.

Not for promises the code makes to itself; those are `assert`s.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, with everything needed to mend it.

    Args:
        problem: one sentence naming the argument, file or key at fault.
        got: what came.
        expected: what would have been right.
        fix: what to do about it.
    """

    def __init__(
        self, problem: str, *, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        parts = [("got", got), ("expected", expected), ("to do", fix)]
        lines = [problem, *(f"  {label}: {value}" for label, value in parts if value is not None)]
        super().__init__("\n".join(lines))


def nearest(name: object, known: Iterable[object]) -> str:
    """A « (did you mean 'x'?)» for `name` among `known`, or an empty string when nothing is near."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
