"""The two sides of a folder's images: drawn by their names, so that files that come or go move no other."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Literal

from crossearth_sar.errors import InputError

FolderPart = Literal["all", "train", "test"]


def keep_part(
    pairs: list[tuple[Path, Path | None]], root: Path, part: FolderPart, test_share: float, seed: int
) -> list[tuple[Path, Path | None]]:
    """The pairs of image and label on one side of the split; "all": both.

    An image is drawn by a hash of its path below root and the seed: all labels and tiles of one image fall
    on one side. Only where a side would be empty does the image that is nearest to it change over.

    Raises:
        InputError: there are not two images.
    """
    if part == "all":
        return pairs
    drawn = {image: _draw(image, root, seed) for image, _ in pairs}
    if len(drawn) < 2:
        raise InputError(
            f"one image cannot be split, and part: {part} asks for it",
            got=f"{pairs[0][0]} alone",
            expected="two images or more",
            fix="add images, cut this one into several files, or validate on another folder",
        )
    least, *_, greatest = sorted(drawn.values())
    bound = min(max(test_share, math.nextafter(least, 1)), greatest)
    return [pair for pair in pairs if (drawn[pair[0]] < bound) == (part == "test")]


def _draw(image: Path, root: Path, seed: int) -> float:
    """A number from 0 to 1, the same wherever the folder lies and whatever library draws random numbers."""
    name = Path(os.path.relpath(image, root)).as_posix()
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
