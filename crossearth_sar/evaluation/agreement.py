"""Mean Agreement: how far several teachers give the same classes, without any true label (METHOD sec. 5).

The share of pixels on which all teachers give the same class, per image, averaged over images. The paper has
no ignored pixels; here one that any teacher ignores is left out of its image, and the share of pixels left
is reported. Agreement is not accuracy: teachers of one kind err together.

N teachers, H W pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError
from crossearth_sar.pseudo_labels.labelling import LABELS, MANIFEST, read_label

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Fractions in 0..1; NaN where no image has a pixel to compare.

    mean: over images of the share of pixels on which all N agree. pairwise: (N, N) float64, the same for
    each two teachers, on the pixels that these two do not ignore. per_image: image -> share, NaN where none
    is compared. compared: share of all pixels that no teacher ignores. left_out: images that not every
    teacher has.
    """

    teachers: tuple[str, ...]
    mean: float
    pairwise: np.ndarray
    per_image: dict[str, float]
    compared: float
    left_out: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        return {
            "teachers": list(self.teachers),
            "mean_agreement": _none_if_nan(self.mean),
            "images": len(self.per_image),
            "images_without_a_pixel": sum(math.isnan(v) for v in self.per_image.values()),
            "compared": _none_if_nan(self.compared),
            "pairwise": [[_none_if_nan(v) for v in row] for row in self.pairwise.tolist()],
            "left_out": list(self.left_out),
            "per_image": {name: _none_if_nan(value) for name, value in self.per_image.items()},
        }

    def to_text(self) -> str:
        """Two tables in Markdown, in percent."""
        lines = [
            f"Mean Agreement of {len(self.teachers)} teachers over {len(self.per_image)} images: "
            f"{100 * self.mean:.2f} % ({100 * self.compared:.2f} % of the pixels are compared)",
            "",
            "| pairwise % | " + " | ".join(str(i) for i in range(1, len(self.teachers) + 1)) + " |",
            "|---|" + "---:|" * len(self.teachers),
        ]
        for i, name in enumerate(self.teachers):
            lines.append(
                f"| {i + 1} {name} | " + " | ".join(f"{100 * v:.2f}" for v in self.pairwise[i]) + " |"
            )
        return "\n".join(lines)


def image_agreement(labels_NHW: np.ndarray) -> tuple[float, int, np.ndarray]:
    """(share on which all agree, pixels compared, pairwise (N, N)) of one image; NaN without a pixel."""
    seen_NHW = labels_NHW != IGNORE_INDEX
    all_seen_HW = seen_NHW.all(axis=0)
    same_HW = (labels_NHW == labels_NHW[:1]).all(axis=0)
    pairwise = np.full((len(labels_NHW), len(labels_NHW)), np.nan)
    for i in range(len(labels_NHW)):
        for j in range(i, len(labels_NHW)):
            share = _share(labels_NHW[i] == labels_NHW[j], seen_NHW[i] & seen_NHW[j])
            pairwise[i, j] = pairwise[j, i] = share
    return _share(same_HW, all_seen_HW), int(all_seen_HW.sum()), pairwise


def mean_agreement(folders: Sequence[str | Path], *, allow_missing: bool = False) -> Agreement:
    """Mean Agreement of the label maps in several folders of `crossearth-sar label`, or of PNGs alone.

    Args:
        allow_missing: compares the images that all folders have; else a difference is an error.

    Raises:
        InputError: fewer than two folders, no image, images that one teacher lacks, label maps that are
            damaged or differ in size.
    """
    if len(folders) < 2:
        raise InputError(
            "agreement is between teachers", got=f"{len(folders)} folders", expected="two or more"
        )
    roots = [_label_folder(Path(folder)) for folder in folders]
    names, left_out = _common(roots, allow_missing)
    per_image: dict[str, float] = {}
    pairs: list[np.ndarray] = []
    seen = total = 0
    for name in names:
        labels = [read_label(root / name) for root in roots]
        shapes = {label.shape for label in labels}
        if len(shapes) > 1:
            raise InputError(
                f"label maps of {name} differ in size",
                got=", ".join(f"{label.shape[0]} x {label.shape[1]}" for label in labels),
                expected="one size",
            )
        share, pixels, pairwise = image_agreement(np.stack(labels))
        per_image[name] = share
        pairs.append(pairwise)
        seen, total = seen + pixels, total + labels[0].size
    return Agreement(
        teachers=tuple(str(folder) for folder in folders),
        mean=float(_mean(np.array([*per_image.values()]))),
        pairwise=_mean(np.stack(pairs)),
        per_image=per_image,
        compared=seen / total,
        left_out=left_out,
    )


def _label_folder(folder: Path) -> Path:
    """`folder`/labels of a finished run, else the folder itself."""
    if not folder.is_dir():
        raise InputError(f"no folder of label maps at {folder}", fix="give what crossearth-sar label wrote")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return folder
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{manifest} cannot be read", got=str(error)) from error
    if "files" not in content:
        raise InputError(
            f"{folder} is not finished",
            got="a manifest without files",
            fix="run its command again: it goes on",
        )
    return folder / LABELS


def _common(roots: Sequence[Path], allow_missing: bool) -> tuple[list[str], tuple[str, ...]]:
    found = [
        {path.relative_to(root).as_posix() for path in root.rglob("*.png") if not path.name.startswith(".")}
        for root in roots
    ]
    common, everything = set.intersection(*found), set.union(*found)
    left_out = sorted(everything - common)
    if not common or (left_out and not allow_missing):
        counts = ", ".join(f"{root}: {len(names)}" for root, names in zip(roots, found, strict=True))
        raise InputError(
            f"{len(left_out)} images are not in every folder" if common else "the folders share no image",
            got=f"{counts}; {', '.join(left_out[:_SHOWN])}{' …' if len(left_out) > _SHOWN else ''}",
            expected="the same images from every teacher",
            fix="finish the runs, or give --allow-missing to compare what all have" if common else None,
        )
    return sorted(common), tuple(left_out)


def _share(hits: np.ndarray, counted: np.ndarray) -> float:
    return float(hits[counted].mean()) if counted.any() else math.nan


def _mean(values: np.ndarray) -> Any:
    """Over the first axis, NaN left out; NaN where nothing is left, without numpy's warning."""
    count = (~np.isnan(values)).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
