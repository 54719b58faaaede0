"""Which samples train and which test: drawn once from a seed, written to disk, read from there ever after.

The paper's index lists were not published. The rule here: samples are sorted by the SHA-256 of dataset,
region, seed and name, which no library's random numbers can change, and cut after the paper's number of
training patches where the region has as many as the paper counts, else after four fifths, rounded down. A
written split is the truth: a later run reads it and refuses to go on where it does not fit the files. Samples
are places: the channels of one place fall on the same side, so that a task across polarizations never tests
where it trained.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.data.datasets.spec import PaperCounts
from crossearth_sar.errors import InputError

_FORMAT = "crossearth-sar split 1"


@dataclass(frozen=True)
class Split:
    """Names of samples, sorted; the two have none in common."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def draw_split(names: Sequence[str], *, train_count: int, seed: int, group: str) -> Split:
    """`train_count` of `names` for training, the rest for testing; a function of the arguments alone.

    Args:
        names: distinct, in any order.
        group: what is split, for instance "WHU-OPT-SAR/all"; hashed too, so that two regions with the same
            names are not cut alike.
    """
    assert len(set(names)) == len(names)
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{group}/{seed}/{name}".encode()).digest())
    return Split(tuple(sorted(ordered[:train_count])), tuple(sorted(ordered[train_count:])))


def train_share(total: int, counts: PaperCounts | None) -> int:
    """How many of `total` train: the paper's number where `total` is the paper's, else four fifths."""
    if counts is not None and counts.train is not None and total == counts.total:
        return counts.train
    return total * 4 // 5


def stored_split(path: Path, names: Sequence[str], *, drawn: Split, about: dict[str, Any]) -> Split:
    """The split at `path`; written there from `drawn` where there is none.

    Raises:
        InputError: the file is no split, it does not hold exactly `names`, or it cannot be written.
    """
    if not path.exists():
        content = {"format": _FORMAT, **about, "train": list(drawn.train), "test": list(drawn.test)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # ranks write at once
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise InputError(
                f"the split cannot be written to {path}", got=error.strerror, fix="name a folder for splits"
            ) from error
        return drawn
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        split = Split(tuple(content["train"]), tuple(content["test"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no split", got=f"{error} ({type(error).__name__})", fix="remove it to draw a new one"
        ) from error
    _require_exactly(path, names, split)
    return split


def official_split(path: Path, units: list[str]) -> Split:
    """Test scenes from a text file of names, one a line, with or without a suffix; after a line `test:` if
    there is one, up to the next such heading."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {path}", got=str(error)) from error
    if "test:" in lines:
        lines = lines[lines.index("test:") + 1 :]
        lines = list(itertools.takewhile(lambda line: not line.endswith(":"), lines))
    listed = {Path(line).stem for line in lines}
    unknown = listed - set(units)
    if unknown or not listed:
        raise InputError(
            f"the list {path} does not fit the dataset",
            got=f"{len(listed)} names, {len(unknown)} of them unknown: {', '.join(sorted(unknown)[:3])}",
            expected=f"names of test scenes among {', '.join(units[:3])} …",
            fix="correct the list, or remove it to draw a split",
        )
    return Split(tuple(u for u in units if u not in listed), tuple(u for u in units if u in listed))


def block_starts(starts: Sequence[int], side: int, block: int) -> list[int]:
    """Where the block begins that each window is of: of `block` windows of `side` pixels from `starts` on.

    A last window that was shifted inward overlaps the one before it and is of its block, so that no pixel is
    on both sides of a split: `block_starts([0, 4, 8, 9], 4, 2) == [0, 0, 8, 8]`.
    """
    last = len(starts) - 1
    overlaps = last > 0 and starts[last] - starts[last - 1] < side
    return [starts[min(i, last - overlaps) // block * block] for i in range(len(starts))]


def _require_exactly(path: Path, names: Sequence[str], split: Split) -> None:
    both = set(split.train) & set(split.test)
    here, listed = set(names), {*split.train, *split.test}
    for what, wrong in (
        ("puts samples on both sides", both),
        ("names samples that are not there", listed - here),
        ("lacks samples that are there", here - listed),
    ):
        if wrong:
            shown = ", ".join(sorted(wrong)[:3]) + (" …" if len(wrong) > 3 else "")
            raise InputError(
                f"the split {path} {what}",
                got=f"{len(wrong)} of them: {shown}",
                expected=f"each of the {len(here)} samples once",
                fix="bring back the files it was drawn from, or remove it to draw a new one",
            )
