"""The probes' tables as Markdown, CSV and JSON, one folder.

In percent. A cell is the mean over seeds, with the deviation of single seeds, and the middle 95 % of a
bootstrap over test images.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossearth_sar.evaluation.bootstrap import DRAWS, Interval
from crossearth_sar.evaluation.markdown import write_markdown
from crossearth_sar.evaluation.probe.row import ProbeRow
from crossearth_sar.whole import table, write_text

REPORT, TABLE, FOUND = "README.md", "probes.csv", "probes.json"

TITLES = {
    "linear": "linear probe",
    "knn": "k-NN probe",
    "finetune": "few-label fine-tuning",
}

_WORDS = (
    "mIoU in percent at the test images' own pixels, mean over seeds of the draw of labelled images, ± the "
    "deviation of single seeds; in brackets the middle 95 % of {draws} draws of as many test images with "
    "replacement, for these labelled images. The encoder is frozen in the linear and the k-NN probe: "
    "features of cells are standardised over the labelled cells; linear is multinomial logistic regression "
    "on shares of classes, k-NN the vote of the nearest cells by cosine; scores are interpolated to pixels."
)


def write_probe_report(
    output: Path, rows: Sequence[ProbeRow], *, floor: str | None = None, about: Mapping[str, str]
) -> Path:
    """README.md, probes.csv (a line a seed) and probes.json; the README's path.

    Args:
        floor: the encoder that others are shown against.
    """
    output.mkdir(parents=True, exist_ok=True)
    content = {"provenance": dict(about), "rows": [_mapping(row) for row in rows]}
    write_text(output / FOUND, json.dumps(content) + "\n")
    with table(output / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["test", "method", "encoder", "labels", "images", "seed", "miou"])
        for row in rows:
            first = [row.test, row.method, row.encoder, row.labels, row.images]
            pairs = zip(row.seeds, row.miou_by_seed, strict=True)
            writer.writerows([*first, seed, "" if math.isnan(v) else f"{v:.6f}"] for seed, v in pairs)
    lines = ["# Probes", "", *probe_lines(rows, floor=floor)]
    lines += ["", "; ".join(f"{key} {value}" for key, value in about.items())]
    return write_markdown(output / REPORT, "\n".join(lines) + "\n")


def probe_lines(rows: Sequence[ProbeRow], *, floor: str | None = None, level: str = "##") -> list[str]:
    """The tables in Markdown: a section a test domain, a table a method, a line an encoder."""
    lines = [_WORDS.format(draws=DRAWS)]
    for test in dict.fromkeys(row.test for row in rows):
        here = [row for row in rows if row.test == test]
        count = len(here[0].units)
        lines += ["", f"{level} {test}: {count} {'image' if count == 1 else 'images'}"]
        for method in dict.fromkeys(row.method for row in here):
            lines += ["", *_table([row for row in here if row.method == method], floor)]
        lines += _notes(here)
    return lines


def _table(rows: Sequence[ProbeRow], floor: str | None) -> list[str]:
    asked = list(dict.fromkeys(row.labels for row in rows))
    found = {(row.encoder, row.labels): row for row in rows}
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    head = [TITLES[rows[0].method], *(_labelled(found[encoders[0], labels]) for labels in asked)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(asked)]
    for encoder in encoders:
        cells = [_score(found[encoder, labels]) for labels in asked]
        lines.append("| " + " | ".join([encoder, *cells]) + " |")
    if floor in encoders:
        for encoder in encoders:
            if encoder != floor:
                pairs = [found[encoder, labels].above(found[floor, labels]) for labels in asked]
                cells = [_percent(value, ends, "+.1f") for value, ends in pairs]
                lines.append("| " + " | ".join([f"{encoder} above {floor}", *cells]) + " |")
    return lines


def _labelled(row: ProbeRow) -> str:
    count = f"{row.images} labelled image{'s' if row.images > 1 else ''}"
    return count if row.labels == str(row.images) else f"{row.labels}: {count}"


def _score(row: ProbeRow) -> str:
    spread = f" ± {100 * float(np.std(row.miou_by_seed, ddof=1)):.1f}" if len(row.seeds) > 1 else ""
    return _percent(row.miou, row.interval, ".1f", spread)


def _percent(value: float, ends: Interval | None, form: str, spread: str = "") -> str:
    if math.isnan(value):
        return "–"
    brackets = f" ({100 * ends.low:{form}} to {100 * ends.high:{form}})" if ends else ""
    return f"{100 * value:{form}}{spread}{brackets}"


def _notes(rows: Sequence[ProbeRow]) -> list[str]:
    """Which classes the labelled images of a draw do not show, once for all encoders."""
    said: dict[tuple[str, int], tuple[str, ...]] = {}
    for row in rows:
        for seed, absent in zip(row.seeds, row.absent, strict=True):
            if absent:
                said[_labelled(row), seed] = absent
    words = [
        f"- {labelled}, seed {seed}: no label shows {', '.join(absent)}, which is never predicted"
        for (labelled, seed), absent in said.items()
    ]
    return ["", *words] if words else []


def _mapping(row: ProbeRow) -> dict[str, Any]:
    ends = row.interval
    return {
        "miou": None if math.isnan(row.miou) else row.miou,
        "miou_interval_95": None if ends is None else [ends.low, ends.high],
        "miou_by_seed": [None if math.isnan(value) else value for value in row.miou_by_seed],
        **row.to_mapping(),
    }
