"""SAR images and their optical twins: two patterns below one folder, paired by what their stars match.

What this is not: registration; twins are taken to show the same ground, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossearth_sar.config import require
from crossearth_sar.data.datasets.places import find_places, what_is_at
from crossearth_sar.data.datasets.spec import DatasetSpec, DomainSpec
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.errors import InputError

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class OpticalTwins:
    """Where optical twins lie: a pattern as in `DatasetSpec`, and {optical: SAR} parts of names."""

    optical: str
    renamed: dict[str, str]


OPTICAL_TWINS = {
    "QXS-SAROPT": OpticalTwins(optical="opt_256_oc_0.2/*.*", renamed={}),
    "WHU-SEN-City": OpticalTwins(optical="*/opt/*.*", renamed={}),
    "SEN12": OpticalTwins(optical="ROIs*/s2_*/*.*", renamed={"_s2_": "_s1_"}),
    "OSdataset": OpticalTwins(optical="512/*/opt*.*", renamed={}),
    "SARptical": OpticalTwins(optical="opt/*.*", renamed={}),
    "CrossEarth-OPT-SAR": OpticalTwins(optical="opt/*.*", renamed={}),
}
"""Of the sources without labels (`pretraining.py`), with the same assumptions about their layouts."""


@dataclass(frozen=True)
class Pair:
    """name: the SAR image's path below the dataset's folder, with the suffix .png."""

    name: str
    optical: Path
    sar: Path


def pairs_of(
    root: Path, sar: DatasetSpec | str, optical: str, renamed: Mapping[str, str] | None = None
) -> tuple[list[Pair], list[Path]]:
    """SAR images and their optical twins below `root`: (pairs by name, files without a twin).

    Two files are twins when the stars of their patterns matched the same text, after `renamed` parts of
    the optical one were replaced.

    Args:
        root: the dataset's folder.
        sar: a dataset's row, or a pattern as in `DatasetSpec.images`.
        optical: a pattern with as many stars.

    Raises:
        InputError: a pattern matches nothing, or two files claim one place.
    """
    if isinstance(sar, str):
        _require_matches(root, sar, optical)
        sar = _bare_spec(sar)
    domain = next(iter(sar.domains.values()))
    seen = {place.name: place.images[0] for place in find_places(sar, domain, root)}
    twin_spec = _bare_spec(optical)
    if not any(root.glob(optical)):
        raise InputError(f"no optical image matches {optical!r} below {root}", got=what_is_at(root))
    twins: dict[str, Path] = {}
    for place in find_places(twin_spec, twin_spec.domains["all"], root):
        name = place.name
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        if name in twins:
            raise InputError("two optical files claim one place", got=f"{twins[name]} and {place.images[0]}")
        twins[name] = place.images[0]
    pairs = [
        Pair(path.relative_to(root).with_suffix(".png").as_posix(), twins[name], path)
        for name, path in seen.items()
        if name in twins
    ]
    single = [path for name, path in seen.items() if name not in twins]
    single += [path for name, path in twins.items() if name not in seen]
    return sorted(pairs, key=lambda pair: pair.name), sorted(single)


def _require_matches(root: Path, sar: str, optical: str) -> None:
    stars = [p.count("*") - p.endswith(".*") for p in (sar, optical)]
    require(stars[0] == stars[1], "the optical pattern", optical, f"as many '*' as in {sar!r}")
    for pattern in (sar, optical):
        if not root.is_dir() or not any(root.glob(pattern)):
            raise InputError(
                f"no file matches {pattern!r} below {root}",
                got=what_is_at(root / Path(pattern).parent),
                fix="patterns are relative to the data root and quoted: --sar 'sar/*.*'",
            )


def _bare_spec(pattern: str) -> DatasetSpec:
    return DatasetSpec(
        key="pairs",
        folder=".",
        home="your own files",
        tree=(pattern,),
        images=pattern,
        labels=None,
        domains={"all": DomainSpec(regions=("all",))},
        classes=SEVEN_CLASSES.names,
    )


def require_paired(single: Sequence[Path], root: Path) -> None:
    """InputError that lists files without a twin, if there are any."""
    if single:
        shown = ", ".join(path.relative_to(root).as_posix() for path in single[:_SHOWN])
        raise InputError(
            f"{len(single)} files have no twin",
            got=f"{shown}{' …' if len(single) > _SHOWN else ''}",
            expected="an optical image for every SAR image, and the other way round",
            fix="correct the patterns or --rename OPTICAL=SAR, or give --allow-unpaired to leave them out",
        )


def source_pairs(
    spec: DatasetSpec, root: Path, changes: OpticalTwins | None = None
) -> tuple[list[Pair], list[Path]]:
    """`pairs_of` a source by its row and OPTICAL_TWINS; `changes` replaces the latter."""
    twins = changes or OPTICAL_TWINS.get(spec.key)
    if twins is None:
        raise InputError(
            f"where the optical twins of {spec.key} lie is not known",
            expected=f"one of {', '.join(OPTICAL_TWINS)}",
            fix="give --optical, a pattern below its folder",
        )
    return pairs_of(root, spec, twins.optical, twins.renamed)
