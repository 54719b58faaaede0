"""Scores against training time: of each seed the mean over sets, at each time that it was scored at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from bench.experiments.real.scoring import drawn_scores
from bench.experiments.real.sets import TASKS, RealSet
from bench.speed.harness import markdown_table

RUN = re.compile(r"(?P<trained>.+-[\d.]+s)-seed(?P<seed>\d+)-at(?P<seconds>[\d.]+)")
"""A training's name in the store, and when it was scored."""
NOTE = (
    "Curves: plain means over the water sets that every training of the table was scored on, each set "
    "counting once; in brackets the seeds. Such a mean hides what differs between sets: the tables above "
    "have them."
)

Scores = dict[str, dict[float, dict[int, dict[str, float]]]]
"""Training -> seconds -> seed -> set -> mIoU in percent."""


def curve_table(found: Mapping[str, Mapping[str, dict[str, Any]]], sets: Sequence[RealSet]) -> list[str]:
    """A row per training that was scored at several times; none where there is no such.

    Args:
        found: set -> method -> entry, as `Store.all` gives them.
    """
    scores: Scores = {}
    for row in (row for row in sets if row.task == "water"):
        water = TASKS[row.task].classes.index("water")
        for method, entry in found.get(row.name, {}).items():
            if run := RUN.fullmatch(method):
                seeds = scores.setdefault(run["trained"], {}).setdefault(float(run["seconds"]), {})
                value = drawn_scores(entry["counts"], water)["miou"][0]
                seeds.setdefault(int(run["seed"]), {})[row.name] = 100 * float(value)
    curves = {trained: points for trained, points in scores.items() if len(points) > 1}
    scored = [
        set(there) for points in curves.values() for seeds in points.values() for there in seeds.values()
    ]
    shared = set.intersection(*scored) if scored else set()
    if not shared:
        return []
    lines = []
    for trained, points in curves.items():
        line: dict[str, object] = {"trained": trained, "sets": len(shared)}
        for seconds in sorted({point for points in curves.values() for point in points}):
            seeds = points.get(seconds, {})
            means = [mean(there[name] for name in shared) for _, there in sorted(seeds.items())]
            each = ", ".join(f"{value:.1f}" for value in means)
            line[f"{seconds:g} s"] = f"{mean(means):.1f} ({each})" if means else "–"
        lines.append(line)
    return markdown_table(lines)
