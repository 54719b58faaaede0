"""A folder's scene as amplitudes and class indices: whole, or of a large one the rectangle that is asked for.

What this is not: the samples of a dataset; those are `folder_scenes.py`'s.

C bands, H W pixels, h w pixels of a rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crossearth_sar.data.datasets.folder import FolderConfig, Scene
from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.data.files.doubts import FillDoubts
from crossearth_sar.data.files.georeference import label_flips
from crossearth_sar.data.files.labels import LabelTable, decode_label_parts, read_label
from crossearth_sar.data.files.readers import (
    RawImage,
    read_image,
    read_pixel_m,
    read_place,
    read_shape,
)
from crossearth_sar.data.files.windows import Window, block_rows, read_image_window, read_label_window
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.working_scale import described_sample
from crossearth_sar.errors import InputError
from crossearth_sar.network_input import MAX_BANDS

WINDOWED_PIXELS = 2048 * 2048
"""An image of more pixels is read in windows, where its format allows that; a smaller one is decoded soon."""


class Decoded(NamedTuple):
    """Amplitude (C, H, W) float32, mask (H, W) uint8, valid (H, W) bool, metres per pixel."""

    image: np.ndarray
    mask: np.ndarray
    valid: np.ndarray
    pixel_m: float | None

    def sample(self, name: str) -> Sample:
        return described_sample(self.image, self.mask, self.valid, name, self.pixel_m)


def decode_scene(
    scene: Scene, config: FolderConfig, labels: LabelTable, doubts: FillDoubts | None = None
) -> Decoded:
    """The whole of it; InputError for a damaged file, wrong values, and a label that does not fit."""
    raw = read_image(scene.image, **config.reading)
    if doubts is not None:
        doubts.look(raw)
    if scene.label is None:
        return _decoded(raw, None, scene, config)
    return _decoded(raw, read_label(scene.label, labels, onto=raw.place), scene, config)


class SceneWindows:
    """A scene of more than WINDOWED_PIXELS that is never decoded whole.

    Its label is decoded whole where its format cannot be read in parts; those of the last two are kept.

    Attributes:
        size: (H, W). pixel_m: metres per pixel.

    Raises:
        InputError: image and label differ in size, or lie in different places.
    """

    def __init__(self, scene: Scene, config: FolderConfig, labels: LabelTable) -> None:
        self.scene, self.config, self.labels = scene, config, labels
        self._shape = read_shape(scene.image, band_axis=config.band_axis, array_key=config.array_key)
        self.size = self._shape[1:]
        self.pixel_m = _pixel_m(scene, config, None)
        if self.pixel_m is None:
            self.pixel_m = read_pixel_m(scene.image)
        self._newest: tuple[Window, np.ndarray] | None = None  # the place that is looked at is then read
        self._flips, self._in_parts = (False, False), True
        self._label_shape: tuple[int, int, int] | None = None
        if scene.label is not None:
            self._label_shape = read_shape(scene.label)
            require_same_size(scene, self.size, self._label_shape[1:])
            self._in_parts = block_rows(scene.label) is not None
            self._flips = label_flips(read_place(scene.image), read_place(scene.label), scene.label)

    def mask(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) uint8 labels of a rectangle, whether or not anything was measured there."""
        window = Window.of(rows, columns)
        if self._newest is None or self._newest[0] != window:
            self._newest = window, self._read_mask(window)
        return self._newest[1]

    def decode(self, rows: slice, columns: slice) -> Decoded:
        """A rectangle as `decode_scene` has it of whole scenes."""
        window = Window.of(rows, columns)
        raw = read_image_window(self.scene.image, window, shape=self._shape, **self.config.reading)
        return _decoded(raw, self.mask(rows, columns).copy(), self.scene, self.config)

    def _read_mask(self, window: Window) -> np.ndarray:
        path = self.scene.label
        if path is None:
            return np.full((window.height, window.width), IGNORE_INDEX, np.uint8)
        if not self._in_parts:
            whole = _whole_label(path, self.scene.image, self.labels, path.stat().st_mtime_ns)
            return whole[window.slices]
        turned_rows, turned_columns = self._flips
        height, width = self.size
        top = height - window.top - window.height if turned_rows else window.top
        left = width - window.left - window.width if turned_columns else window.left
        turned = Window(top, left, window.height, window.width)
        is_rgb = self.labels.is_rgb
        parts = read_label_window(path, turned, shape=self._label_shape, expand_colors=is_rgb)
        mask = decode_label_parts(parts, self.labels, name=path)
        return mask[:: -1 if turned_rows else 1, :: -1 if turned_columns else 1]


@lru_cache(maxsize=2)  # a byte a pixel, many scenes, several workers
def _whole_label(path: Path, image: Path, labels: LabelTable, changed_ns: int) -> np.ndarray:
    return read_label(path, labels, onto=read_place(image))


def windows_of(
    scene: Scene, config: FolderConfig, labels: LabelTable, size: tuple[int, int]
) -> SceneWindows | None:
    """None where the scene is small, or its format cannot be read in parts; errors as of SceneWindows."""
    if (
        size[0] * size[1] <= WINDOWED_PIXELS
        or block_rows(scene.image, band_axis=config.band_axis, array_key=config.array_key) is None
    ):
        return None
    return SceneWindows(scene, config, labels)


def require_same_size(scene: Scene, image: Sequence[int], label: Sequence[int]) -> None:
    if tuple(image) != tuple(label):
        raise InputError(
            f"image and label differ in size: {scene.image} and {scene.label}",
            got=f"image {image[0]} x {image[1]}, label {label[0]} x {label[1]} (height x width)",
            expected="one label pixel per image pixel",
            fix="bring the label onto the image's grid (nearest neighbour), or correct band_axis",
        )


def require_few_bands(scene: Scene, bands: int) -> None:
    if bands > MAX_BANDS:
        raise InputError(
            f"{scene.image} has more bands than the model reads",
            got=f"{bands}",
            expected=f"at most {MAX_BANDS}",
            fix="choose some: bands: [0]",
        )


def _pixel_m(scene: Scene, config: FolderConfig, tagged: float | None) -> float | None:
    stated = (config.pixel_m, scene.pixel_m, tagged)  # by the user, the index, the file
    return next((metres for metres in stated if metres is not None), None)


def _decoded(raw: RawImage, mask: np.ndarray | None, scene: Scene, config: FolderConfig) -> Decoded:
    require_few_bands(scene, len(raw.values))  # here too, for a set opened without a check
    clip = config.clip_negative
    image = to_amplitude(raw.values, config.values, valid=raw.valid, clip_negative=clip, name=scene.image)
    if mask is None:
        mask = np.full(image.shape[1:], IGNORE_INDEX, np.uint8)
    require_same_size(scene, image.shape[1:], mask.shape)
    mask[~raw.valid] = IGNORE_INDEX
    return Decoded(image, mask, raw.valid, _pixel_m(scene, config, raw.pixel_m))
