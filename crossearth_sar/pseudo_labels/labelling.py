"""Label maps for SAR images by a teacher that sees their optical twins: pairs, class map, files, manifest.

`write_pseudo_labels` fills a folder:

    labels/…png       mirrors the SAR images' paths below the dataset's folder; indices 0..6 of SEVEN_CLASSES,
                      255 ignored: what `official.OfficialDataset(pseudo_labels=…)` reads
    confidence/…png   round(255 p) of the class that won; only if asked for
    manifest.json     teacher, class map, threshold, SHA-256 and pixel counts of every label map

A label map is written whole or not at all, and one that is there is not made again. The teachers themselves
are in `teachers.py`, the pairs in `pairs.py`. What this is not: a judge of the labels;
`evaluation.agreement` compares teachers.

G groups of teacher classes: the seven classes, then everything that is ignored. H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from crossearth_sar.config import from_mapping, require
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.files.georeference import label_flips
from crossearth_sar.data.files.readers import read_bands, read_label_parts, read_place, read_shape
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.pseudo_labels.pairs import Pair
from crossearth_sar.pseudo_labels.teachers import Teacher
from crossearth_sar.spacing import evenly_spaced
from crossearth_sar.whole import aside, write_text

Unmapped = Literal["background", "ignore"]

LABELS, CONFIDENCE, MANIFEST = "labels", "confidence", "manifest.json"
FORMAT = 1
IGNORED_GROUP = len(SEVEN_CLASSES)
"""The group of teacher classes that become IGNORE_INDEX."""

_CHECKED_PAIRS = 32
_SHOWN = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassMapFile:
    """What a class map in YAML holds.

    classes: teacher class (its name, or its index) -> one of the seven, or "ignore".
    unmapped: what every other class of the teacher becomes.
    teacher_classes: the teacher's class names in their order, for a teacher that does not know them.
    """

    classes: dict[Any, str]
    unmapped: Unmapped = "ignore"
    teacher_classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        known = (*SEVEN_CLASSES.names, "ignore")
        for key, name in self.classes.items():
            if name not in known:
                raise InputError(
                    f"the class map gives {key!r} the class {name!r}{nearest(name, known)}",
                    expected=f"one of {', '.join(known)}",
                )


@dataclass(frozen=True)
class TeacherClassMap:
    """teacher_classes[i] belongs to group groups[i]: 0..6 are the seven classes, 7 is ignored."""

    teacher_classes: tuple[str, ...]
    groups: tuple[int, ...]
    unmapped: tuple[str, ...]

    def grouped(self, probability_BKHW: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, G, H, W): a group's probability is the sum over its classes."""
        batch, _, height, width = probability_BKHW.shape
        total = probability_BKHW.new_zeros(batch, IGNORED_GROUP + 1, height, width)
        return total.index_add_(
            1, torch.tensor(self.groups, device=probability_BKHW.device), probability_BKHW
        )

    def to_mapping(self) -> dict[str, Any]:
        names = (*SEVEN_CLASSES.names, "ignore")
        pairs = zip(self.teacher_classes, self.groups, strict=True)
        return {f"{i} {name}": names[group] for i, (name, group) in enumerate(pairs)}


def teacher_class_map(
    teacher_classes: Sequence[str], content: Mapping[str, Any] | None = None
) -> TeacherClassMap:
    """The map of a teacher's classes onto the seven; without one, classes go by their names.

    Raises:
        InputError: the map names a class that the teacher lacks, or there is none and a name is not one of
            the seven.
    """
    names = tuple(teacher_classes)
    if content is None:
        foreign = [name for name in names if name not in SEVEN_CLASSES.names]
        if foreign:
            raise InputError(
                "the teacher has other classes than the seven, and no class map is given",
                got=f"{len(names)} classes, among them {', '.join(foreign[:_SHOWN])}",
                expected=", ".join(SEVEN_CLASSES.names),
                fix="give a class map in YAML: classes: {tree: forest, …} (docs/PSEUDO_LABELS.md)",
            )
        return TeacherClassMap(names, tuple(SEVEN_CLASSES.names.index(name) for name in names), ())
    stated = from_mapping(ClassMapFile, content, "class map")
    groups: list[int | None] = [None] * len(names)
    for key, target in stated.classes.items():
        group = IGNORED_GROUP if target == "ignore" else SEVEN_CLASSES.names.index(target)
        for index in _indices(key, names):
            if groups[index] not in (None, group):
                raise InputError(f"the class map names class {index}, {names[index]!r}, twice")
            groups[index] = group
    other = IGNORED_GROUP if stated.unmapped == "ignore" else SEVEN_CLASSES.names.index("background")
    unmapped = tuple(name for name, group in zip(names, groups, strict=True) if group is None)
    return TeacherClassMap(names, tuple(other if group is None else group for group in groups), unmapped)


def _indices(key: Any, names: tuple[str, ...]) -> list[int]:
    if isinstance(key, int) and not isinstance(key, bool):
        found = [key] if 0 <= key < len(names) else []
    else:
        found = [i for i, name in enumerate(names) if name == key]
    if not found:
        raise InputError(
            f"the class map names {key!r}, which the teacher lacks{nearest(key, names)}",
            expected=f"an index below {len(names)}, or one of {', '.join(names[:12])}"
            f"{' …' if len(names) > 12 else ''}",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How label maps are made; a folder holds maps of one setting only."""

    threshold: float = 0.0
    """Below this probability a pixel is ignored."""
    confidence: bool = False
    """Write confidence maps, too."""
    bands: tuple[int, ...] | None = None
    """Red, green and blue of the optical file; null: the first three, or one for all."""
    value_range: tuple[float, float] | None = None
    """(black, white) of optical values that are not uint8."""
    resample: bool = False
    """Allow optical images of another size; probabilities go to the twin's grid bilinearly."""

    def __post_init__(self) -> None:
        require(0 <= self.threshold <= 1, "threshold", self.threshold, "a probability, 0 to 1")
        require(self.bands is None or len(self.bands) in (1, 3), "bands", self.bands, "one or three indices")
        rising = self.value_range is None or self.value_range[0] < self.value_range[1]
        require(rising, "value_range", self.value_range, "black below white")


def read_optical(path: Path, settings: LabelSettings) -> tuple[Tensor, np.ndarray]:
    """(3, H, W) float32 in 0..255, and (H, W) bool of pixels that are finite and not transparent or masked.

    Raises:
        InputError: the file is damaged, has no such bands, or its values need a range.
    """
    values, seen, _, _ = read_label_parts(path, expand_colors=True)
    bands = settings.bands
    if bands is None and len(values) not in (1, 3):
        raise InputError(
            f"{path} is no RGB image", got=f"{len(values)} bands", fix="say which: --bands 3 2 1"
        )
    bands = bands if bands is not None else tuple(range(len(values)))
    if not all(0 <= band < len(values) for band in bands):
        raise InputError(
            f"{path} has no such bands", got=f"{list(bands)}", expected=f"indices from 0 to {len(values) - 1}"
        )
    values = values[[bands[i % len(bands)] for i in range(3)]]
    if values.dtype == np.uint8 and settings.value_range is None:
        there = np.ones(values.shape[1:], bool) if seen is None else seen
        return torch.from_numpy(values.astype(np.float32)), there
    if settings.value_range is None or np.iscomplexobj(values):
        raise InputError(
            f"{path} is not an 8-bit image",
            got=f"dtype {values.dtype}",
            expected="uint8, or real numbers and their range",
            fix="say which values are black and white: --range 0 3000",
        )
    low, high = settings.value_range
    finite = np.isfinite(values).all(axis=0)
    finite = finite if seen is None else finite & seen
    scaled = np.clip((values.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    return torch.from_numpy(np.where(finite, scaled, 0).astype(np.float32)), finite


def label_pair(
    pair: Pair, teacher: Teacher, classes: TeacherClassMap, settings: LabelSettings
) -> tuple[np.ndarray, np.ndarray]:
    """(label, confidence) of the SAR twin's size, uint8 (H, W) each.

    The class of a pixel is the group of the highest probability; the ignored group takes part, and where it
    wins, where the probability is below the threshold or the optical image has no value, the label is 255.
    """
    _require_same_place(pair)
    image_CHW, finite = read_optical(pair.optical, settings)
    target = read_shape(pair.sar)[1:]
    _require_size(pair, (image_CHW.shape[1], image_CHW.shape[2]), target, settings)
    probability_GHW = teacher.probabilities(image_CHW, classes.grouped)
    if tuple(probability_GHW.shape[1:]) != target:
        probability_GHW = F.interpolate(
            probability_GHW[None], size=target, mode="bilinear", align_corners=False
        )[0]
        covered = torch.from_numpy(finite)[None, None].float()
        finite = F.interpolate(covered, size=target, mode="nearest-exact")[0, 0].bool().numpy()
    best_HW, group_HW = probability_GHW.max(0)
    unsure_HW = (group_HW == IGNORED_GROUP) | (best_HW < settings.threshold)
    label = group_HW.masked_fill(unsure_HW, IGNORE_INDEX).to(torch.uint8).cpu().numpy()
    confidence = (255 * best_HW).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    label[~finite], confidence[~finite] = IGNORE_INDEX, 0
    return label, confidence


def _require_size(
    pair: Pair, optical: tuple[int, int], sar: tuple[int, int], settings: LabelSettings
) -> None:
    if optical != sar and not settings.resample:
        raise InputError(
            f"optical image and SAR twin differ in size: {pair.optical} and {pair.sar}",
            got=f"optical {optical[0]} x {optical[1]}, SAR {sar[0]} x {sar[1]} (height x width)",
            expected="one optical pixel per SAR pixel",
            fix="if both show exactly the same ground, give --resample",
        )


def check_pairs(pairs: Sequence[Pair], settings: LabelSettings) -> None:
    """Reads up to 32 evenly spaced pairs before hours are spent; InputError as `label_pair`."""
    for i in evenly_spaced(len(pairs), _CHECKED_PAIRS):
        pair = pairs[i]
        image, _ = read_optical(pair.optical, settings)
        _require_size(pair, (image.shape[1], image.shape[2]), read_shape(pair.sar)[1:], settings)
        _require_same_place(pair)


def _require_same_place(pair: Pair) -> None:
    """InputError where both twins say where they lie, and do not lie on each other."""
    name = f"{pair.sar} and {pair.optical}"
    if any(label_flips(read_place(pair.sar), read_place(pair.optical), name, what="optical image")):
        raise InputError(
            f"rows or columns of twins run against each other: {name}", fix="turn one (gdalwarp)"
        )


def write_pseudo_labels(
    pairs: Sequence[Pair],
    output: Path,
    teacher: Teacher,
    classes: TeacherClassMap,
    settings: LabelSettings,
    *,
    unpaired: Sequence[Path] = (),
    progress: Iterable[Pair] | None = None,
) -> dict[str, Any]:
    """Fills `output` as the module says, skipping label maps that are there; returns the manifest.

    Args:
        progress: the pairs wrapped in a progress bar.

    Raises:
        InputError: the folder was begun with other settings or holds the SAR images themselves, or a file
            cannot be used; what was finished stays.
    """
    for pair in pairs[:1]:
        if (output / LABELS / pair.name).resolve() == pair.sar.resolve():
            raise InputError("the output folder holds the SAR images", got=output, fix="choose another one")
    manifest = _begun(output, _about(teacher, classes, settings))
    known = manifest.get("files", {})
    files: dict[str, Any] = {}
    made = 0
    for pair in pairs if progress is None else progress:
        path = output / LABELS / pair.name
        if not path.is_file():
            label, confidence = label_pair(pair, teacher, classes, settings)
            if settings.confidence:  # before the label map, whose presence says that the pair is done
                _write_png(output / CONFIDENCE / pair.name, confidence)
            _write_png(path, label)
            known.pop(pair.name, None)
            made += 1
        files[pair.name] = known.get(pair.name) or describe_label(path)
    manifest |= {
        "unpaired": [path.as_posix() for path in unpaired],
        "files": {**known, **files},
    }
    _write_json(output / MANIFEST, manifest)
    _log.info("%d label maps made, %d were there", made, len(files) - made)
    return manifest


def _about(teacher: Teacher, classes: TeacherClassMap, settings: LabelSettings) -> dict[str, Any]:
    """What a folder of label maps was made with: another run there has to say the same."""
    return {
        "format": FORMAT,
        "classes": list(SEVEN_CLASSES.names),
        "ignore_index": IGNORE_INDEX,
        "teacher": teacher.to_mapping(),
        "class_map": classes.to_mapping(),
        "settings": {
            **vars(settings),
            "bands": settings.bands and list(settings.bands),
            "value_range": settings.value_range and list(settings.value_range),
        },
    }


def describe_label(path: Path) -> dict[str, Any]:
    """SHA-256 and pixels per class of a label map; InputError if it is none."""
    label = read_label(path)
    counts = np.bincount(label.ravel(), minlength=256)
    pixels = {name: int(counts[i]) for i, name in enumerate((*SEVEN_CLASSES.names,))}
    pixels["ignore"] = int(counts[IGNORE_INDEX])
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "pixels": pixels}


def read_label(path: Path) -> np.ndarray:
    """(H, W) uint8 of a label map in the seven classes.

    Raises:
        InputError: a damaged file, or values that are neither 0..6 nor 255.
    """
    values = read_bands(path)
    found = np.unique(values)
    bad = [v for v in found.tolist() if v not in (*range(len(SEVEN_CLASSES)), IGNORE_INDEX)]
    if values.shape[0] != 1 or bad:
        raise InputError(
            f"{path} is no label map in the seven classes",
            got=f"{values.shape[0]} bands, values {bad[:_SHOWN] or 'that fit'}",
            expected=f"one band of 0 to {len(SEVEN_CLASSES) - 1} and {IGNORE_INDEX}",
            fix="remove it, so that it is made again",
        )
    return values[0].astype(np.uint8)


def _begun(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder, written now if there is none; other settings are an error."""
    path = output / MANIFEST
    if not path.is_file():
        if (output / LABELS).is_dir() and any((output / LABELS).rglob("*.png")):
            raise InputError(f"{output} holds label maps but no {MANIFEST}", fix="choose another folder")
        _write_json(path, settings)
        return settings
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read", got=str(error), fix="restore it, or begin anew in another folder"
        ) from error
    wanted = json.loads(json.dumps(settings))
    other = [key for key in wanted if manifest.get(key) != wanted[key]]
    if other:
        raise InputError(
            f"{output} was begun with other settings",
            got=", ".join(f"{key}: {_short(wanted[key])}" for key in other),
            expected=", ".join(f"{key}: {_short(manifest.get(key))}" for key in other),
            fix="repeat the settings it was begun with, or choose another output folder",
        )
    return manifest


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]} …"


def _write_png(path: Path, values: np.ndarray) -> None:
    with aside(path) as part:
        Image.fromarray(values).save(part, format="PNG")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
