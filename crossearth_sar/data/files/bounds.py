"""How much memory one image file may ask for: what a few bytes on disk can become, and what the machine has.

A file that decodes to FREE_BYTES or less is always read. A larger one may be EXPANSION times as large as it
lies on disk, which is what deflate, the codec of PNG, NPZ and most TIFFs, can do at the most; zstd and empty
tiles can do more, and so can a file that somebody made to exhaust the memory. The environment variable
CROSSEARTH_MAX_EXPANSION sets another factor. What this is not: a bound for scenes that are read in windows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossearth_sar.errors import InputError

FREE_BYTES = 1 << 27
"""The decoded bytes that every file may have."""

EXPANSION = 1100.0
"""Deflate's is 1032 at the most."""

VARIABLE = "CROSSEARTH_MAX_EXPANSION"


def require_room(path: Path, shape: Sequence[int], dtype: object, *, on_disk: int | None = None) -> None:
    """Called before anybody allocates the pixels.

    Args:
        shape, dtype: of what is to be decoded; booleans count as bytes.
        on_disk: bytes that hold the pixels, where that is not the size of the file at `path`; 0: not
            known.

    Raises:
        InputError: it is out of proportion, or larger than the memory of the machine.
    """
    decoded = math.prod(int(n) for n in shape) * np.dtype(dtype).itemsize  # type: ignore[call-overload]
    stored = path.stat().st_size if on_disk is None else on_disk
    factor = _factor()
    if stored and decoded > max(FREE_BYTES, factor * stored):
        raise InputError(
            f"{path} is a small file and much memory",
            got=f"{decoded / 1e6:.1f} MB of pixels in {stored} bytes",
            expected=f"at most {FREE_BYTES / 1e6:.1f} MB, or {factor:g} times the file",
            fix=f"it is damaged, or made to exhaust the memory; if you trust it, set {VARIABLE} in the "
            f"environment to {math.ceil(decoded / stored)} or more",
        )
    if decoded > memory_bytes():
        raise InputError(
            f"{path} decodes to more than the memory of this machine",
            got=f"{decoded / 1e9:.1f} GB of pixels",
            expected=f"at most {memory_bytes() / 1e9:.1f} GB",
            fix="cut it into parts, or write it as a tiled GeoTIFF, of which parts can be read",
        )


def memory_bytes() -> int:
    """Of the machine, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _factor() -> float:
    text = os.environ.get(VARIABLE)
    if text is None:
        return EXPANSION
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not factor > 0:
        raise InputError(f"the environment's {VARIABLE} is no factor", got=repr(text), expected="above 0")
    return factor
