"""A domain: images of one sensor and region, or a mixture of such, with their statistics in dB.

Images are simulated, lie in a folder as its config says, or are a published dataset in its official layout.
Normalising each domain by its own statistics needs no label of it, and takes the calibration out of the gap.
They are measured at the ground spacing of the model, as averaging changes the deviation; samples keep theirs.

C bands, H W pixels.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from crossearth_sar.config import require, require_name
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.datasets.official import OfficialDataset, Part
from crossearth_sar.data.datasets.places import missing_dataset
from crossearth_sar.data.datasets.published import named_task, open_spec
from crossearth_sar.data.datasets.spec import DatasetSpec
from crossearth_sar.data.domain_statistics import ImageStatistics, NameStatistics, measure_db
from crossearth_sar.data.sample import Origin, Sample, SegmentationDataset
from crossearth_sar.data.simulator.scenes import SimulatedScenes, SimulatorConfig
from crossearth_sar.data.views import View, view_of
from crossearth_sar.errors import InputError
from crossearth_sar.input_contract import InputContract, joined
from crossearth_sar.spacing import evenly_spaced

_log = logging.getLogger(__name__)

HELD_OUT_SCENES = 64
"""Simulated scenes that are enough to validate on."""


@dataclass(frozen=True, kw_only=True)
class OfficialConfig:
    """A domain of a published dataset in its official layout, as `official.OfficialDataset` reads it."""

    dataset: str
    """Its name in the paper, or one that was registered; its folder lies below the data root."""
    domain: str = "all"
    """One of the dataset's; those of pre-training have all."""
    part: Part = "all"
    """One side of the split: train or test; all: both."""
    task: str | None = None
    """Classes that the dataset's are mapped onto: air6, …, seven; null: the dataset's own."""
    pseudo_labels: str | None = None
    """For a dataset without labels: the folder of a teacher's, below the data root."""
    splits: str | None = None
    """Where splits are kept; null: splits below the data root."""
    split_seed: int = 0
    """Another seed, another split where no official one is known."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Changes to the dataset's row: keys of DatasetSpec."""

    def __post_init__(self) -> None:
        domains = self.spec.domains
        require(
            self.domain in domains, f"{self.dataset}: domain", self.domain, f"one of {', '.join(domains)}"
        )
        if self.task is not None:
            named_task(self.task)

    @property
    def spec(self) -> DatasetSpec:
        """The dataset's row, with the changes."""
        return open_spec(self.dataset, self.changes)


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """One source of images, by exactly one of simulated, folder, official and mixture."""

    name: str
    """What reports call it."""
    simulated: SimulatorConfig | None = None
    """Scenes drawn by the simulator."""
    folder: FolderConfig | None = None
    """Image files and label maps below one folder."""
    official: OfficialConfig | None = None
    """A published dataset as it is unpacked."""
    mixture: tuple[DomainConfig, ...] = ()
    """Domains of the same classes, one after the other; each keeps its own statistics."""
    normalize: str = "domain"
    """Whose dB statistics: domain, of the whole of it, or image, of each; tiles of one image share its."""
    normalize_by: tuple[str, ...] = ()
    """Of a folder: parts of image names, as vv and vh; images of one part share its statistics."""
    max_samples: int | None = None
    """Takes only so many samples, evenly spaced; null: all."""

    def __post_init__(self) -> None:
        require_name(self.name, "a domain's name", of_file=True)
        sources = {key: getattr(self, key) for key in ("simulated", "folder", "official", "mixture")}
        given = [key for key, value in sources.items() if value]
        require(len(given) == 1, f"domain {self.name!r}", given, f"exactly one of {', '.join(sources)}")
        require(self.normalize in ("domain", "image"), "normalize", self.normalize, "'domain' or 'image'")
        require(
            self.max_samples is None or self.max_samples >= 1, "max_samples", self.max_samples, "1 or more"
        )
        fits = self.folder is not None and self.normalize == "domain"
        require(not self.normalize_by or fits, "normalize_by", self.normalize_by, "nothing but for a folder")
        if self.mixture:
            names = [part.name for part in self.mixture]
            require(len(set(names)) == len(names), f"names in mixture {self.name!r}", names, "distinct names")
            where = f"mixture {self.name!r}: normalize"
            require(self.normalize == "domain", where, self.normalize, "a setting of each of its domains")


class TraceableDataset(SegmentationDataset, Protocol):
    """A dataset that can say where each sample comes from."""

    def origin(self, index: int) -> Origin: ...


class Mixture:
    """Domains one after the other; a sample carries the statistics of the domain that it is of.

    Args:
        parts: of the same classes, if there are `labels` to be used.
    """

    def __init__(self, parts: Sequence[Domain], *, labels: bool = True) -> None:
        if labels:
            require_same_classes(parts)
        self.parts, self.classes = parts, parts[0].classes
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        part, place = self._find(index)
        return part[place]

    def view(self, index: int) -> View | None:
        part, place = self._find(index)
        return part.view(place)

    def origin(self, index: int) -> Origin:
        part, place = self._find(index)
        return part.origin(place)

    def _find(self, index: int) -> tuple[Domain, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)


class Domain:
    """A SegmentationDataset whose samples carry db_mean and db_std, (C,) each.

    Args:
        pixel_m: ground spacing of the model that it is for, metres: what the statistics are measured at.
            Images that do not know their own are measured as they are, which is logged once. None: all are.
    """

    def __init__(self, config: DomainConfig, dataset: TraceableDataset, pixel_m: float | None = None) -> None:
        self.name, self.dataset, self.classes = config.name, dataset, dataset.classes
        self.pixel_m, self._told = pixel_m, bool(config.mixture)  # a mixture's parts tell
        self._chosen = evenly_spaced(len(dataset), config.max_samples or len(dataset))
        self.config = config
        self.db_mean, self.db_std = (None, None)
        self._by_name = None
        if config.normalize_by:
            assert isinstance(dataset, FolderScenes), "the config has checked it"
            self._by_name = NameStatistics(dataset, config.normalize_by, pixel_m, config.name)
        elif config.normalize == "domain" and not config.mixture:
            self.db_mean, self.db_std = measure_db(dataset, pixel_m=pixel_m, domain=config.name)
        self._images = ImageStatistics(dataset, pixel_m)
        if pixel_m is not None and len(dataset):
            first = view_of(dataset, 0) or View.of(dataset[0])
            self._tell_unknown(first.pixel_m, first.name)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[self._chosen[index]]
        self._tell_unknown(sample.get("pixel_m"), sample["name"])
        if "db_mean" in sample:  # of a mixture: its part's
            return sample
        mean, std = self._statistics(index, sample)
        return {**sample, "db_mean": mean, "db_std": std}

    def view(self, index: int) -> View | None:
        """Sample `index` before it is read, where it is a large image (`views.View`)."""
        view = view_of(self.dataset, self._chosen[index])
        if view is None or isinstance(self.dataset, Mixture):
            return view
        self._tell_unknown(view.pixel_m, view.name)
        return view.with_statistics(*self._statistics(index))

    def _statistics(self, index: int, sample: Sample | None = None) -> tuple[Tensor, Tensor]:
        if self._by_name is not None:
            return self._by_name.of(self._chosen[index])
        if self.db_mean is not None and self.db_std is not None:
            return self.db_mean, self.db_std
        return self._images.of(self._chosen[index], sample)

    def origin(self, index: int) -> Origin:
        """Where the sample comes from, see `sample.Origin`."""
        return self.dataset.origin(self._chosen[index])

    def contract(self) -> InputContract:
        """What a model that trains on it is trained on; statistics of one domain of measured images alone."""
        if isinstance(self.dataset, Mixture):
            return joined([part.contract() for part in self.dataset.parts], self.name)
        config, known = self.config, dict[str, Any]()
        if config.folder is not None:
            known = {"values": config.folder.values, "band_indices": config.folder.bands}
        elif config.official is not None:
            spec = config.official.spec
            names = spec.domains[config.official.domain].polarizations or None
            known = {"values": spec.values, "band_indices": spec.bands, "band_names": names}
        if config.simulated is None and self.db_mean is not None and self.db_std is not None:
            known |= {"db_mean": tuple(self.db_mean.tolist()), "db_std": tuple(self.db_std.tolist())}
        bands = len(self.db_mean) if self.db_mean is not None else len(self.dataset[self._chosen[0]]["image"])
        return InputContract(domain=self.name, bands=bands, **known)

    def _tell_unknown(self, own_m: float | None, name: str) -> None:
        """Once a domain: that an image is taken as it is, since nothing says how long its pixels are."""
        if self.pixel_m is None or self._told or own_m is not None:
            return
        self._told = True
        _log.warning(
            "domain %r: the ground spacing of %s is not known, so it is taken as it is, though the model "
            "works at %g m a pixel; say it: pixel_m of the folder, or of the dataset's changes, in metres",
            self.name,
            name,
            self.pixel_m,
        )

    @property
    def notes(self) -> list[str]:
        """Where the files of a published dataset differ from what was published, a sentence each."""
        return self.dataset.notes if isinstance(self.dataset, OfficialDataset) else []


def open_domain(
    config: DomainConfig, root: str = "", pixel_m: float | None = None, *, labels: bool = True
) -> Domain:
    """Opens and checks the domain; relative folders are taken below `root`, `pixel_m` is as in `Domain`.

    Args:
        labels: False leaves the labels of folders and published datasets alone, which need not be there
            then, and a mixture may be of domains of any classes.

    Raises:
        InputError: for anything wrong with the files that can be known early.
    """
    if config.simulated is not None:
        return Domain(config, SimulatedScenes(config.simulated), pixel_m)
    if config.folder is not None:
        folder = replace(config.folder, root=str(Path(root) / config.folder.root))
        folder = folder if labels else folder.without_labels()
        return Domain(config, FolderScenes(folder), pixel_m)
    if config.official is not None:
        return Domain(config, open_official(config.official, root, labels=labels), pixel_m)
    _require_present(config, root)
    parts = [open_domain(part, root, pixel_m, labels=labels) for part in config.mixture]
    return Domain(config, Mixture(parts, labels=labels), pixel_m)


def open_official(config: OfficialConfig, root: str | Path, *, labels: bool = True) -> OfficialDataset:
    """The published dataset's domain below the data root `root`; `labels` as in `open_domain`.

    Raises:
        InputError: as OfficialDataset; a missing dataset says where to get it and how it must lie.
    """
    spec, root = config.spec, Path(root).expanduser()
    task = named_task(config.task) if config.task is not None else None
    if task is not None and spec.labels is None and spec.classes == task.classes.names:
        task = None  # a teacher's labels are of the task's classes already
    if not labels:
        spec, task = replace(spec, labels=None), None
    return OfficialDataset(
        spec,
        root,
        config.domain,
        part=config.part,
        task=task,
        splits=None if config.splits is None else root / config.splits,
        seed=config.split_seed,
        pseudo_labels=root / config.pseudo_labels if config.pseudo_labels and labels else None,
    )


def require_same_classes(domains: Sequence[Domain]) -> None:
    """InputError unless all have the classes of the first, in its order."""
    first = domains[0]
    for other in domains[1:]:
        if other.classes.names != first.classes.names:
            raise InputError(
                f"domain {other.name!r} has other classes than {first.name!r}",
                got=", ".join(other.classes.names),
                expected=", ".join(first.classes.names),
                fix="give every domain the same classes; map what one lacks to ignore",
            )


def require_held_out(train: Domain, others: Sequence[Domain]) -> None:
    """InputError where a domain shows an image with a label that `train` shows too: no score would be honest.

    An image with two label maps, each of one half, may be on both sides.
    """
    windows: dict[Hashable, set[Hashable]] = defaultdict(set)
    for index in range(len(train)):
        image, label, window = train.origin(index)
        windows[image, label].add(window)
    for other in others:
        for index in range(len(other)):
            image, label, window = other.origin(index)
            trained = windows.get((image, label), set())
            if window in trained or (trained and (window is None or None in trained)):
                raise InputError(
                    f"domain {other.name!r} shows what {train.name!r} trains on",
                    got=f"{image[0]}, label {label or 'its own'}, in both",
                    expected="images, or label maps, that training does not see",
                    fix="part with names, exclude, where, another folder or seed, or part: train and test",
                )


def held_out_of(config: DomainConfig) -> tuple[DomainConfig, DomainConfig]:
    """(what trains, what validates) of a domain that stands for both, so that `require_held_out` agrees.

    Of a folder and of a published dataset the two sides of its split, of simulated scenes other places (the
    next seed, at most 64 of them), of a mixture those of each of its domains. What validates is called
    after the domain, with «-held-out».

    Raises:
        InputError: the domain is a test side itself.
    """
    name = f"{config.name}-held-out"
    if config.mixture:
        sides = [held_out_of(part) for part in config.mixture]
        return (
            replace(config, mixture=tuple(train for train, _ in sides)),
            replace(config, name=name, mixture=tuple(held_out for _, held_out in sides)),
        )
    if config.simulated is not None:
        scenes = config.simulated
        other = replace(scenes, seed=scenes.seed + 1, length=min(scenes.length, HELD_OUT_SCENES))
        return config, replace(config, name=name, simulated=other)
    folder, official = config.folder, config.official
    if "test" in (folder and folder.part, official and official.part):
        raise InputError(
            f"domain {config.name!r} is a test side: nothing of it is left to validate on",
            got="part: test",
            expected="part: all or part: train, or a domain to validate on",
            fix="leave part out, or name validation",
        )
    if folder is not None:
        train = replace(config, folder=replace(folder, part="train"))
        return train, replace(config, name=name, folder=replace(folder, part="test"))
    assert official is not None, "the config has checked it"
    train = replace(config, official=replace(official, part="train"))
    return train, replace(config, name=name, official=replace(official, part="test"))


def _require_present(config: DomainConfig, root: str) -> None:
    """InputError that names all published datasets of a mixture that are missing, and describes the first."""
    rows = [part.official.spec for part in config.mixture if part.official is not None]
    missing = [row for row in rows if not (Path(root).expanduser() / row.folder).is_dir()]
    if len(missing) > 1:
        first = Path(root).expanduser() / missing[0].folder
        raise missing_dataset(
            missing[0],
            first,
            f"{len(missing)} of {len(config.mixture)} domains of {config.name!r} are missing: "
            f"{', '.join(row.key for row in missing)}; leave out what cannot be had. The first, "
            f"{missing[0].key}, is not at {first}",
        )
