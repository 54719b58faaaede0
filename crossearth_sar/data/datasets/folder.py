"""A folder of SAR images and label maps as a dataset: found by patterns or an index file, checked at once.

Everything about such a dataset that can be wrong is looked for when it is opened, and reported together, so
that a training run does not end at its ten-thousandth image. Files are read as `readers.py` and `labels.py`
say. What this is not: a place for one class per published dataset; each of those is a FolderConfig.

C bands, H W pixels.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from crossearth_sar.config import require
from crossearth_sar.data.datasets.benchmarks import class_table
from crossearth_sar.data.files.amplitude import ValueKind, to_amplitude
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.files.labels import RGB, label_table, read_label
from crossearth_sar.data.files.readers import BandAxis, read_image, read_shape
from crossearth_sar.data.sample import IGNORE_INDEX, Origin, Sample
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.network_input import MAX_BANDS

T = TypeVar("T")

DECODED_CHECKS = 64
"""A check decodes every image of a set of up to this many, and this many of a larger one."""

_SHOWN_PROBLEMS = 5
_CACHED_SCENES = 2  # consecutive tiles come from one scene; more would hold gigabytes of whole scenes


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where images and labels lie, what their values are, and which classes the task has.

    root: the folder that every other path starts from.
    images, labels: patterns relative to `root`, with '*' for any part of one file or folder name. What the
        stars of `images` match is put in place of those of `labels`, in order:
        `S1/*_S1Hand.tif` and `Labels/*_LabelHand.tif`. `labels: null` is a set without labels.
    index: instead of patterns, a CSV file with a header line, relative to `root`; its paths are too. An
        empty cell in `label_column` is an image without a label; `label_column: null` leaves all without.
    where: keeps the rows of the index whose columns have these values.
    names: keeps only the images whose file name (without its suffix) contains one of these: a split by
        region. Empty keeps all. exclude: drops those whose name contains one of these. Each must match.
    values: "amplitude", "intensity", "db" or "complex"; see `amplitude.to_amplitude`.
    bands, band_axis, nodata, array_key: as in `readers.read_image`, for images; the model reads 1 to 3 bands.
    classes: names, in the order of their indices; palette: their colours in pictures.
    label_values: raw value -> class name or "ignore". label_palette: class name or "ignore" -> its colour,
        or list of colours, where labels are RGB. Without either, value i is class i and 255 is ignored.
    tile: cuts each image into squares of this many pixels; the last of a row or column is shifted inward,
        so that all pixels are covered and those of the overlap come twice. An image smaller than a tile
        is given as it is. None: whole images.
    """

    root: str
    values: ValueKind
    classes: tuple[str, ...]
    images: str | None = None
    labels: str | None = None
    index: str | None = None
    image_column: str = "image"
    label_column: str | None = "label"
    where: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bands: tuple[int, ...] | None = None
    band_axis: BandAxis = "auto"
    nodata: float | None = None
    array_key: str | None = None
    label_values: dict[int, str] = field(default_factory=dict)
    label_palette: dict[str, RGB | tuple[RGB, ...]] = field(default_factory=dict)
    palette: tuple[RGB, ...] | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.index is None):
            raise InputError(
                "a folder dataset needs either images or index",
                got="both" if self.images else "neither",
                fix="give images (a pattern like 'S1/*.tif') or index (a CSV file)",
            )
        if self.images is None:
            require(self.labels is None, "labels", self.labels, "null beside index: they are a column there")
        else:
            require(not self.where, "where", self.where, "nothing beside images: it filters rows of an index")
            _require_patterns(self.images, self.labels)
        require(self.tile is None or self.tile >= 16, "tile", self.tile, "at least 16 pixels, or null")
        require(
            self.bands is None or 1 <= len(self.bands) <= MAX_BANDS,
            "bands",
            self.bands,
            f"at least one band and at most {MAX_BANDS}, or null",
        )
        class_table(self.classes, self.palette)
        label_table(self.classes, self.label_values, self.label_palette)


@dataclass(frozen=True)
class _Scene:
    name: str
    image: Path
    label: Path | None


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
        self._labels = label_table(config.classes, config.label_values, config.label_palette)
        self._scenes = _find_scenes(config)
        self._cache: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()
        shapes = self._check() if check else None
        self._windows = self._cut(shapes)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Sample:
        scene, top, left = self._windows[index]
        image, mask, valid = self._load(scene)
        name, tile = self._scenes[scene].name, self.config.tile
        if tile is not None:
            if image.shape[1] > tile or image.shape[2] > tile:
                name = f"{name}_y{top}_x{left}"
            image = image[:, top : top + tile, left : left + tile].copy()  # the cached scene stays as it is
            mask, valid = (pixels[top : top + tile, left : left + tile] for pixels in (mask, valid))
        image = fill_unmeasured(image, valid)
        return Sample(image=torch.from_numpy(image), mask=torch.from_numpy(mask.astype(np.int64)), name=name)

    def origin(self, index: int) -> Origin:
        """The files of the whole scene, whichever tile of it a sample is: see `sample.Origin`."""
        scene = self._scenes[self._windows[index][0]]
        label = None if scene.label is None else os.path.abspath(scene.label)
        return (os.path.abspath(scene.image),), label, None

    def _load(self, scene: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Amplitude (C, H, W) float32, mask (H, W) uint8 and valid (H, W) bool of a whole image."""
        if scene in self._cache:
            self._cache.move_to_end(scene)
            return self._cache[scene]
        loaded = self._decode(self._scenes[scene])
        if self.config.tile is not None:
            self._cache[scene] = loaded
            if len(self._cache) > _CACHED_SCENES:
                self._cache.popitem(last=False)
        return loaded

    def _decode(self, scene: _Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        config = self.config
        raw = read_image(
            scene.image,
            band_axis=config.band_axis,
            nodata=config.nodata,
            bands=config.bands,
            array_key=config.array_key,
        )
        _require_few_bands(scene, len(raw.values))  # here too, for a set opened without a check
        image = to_amplitude(raw.values, config.values, valid=raw.valid, name=scene.image)
        if scene.label is None:
            return image, np.full(image.shape[1:], IGNORE_INDEX, np.uint8), raw.valid
        mask = read_label(scene.label, self._labels)
        _require_same_size(scene, image.shape[1:], mask.shape)
        mask[~raw.valid] = IGNORE_INDEX
        return image, mask, raw.valid

    def _cut(self, shapes: Sequence[tuple[int, int, int]] | None) -> list[tuple[int, int, int]]:
        """(scene, top, left) of every sample."""
        tile = self.config.tile
        if tile is None:
            return [(i, 0, 0) for i in range(len(self._scenes))]
        if shapes is None:
            shapes = [self._probe(scene) for scene in self._scenes]
        return [
            (i, top, left)
            for i, (_, height, width) in enumerate(shapes)
            for top in tile_starts(height, tile)
            for left in tile_starts(width, tile)
        ]

    def _probe(self, scene: _Scene) -> tuple[int, int, int]:
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
        for i in _evenly_spaced(len(whole), DECODED_CHECKS):
            _collect(problems, self._decode, whole[i])
        if problems:
            _raise_together(problems, f"dataset {self.config.root} of {len(self._scenes)} images")
        return [shape for shape in shapes if shape is not None]

    def _check_header(self, scene: _Scene) -> tuple[int, int, int]:
        shape = self._probe(scene)
        if self.config.bands is not None and max(self.config.bands) >= shape[0]:
            raise InputError(
                f"{scene.image} has no band {max(self.config.bands)}",
                got=f"{shape[0]} bands",
                expected=f"indices from 0 to {shape[0] - 1}",
                fix="correct bands or band_axis",
            )
        if self.config.bands is None:
            _require_few_bands(scene, shape[0])
        if scene.label is not None:
            _require_same_size(scene, shape[1:], read_shape(scene.label)[1:])
        return shape


def tile_starts(size: int, tile: int) -> list[int]:
    """First pixels of tiles that cover `size`, the last shifted inward: `tile_starts(10, 4) == [0, 4, 6]`."""
    return [*range(0, size - tile, tile), max(size - tile, 0)]


# --- finding ----------------------------------------------------------------------------------------------


def _find_scenes(config: FolderConfig) -> list[_Scene]:
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"the dataset's root {root} is no folder",
            got=_what_is_at(root),
            fix="correct root, or fetch the dataset",
        )
    pairs = _from_patterns(root, config) if config.index is None else _from_index(root, config)
    pairs = _keep_names(pairs, config)
    missing = [
        InputError(f"{what} {path} does not exist", got=_what_is_at(path))
        for image, label in pairs
        for what, path in (("image", image), ("label", label))
        if path is not None and not path.is_file()
    ]
    if missing:
        _raise_together(
            missing,
            f"dataset {root} of {len(pairs)} images",
            "correct the pattern or the index, or labels: null for a set without labels",
        )
    stems = Counter(image.stem for image, _ in pairs)
    return [_Scene(_scene_name(image, root, stems), image, label) for image, label in pairs]


def _scene_name(image: Path, root: Path, stems: Counter[str]) -> str:
    """The file name without its suffix; with its folders where that alone would stand for two images."""
    if stems[image.stem] == 1 or not image.is_relative_to(root):
        return image.stem
    return "__".join(image.relative_to(root).with_suffix("").parts)


def _from_patterns(root: Path, config: FolderConfig) -> list[tuple[Path, Path | None]]:
    assert config.images is not None
    images = sorted(path for path in root.glob(config.images) if path.is_file() and path.name[0] != ".")
    if not images:
        raise InputError(
            f"no image matches {config.images!r} under {root}",
            got=_what_is_at(root / config.images),
            fix="correct the pattern or root",
        )
    if config.labels is None:
        return [(image, None) for image in images]
    parts = [re.escape(part) for part in Path(config.images).as_posix().split("*")]
    pattern = re.compile("([^/]*)".join(parts), re.IGNORECASE)
    pairs: list[tuple[Path, Path | None]] = []
    for image in images:
        match = pattern.fullmatch(image.relative_to(root).as_posix())
        assert match is not None
        matched = iter(match.groups())
        pairs.append((image, root / re.sub(r"\*", lambda _: next(matched), config.labels)))  # noqa: B023
    return pairs


def _from_index(root: Path, config: FolderConfig) -> list[tuple[Path, Path | None]]:
    assert config.index is not None
    path = root / config.index
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise InputError(
            f"cannot read the index {path}", got=error.strerror, fix="correct index or root"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"the index {path} is no CSV file", got=str(error), expected="UTF-8 with a header line"
        ) from error
    for column in (config.image_column, config.label_column, *config.where):
        if column is not None and column not in columns:
            raise InputError(
                f"the index {path} has no column {column!r}{nearest(column, columns)}",
                got=", ".join(columns),
                fix="correct image_column, label_column or where",
            )
    kept = [
        (number, row)
        for number, row in enumerate(rows, 2)
        if all(row[column] == value for column, value in config.where.items())
    ]
    if not kept:
        present = "; ".join(f"{c}: {_listed(sorted({str(row[c]) for row in rows}))}" for c in config.where)
        raise InputError(
            f"no row of {path} has {config.where}", got=present or "no rows", fix="correct where"
        )
    pairs: list[tuple[Path, Path | None]] = []
    for number, row in kept:
        if not row[config.image_column]:
            raise InputError(f"the index {path} has a row without an image", got=f"row {number}: {row}")
        label = row[config.label_column] if config.label_column is not None else None
        pairs.append((root / row[config.image_column], root / label if label else None))
    return pairs


def _keep_names(
    pairs: list[tuple[Path, Path | None]], config: FolderConfig
) -> list[tuple[Path, Path | None]]:
    stems = [image.stem for image, _ in pairs]
    for key, parts in (("names", config.names), ("exclude", config.exclude)):
        for part in parts:
            if not any(part in stem for stem in stems):
                raise InputError(
                    f"{key}: no image name contains {part!r}{nearest(part, stems)}",
                    got=_listed(stems),
                    fix=f"correct {key}: the case of letters counts",
                )
    kept = [
        pair
        for pair in pairs
        if (not config.names or any(part in pair[0].stem for part in config.names))
        and not any(part in pair[0].stem for part in config.exclude)
    ]
    if not kept:
        raise InputError(
            "exclude leaves no image",
            got=f"names: {config.names}, exclude: {config.exclude}",
            expected="at least one image kept",
        )
    return kept


def _require_patterns(images: str, labels: str | None) -> None:
    for key, pattern in (("images", images), ("labels", labels)):
        if pattern is None:
            continue
        if not pattern or "**" in pattern or re.search(r"[\[\]?]", pattern) or Path(pattern).is_absolute():
            raise InputError(
                f"{key} is no pattern known here",
                got=repr(pattern),
                expected="a path relative to root with '*' for parts of names",
                fix="name each folder level: 'train/*/sar/*.tif'",
            )
    if labels is not None and images.count("*") != labels.count("*"):
        raise InputError(
            "images and labels differ in their number of '*'",
            got=f"{images!r} and {labels!r}",
            expected="as many in both: what one matches is put into the other",
            fix="for instance 'S1/*_S1Hand.tif' and 'Labels/*_LabelHand.tif'",
        )


def _what_is_at(path: Path) -> str:
    """The nearest existing folder above a path or pattern, and what it holds."""
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return f"{folder} holds {_listed(entries) or 'nothing'}"


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# --- checking ---------------------------------------------------------------------------------------------


def _require_same_size(scene: _Scene, image: Sequence[int], label: Sequence[int]) -> None:
    if tuple(image) != tuple(label):
        raise InputError(
            f"image and label differ in size: {scene.image} and {scene.label}",
            got=f"image {image[0]} x {image[1]}, label {label[0]} x {label[1]} (height x width)",
            expected="one label pixel per image pixel",
            fix="bring the label onto the image's grid (nearest neighbour), or correct band_axis",
        )


def _require_few_bands(scene: _Scene, bands: int) -> None:
    if bands > MAX_BANDS:
        raise InputError(
            f"{scene.image} has more bands than the model reads",
            got=f"{bands}",
            expected=f"at most {MAX_BANDS}",
            fix="choose some: bands: [0]",
        )


def _collect(problems: list[InputError], check: Callable[[_Scene], T], scene: _Scene) -> T | None:
    try:
        return check(scene)
    except InputError as error:
        problems.append(error)
        return None


def _evenly_spaced(count: int, limit: int) -> list[int]:
    return list(range(count)) if count <= limit else [i * count // limit for i in range(limit)]


def _raise_together(problems: Sequence[InputError], where: str, fix: str | None = None) -> None:
    if len(problems) == 1 and fix is None:
        raise problems[0]
    lines = [f"{i}. {problem}" for i, problem in enumerate(problems[:_SHOWN_PROBLEMS], 1)]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise InputError("\n".join([f"{where}: {count}", *lines]), fix=fix)
