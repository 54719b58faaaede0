"""One image's map and what lies beside it: predicted strip by strip, written, and said in a line.

Finished rows wait in a file (`maps/strip_store.py`), so a stopped scene goes on. The map itself comes last:
where it is, all that was wanted with it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from crossearth_sar.cli.map_names import georeference_source, is_there, page_files, scores_file
from crossearth_sar.cli.progress import Progress
from crossearth_sar.data.files.names import state
from crossearth_sar.data.files.readers import read_bands
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.maps.files import write_class_map, write_percents
from crossearth_sar.evaluation.maps.page import write_page
from crossearth_sar.evaluation.maps.place import place_of
from crossearth_sar.evaluation.maps.quicklook import quick_look, write_quick_look
from crossearth_sar.evaluation.maps.strip_store import StripStore
from crossearth_sar.evaluation.scene import Scene
from crossearth_sar.evaluation.scene_strips import Sliding, strips, windows_below
from crossearth_sar.ground_scale import row_blocks
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.whole import NotWritten


@dataclass(frozen=True)
class Predictor:
    """A model on a scene. statistics: dB mean and standard deviation; made_of: what else decides the map."""

    model: CrossEarthSAR
    scene: Scene
    statistics: tuple[Tensor, Tensor]
    how: Sliding
    scores: bool
    made_of: dict[str, Any]

    @property
    def bands(self) -> int:
        """Of a strip as it is kept: the classes, and where scores are wanted one each and the entropy."""
        return 1 + (self.model.config.num_classes + 1) * self.scores

    def fill(self, store: StripStore, name: str) -> None:
        """Computes the rows that the store lacks."""
        first = store.next_row
        if first == self.scene.size[0]:
            return
        total = sum(len(columns) for _, columns in windows_below(self.model, self.scene, first))
        with Progress(name, total, "window") as progress:
            for strip in strips(
                self.model, self.scene, *self.statistics, how=self.how, scores=self.scores, first_row=first,
                on_batch=lambda _, count: progress.add(count),
            ):  # fmt: skip
                rows = strip.classes[None]
                store.write(
                    strip.rows, rows if strip.percent is None else np.concatenate([rows, strip.percent])
                )


def make_map(
    predictor: Predictor,
    image: Path,
    target: Path,
    classes: ClassTable,
    *,
    page: bool,
    array_key: str | None = None,
) -> None:
    """Writes the map of an image, its probabilities and its page; says what is on it.

    Args:
        array_key: which array of the file the image is, whose place the map gets.

    Raises:
        InputError: as `scene_strips.strips`.
        NotWritten: the disk is full, say; finished rows are kept.
    """
    started, size = time.perf_counter(), predictor.scene.size
    if page and is_there(target, size, scores=predictor.scores, page=False):
        classes_HW = read_bands(target)[0]
        write_pages(predictor.scene, classes_HW, target, image.name, classes, pixel_counts(classes_HW))
        return
    place = place_of(image, size, array_key) if target.suffix == ".tif" else None  # before hours of work
    made_of = {**predictor.made_of, "image": state(image), "scores": predictor.scores}
    with StripStore(target, (predictor.bands, *size), made_of) as store:
        if store.next_row:
            print(f"{target}: goes on at row {store.next_row} of {size[0]}", flush=True)
        try:
            predictor.fill(store, target.name)
        except NotWritten:
            raise
        except InputError:
            store.remove()
            raise
        map_BHW = store.array()
        if predictor.scores:
            names = *(f"{name}, percent" for name in classes.names), "entropy, percent of its maximum"
            write_percents(map_BHW[1:], scores_file(target), names, like=place or georeference_source(image))
        counts = pixel_counts(map_BHW[0])
        if page:
            write_pages(predictor.scene, map_BHW[0], target, image.name, classes, counts)
        write_class_map(map_BHW[0], target, classes, like=place or image)
        store.remove()
    shares = [f"{name} {n / counts.sum():.1%}" for name, n in zip(classes.names, counts, strict=False) if n]
    shares += [f"not measured {counts[IGNORE_INDEX] / counts.sum():.1%}"] * bool(counts[IGNORE_INDEX])
    seconds = time.perf_counter() - started
    print(f"{target}: {size[0]} x {size[1]}, {seconds:.1f} s; {', '.join(shares)}", flush=True)


def write_pages(
    scene: Scene, classes_HW: np.ndarray, target: Path, title: str, classes: ClassTable, counts: np.ndarray
) -> None:
    """The page of a map and its quick look."""
    look, (html, picture) = quick_look(scene, classes_HW), page_files(target)
    write_quick_look(look, picture, classes)
    write_page(look, html, title, classes, counts)


def pixel_counts(classes_HW: np.ndarray) -> np.ndarray:
    """(256,) pixels of each class number; in parts, for bincount makes eight bytes of each."""
    parts = row_blocks(slice(0, len(classes_HW)), classes_HW.shape[1])
    counts = [np.bincount(classes_HW[rows].ravel(), minlength=IGNORE_INDEX + 1) for rows in parts]
    return np.asarray(np.sum(counts, axis=0))
