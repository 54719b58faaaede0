"""Whose statistics in dB a sample is normalised by: all images of its domain, or its own whole image.

An image here is a file, or what is drawn as one. Tiles that a folder cuts from it share its statistics: a
tile of water alone, normalised by itself, looks like a tile of land alone.

C bands, H W pixels.
"""

from __future__ import annotations

import logging

from torch import Tensor

from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.sample import Sample, SegmentationDataset
from crossearth_sar.data.working_scale import measured_amplitude
from crossearth_sar.decibels import DomainStatistics
from crossearth_sar.spacing import evenly_spaced

MEASURED_SAMPLES = 32
"""Evenly spaced samples whose pixels give a domain's mean and standard deviation."""

_log = logging.getLogger(__name__)


def measure_db(
    dataset: SegmentationDataset,
    max_samples: int = MEASURED_SAMPLES,
    *,
    pixel_m: float | None = None,
    domain: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in dB, (C,) each, of evenly spaced samples: `decibels.DomainStatistics`.

    Those that know their ground spacing are brought to `pixel_m` metres per pixel first. With the name of the
    domain, a warning is logged where the means of its images lie more than `decibels.UNEVEN_DB` apart.
    """
    statistics = DomainStatistics()
    for index in evenly_spaced(len(dataset), max_samples, ends=True):
        sample = dataset[index]
        name = f"image {dataset.scene_name(index)}" if isinstance(dataset, FolderScenes) else sample["name"]
        statistics.add(measured_amplitude(sample, pixel_m), name)
    if domain is not None:
        warn_uneven(statistics, f"domain {domain!r}", "normalize: image, in the domain's settings,")
    return statistics.result()


def warn_uneven(statistics: DomainStatistics, where: str, setting: str) -> None:
    """A warning where images normalised together have means too far apart to be of one calibration."""
    words = statistics.uneven_words()
    if words is not None:
        _log.warning(
            "%s: mean levels of images that are normalised together differ by %s. If that is calibration or "
            "sensor and not the ground, %s takes each image's own statistics",
            where,
            words,
            setting,
        )


class ImageStatistics:
    """Mean and standard deviation in dB of each sample's whole image, (C,) each, for `normalize: image`.

    Args:
        pixel_m: ground spacing at which they are measured; None: images as they are.
    """

    def __init__(self, dataset: SegmentationDataset, pixel_m: float | None = None) -> None:
        self.dataset, self.pixel_m = dataset, pixel_m
        self._of_scene: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, index: int, sample: Sample) -> tuple[Tensor, Tensor]:
        """Those of `dataset[index]`, which is `sample`; those of the whole image where that is a tile."""
        dataset = self.dataset
        if not isinstance(dataset, FolderScenes) or dataset.config.tile is None:
            return self._measure(sample)
        scene = dataset.scene_number(index)
        if scene not in self._of_scene:
            self._of_scene[scene] = self._measure(dataset.whole_scene(index))
        return self._of_scene[scene]

    def _measure(self, sample: Sample) -> tuple[Tensor, Tensor]:
        statistics = DomainStatistics()
        statistics.add(measured_amplitude(sample, self.pixel_m), sample["name"])
        return statistics.result()
