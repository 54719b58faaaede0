"""Whose statistics in dB a sample is normalised by: all images of its domain, or its own whole image.

An image here is a file, or what is drawn as one. Tiles that a folder cuts from it share its statistics: a
tile of water alone, normalised by itself, looks like a tile of land alone.

C bands, H W pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath

from torch import Tensor

from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.sample import Sample, SegmentationDataset
from crossearth_sar.data.views import View, view_of
from crossearth_sar.data.working_scale import measured_amplitude
from crossearth_sar.decibels import DomainStatistics
from crossearth_sar.errors import InputError
from crossearth_sar.spacing import evenly_spaced

MEASURED_SAMPLES = 32
"""Evenly spaced samples whose pixels give a domain's mean and standard deviation."""

POLARIZATION_DB = 3.0
"""Mean levels of polarizations that differ by more than this should not share a normalisation."""

_log = logging.getLogger(__name__)


def measure_db(
    dataset: SegmentationDataset,
    max_samples: int = MEASURED_SAMPLES,
    *,
    pixel_m: float | None = None,
    domain: str | None = None,
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in dB, (C,) each, of evenly spaced samples: `decibels.DomainStatistics`.

    Those that know their ground spacing are brought to `pixel_m` metres per pixel first; of large ones that
    can be read in parts, windows are measured (`views.View.measured_parts`). With the name of the
    domain, a warning is logged where the means of its images lie more than `decibels.UNEVEN_DB` apart, or
    those of polarizations more than `POLARIZATION_DB`. With `indices`, of some of the samples.
    """
    statistics = DomainStatistics()
    chosen = range(len(dataset)) if indices is None else indices
    for place in evenly_spaced(len(chosen), max_samples, ends=True):
        index = chosen[place]
        name = f"image {dataset.scene_name(index)}" if isinstance(dataset, FolderScenes) else None
        view = view_of(dataset, index)
        if view is None:
            sample = dataset[index]
            statistics.add(measured_amplitude(sample, pixel_m), name or sample["name"])
        else:
            _add_parts(statistics, view, pixel_m, name or view.name)
    if domain is not None:
        warn_uneven(
            statistics,
            f"domain {domain!r}",
            "normalize: image, in the domain's settings,",
            lambda parts: f"normalize_by: [{', '.join(parts)}], in the domain's settings,",
        )
    return statistics.result()


def _add_parts(statistics: DomainStatistics, view: View, pixel_m: float | None, name: object) -> None:
    for part in view.measured_parts(pixel_m):
        statistics.add(part, name)


def warn_uneven(
    statistics: DomainStatistics, where: str, setting: str, by_name: Callable[[list[str]], str]
) -> None:
    """A warning where images normalised together have means too far apart to be of one calibration, or are of
    several polarizations by their names.

    Args:
        setting: what takes each image's own statistics.
        by_name: of parts of names, what takes the statistics of the images that share one.
    """
    levels = statistics.means_by(polarization_of)
    levels.pop(None, None)
    if levels and max(levels.values()) - min(levels.values()) > POLARIZATION_DB:
        _log.warning(
            "%s: images of several polarizations are normalised together, and their mean levels differ: %s. "
            "%s gives each its own statistics",
            where,
            ", ".join(f"{name} {level:.1f} dB" for name, level in sorted(levels.items(), key=str)),
            by_name(sorted(map(str, levels))),
        )
        return
    words = statistics.uneven_words()
    if words is not None:
        _log.warning(
            "%s: mean levels of images that are normalised together differ by %s. If that is calibration or "
            "sensor and not the ground, %s takes each image's own statistics",
            where,
            words,
            setting,
        )


def polarization_of(name: object) -> str | None:
    """vv, vh, hh or hv, where the file's name has one of them between other things than letters."""
    found = re.findall(r"(?<![a-z])(vv|vh|hh|hv)(?![a-z])", PurePath(str(name)).name.lower())
    return found[0] if len({*found}) == 1 else None


def part_of(name: str, parts: Sequence[str]) -> str:
    """The one of `parts` that the file's name contains, whatever its case.

    Raises:
        InputError: none of them, or several.
    """
    found = [part for part in parts if part.lower() in PurePath(name).name.lower()]
    if len(found) != 1:
        raise InputError(
            f"{name} is of {'none' if not found else 'several'} of the parts of names to normalize by",
            got=", ".join(found) or "none",
            expected=f"exactly one of {', '.join(parts)} in its name",
            fix="correct normalize_by",
        )
    return found[0]


class NameStatistics:
    """Mean and standard deviation in dB, (C,) each, of the images of a folder whose names share a part."""

    def __init__(
        self, dataset: FolderScenes, parts: Sequence[str], pixel_m: float | None, domain: str
    ) -> None:
        self._parts = [part_of(dataset.scene_name(index), parts) for index in range(len(dataset))]
        self._of = {
            part: measure_db(
                dataset,
                pixel_m=pixel_m,
                domain=f"{domain}, {part}",
                indices=[index for index, other in enumerate(self._parts) if other == part],
            )
            for part in {*self._parts}
        }

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """Those of the part that sample `index` is of."""
        return self._of[self._parts[index]]


class ImageStatistics:
    """Mean and standard deviation in dB of each sample's whole image, (C,) each, for `normalize: image`.

    Args:
        pixel_m: ground spacing at which they are measured; None: images as they are.
    """

    def __init__(self, dataset: SegmentationDataset, pixel_m: float | None = None) -> None:
        self.dataset, self.pixel_m = dataset, pixel_m
        self._of_scene: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, index: int, sample: Sample | None = None) -> tuple[Tensor, Tensor]:
        """Those of `dataset[index]`, which is `sample` where it is read already; those of the whole image
        where it is a tile. Of a large image that can be read in parts, windows are measured."""
        dataset = self.dataset
        if not isinstance(dataset, FolderScenes):
            return self._measure(dataset[index] if sample is None else sample)
        scene = dataset.scene_number(index)
        if scene not in self._of_scene:
            view = dataset.scene_view(index)
            if view is None and dataset.config.tile is None:
                return self._measure(dataset[index] if sample is None else sample)
            self._of_scene[scene] = self._measure(dataset.whole_scene(index) if view is None else view)
        return self._of_scene[scene]

    def _measure(self, image: Sample | View) -> tuple[Tensor, Tensor]:
        statistics = DomainStatistics()
        if isinstance(image, View):
            _add_parts(statistics, image, self.pixel_m, image.name)
        else:
            statistics.add(measured_amplitude(image, self.pixel_m), image["name"])
        return statistics.result()
