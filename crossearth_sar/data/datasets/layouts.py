"""How a published dataset lies on disk, as data: patterns, encodings, domains and the paper's counts.

`DatasetSpec` is one row of the tables in `specs.py` (benchmarks) and `sources.py` (pre-training);
`official.py` reads what a row describes. Every field can be changed without touching the package: a mapping
with the same keys is merged over the row (`official.open_spec`), which is how facts that no publication
states («?» in docs/BENCHMARKS.md) are corrected by whoever has the files. What this is not: code that knows
a dataset by name.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Literal

from crossearth_sar.config import require
from crossearth_sar.data.files.amplitude import ValueKind
from crossearth_sar.data.files.labels import RGB, label_table
from crossearth_sar.data.files.readers import BandAxis
from crossearth_sar.errors import InputError

ComplexPart = Literal["amplitude", "real", "imaginary"]
LabelKind = Literal["real", "pseudo"]
SplitUnit = Literal["patch", "scene"]

_FIELDS = ("region", "polarization")


@dataclass(frozen=True, kw_only=True)
class PaperCounts:
    """Patches of a region as the paper counts them; total = train + test, None where it gives no split."""

    total: int
    train: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        fits = self.train is None or self.test is None or self.train + self.test == self.total
        require(fits, "counts", (self.train, self.test), f"parts that add up to {self.total}")


@dataclass(frozen=True, kw_only=True)
class DomainSpec:
    """One domain of a dataset: some of its regions, seen through some of its channels.

    regions: keys of `DatasetSpec.regions`.
    polarizations: which channels become the bands of a sample, in this order; at most three, as the model
        reads. Empty for a dataset of one channel.
    part: of complex data, what becomes the amplitude: the magnitude, or the magnitude of one component.
    """

    regions: tuple[str, ...]
    polarizations: tuple[str, ...] = ()
    part: ComplexPart = "amplitude"

    def __post_init__(self) -> None:
        require(bool(self.regions), "regions", self.regions, "at least one")
        require(len(self.polarizations) <= 3, "polarizations", self.polarizations, "at most three bands")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One published dataset.

    key: its name in the paper. folder: the folder expected below the data root. home: where to get it.
    tree: how the files lie, for people; printed when something is missing.
    images, labels: patterns below the dataset's folder. `{region}` and `{polarization}` are filled in, `*`
        stands for any part of one name, a suffix `.*` for any kind of file that can be read. What the stars
        match pairs images of several polarizations and labels. labels None: the dataset has none.
    regions: region -> the names its folder may have, of which one must exist; "" where patterns have none.
    domains: name in the paper's tables -> what it is.
    classes, palette: of the dataset itself, before any class map. label_values, label_palette: as in
        `labels.label_table`.
    values, nodata, bands, band_axis: as in `folder.FolderConfig`; bands picks channels inside one file.
    scene_size: (H, W) that every file has; None where they differ, and then each is looked at when the
        dataset is opened.
    window: scenes larger than this are cut into squares of so many pixels while reading, the last of a row
        or column shifted inward. upsample: smaller images are enlarged to it.
    split_unit: whether the 80/20 rule draws single patches or whole files. test_list: a text file below the
        dataset's folder, names of test scenes one a line, or after a line `test:`; if it is there, it is
        the split.
    counts: region -> the paper's numbers of patches.
    labels_are: "pseudo" where the paper's labels came from a teacher; they lie in a folder of their own.
    unstated: what no source states, and what this row assumes.
    """

    key: str
    folder: str
    home: str
    tree: tuple[str, ...]
    images: str
    labels: str | None
    domains: dict[str, DomainSpec]
    classes: tuple[str, ...]
    regions: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"all": ("",)})
    palette: tuple[RGB, ...] | None = None
    label_values: dict[int, str] = field(default_factory=dict)
    label_palette: dict[str, RGB | tuple[RGB, ...]] = field(default_factory=dict)
    values: ValueKind = "amplitude"
    nodata: float | None = None
    bands: tuple[int, ...] | None = None
    band_axis: BandAxis = "auto"
    scene_size: tuple[int, int] | None = None
    window: int = 512
    upsample: bool = False
    split_unit: SplitUnit = "patch"
    test_list: str | None = None
    counts: dict[str, PaperCounts] = field(default_factory=dict)
    labels_are: LabelKind = "real"
    unstated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.window >= 16, "window", self.window, "at least 16 pixels")
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
        if self.labels is not None:
            label_table(self.classes, self.label_values, self.label_palette)


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
