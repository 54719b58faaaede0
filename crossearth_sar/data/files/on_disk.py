"""An image that stays on disk: rows are decoded when they are asked for, each once in a pass from the top.

What a scene needs that is larger than memory. Files that are small, or that only come whole (PNG, JPEG, a
TIFF of one compressed strip), are read whole and answer the same questions. What this is not: a cache for
going back and forth; rows above those asked for last are forgotten.

C bands, H W pixels, h rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np

from crossearth_sar.data.files.readers import RawImage, Reading, read_image, read_pixel_m, read_shape
from crossearth_sar.data.files.windows import Window, block_rows, read_image_window

WHOLE_BELOW = 1 << 22
"""An image of fewer pixels is read whole."""

BLOCK_PIXELS = 1 << 22
"""About so many are decoded at once."""


@dataclass
class ImageOnDisk:
    """A file's header; `rows` reads. The names are those of RawImage.

    step: rows that are decoded at once, a multiple of what the file's own layout asks for.
    """

    path: Path
    size: tuple[int, int]
    pixel_m: float | None
    how: Reading
    step: int
    _blocks: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Values (C, h, W) in the file's own dtype and valid pixels (h, W) bool of some rows.

        Raises:
            InputError: the file is damaged there, or lacks a band.
        """
        first, last = rows.start // self.step, (rows.stop - 1) // self.step
        self._blocks = {i: block for i, block in self._blocks.items() if first <= i <= last}
        for i in range(first, last + 1):
            if i not in self._blocks:
                self._blocks[i] = self._read(i)
        parts = [self._blocks[i] for i in range(first, last + 1)]
        here = slice(rows.start - first * self.step, rows.stop - first * self.step)
        if len(parts) == 1:
            return parts[0][0][:, here], parts[0][1][here]
        values = np.concatenate([block[0] for block in parts], axis=1)
        return values[:, here], np.concatenate([block[1] for block in parts])[here]

    def _read(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        top = block * self.step
        window = Window(top, 0, min(self.step, self.size[0] - top), self.size[1])
        part = read_image_window(self.path, window, **self.how)
        return part.values, part.valid


def open_image(path: str | Path, **how: Unpack[Reading]) -> RawImage | ImageOnDisk:
    """`readers.read_image`, which stays on disk where it is large and its format lets it.

    Raises:
        InputError: as `read_image`, save that damage and missing valid pixels of an image on disk are found
            when its rows are read.
    """
    path, bands, band_axis = Path(path), how.get("bands"), how.get("band_axis", "auto")
    array_key = how.get("array_key")
    count, height, width = read_shape(path, band_axis=band_axis, array_key=array_key)
    fits = bands is None or (bands and all(0 <= band < count for band in bands))
    least = None
    if fits and height * width >= WHOLE_BELOW:
        least = block_rows(path, band_axis=band_axis, array_key=array_key)
    if least is None:
        return read_image(path, **how)
    step = least * max(1, BLOCK_PIXELS // (least * width * count))
    return ImageOnDisk(path, (height, width), read_pixel_m(path, array_key=array_key), how, step)
