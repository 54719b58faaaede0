"""A scene and its map small enough to look at: grey and in the classes' colours, side by side.

h w pixels of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.decibels import to_db
from crossearth_sar.evaluation.figures.predictions import neutral_color
from crossearth_sar.evaluation.scene import Scene
from crossearth_sar.ground_scale import Bins, row_blocks
from crossearth_sar.whole import aside

LONGEST = 1400
"""Pixels of a picture's longer side, at most."""

_READ_PIXELS = 1 << 22
_GAP = 8


@dataclass(frozen=True)
class QuickLook:
    """grey: (h, w) uint8, dB from the 2nd to the 98th percentile. classes: (h, w) uint8, 255 not measured."""

    grey: np.ndarray
    classes: np.ndarray


def quick_look(scene: Scene, classes_HW: np.ndarray, longest: int = LONGEST) -> QuickLook:
    """Power averaged, of the first band; of the map the pixels in the middle. Reads the scene in parts."""
    scale = max(1.0, max(scene.size) / longest)
    height, width = (max(1, round(side / scale)) for side in scene.size)
    own_pixels_a_row = scene.size[0] * scene.size[1] // height
    decibels = np.empty((height, width), np.float32)
    for rows in row_blocks(slice(0, height), own_pixels_a_row, _READ_PIXELS):
        decibels[rows] = to_db(scene.working_rows(rows, (height, width)).amplitude[0]).numpy()
    down, across = (
        (bins.first + (bins.count - 1) // 2).numpy()
        for bins in (Bins.of(scene.size[0], height), Bins.of(scene.size[1], width))
    )
    classes = np.stack([np.asarray(classes_HW[row])[across] for row in down])
    measured = decibels[classes != IGNORE_INDEX]
    low, high = np.percentile(measured, (2, 98)) if measured.size else (0.0, 1.0)
    stretched = (decibels - low) / max(float(high - low), 1e-6)
    return QuickLook((255 * stretched.clip(0, 1)).round().astype(np.uint8), classes)


def colored(look: QuickLook, classes: ClassTable) -> np.ndarray:
    """(h, w, 3) uint8: the map in its colours, a neutral tone where nothing was measured."""
    table = np.empty((IGNORE_INDEX + 1, 3), np.uint8)
    table[:] = neutral_color(classes.palette)
    table[: len(classes)] = classes.palette
    return np.asarray(table[look.classes])


def write_quick_look(look: QuickLook, target: Path, classes: ClassTable) -> Path:
    """Writes scene and map side by side as a PNG; InputError where that cannot be."""
    grey = np.repeat(look.grey[..., None], 3, axis=2)
    gap = np.full((len(grey), _GAP, 3), 255, np.uint8)
    with aside(target) as part:
        Image.fromarray(np.concatenate([grey, gap, colored(look, classes)], axis=1)).save(part, format="PNG")
    return target
