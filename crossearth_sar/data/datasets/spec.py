"""What a published dataset is, as data: its files, their encodings, classes, domains and paper counts.

`DatasetSpec` is one row of the tables in `benchmarks.py` and `pretraining.py`, and of what others register
(`published.register`); `official.py` reads what a row describes. Every field can be changed without touching
the package: a mapping with the same keys is merged over the row (`published.open_spec`), which is how facts
that no publication states («?» in docs/BENCHMARKS.md) are corrected by whoever has the files. What this is
not: code that knows a dataset by name.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from crossearth_sar.config import require
from crossearth_sar.data.datasets.tasks import Task, class_lookup
from crossearth_sar.data.files.amplitude import ValueKind
from crossearth_sar.data.files.labels import IGNORE, RGB, label_table
from crossearth_sar.data.files.readers import BandAxis
from crossearth_sar.errors import InputError
from crossearth_sar.ground_scale import require_pixel_m

ComplexPart = Literal["amplitude", "real", "imaginary"]
LabelKind = Literal["real", "pseudo"]
SplitUnit = Literal["patch", "block", "scene"]

_FIELDS = ("region", "polarization")


@dataclass(frozen=True, kw_only=True)
class PaperCounts:
    """Patches of a region as the paper counts them; total = train + test."""

    total: int
    """All patches of the region."""
    train: int | None = None
    """Those for training; null where the paper gives no split."""
    test: int | None = None
    """Those for testing; null where the paper gives no split."""

    def __post_init__(self) -> None:
        fits = self.train is None or self.test is None or self.train + self.test == self.total
        require(fits, "counts", (self.train, self.test), f"parts that add up to {self.total}")


@dataclass(frozen=True, kw_only=True)
class DomainSpec:
    """One domain of a dataset: some of its regions, seen through some of its channels."""

    regions: tuple[str, ...]
    """Keys of the dataset's regions."""
    polarizations: tuple[str, ...] = ()
    """Channels that become a sample's bands, in this order; at most three; none: one channel."""
    part: ComplexPart = "amplitude"
    """Of complex data: the magnitude becomes the amplitude, or that of one component."""

    def __post_init__(self) -> None:
        require(bool(self.regions), "regions", self.regions, "at least one")
        require(len(self.polarizations) <= 3, "polarizations", self.polarizations, "at most three bands")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One published dataset.

    In `images` and `labels`, `{region}` and `{polarization}` are filled in, `*` stands for any part of one
    name, a suffix `.*` for any kind of file that can be read. What the stars match pairs images of several
    polarizations and labels.
    """

    key: str
    """Its name in the paper."""
    folder: str
    """The folder expected below the data root."""
    home: str
    """Where to get it."""
    tree: tuple[str, ...]
    """How the files lie, for people; printed when something is missing."""
    images: str
    """Pattern of its images below the dataset's folder."""
    labels: str | None
    """Pattern of its label maps, as many '*' as images has; null: the dataset has none."""
    domains: dict[str, DomainSpec]
    """Name in the paper's tables: what it is."""
    classes: tuple[str, ...]
    """Of the dataset itself, before any map."""
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    """Task: {each class of the dataset: a class of the task, or ignore}."""
    regions: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"all": ("",)})
    """Region: names its folder may have, of which one must exist; "" where patterns have none; "a+b" is a
    region of two folders, which both must exist."""
    palette: tuple[RGB, ...] | None = None
    """Colours of the classes in pictures."""
    label_values: dict[int, str] = field(default_factory=dict)
    """Raw label value: class name or ignore; without, value i is class i and 255 is ignored."""
    label_palette: dict[str, RGB | tuple[RGB, ...]] = field(default_factory=dict)
    """Class name or ignore: its colour, or colours, where labels are RGB."""
    label_tolerance: int = 0
    """Colours so near to one of label_palette (sum over R, G and B) are it, others ignored; 0: refused."""
    values: ValueKind = "amplitude"
    """What the numbers in image files are."""
    components: bool = False
    """Complex numbers are two real bands of a file, the real and the imaginary part."""
    nodata: float | None = None
    """The number of a pixel without a measurement; null: what the file says."""
    scale: float | None = None
    """Stored numbers are multiplied by it; null: by what a TIFF's metadata say."""
    offset: float | None = None
    """And this is added; null: what a TIFF's metadata say."""
    clip_negative: bool = False
    """Takes negative amplitudes or intensities, which noise subtraction leaves, for 0."""
    bands: tuple[int, ...] | None = None
    """Channels to take inside one file; null: all."""
    band_axis: BandAxis = "auto"
    """Where the bands are in an array of three axes."""
    pixel_m: float | None = None
    """Ground spacing of the images, metres per pixel; null: what a GeoTIFF's tags say, else not known."""
    scene_size: tuple[int, int] | None = None
    """(height, width) of every file; null where they differ: each is looked at when opened."""
    window: int = 512
    """Larger scenes are read as squares of so many pixels, the last of a row shifted inward."""
    upsample: bool = False
    """Enlarge images that are smaller than the window to it."""
    split_unit: SplitUnit = "patch"
    """What the 80/20 rule draws: single patches, blocks of patches, or whole files."""
    block: int = 4
    """Of split_unit block: so many patches a side."""
    test_list: str | None = None
    """Text file below the dataset's folder that names the test scenes; if there, it is the split."""
    counts: dict[str, PaperCounts] = field(default_factory=dict)
    """Region: the paper's numbers of patches."""
    labels_are: LabelKind = "real"
    """pseudo where the paper's labels came from a teacher; they lie in a folder of their own."""
    unstated: tuple[str, ...] = ()
    """What no source states, and what this row assumes."""

    def __post_init__(self) -> None:
        require(self.window >= 16, "window", self.window, "at least 16 pixels")
        require_pixel_m(self.pixel_m)
        _require_pattern("images", self.images)
        if self.labels is not None:
            _require_pattern("labels", self.labels)
            require(
                self.labels.count("*") - self.labels.endswith(".*")
                == self.images.count("*") - self.images.endswith(".*"),
                "labels",
                self.labels,
                f"as many '*' as images has: {self.images!r}",
            )
        for name, domain in self.domains.items():
            for region in domain.regions:
                require(
                    region in self.regions, f"domain {name!r}: regions", region, f"one of {[*self.regions]}"
                )
            needs = "{polarization}" in self.images
            require(
                needs == bool(domain.polarizations),
                f"domain {name!r}: polarizations",
                domain.polarizations,
                "some" if needs else "none: images has no {polarization}",
            )
            is_part = domain.part != "amplitude"
            require(
                not is_part or self.values == "complex",
                f"domain {name!r}: part",
                domain.part,
                "complex values",
            )
        fits = not self.components or (self.values == "complex" and self.bands is None)
        require(fits, "components", (self.values, self.bands), "values: complex, and bands: null")
        require(self.block >= 1, "block", self.block, "at least one patch a side")
        if self.labels is not None:
            label_table(self.classes, self.label_values, self.label_palette, self.color_tolerance)

    @property
    def color_tolerance(self) -> int:
        """label_tolerance, which says nothing of labels that a change made numbers."""
        return self.label_tolerance if self.label_palette else 0

    def lookup(self, task: Task) -> np.ndarray:
        """(256,) uint8: index of a class of this dataset -> index in the task, 255 for what is ignored.

        Raises:
            InputError: the row has no map onto the task, or one that does not fit both.
        """
        if task.key not in self.maps:
            raise InputError(
                f"task {task.key!r} has no class map for {self.key!r}",
                got=f"maps onto {', '.join(self.maps) or 'no task'}",
                expected=f"maps: {{{task.key}: {{class of the dataset: class of the task, or ignore}}}}",
                fix="add it to the dataset's row, or to the data file (docs/BENCHMARKS.md)",
            )
        return class_lookup(self.key, self.classes, self.maps[task.key], task)

    def dropped(self, task: str) -> tuple[str, ...]:
        """Classes whose pixels are ignored in a task."""
        return tuple(name for name, onto in self.maps[task].items() if onto == IGNORE)


def same_names(*names: str) -> dict[str, str]:
    """A map, or part of one, of classes that a task calls as the dataset does."""
    return {name: name for name in names}


def _require_pattern(name: str, pattern: str) -> None:
    try:
        used = [part for _, part, _, _ in string.Formatter().parse(pattern) if part is not None]
    except ValueError as error:
        raise InputError(f"{name} is no pattern", got=f"{pattern!r}: {error}") from error
    unknown = [part for part in used if part not in _FIELDS]
    if unknown or "**" in pattern or not pattern:
        raise InputError(
            f"{name} is no pattern known here",
            got=repr(pattern),
            expected=f"a path with '*' and the fields {', '.join('{' + f + '}' for f in _FIELDS)}",
        )
