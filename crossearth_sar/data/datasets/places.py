"""Finding a published dataset's files: images of every channel, paired with labels, or what is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossearth_sar.data.datasets.spec import DatasetSpec, DomainSpec
from crossearth_sar.errors import InputError

READABLE = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
"""Suffixes that a pattern's `.*` stands for."""

_SHOWN = 5

Key = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """One file's worth of ground: an image per channel, and its label.

    name: the same for every domain that shows this place. region: a key of `DatasetSpec.regions`.
    """

    name: str
    region: str
    images: tuple[Path, ...]
    label: Path | None


def find_places(
    spec: DatasetSpec, domain: DomainSpec, root: Path, pseudo_labels: Path | None = None
) -> list[Place]:
    """Every place of a domain below `root`, sorted by region and name.

    Args:
        pseudo_labels: a folder of label maps that mirrors the images' paths below `root`, as PNG; for a
            dataset without labels.

    Raises:
        InputError: the dataset is not there, a region or channel is, labels are, or two files claim one
            place; the message says where to get the dataset, how it lies and what was found.
    """
    if not root.is_dir():
        raise missing_dataset(spec, root)
    places: list[Place] = []
    for region in domain.regions:
        places += _region_places(spec, domain, root, region, pseudo_labels)
    return places


def missing_dataset(spec: DatasetSpec, root: Path, problem: str | None = None) -> InputError:
    tree = "\n    ".join((f"{spec.folder}/", *(f"  {line}" for line in spec.tree)))
    return InputError(
        problem or f"{spec.key} is not at {root}",
        got=what_is_at(root),
        expected=f"\n    {tree}",
        fix=f"get it from {spec.home}; if it lies elsewhere or otherwise, say so in the data file "
        "(docs/BENCHMARKS.md)",
    )


def what_is_at(path: Path) -> str:
    """The nearest existing folder at or above a path, and what it holds."""
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(entries) - 8} more" if len(entries) > 8 else ""
    return f"{folder} holds {', '.join(entries[:8]) or 'nothing'}{more}"


def _region_places(
    spec: DatasetSpec, domain: DomainSpec, root: Path, region: str, pseudo_labels: Path | None
) -> list[Place]:
    channels = domain.polarizations or ("",)
    for name in spec.regions[region]:
        folders = name.split("+")
        found = [[_matches(root, _filled(spec.images, f, channel)) for channel in channels] for f in folders]
        if any(map(any, found)):
            break
    else:
        wanted = " or ".join(_filled(spec.images, name, channels[0]) for name in spec.regions[region])
        raise missing_dataset(spec, root, f"{spec.key}: no image matches {wanted} in {root}")
    places: list[Place] = []
    for folder, images in zip(folders, found, strict=True):
        if not any(images):
            wanted = _filled(spec.images, folder, channels[0])
            raise missing_dataset(
                spec, root, f"{spec.key}: region {region} lacks {folder}: no image matches {wanted}"
            )
        prefix = [region] * (len(spec.regions) > 1) + [folder] * (len(folders) > 1)
        places += _folder_places(
            spec, root, region, folder, prefix, dict(zip(channels, images, strict=True)), pseudo_labels
        )
    return places


def _folder_places(
    spec: DatasetSpec,
    root: Path,
    region: str,
    folder: str,
    prefix: list[str],
    found: dict[str, dict[Key, Path]],
    pseudo_labels: Path | None,
) -> list[Place]:
    keys = sorted(set[Key]().union(*found.values()))
    for channel, images in found.items():
        what = f"images of channel {channel}" if channel else "images"
        _require_all(spec, keys, images, what, root / _filled(spec.images, folder, channel))
    labels = _labels(spec, root, folder, keys, next(iter(found.values())), pseudo_labels)
    return [
        Place(
            "__".join([*prefix, *(part.replace("/", "_") for part in key)]) or region,
            region,
            tuple(images[key] for images in found.values()),
            labels.get(key),
        )
        for key in keys
    ]


def _labels(
    spec: DatasetSpec,
    root: Path,
    folder: str,
    keys: Sequence[Key],
    images: dict[Key, Path],
    pseudo_labels: Path | None,
) -> dict[Key, Path]:
    if spec.labels is not None:
        pattern = _filled(spec.labels, folder, "")
        labels = _matches(root, pattern)
        _require_all(spec, keys, labels, "labels", root / pattern)
        return labels
    if pseudo_labels is None:
        return {}
    labels = {key: pseudo_labels / path.relative_to(root).with_suffix(".png") for key, path in images.items()}
    present = {key: path for key, path in labels.items() if path.is_file()}
    _require_all(spec, keys, present, "pseudo labels", pseudo_labels)
    return present


def _require_all(
    spec: DatasetSpec, keys: Sequence[Key], found: dict[Key, Path], what: str, where: Path
) -> None:
    lacking = [key for key in keys if key not in found]
    if lacking:
        shown = ", ".join(" … ".join(key) for key in lacking[:_SHOWN])
        raise InputError(
            f"{spec.key}: {len(lacking)} of {len(keys)} {what} are missing",
            got=f"{shown}{' …' if len(lacking) > _SHOWN else ''}; {what_is_at(where)}",
            expected=f"one for each place, as {where}",
            fix="unpack the archive again, or correct the pattern in the data file",
        )


def _filled(pattern: str, folder: str, channel: str) -> str:
    return pattern.replace("{region}", folder).replace("{polarization}", channel)


def _matches(root: Path, pattern: str) -> dict[Key, Path]:
    """What the stars matched -> the file, for each readable file that a pattern matches."""
    any_kind = pattern.endswith(".*")
    body = pattern.removesuffix(".*")
    parts = [re.escape(part) for part in body.split("*")]
    suffix = "(?:" + "|".join(map(re.escape, READABLE)) + ")" if any_kind else ""
    regex = re.compile("([^/]*)".join(parts) + suffix, re.IGNORECASE)
    found: dict[Key, Path] = {}
    for path in sorted(root.glob(pattern)):
        match = regex.fullmatch(path.relative_to(root).as_posix())
        if match is None or path.name.startswith(".") or not path.is_file():
            continue
        key = match.groups()
        if key in found:
            raise InputError(
                "two files claim one place",
                got=f"{found[key]} and {path}",
                expected="one",
                fix="remove one of them",
            )
        found[key] = path
    return found
