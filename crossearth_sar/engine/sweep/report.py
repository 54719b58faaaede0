"""A sweep as a table: report.md and trials.csv in its folder, best first."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossearth_sar.engine.sweep.settings import SweepConfig
from crossearth_sar.engine.sweep.study import Trial
from crossearth_sar.evaluation.markdown import write_markdown
from crossearth_sar.provenance import provenance
from crossearth_sar.whole import table


def write_sweep_report(folder: Path, sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Writes both files; the text of report.md.

    Args:
        trials: those that are over.
    """
    ranked = sorted(trials, key=lambda trial: (trial.score is None, -(trial.score or 0.0), trial.number))
    rows = [_row(trial, sweep) for trial in ranked]
    with table(folder / "trials.csv") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    columns = [key for key in rows[0] if key != "failure"]
    lines = [
        f"# Sweep: {len(trials)} of {sweep.trials} trials, {sweep.maximize} of the validation domain",
        "",
        *_best_words(ranked[0], sweep),
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(_cell(row[key]) for key in columns)} |" for row in rows),
        "",
        *(f"- {trial.folder} has no score: {trial.failure}" for trial in ranked if trial.failure),
        "",
        "A score is that of the model that its run kept, the best by validation mIoU. The best of many "
        "trials is chosen by the validation images: what it is worth, images say that chose nothing.",
        "",
        "; ".join(f"{key} {value}" for key, value in provenance().items()),
        "",
    ]
    text = "\n".join(lines)
    write_markdown(folder / "report.md", text)
    return text


def _best_words(best: Trial, sweep: SweepConfig) -> list[str]:
    if best.score is None:
        return ["No trial has a score."]
    return [
        f"Best: {best.folder}, {sweep.maximize} {best.score:.4f}. Its model is {best.folder}/model, "
        f"its settings {best.folder}/config.yaml, or the run's own with",
        "",
        f"    --set {best.words}",
    ]


def _row(trial: Trial, sweep: SweepConfig) -> dict[str, Any]:
    return {
        "trial": trial.folder,
        sweep.maximize: "" if trial.score is None else trial.score,
        **trial.values,
        "of step": trial.facts.get("step", ""),
        "minutes": round(trial.facts["seconds"] / 60, 1),
        "failure": trial.failure or "",
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
