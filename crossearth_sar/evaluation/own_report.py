"""Several models on domains of one's own, side by side: README.md, metrics.json and CSV in one folder.

C classes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.data.sample import ClassTable
from crossearth_sar.evaluation.bootstrap import DRAWS, Interval, difference_interval, miou_interval
from crossearth_sar.evaluation.class_mapping import ClassMapping
from crossearth_sar.evaluation.image_scores import ImageScores
from crossearth_sar.evaluation.markdown import write_markdown
from crossearth_sar.evaluation.metrics import absent_words
from crossearth_sar.evaluation.probe.report import probe_lines
from crossearth_sar.evaluation.probe.row import ProbeRow
from crossearth_sar.whole import table, write_text

REPORT, METRICS = "README.md", "metrics.json"

RATES = ("iou", "f1", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class OwnScore:
    """One model on one domain.

    slug: of its files. temperature: of the model, None where it has none. fitted: it was fitted on every
    second image of this domain, which the calibration error leaves out. pictures: of its predictions.
    """

    model: str
    domain: str
    slug: str
    classes: ClassTable
    scores: ImageScores
    mapping: ClassMapping
    temperature: float | None
    fitted: bool
    picture: str | None

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON; what does not exist is None."""
        matrix, names = self.scores.confusion(), self.classes.names
        rates = matrix.rates()
        after = self.scores.after
        interval = miou_interval(self.scores.unit_counts())
        return {
            "model": self.model,
            "domain": self.domain,
            **matrix.scores().to_mapping(names),
            "miou_interval_95": None if interval is None else [interval.low, interval.high],
            **{
                rate: dict(zip(names, map(_none, getattr(rates, rate).tolist()), strict=True))
                for rate in RATES[1:]
            },
            "samples": len(self.scores.names),
            "images": len(set(self.scores.units)),
            "temperature": self.temperature,
            "temperature_fitted_here": self.fitted,
            "ece": _none(self.scores.before.expected_calibration_error),
            "ece_at_temperature": None if after is None else _none(after.expected_calibration_error),
            "confusion": matrix.counts.tolist(),
            "classes": list(names),
            "notes": list(self.mapping.notes),
        }


def write_own_report(
    output: Path,
    scores: Sequence[OwnScore],
    *,
    about: Mapping[str, str],
    absent: Mapping[str, str],
    probes: Sequence[ProbeRow] = (),
) -> Path:
    """Writes all tables anew; `absent` says of a «model on domain» why it is not there. The README's path.

    Args:
        probes: of the models' features, a section of their own.
    """
    found = [score.to_mapping() for score in scores]
    content = {"provenance": dict(about), "absent": dict(absent), "scores": found}
    write_text(output / METRICS, json.dumps(content, indent=1) + "\n")
    _write_csv(
        output / "classes.csv", ["model", "domain", "class", *RATES, "target_share"], _class_rows(found)
    )
    _write_csv(
        output / "images.csv", ["model", "domain", "image", "miou", "pixel_accuracy"], _image_rows(scores)
    )
    for score, mapping in zip(scores, found, strict=True):
        names = mapping["classes"]
        rows = [[name, *row] for name, row in zip(names, mapping["confusion"], strict=True)]
        _write_csv(output / f"confusion-{score.slug}.csv", ["label \\ predicted", *names], rows)
    return write_markdown(output / REPORT, _readme(scores, found, about, absent, probes))


def _class_rows(found: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [one["model"], one["domain"], name, *(one[key][name] for key in (*RATES, "target_share"))]
        for one in found
        for name in one["classes"]
    ]


def _image_rows(scores: Sequence[OwnScore]) -> list[list[Any]]:
    rows = []
    for score in scores:
        for name, counts_CC in zip(score.scores.names, score.scores.counts_CC, strict=True):
            alone = ImageScores(counts_CC=[counts_CC]).confusion().scores()
            rows.append([score.model, score.domain, name, _none(alone.miou), _none(alone.pixel_accuracy)])
    return rows


def _readme(
    scores: Sequence[OwnScore],
    found: Sequence[Mapping[str, Any]],
    about: Mapping[str, str],
    absent: Mapping[str, str],
    probes: Sequence[ProbeRow],
) -> str:
    models = list(dict.fromkeys(score.model for score in scores))
    lines = [f"# {', '.join(models)} on images of one's own" if models else "# Nothing is scored yet", ""]
    lines += [
        "In percent. mIoU is the mean of the classes that occur or are predicted, over the pixels of all "
        f"images; in brackets the middle 95 % of {DRAWS} draws of as many images, with replacement: how far "
        "it would move with other images of the same kind, not with another training. ECE is the expected "
        "calibration error: the mean distance of confidence and accuracy.",
        "",
    ]
    for domain in dict.fromkeys(score.domain for score in scores):
        here = [(s, f) for s, f in zip(scores, found, strict=True) if s.domain == domain]
        lines += [
            f"## {domain}: {_how_many(here[0][1])}",
            "",
            *_model_table(here),
            "",
            *_class_table(here),
            "",
        ]
        notes = [f"- {s.model}: {note}" for s, _ in here for note in s.mapping.notes]
        notes += [
            f"- {s.model}: its temperature was fitted on every second of these samples; ECE is of the others"
            for s, _ in here
            if s.fitted
        ]
        notes += absent_words(here[0][1])
        pictures = [f"![{s.model} on {domain}]({s.picture})" for s, _ in here if s.picture]
        lines += [*notes, *[""] * bool(notes), *pictures, *[""] * bool(pictures)]
    if absent:
        lines += ["## Not scored", "", *(f"- {pair}: {why}" for pair, why in absent.items()), ""]
    if probes:
        lines += ["## Probes", "", "By seed and in full: [probes/](probes/README.md).", ""]
        lines += [*probe_lines(probes, level="###"), ""]
    lines.append("; ".join(f"{key} {value}" for key, value in about.items()))
    return "\n".join(lines) + "\n"


def _how_many(one: Mapping[str, Any]) -> str:
    samples, images = one["samples"], one["images"]
    words = "1 image" if images == 1 else f"{images} images"
    return words if images == samples else f"{samples} tiles of {words}"


def _model_table(here: Sequence[tuple[OwnScore, Mapping[str, Any]]]) -> list[str]:
    """A line a model, against the first where they saw the same images."""
    first = here[0][0]
    beside = len(here) > 1
    head = [
        "model",
        "mIoU",
        *["against the first"] * beside,
        "mean F1",
        "pixel accuracy",
        "ECE",
        "ECE at T",
        "T",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for score, one in here:
        ends = one["miou_interval_95"]
        interval = f" ({_percent(ends[0])} to {_percent(ends[1])})" if ends else ""
        row = [score.model, _percent(one["miou"]) + interval]
        row += [_difference(score, first)] * beside
        f1 = [value for value in one["f1"].values() if value is not None]
        row += [
            _percent(sum(f1) / len(f1) if f1 else None),
            _percent(one["pixel_accuracy"]),
            _percent(one["ece"]),
        ]
        row += [
            _percent(one["ece_at_temperature"]),
            "–" if score.temperature is None else f"{score.temperature:g}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _difference(score: OwnScore, first: OwnScore) -> str:
    if score is first or score.scores.units != first.scores.units:
        return "–"
    ends: Interval | None = difference_interval(score.scores.unit_counts(), first.scores.unit_counts())
    found = score.scores.confusion().scores().miou - first.scores.confusion().scores().miou
    words = f"{100 * found:+.1f}"
    return words if ends is None else f"{words} ({100 * ends.low:+.1f} to {100 * ends.high:+.1f})"


def _class_table(here: Sequence[tuple[OwnScore, Mapping[str, Any]]]) -> list[str]:
    """A line a class, with IoU, F1, precision and recall of each model."""
    names = here[0][1]["classes"]
    titles = {"iou": "IoU", "f1": "F1", "precision": "precision", "recall": "recall"}
    head = ["class", "share", *(f"{s.model}: {titles[rate]}" for s, _ in here for rate in RATES)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name in names:
        row = [name, _percent(here[0][1]["target_share"][name])]
        row += [_percent(one[rate][name]) for _, one in here for rate in RATES]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with table(path) as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value
