"""The report of the real benchmark: a row a set, simple methods first, then what each model is above them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.experiments.real.curves import NOTE as CURVE_NOTE
from bench.experiments.real.curves import curve_table
from bench.experiments.real.few_labels import few_table
from bench.experiments.real.scoring import BLOCK, RESAMPLES, Estimate, Store, drawn_scores, estimate
from bench.experiments.real.sets import TASKS, RealSet
from bench.speed.harness import markdown_table, write_report

PLAINEST = "Otsu per image, 1 x 1"
OTHERS = ("fixed threshold", "random forest")
NONE = "–"
FEW_NOTE = (
    "Few labels: OMBRIA's training images, drawn by the seed and the same for all starts; intervals of "
    "differences are over the same draws of both. A mean over sets is plain, each set counting once. "
    "0 images: the shipped model as it is."
)

Row = dict[str, Any]


def set_rows(row: RealSet, methods: dict[str, dict[str, Any]]) -> list[Row]:
    """One row per method of a set, seeds together; `minus`: less the best simple method of that set."""
    water = TASKS[row.task].classes.index("water")
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in methods.values():
        groups.setdefault(entry["label"], []).append(entry)
    scores = {
        label: [drawn_scores(entry["counts"], water) for entry in entries]
        for label, entries in groups.items()
    }
    main = "water" if row.task == "water" else "miou"
    simple = [label for label, entries in groups.items() if entries[0]["kind"] == "simple"]
    best = max(simple, key=lambda label: scores[label][0][main][0], default=None)
    found = []
    for label, entries in groups.items():
        counts = entries[0]["counts"]
        target = counts.sum((0, 2))
        parts: dict[str, Estimate] = {
            name: estimate([score[name] for score in scores[label]]) for name in ("water", "miou")
        }
        if best is not None:
            parts["minus"] = estimate([score[main] for score in scores[label]], less=scores[best][0][main])
        found.append(
            {
                "set": row.name, "task": row.task, "sensor": row.sensor, "gap": " ".join(row.gap),
                "images": entries[0]["images"], "unit": f"{len(counts)} {entries[0]['unit']}s",
                "water %": round(100 * target[water] / max(target.sum(), 1), 1), "method": label,
                "kind": entries[0]["kind"], "seeds": len(entries), "parts": parts, "main": main,
                "is_best": label == best, "commits": {entry["commit"] for entry in entries},
            }
        )  # fmt: skip
    return found


def csv_row(row: Row) -> Row:
    """The row with plain numbers, percent."""
    kept = {k: v for k, v in row.items() if k not in ("parts", "main", "commits", "is_best")}
    for name, title in (("water", "water IoU"), ("miou", "mIoU"), ("minus", f"{'minus best simple'}")):
        part = row["parts"].get(name)
        for field in ("value", "low", "high", "seed_std"):
            suffix = "" if field == "value" else f" {field}"
            kept[f"{title}{suffix}"] = "" if part is None else f"{getattr(part, field):.2f}"
    return kept | {"is best simple": int(row["is_best"]), "commit": " ".join(sorted(row["commits"]))}


def simple_table(rows: Sequence[Row]) -> list[str]:
    """Water IoU of simple methods; of the Otsu variants the plainest and the best."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = {row["method"]: row for row in rows if row["set"] == name and row["kind"] == "simple"}
        if not mine:
            continue
        first = next(iter(mine.values()))
        otsu = [row for label, row in mine.items() if label.startswith("Otsu")]
        best_otsu = max(otsu, key=lambda row: row["parts"]["water"].value, default=None)
        lines.append(
            {
                "set": name, "sensor": first["sensor"], "differs in": first["gap"],
                "images": first["images"], "water %": first["water %"],
                PLAINEST: shown(mine.get(PLAINEST), "water"),
                "best Otsu": NONE
                if best_otsu is None
                else f"{shown(best_otsu, 'water')} ({best_otsu['method'][5:]})",
                **{label: shown(mine.get(label), "water") for label in OTHERS},
                "best simple": next((row["method"] for row in mine.values() if row["is_best"]), NONE),
            }
        )  # fmt: skip
    return markdown_table(lines) if lines else []


def model_table(rows: Sequence[Row], labels: Sequence[str], part: str) -> list[str]:
    """A row a set, a column a model; beside them the best simple method."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = {row["method"]: row for row in rows if row["set"] == name}
        best = next((row for row in mine.values() if row["is_best"]), None)
        if not labels or any(label in mine for label in labels):
            start = {"set": name} if part == "minus" else {"set": name, "best simple": shown(best, part)}
            lines.append({**start, **{label: shown(mine.get(label), part) for label in labels}})
    return markdown_table(lines) if lines else []


def gap_table(rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    """By what differs: mean and range over sets of water IoU less that of the best simple method."""
    lines = []
    for gap in ("region", "form", "polarization", "looks", "platform", "band"):
        sets = sorted({row["set"] for row in rows if gap in row["gap"].split()})
        if not sets:
            continue
        line: Row = {"differs in": gap, "sets": " ".join(sets)}
        for label in labels:
            values = [
                row["parts"]["minus"].value
                for row in rows
                if row["method"] == label and row["set"] in sets and "minus" in row["parts"]
            ]
            line[label] = (
                f"{np.mean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})" if values else NONE
            )
        lines.append(line)
    return markdown_table(lines) if lines and labels else []


def shown(row: Row | None, part: str) -> str:
    if row is None or part not in row["parts"]:
        return NONE
    return str(row["parts"][part])


def sections(rows: Sequence[Row]) -> list[str]:
    """The body of README.md."""
    water = [row for row in rows if row["task"] == "water"]
    cover = [row for row in rows if row["task"] != "water"]
    labels = sorted({row["method"] for row in water if row["kind"] == "model"})
    cover_labels = sorted({row["method"] for row in cover if row["kind"] == "model"})
    modelled = water if labels else []
    tables = (
        ("Water IoU of simple methods", simple_table(water)),
        ("Water IoU of models", model_table(modelled, labels, "water")),
        ("Water IoU less the best simple method's", model_table(modelled, labels, "minus")),
        ("mIoU of water and other", model_table(modelled, labels, "miou")),
        ("By what differs: water IoU less the best simple method's", gap_table(water, labels)),
        ("Land cover: mIoU over the classes that a set has", model_table(cover, cover_labels, "miou")),
    )
    return [line for title, table in tables if table for line in (f"## {title}", "", *table, "")]


def report(store: Store, sets: Sequence[RealSet], out: Path, notes: Sequence[str] = ()) -> str:
    """Writes results.csv and README.md of everything in the store into `out`; returns the latter."""
    found = store.all()
    rows = [line for row in sets if row.name in found for line in set_rows(row, found[row.name])]
    commits = sorted(set().union(*(row["commits"] for row in rows)))
    curves = curve_table(found, sets)
    few = {part: few_table(found, sets, part) for part in ("miou", "water")}
    lines = [
        "Percent; in brackets a 95 % bootstrap interval over a set's images, "
        f"{RESAMPLES} resamples; of a set of one image, over its blocks of {BLOCK} pixels, which says "
        "nothing of other images. With three or five images an interval is rough. ± is the deviation over "
        "seeds.",
        "The best simple method of a set is chosen with the set's labels: a bar above any one method.",
        "Otsu looks at no label. The fixed threshold and the random forest learn from simulated scenes "
        "alone, at 10 m. Models of seven classes: water where the highest score is water's.",
        "Where the sets come from: docs/BENCHMARKS.md, «Real images».",
        *([CURVE_NOTE] if curves else []),
        *([FEW_NOTE] if few["miou"] else []),
        *notes,
        f"The results' own commits: {', '.join(commits)}.",
    ]
    body = sections(rows)
    if curves:
        body += ["## mIoU of water and other against training time", "", *curves, ""]
    for part, title in (("miou", "mIoU of water and other"), ("water", "water IoU")):
        if few[part]:
            body += [f"## Few labels: {title}", "", *few[part], ""]
    return write_report(out, "Real images", [csv_row(row) for row in rows], lines, body=body)
