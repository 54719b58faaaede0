"""Side-by-side timing: contenders in turn within one run, medians and spread, and agreement before ratios."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossearth_sar.engine.provenance import provenance


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


class DisagreementError(AssertionError):
    """Two contenders computed different things: their times must not be compared."""


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 15, warm_up: int = 2
) -> dict[str, Timing]:
    """Each contender once per round, in turn, so that a drift of the machine's speed meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: _percentiles(values) for name, values in seconds.items()}


def require_agreement(name: str, got: Tensor, expected: Tensor, *, rtol: float, atol: float) -> None:
    """Raises DisagreementError unless the outputs agree; call it before printing any ratio."""
    if not torch.allclose(got.double(), expected.double(), rtol=rtol, atol=atol):
        worst = float((got.double() - expected.double()).abs().max())
        raise DisagreementError(
            f"{name} disagrees with the reference by up to {worst:g}: no ratio is printed"
        )


def write_report(folder: Path, title: str, rows: Sequence[Mapping[str, object]], notes: Sequence[str]) -> str:
    """Writes results.csv, results.json with provenance and README.md into `folder`; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    origin = provenance()
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "results.json").write_text(
        json.dumps({"provenance": origin, "rows": list(rows)}, indent=2) + "\n"
    )
    columns = list(rows[0])
    table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    table += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows]
    text = "\n".join(
        [f"# {title}", "", *table, "", *(f"- {note}" for note in notes), "",
         "; ".join(f"{key} {value}" for key, value in origin.items()), ""]
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def _percentiles(values: list[float]) -> Timing:
    ordered = sorted(values)
    return Timing(*(ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8)))
