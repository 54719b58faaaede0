"""What of an image's numbers looks like no measurement though nothing marks it: said, never decided.

Margins of zeros that a product has without a nodata tag, and a fill value such as -9999, are data to whoever
is not told. Real numbers of floats hardly repeat, and zeros of speckle are scattered. What this is not: a
refusal; `amplitude.py` refuses what cannot be meant.

C bands, H W pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

REPEATED_SHARE = 0.01
"""An exact number on more of the valid pixels of an image of floats than this is no measurement."""

REPEATED_TIMES = 5.0
"""And it must be so many times as common as the next: numbers in steps all repeat."""

EDGE_SHARE = 0.02
"""Zeros on more of an image's outermost pixels than this may be a margin."""

SOLID_SHARE = 0.9
"""Of zeros in one piece, so many have a zero to the right and below."""

_LOOKED_AT = 1 << 20
"""Of an image of more pixels, about so many are looked at: rows at the top, in the middle, at the bottom."""

_log = logging.getLogger(__name__)


class Rows(Protocol):
    """An image that gives rows: `readers.RawImage`."""

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class UnmarkedFill:
    """A number that looks like a fill value. share: of the pixels that count as valid."""

    value: float
    share: float
    words: str


def unmarked_fill(raw: Rows) -> UnmarkedFill | None:
    """The first band's number that looks like «nothing was measured here», of the pixels that count as valid.

    None: there is no such number. For complex values 0 alone is looked for.
    """
    band, valid = _looked_at(raw)
    if not valid.any():
        return None
    zeros = (band == 0) & valid
    edge = np.concatenate([zeros[0], zeros[-1], zeros[:, 0], zeros[:, -1]])
    if edge.mean() > EDGE_SHARE and _is_solid(zeros):
        return UnmarkedFill(0.0, float(zeros.sum() / valid.sum()), "0 in one piece with the border")
    if band.dtype.kind == "c":
        share = float(zeros.sum() / valid.sum())
        return UnmarkedFill(0.0, share, "exactly 0") if share > REPEATED_SHARE else None
    if band.dtype.kind != "f":
        return None
    found, counts = np.unique(band[valid], return_counts=True)
    first, second = [*np.sort(counts)[::-1][:2], 0][:2]
    share = float(first / counts.sum())
    if share <= REPEATED_SHARE or first < REPEATED_TIMES * second or first < 16:
        return None
    value = float(str(found[counts.argmax()]))
    return UnmarkedFill(value, share, f"exactly {value:g}")


def _looked_at(raw: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(h, W) of the first band, and where it counts as valid."""
    height, width = raw.size
    count = max(2, _LOOKED_AT // (3 * width))
    tops = [0, (height - count) // 2, height - count] if height > 3 * count else [0]
    parts = [raw.rows(slice(top, top + count if len(tops) > 1 else height)) for top in tops]
    return np.concatenate([values[0] for values, _ in parts]), np.concatenate([valid for _, valid in parts])


def _is_solid(zeros: np.ndarray) -> bool:
    inner = zeros[:-1, :-1]
    if not inner.any():
        return False
    return bool((zeros[1:, :-1] & zeros[:-1, 1:])[inner].mean() > SOLID_SHARE)


class FillDoubts:
    """Says once for each such number, with the first image that has it, what to set.

    Args:
        setting: how a nodata value is given, `nodata: {}` or `--nodata {}`.
    """

    def __init__(self, setting: str) -> None:
        self._setting, self._told = setting, set[float]()

    def look(self, raw: Rows) -> None:
        """A warning where `unmarked_fill` finds a number that was not told of."""
        found = unmarked_fill(raw)
        if found is None or found.value in self._told:
            return
        self._told.add(found.value)
        _log.warning(
            "%s: %.0f %% of the pixels are %s, which no nodata tag marks, and count as measured; if "
            "nothing was measured there, set %s (images like it are not named again)",
            raw.path,
            100 * found.share,
            found.words,
            self._setting.format(f"{found.value:.9g}"),
        )
