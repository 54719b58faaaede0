"""What the tests of the pictures share: a written PNG as pixels, and how many of them have a colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count_of(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == np.array(color, dtype=np.uint8)).all(-1).sum())
