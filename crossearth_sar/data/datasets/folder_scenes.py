"""A folder of SAR images and label maps as a dataset, checked at once.

Everything about such a dataset that can be wrong is looked for when it is opened, and reported together, so
that a training run does not end at its ten-thousandth image. Files are found as `folder.py` and read as
`readers.py` and `labels.py` say. What this is not: a place for one class per published dataset; each of those
is a row of `benchmarks.py` or a FolderConfig.

C bands, H W pixels.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from crossearth_sar.data.datasets.folder import FolderConfig, Scene, find_scenes, raise_together
from crossearth_sar.data.datasets.tasks import class_table
from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.data.files.doubts import FillDoubts
from crossearth_sar.data.files.labels import count_values, label_table, read_label
from crossearth_sar.data.files.names import members
from crossearth_sar.data.files.readers import read_image, read_label_parts, read_shape
from crossearth_sar.data.sample import IGNORE_INDEX, Origin, Sample
from crossearth_sar.data.working_scale import described_sample
from crossearth_sar.errors import InputError
from crossearth_sar.network_input import MAX_BANDS
from crossearth_sar.spacing import evenly_spaced, sliding_windows

T = TypeVar("T")

DECODED_CHECKS = 64
"""A check decodes every image of a set of up to this many, and this many of a larger one."""

_CACHED_SCENES = 2  # consecutive tiles come from one scene; more would hold gigabytes of whole scenes


class _Decoded(NamedTuple):
    """A whole scene: amplitude (C, H, W) float32, mask (H, W) uint8, valid (H, W) bool, metres per pixel."""

    image: np.ndarray
    mask: np.ndarray
    valid: np.ndarray
    pixel_m: float | None


class FolderScenes:
    """The samples of a FolderConfig; a `sample.SegmentationDataset`.

    Whole images, or tiles of them: then sample names end in the tile's first row and column, `…_y512_x0`.

    Args:
        config: what to read.
        check: look at every file now: headers and sizes of all, and the pixels of all in a set of up to 64
            images, of 64 evenly spaced ones in a larger set. False saves that where the set has been
            checked already, by another process of the same run for instance.

    Raises:
        InputError: nothing matched, files are missing or damaged, sizes of image and label or band counts
            differ, labels hold values outside the map, an image has no valid pixel or values that are not
            what they are declared to be. Several problems are reported together. What a check did not
            see is raised by `dataset[i]`, with the file's name.
    """

    def __init__(self, config: FolderConfig, *, check: bool = True) -> None:
        self.config = config
        self.classes = class_table(config.classes, config.palette)
        self.labels = label_table(config.classes, config.label_values, config.label_palette)
        self._scenes = find_scenes(config)
        self._cache: OrderedDict[int, _Decoded] = OrderedDict()
        shapes = self._check() if check else None
        self._windows = self._cut(shapes)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Sample:
        scene, window = self._windows[index]
        image, mask, valid, pixel_m = self._load(scene)
        name, tile = self._scenes[scene].name, self.config.tile
        if window is not None and tile is not None:
            if image.shape[1] > tile or image.shape[2] > tile:
                name = f"{name}_y{window[0].start}_x{window[1].start}"
            image = image[:, *window].copy()  # the cached scene stays as it is
            mask, valid = mask[window], valid[window]
        return described_sample(image, mask, valid, name, pixel_m)

    def scene_number(self, index: int) -> int:
        """Which of the images a sample is, or is a tile of."""
        return self._windows[index][0]

    def scene_name(self, index: int) -> str:
        """What the image is called that a sample is, or is a tile of."""
        return self._scenes[self.scene_number(index)].name

    def whole_scene(self, index: int) -> Sample:
        """The whole image that a sample is, or is a tile of; not to be written into."""
        image, mask, valid, pixel_m = self._load(self.scene_number(index))
        return described_sample(image, mask, valid, self.scene_name(index), pixel_m)

    @property
    def label_files(self) -> list[Path]:
        """Those of the images that have one."""
        return [scene.label for scene in self._scenes if scene.label is not None]

    def label_values(self, index: int) -> Counter[int | float]:
        """Raw values, or packed colours, of `label_files[index]`, and how many pixels each has."""
        path = self.label_files[index]
        return count_values(read_label_parts(path, expand_colors=self.labels.is_rgb), self.labels)

    def origin(self, index: int) -> Origin:
        """The files of the whole scene, whichever tile of it a sample is: see `sample.Origin`."""
        scene = self._scenes[self._windows[index][0]]
        label = None if scene.label is None else os.path.abspath(scene.label)
        return tuple(os.path.abspath(file) for file in members(scene.image)), label, None

    def _load(self, scene: int) -> _Decoded:
        if scene in self._cache:
            self._cache.move_to_end(scene)
            return self._cache[scene]
        loaded = self._decode(self._scenes[scene])
        if self.config.tile is not None:
            self._cache[scene] = loaded
            if len(self._cache) > _CACHED_SCENES:
                self._cache.popitem(last=False)
        return loaded

    def _decode(self, scene: Scene, doubts: FillDoubts | None = None) -> _Decoded:
        config = self.config
        raw = read_image(scene.image, **config.reading)
        if doubts is not None:
            doubts.look(raw)
        _require_few_bands(scene, len(raw.values))  # here too, for a set opened without a check
        clip = config.clip_negative
        image = to_amplitude(raw.values, config.values, valid=raw.valid, clip_negative=clip, name=scene.image)
        stated = (config.pixel_m, scene.pixel_m, raw.pixel_m)  # by the user, the index, the file
        pixel_m = next((metres for metres in stated if metres is not None), None)
        if scene.label is None:
            return _Decoded(image, np.full(image.shape[1:], IGNORE_INDEX, np.uint8), raw.valid, pixel_m)
        mask = read_label(scene.label, self.labels, onto=raw.place)
        _require_same_size(scene, image.shape[1:], mask.shape)
        mask[~raw.valid] = IGNORE_INDEX
        return _Decoded(image, mask, raw.valid, pixel_m)

    def _cut(
        self, shapes: Sequence[tuple[int, int, int]] | None
    ) -> list[tuple[int, tuple[slice, slice] | None]]:
        """(scene, rows and columns) of every sample; None for whole images."""
        tile = self.config.tile
        if tile is None:
            return [(i, None) for i in range(len(self._scenes))]
        if shapes is None:
            shapes = [self._probe(scene) for scene in self._scenes]
        return [
            (i, window)
            for i, (_, height, width) in enumerate(shapes)
            for window in sliding_windows(height, width, tile, tile)
        ]

    def _probe(self, scene: Scene) -> tuple[int, int, int]:
        return read_shape(scene.image, band_axis=self.config.band_axis, array_key=self.config.array_key)

    def _check(self) -> list[tuple[int, int, int]]:
        """Shapes (bands, height, width) of all images, or one InputError for all that is wrong."""
        problems: list[InputError] = []
        shapes = [_collect(problems, self._check_header, scene) for scene in self._scenes]
        band_counts = Counter(shape[0] for shape in shapes if shape is not None)
        if len(band_counts) > 1 and self.config.bands is None:
            odd = min(band_counts, key=lambda count: band_counts[count])
            pairs = zip(self._scenes, shapes, strict=True)
            first = next(scene for scene, shape in pairs if shape is not None and shape[0] == odd)
            problems.append(
                InputError(
                    "images differ in their number of bands",
                    got=", ".join(f"{n} images of {count}" for count, n in band_counts.items())
                    + f"; {first.image} has {odd}",
                    expected="one number, to be stacked in a batch",
                    fix="choose some: bands: [0]",
                )
            )
        whole = [s for s, shape in zip(self._scenes, shapes, strict=True) if shape is not None]
        decode = partial(self._decode, doubts=FillDoubts("nodata: {} of the folder"))
        for i in evenly_spaced(len(whole), DECODED_CHECKS):
            _collect(problems, decode, whole[i])
        if problems:
            raise_together(problems, f"dataset {self.config.root} of {len(self._scenes)} images")
        return [shape for shape in shapes if shape is not None]

    def _check_header(self, scene: Scene) -> tuple[int, int, int]:
        shape = self._probe(scene)
        if self.config.bands is not None and max(self.config.bands) >= shape[0]:
            raise InputError(
                f"{scene.image} has no band {max(self.config.bands)}",
                got=f"{shape[0]} bands",
                expected=f"indices from 0 to {shape[0] - 1}",
                fix="correct bands or band_axis",
            )
        if self.config.bands is None:
            _require_few_bands(scene, shape[0] // self.config.band_step)
        if scene.label is not None:
            _require_same_size(scene, shape[1:], read_shape(scene.label)[1:])
        return shape


def _require_same_size(scene: Scene, image: Sequence[int], label: Sequence[int]) -> None:
    if tuple(image) != tuple(label):
        raise InputError(
            f"image and label differ in size: {scene.image} and {scene.label}",
            got=f"image {image[0]} x {image[1]}, label {label[0]} x {label[1]} (height x width)",
            expected="one label pixel per image pixel",
            fix="bring the label onto the image's grid (nearest neighbour), or correct band_axis",
        )


def _require_few_bands(scene: Scene, bands: int) -> None:
    if bands > MAX_BANDS:
        raise InputError(
            f"{scene.image} has more bands than the model reads",
            got=f"{bands}",
            expected=f"at most {MAX_BANDS}",
            fix="choose some: bands: [0]",
        )


def _collect(problems: list[InputError], check: Callable[[Scene], T], scene: Scene) -> T | None:
    try:
        return check(scene)
    except InputError as error:
        problems.append(error)
        return None
