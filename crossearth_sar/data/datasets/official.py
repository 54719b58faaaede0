"""A published dataset in its official layout as samples: found, split, windowed, mapped onto a task.

One class reads every row (`spec.DatasetSpec`). Scenes are cut while reading (`windows.py`); nothing
on disk is copied or converted. What this is not: a downloader; a missing dataset says where to get it.

C bands, H W pixels.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch.nn.functional as F

from crossearth_sar.data.datasets.places import Place, find_places
from crossearth_sar.data.datasets.spec import ComplexPart, DatasetSpec
from crossearth_sar.data.datasets.splits import (
    Split,
    block_starts,
    draw_split,
    official_split,
    stored_split,
    train_share,
)
from crossearth_sar.data.datasets.tasks import Task, class_table
from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.data.files.doubts import FillDoubts
from crossearth_sar.data.files.georeference import label_flips
from crossearth_sar.data.files.labels import decode_label_parts, label_table, read_label
from crossearth_sar.data.files.readers import (
    RawImage,
    Reading,
    read_pixel_m,
    read_place,
    read_shape,
    read_whole,
)
from crossearth_sar.data.files.windows import Window, read_image_window, read_label_window
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable, Origin, Sample
from crossearth_sar.data.working_scale import described_sample
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.ground_scale import centre_pixels
from crossearth_sar.spacing import evenly_spaced, sliding_windows, window_starts

Part = Literal["all", "train", "test"]

DECODED_CHECKS = 32
"""How many samples, evenly spaced, are read when a dataset is opened."""

_SHOWN_PROBLEMS = 5

_log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """place: its number. window: None is the whole file. unit: what of it the split draws."""

    place: int
    window: Window | None
    unit: str


class OfficialDataset:
    """One domain of a published dataset; a `sample.SegmentationDataset`.

    Args:
        spec: which dataset, and how it lies.
        data_root: the folder that holds `spec.folder`.
        domain: a key of `spec.domains`.
        part: "train" and "test" are the two sides of the split, "all" is both.
        task: maps the dataset's classes onto a task's; None keeps the dataset's own.
        splits: the folder where splits are kept; None: `splits` in `data_root`.
        seed: of the split.
        pseudo_labels: for a dataset without labels, a folder of label maps that mirrors the image paths
            below the dataset's folder (PNG, indices of `spec.classes`, 255 ignored).
        check: read up to 32 samples now.

    Attributes:
        notes: where the files differ from the paper's counts, one sentence each; also logged as warnings.

    Raises:
        InputError: the dataset or a part of it is missing, the split does not fit it, a file is damaged, an
            image and its label differ in size, or a label holds an unknown value.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        data_root: str | Path,
        domain: str,
        *,
        part: Part = "all",
        task: Task | None = None,
        splits: str | Path | None = None,
        seed: int = 0,
        pseudo_labels: str | Path | None = None,
        check: bool = True,
    ) -> None:
        if domain not in spec.domains:
            raise InputError(
                f"{spec.key} has no domain {domain!r}{nearest(domain, spec.domains)}",
                expected=f"one of {', '.join(spec.domains)}",
            )
        self.spec, self.domain = spec, spec.domains[domain]
        self.root = Path(data_root).expanduser() / spec.folder
        self.classes: ClassTable = task.classes if task else class_table(spec.classes, spec.palette)
        self._lookup = spec.lookup(task) if task else np.arange(256, dtype=np.uint8)
        values = {**dict(enumerate(spec.classes)), IGNORE_INDEX: "ignore"}
        has_own = spec.labels is not None
        self._labels = label_table(
            spec.classes,
            (spec.label_values if has_own else values) or None,
            spec.label_palette if has_own else None,
            spec.color_tolerance if has_own else 0,
        )
        self.notes: list[str] = []
        self._doubts: FillDoubts | None = None
        folder = None if pseudo_labels is None else Path(pseudo_labels).expanduser()
        self._places = find_places(spec, self.domain, self.root, folder)
        self._samples = self._cut()
        self._note_counts()
        if part != "all":
            splits_folder = Path(data_root).expanduser() / "splits" if splits is None else Path(splits)
            kept = self._kept(part, splits_folder, seed)
            self._samples = [s for s in self._samples if s.unit in kept]
        if check:
            self._doubts = FillDoubts("nodata: {} in the dataset's changes")
            self._check()
            self._doubts = None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        place, window, _ = self._samples[index]
        values, valid = self._read_bands(self._places[place], window)
        amplitude = self._amplitude(values, valid, self._places[place])
        mask = self._mask(self._places[place], window, amplitude.shape[1:])
        mask[~valid] = IGNORE_INDEX
        pixel_m = self.spec.pixel_m
        if pixel_m is None:
            pixel_m = read_pixel_m(self._places[place].images[0])
        sample = described_sample(amplitude, mask, valid, self._name(place, window), pixel_m)
        return _enlarged(sample, self.spec.window) if self.spec.upsample else sample

    def origin(self, index: int) -> Origin:
        """Files and window of a sample: see `sample.Origin`."""
        number, window, _ = self._samples[index]
        place = self._places[number]
        label = None if place.label is None else os.path.abspath(place.label)
        return tuple(os.path.abspath(image) for image in place.images), label, window

    @property
    def names(self) -> list[str]:
        """Of the samples, in their order."""
        return [self._name(place, window) for place, window, _ in self._samples]

    def _cut(self) -> list[_Sample]:
        spec, side = self.spec, self.spec.window
        if spec.scene_size is not None and max(spec.scene_size) <= side:
            return [_Sample(i, None, place.name) for i, place in enumerate(self._places)]
        samples: list[_Sample] = []
        for i, place in enumerate(self._places):
            _, height, width = read_shape(place.images[0], band_axis=spec.band_axis)
            if place.label is not None:
                _require_equal(place, (height, width), read_shape(place.label)[1:])
                _require_same_way(place.images[0], place.label)
            tops, lefts = (window_starts(extent, side, side) for extent in (height, width))
            block = spec.block if spec.split_unit == "block" else 1
            anchors = itertools.product(*(block_starts(starts, side, block) for starts in (tops, lefts)))
            windows = sliding_windows(height, width, side, side)
            for (rows, columns), (top, left) in zip(windows, anchors, strict=True):
                unit = place.name if spec.split_unit == "scene" else f"{place.name}_y{top}_x{left}"
                samples.append(_Sample(i, Window.of(rows, columns), unit))
        return samples

    def _name(self, place: int, window: Window | None) -> str:
        name = self._places[place].name
        return name if window is None else f"{name}_y{window.top}_x{window.left}"

    def _note_counts(self) -> None:
        found = Counter(self._places[sample.place].region for sample in self._samples)
        for region in self.domain.regions:
            paper = self.spec.counts.get(region)
            if paper is not None and found[region] != paper.total:
                self._note(
                    f"{self.spec.key}, region {region}: got {found[region]} patches, "
                    f"the paper has {paper.total}"
                )

    def _kept(self, part: Part, folder: Path, seed: int) -> set[str]:
        """Units of the samples on one side of the split, region by region."""
        kept: set[str] = set()
        for region in self.domain.regions:
            here = [s.unit for s in self._samples if self._places[s.place].region == region]
            split = self._region_split(region, here, folder, seed)
            kept |= set(split.train if part == "train" else split.test)
        if not kept:
            raise InputError(
                f"the {part} side of {self.spec.key} is empty",
                got=f"{len(self._samples)} samples",
                expected="at least five, for four fifths and one fifth",
            )
        return kept

    def _region_split(self, region: str, here: list[str], folder: Path, seed: int) -> Split:
        """Of a region, with the unit of each of its samples."""
        spec = self.spec
        units = list(dict.fromkeys(here))
        official = None if spec.test_list is None else self.root / spec.test_list
        if official is not None and official.is_file():
            return official_split(official, units)
        if official is not None:
            self._note(f"{spec.key}: no official list at {official}, the split is drawn")
        train = train_share(len(here), spec.counts.get(region)) * len(units) // len(here)
        group = f"{spec.key}/{region}"
        drawn = draw_split(units, train_count=train, seed=seed, group=group)
        blocks = f"-blocks{spec.block}" if spec.split_unit == "block" else ""
        path = folder / f"{spec.key}-{region}{blocks}-seed{seed}.json"
        about = {"dataset": spec.key, "region": region, "seed": seed, "unit": spec.split_unit}
        return stored_split(path, units, drawn=drawn, about=about)

    def _note(self, note: str) -> None:
        self.notes.append(note)
        _log.warning("%s", note)

    def _read_bands(self, place: Place, window: Window | None) -> tuple[np.ndarray, np.ndarray]:
        """The bands of every channel's file, (C, H, W) in their dtype; (H, W) bool, valid in all of them."""
        parts, valid = [], []
        for path in place.images:
            raw = self._read(path, window)
            bands = raw.values
            if np.iscomplexobj(bands) != (self.spec.values == "complex"):
                raise InputError(  # before channels are joined, which would make complex numbers of all
                    f"{path} is not {self.spec.values!r} as {self.spec.key} is declared",
                    got=f"dtype {bands.dtype}",
                    expected="a complex dtype" if self.spec.values == "complex" else "a real dtype",
                    fix="correct values in the data file",
                )
            valid.append(raw.valid)
            parts.append(bands)
            if parts[0].shape != bands.shape:
                raise InputError(
                    f"channels of one place differ: {place.images[0]} and {path}",
                    got=f"{parts[0].shape} and {bands.shape} (bands, height, width)",
                    expected="the same shape",
                )
        if len(parts) * len(parts[0]) > 3:
            raise InputError(
                f"{place.images[0]} has more bands than the model reads",
                got=f"{len(parts) * len(parts[0])}",
                expected="at most 3",
                fix="choose some in the data file: bands: [0]",
            )
        return np.concatenate(parts), np.logical_and.reduce(valid)

    def _read(self, path: Path, window: Window | None) -> RawImage:
        """A file, or the window of it, as its row says."""
        spec = self.spec
        how: Reading = {
            "band_axis": spec.band_axis,
            "nodata": spec.nodata,
            "bands": spec.bands,
            "scale": spec.scale,
            "offset": spec.offset,
            "complex_bands": spec.components,
        }
        raw = read_whole(path, **how) if window is None else read_image_window(path, window, **how)
        if window is None:
            self._require_size(raw.values, path)
        if self._doubts is not None and raw.valid.any():
            self._doubts.look(raw)
        return raw

    def _require_size(self, bands: np.ndarray, path: Path) -> None:
        size = self.spec.scene_size
        if size is not None and bands.shape[1:] != size:
            raise InputError(
                f"{path} has another size than {self.spec.key} was published with",
                got=f"{bands.shape[1]} x {bands.shape[2]}",
                expected=f"{size[0]} x {size[1]} (height x width)",
                fix="get it anew, or set scene_size: null in the data file if you cut it yourself",
            )

    def _amplitude(self, values: np.ndarray, valid: np.ndarray, place: Place) -> np.ndarray:
        name = place.images[0]
        part: ComplexPart = self.domain.part
        if part != "amplitude" and np.iscomplexobj(values):
            component = np.abs(values.real if part == "real" else values.imag)
            return to_amplitude(component, "amplitude", valid=valid, name=name)
        clip = self.spec.clip_negative
        return to_amplitude(values, self.spec.values, valid=valid, clip_negative=clip, name=name)

    def _mask(self, place: Place, window: Window | None, shape: tuple[int, ...]) -> np.ndarray:
        if place.label is None:
            return np.full(shape, IGNORE_INDEX, np.uint8)
        if window is None:
            mask = read_label(place.label, self._labels, onto=read_place(place.images[0]))
            _require_equal(place, shape, mask.shape)
            return self._lookup[mask]
        parts = read_label_window(place.label, window, expand_colors=self._labels.is_rgb)
        return self._lookup[decode_label_parts(parts, self._labels, name=place.label)]

    def _check(self) -> None:
        chosen = evenly_spaced(len(self), DECODED_CHECKS)
        problems: list[InputError] = []
        for index in chosen:
            try:
                self[index]
            except InputError as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            lines = [f"{i}. {problem}" for i, problem in enumerate(problems[:_SHOWN_PROBLEMS], 1)]
            more = len(problems) - _SHOWN_PROBLEMS
            raise InputError(
                "\n".join(
                    [
                        f"{self.spec.key}: {len(problems)} of {len(chosen)} samples looked at cannot be used",
                        *lines,
                        *([f"and {more} more"] if more > 0 else []),
                    ]
                )
            )


def _require_same_way(image: Path, label: Path) -> None:
    """InputError where a label that is read in windows lies elsewhere than its image, or the other way up."""
    if any(label_flips(read_place(image), read_place(label), f"{image} and {label}")):
        raise InputError(
            f"rows or columns of a label run against its image's: {image} and {label}",
            expected="both north up, say",
            fix="turn one of them (gdalwarp)",
        )


def _require_equal(place: Place, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    if tuple(image) != tuple(label):
        raise InputError(
            f"image and label differ in size: {place.images[0]} and {place.label}",
            got=f"image {image[0]} x {image[1]}, label {label[0]} x {label[1]} (height x width)",
            expected="one label pixel per image pixel",
        )


def _enlarged(sample: Sample, side: int) -> Sample:
    """A sample smaller than `side` on both axes, enlarged to it on the longer; labels are copied."""
    height, width = sample["mask"].shape
    if max(height, width) >= side:
        return sample
    size = (round(height * side / max(height, width)), round(width * side / max(height, width)))
    image = F.interpolate(sample["image"][None], size=size, mode="bilinear", align_corners=False)[0]
    labels = F.interpolate(sample["mask"][None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    larger: Sample = {**sample, "image": image, "mask": labels}
    if "valid" in sample:
        larger["valid"] = centre_pixels(sample["valid"], size)
    if "pixel_m" in sample:
        larger["pixel_m"] = sample["pixel_m"] * max(height, width) / side
    return larger
