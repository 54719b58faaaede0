"""Whether labels can teach what a domain's classes say: each class must have a pixel, and there must be two.

Binary labels of 0 and 255 with two classes are the case in point: 255 is ignored unless label_values says
otherwise, so that one class is left, learnt at once and scored 100. Of labels in a folder the raw values are
counted, for the message; of other datasets the samples are looked at.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.datasets.official import OfficialDataset
from crossearth_sar.data.domain import Domain, Mixture
from crossearth_sar.data.files.labels import LabelTable, show_code
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError
from crossearth_sar.spacing import evenly_spaced

LABELLED_SAMPLES = 64
"""Evenly spaced samples, or label files, that are looked at first."""

RARE_SAMPLES = 512
"""And so many where those lack a class."""

_SHOWN_VALUES = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeenClasses:
    """What the labels of one dataset hold.

    indices: of the classes with a pixel. looked_at: how many of how many samples or label files, in words.
    values: raw label values and their pixels, of a folder. table: what they stand for.
    """

    indices: frozenset[int]
    looked_at: str
    values: Mapping[int | float, int] | None = None
    table: LabelTable | None = None


def require_labels(domain: Domain) -> None:
    """A domain to train on must have pixels of each class, of two at least; of a mixture, its parts together.

    Raises:
        InputError: a domain, or a part of a mixture, has no labelled pixel; a class of folders has none, or
            is alone. Where published or simulated data are among them, a class without a pixel in the samples
            looked at is a warning: their labels are known to be right.
    """
    parts = _parts(domain)
    seen = [seen_classes(part) for part in parts]
    for part, found in zip(parts, seen, strict=True):
        if not found.indices:
            raise InputError(
                f"domain {part.name!r} has no labels to train on",
                got=f"not one labelled pixel in {found.looked_at}",
                expected="labels; for a published dataset without, a teacher's",
                fix="set labels or index of the folder, or pseudo_labels (crossearth-sar label makes them)",
            )
    names = domain.classes.names
    absent = _absent(names, seen)
    if not absent and len(names) > 1:
        return
    if all(isinstance(part.dataset, FolderScenes) for part in parts):
        raise InputError(
            f"domain {domain.name!r} cannot teach its classes: "
            + (f"no pixel is {' or '.join(absent)}" if absent else f"{names[0]} is the only one"),
            got="; ".join(_describe(found) for found in seen),
            expected="labelled pixels of each class, and two classes at least",
            fix=_fix(names, seen),
        )
    if absent:
        _log.warning("domain %r: no pixel is %s in %s", domain.name, " or ".join(absent), _looked(seen))


def tell_absent_classes(domain: Domain) -> None:
    """A warning where a folder that is scored on has no pixel of a class: that class is not scored there."""
    for part in _parts(domain):
        if isinstance(part.dataset, FolderScenes):
            found = seen_classes(part)
            absent = _absent(domain.classes.names, [found])
            if absent and found.indices:
                _log.warning(
                    "domain %r: no pixel is %s, so that no score says anything of it: %s",
                    part.name,
                    " or ".join(absent),
                    _describe(found),
                )


def seen_classes(domain: Domain) -> SeenClasses:
    """The classes with a pixel; the simulator's are all taken to be there once one is."""
    if isinstance(domain.dataset, FolderScenes):
        return _seen_in_files(domain.dataset)
    wanted = len(domain.classes) if isinstance(domain.dataset, OfficialDataset) else 1
    indices: set[int] = set()
    chosen = evenly_spaced(len(domain), LABELLED_SAMPLES)
    for index in chosen:
        indices |= {*domain[index]["mask"].unique().tolist()} - {IGNORE_INDEX}
        if len(indices) >= wanted:
            break
    if wanted == 1 and indices:
        indices = {*range(len(domain.classes))}
    return SeenClasses(frozenset(indices), f"{len(chosen)} of {len(domain)} samples")


def _seen_in_files(scenes: FolderScenes) -> SeenClasses:
    table, values = scenes.labels, Counter[int | float]()
    looked: set[int] = set()
    count = len(scenes.label_files)
    for limit in (LABELLED_SAMPLES, RARE_SAMPLES):
        for index in evenly_spaced(count, limit):
            if index not in looked:
                looked.add(index)
                values += scenes.label_values(index)
        indices = frozenset(i for code, i in zip(table.codes, table.indices, strict=True) if values[code])
        if len(indices - {IGNORE_INDEX}) == len(scenes.classes) or limit >= count:
            break
    return SeenClasses(indices - {IGNORE_INDEX}, f"{len(looked)} of {count} label files", dict(values), table)


def _parts(domain: Domain) -> Sequence[Domain]:
    if isinstance(domain.dataset, Mixture):
        return [inner for part in domain.dataset.parts for inner in _parts(part)]
    return [domain]


def _absent(names: Sequence[str], seen: Sequence[SeenClasses]) -> list[str]:
    found = frozenset[int]().union(*(each.indices for each in seen))
    return [name for i, name in enumerate(names) if i not in found]


def _looked(seen: Sequence[SeenClasses]) -> str:
    return ", ".join(each.looked_at for each in seen)


def _describe(found: SeenClasses) -> str:
    """`in 3 of 3 label files: 0 (land) 69.5 %, 255 (ignore) 30.5 %`."""
    if found.values is None or found.table is None:
        return found.looked_at
    total = sum(found.values.values())
    names = dict(zip(found.table.codes, found.table.names, strict=True))
    shown = sorted(found.values.items(), key=lambda item: -item[1])[:_SHOWN_VALUES]
    words = [
        f"{show_code(code, found.table.is_rgb)} ({names.get(int(code), '?')}) {100 * pixels / total:.1f} %"
        for code, pixels in sorted(shown)
    ]
    more = f" and {len(found.values) - len(shown)} more" if len(found.values) > len(shown) else ""
    return f"in {found.looked_at}: {', '.join(words)}{more}"


def _fix(names: Sequence[str], seen: Sequence[SeenClasses]) -> str:
    """The label_values that would fit, where there are as many values as classes, or one class and two."""
    values = sorted({code for each in seen for code in (each.values or ()) if code == code})
    classes = [*names] if len(names) > 1 else ["other", *names]
    is_rgb = any(each.table is not None and each.table.is_rgb for each in seen)
    if len(values) == len(classes) and not is_rgb and all(value == int(value) for value in values):
        pairs = ", ".join(f"{int(code)}: {name}" for code, name in zip(values, classes, strict=True))
        added = f"classes: [{', '.join(classes)}] and " if len(names) == 1 else ""
        return f"if that is what they stand for, set {added}label_values: {{{pairs}}}"
    return (
        "say what every value stands for (label_values, or label_palette of colours); leave a class that no "
        "label shows out of classes"
    )
