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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from crossearth_sar.data.datasets import folder_reading
from crossearth_sar.data.datasets.folder import FolderConfig, Scene, find_scenes, raise_together
from crossearth_sar.data.datasets.folder_reading import (
    Decoded,
    SceneWindows,
    decode_scene,
    require_few_bands,
    require_same_size,
    windows_of,
)
from crossearth_sar.data.datasets.tasks import class_table
from crossearth_sar.data.files.doubts import FillDoubts
from crossearth_sar.data.files.labels import count_values, label_table
from crossearth_sar.data.files.names import members
from crossearth_sar.data.files.readers import read_label_parts, read_shape
from crossearth_sar.data.sample import Origin, Sample
from crossearth_sar.data.views import View
from crossearth_sar.errors import InputError
from crossearth_sar.spacing import evenly_spaced, sliding_windows

T = TypeVar("T")

DECODED_CHECKS = 64
"""A check decodes every image of a set of up to this many, and this many of a larger one."""

_CACHED_SCENES = 2  # consecutive tiles come from one scene; more would hold gigabytes of whole scenes


class FolderScenes:
    """The samples of a FolderConfig; a `sample.SegmentationDataset`.

    Whole images, or tiles of them: then sample names end in the tile's first row and column, `…_y512_x0`.
    Of images above `folder_reading.WINDOWED_PIXELS` tiles, and the crops of training, are read alone.

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
        self.labels = label_table(
            config.classes, config.label_values, config.label_palette, config.label_tolerance
        )
        self._scenes = find_scenes(config)
        self._cache: OrderedDict[int, Decoded] = OrderedDict()
        self._large: dict[int, SceneWindows | None] = {}
        self._sizes = {i: shape[1:] for i, shape in enumerate(self._check() if check else ())}
        self._windows = self._cut()

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Sample:
        scene, window = self._windows[index]
        large = None if window is None else self._windows_of(scene)
        if window is not None and large is not None:
            return large.decode(*window).sample(self._name(index))
        decoded = self._load(scene)
        if window is not None:
            image = decoded.image[:, *window].copy()  # the cached scene stays as it is
            decoded = Decoded(image, decoded.mask[window], decoded.valid[window], decoded.pixel_m)
        return decoded.sample(self._name(index))

    def view(self, index: int) -> View | None:
        """The sample before it is read, where it is large and its format can be read in parts."""
        scene, window = self._windows[index]
        height, width = self._size(scene)
        rows, columns = window or (slice(0, height), slice(0, width))
        if (rows.stop - rows.start) * (columns.stop - columns.start) <= folder_reading.WINDOWED_PIXELS:
            return None
        return self._view(scene, rows, columns, self._name(index))

    def scene_view(self, index: int) -> View | None:
        """As `view`, of the whole image that a sample is, or is a tile of."""
        scene = self.scene_number(index)
        height, width = self._size(scene)
        return self._view(scene, slice(0, height), slice(0, width), self.scene_name(index))

    def scene_number(self, index: int) -> int:
        """Which of the images a sample is, or is a tile of."""
        return self._windows[index][0]

    def scene_name(self, index: int) -> str:
        """What the image is called that a sample is, or is a tile of."""
        return self._scenes[self.scene_number(index)].name

    def whole_scene(self, index: int) -> Sample:
        """The whole image that a sample is, or is a tile of; not to be written into."""
        return self._load(self.scene_number(index)).sample(self.scene_name(index))

    @property
    def label_files(self) -> list[Path]:
        """Those of the images that have one."""
        return [scene.label for scene in self._scenes if scene.label is not None]

    def label_values(self, index: int) -> Counter[int | float]:
        """Raw values, or packed colours, of `label_files[index]`, and how many pixels each has."""
        path = self.label_files[index]
        parts = read_label_parts(path, expand_colors=self.labels.is_rgb)
        return count_values(parts, self.labels, name=path)

    def origin(self, index: int) -> Origin:
        """The files of the whole scene, whichever tile of it a sample is: see `sample.Origin`."""
        scene = self._scenes[self._windows[index][0]]
        label = None if scene.label is None else os.path.abspath(scene.label)
        return tuple(os.path.abspath(file) for file in members(scene.image)), label, None

    def _load(self, scene: int) -> Decoded:
        if scene in self._cache:
            self._cache.move_to_end(scene)
            return self._cache[scene]
        loaded = decode_scene(self._scenes[scene], self.config, self.labels)
        if self.config.tile is not None:
            self._cache[scene] = loaded
            if len(self._cache) > _CACHED_SCENES:
                self._cache.popitem(last=False)
        return loaded

    def _view(self, scene: int, rows: slice, columns: slice, name: str) -> View | None:
        large = self._windows_of(scene)
        if large is None:
            return None

        def at(inner_rows: slice, inner_columns: slice) -> tuple[slice, slice]:
            return _within(rows, inner_rows), _within(columns, inner_columns)

        return View(
            name=name,
            size=(rows.stop - rows.start, columns.stop - columns.start),
            read=lambda *part: large.decode(*at(*part)).sample(name),
            mask=lambda *part: torch.from_numpy(np.ascontiguousarray(large.mask(*at(*part)))),
            pixel_m=large.pixel_m,
            one_label=large.scene.label is None,
        )

    def _windows_of(self, scene: int) -> SceneWindows | None:
        if scene not in self._large:
            size = self._size(scene)
            self._large[scene] = windows_of(self._scenes[scene], self.config, self.labels, size)
        return self._large[scene]

    def _size(self, scene: int) -> tuple[int, int]:
        """(H, W), by its header."""
        if scene not in self._sizes:
            self._sizes[scene] = self._probe(self._scenes[scene])[1:]
        return self._sizes[scene]

    def _name(self, index: int) -> str:
        scene, window = self._windows[index]
        name, tile = self._scenes[scene].name, self.config.tile
        if window is None or tile is None or max(self._size(scene)) <= tile:
            return name
        return f"{name}_y{window[0].start}_x{window[1].start}"

    def _cut(self) -> list[tuple[int, tuple[slice, slice] | None]]:
        """(scene, rows and columns) of every sample; None for whole images."""
        tile = self.config.tile
        if tile is None:
            return [(i, None) for i in range(len(self._scenes))]
        return [
            (i, window)
            for i in range(len(self._scenes))
            for window in sliding_windows(*self._size(i), tile, tile)
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
        doubts = FillDoubts("nodata: {} of the folder")
        decode = partial(decode_scene, config=self.config, labels=self.labels, doubts=doubts)
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
            require_few_bands(scene, shape[0] // self.config.band_step)
        if scene.label is not None:
            require_same_size(scene, shape[1:], read_shape(scene.label)[1:])
        return shape


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)


def _collect(problems: list[InputError], check: Callable[[Scene], T], scene: Scene) -> T | None:
    try:
        return check(scene)
    except InputError as error:
        problems.append(error)
        return None
