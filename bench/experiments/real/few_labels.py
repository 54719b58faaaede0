"""Few labelled images: the shipped weights, the same model from scratch and the U-Net, for equal time.

Each is trained on 2, 8 and 64 images of OMBRIA's training side, drawn by the seed and the same for all, and
scored on every water set; beside them the shipped model without any. The table pairs contenders by seed and
by the draws of the bootstrap, so that a difference has an interval of its own.

U units, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.experiments.real.scoring import drawn_scores, estimate
from bench.experiments.real.sets import TASKS, RealSet
from bench.speed.harness import markdown_table

COUNTS = (2, 8, 64)
SECONDS = 60.0
SEEDS = (0, 1, 2)
STARTS = {"shipped": "tiny, shipped weights", "tiny": "tiny, from scratch", "unet": "U-Net, from scratch"}
"""Contender of train_equal.py -> what its start is called."""
KIND = "few labels"
NONE = "–"

Row = dict[str, Any]
Amount = tuple[int, float]
"""Labelled images, and seconds of training."""
Starts = dict[str, dict[int, np.ndarray]]
"""Start -> seed -> (1 + R,) scores."""


def about(contender: str, images: int, seed: int, seconds: float) -> Row:
    """What the store keeps beside the counts; the label says start and number of images."""
    time = f", {seconds:g} s" if images else ""
    label = f"{STARTS[contender]}, {images} labelled images{time}"
    kept = {"start": contender, "labelled": images, "seconds": seconds, "seed": seed}
    return {"label": label, "kind": KIND, **kept}


def few_table(found: Mapping[str, Mapping[str, Row]], sets: Sequence[RealSet], part: str) -> list[str]:
    """A row per set, number of images and seconds: `part`, miou or water, of each start, and what the shipped
    weights are above the others; at the end of each number the plain mean over sets.

    Args:
        found: set -> method -> entry, as `Store.all` gives them.
    """
    by_set = {row.name: by_amount(found.get(row.name, {}), row, part) for row in sets if row.task == "water"}
    lines: list[Row] = []
    for amount in sorted({amount for there in by_set.values() for amount in there}):
        mine = {name: there[amount] for name, there in by_set.items() if amount in there}
        images, seconds = amount
        first = {"labelled images": images, "seconds": f"{seconds:g}" if images else NONE}
        lines += [{**first, "set": name, **estimates(starts)} for name, starts in mine.items()]
        lines.append({**first, "set": f"mean of {len(mine)}", **means(list(mine.values()))})
    return markdown_table(lines) if lines else []


def by_amount(methods: Mapping[str, Row], row: RealSet, part: str) -> dict[Amount, Starts]:
    """The scores on one set."""
    water = TASKS[row.task].classes.index("water")
    found: dict[Amount, Starts] = {}
    for entry in methods.values():
        if entry["kind"] == KIND:
            starts = found.setdefault((entry["labelled"], entry["seconds"]), {})
            scores = drawn_scores(entry["counts"], water)[part]
            starts.setdefault(entry["start"], {})[entry["seed"]] = scores
    return found


def estimates(starts: Starts) -> Row:
    """Of each start, and of the shipped weights less each other, over the seeds that both have."""
    line: Row = {
        title: str(estimate(list(starts[start].values()))) if start in starts else NONE
        for start, title in STARTS.items()
    }
    for other, title in list(STARTS.items())[1:]:
        own, others = starts.get("shipped", {}), starts.get(other, {})
        both = sorted(set(own) & set(others))
        line[f"shipped less {title}"] = (
            str(estimate([own[seed] - others[seed] for seed in both])) if both else NONE
        )
    return line


def means(rows: Sequence[Starts]) -> Row:
    """The mean over sets of each column; none where a set lacks the start."""
    value = {
        start: np.mean([np.mean([100 * score[0] for score in starts[start].values()]) for starts in rows])
        for start in STARTS
        if all(start in starts for starts in rows)
    }
    line: Row = {title: f"{value[start]:.1f}" if start in value else NONE for start, title in STARTS.items()}
    for other, title in list(STARTS.items())[1:]:
        there = "shipped" in value and other in value
        line[f"shipped less {title}"] = f"{value['shipped'] - value[other]:+.1f}" if there else NONE
    return line
