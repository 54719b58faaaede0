"""The parts of DI3CL one by one on simulated scenes: frozen linear probes, several seeds of pre-training.

    python -m bench.experiments.di3cl [--variants moco di3cl] [--seeds 0 1 2] [--steps 200] [--out FOLDER]

Every variant is the embedded default of `crossearth-sar selfsup` with weights of its losses changed, and all
steps, scenes and label draws the same. Beside them stand untrained weights. What is finished is
kept below WORK and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from bench.speed.harness import markdown_table, write_report
from crossearth_sar.evaluation.probe.row import ProbeRow

METHOD = "selfsup.method."
VARIANTS: dict[str, list[str]] = {
    "moco": [f"{METHOD}contour_weight=0", f"{METHOD}region_weight=0"],
    "di": [f"{METHOD}contour_weight=0", f"{METHOD}global_weight=0"],
    "cc": [f"{METHOD}region_weight=0", f"{METHOD}global_weight=0"],
    "di3cl": [],
    "edges": [f"{METHOD}contour=edges"],
    "di3cl-region-1": [f"{METHOD}region_weight=1"],
}
"""Name -> settings. moco is MoCo v2: DI and CC off."""

WORDS = {
    "moco": "MoCo v2 (global alone)",
    "di": "DI alone",
    "cc": "CC alone",
    "di3cl": "DI3CL",
    "edges": "DI3CL with contour=edges",
    "di3cl-region-1": "DI3CL with region_weight 1",
}

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every run")
    parser.add_argument("--work", type=Path, default=Path("runs/di3cl-parts"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/di3cl-parts"))
    given = parser.parse_args(arguments)
    jobs = [(variant, seed) for seed in given.seeds for variant in given.variants]
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = list(pool.map(lambda job: one_run(job[0], job[1], given.steps, given.set, given.work), jobs))
    rows = [
        {"variant": variant, "seed": seed, **row}
        for (variant, seed), run in zip(jobs, runs, strict=True)
        for row in run
    ]
    notes = [
        "mIoU in percent of a frozen linear probe on so many labelled scenes; pre-training seeds "
        f"{', '.join(map(str, given.seeds))}, three label draws each, {given.steps} steps of 16 pairs.",
        "In brackets the 95 % interval of the mean difference over pre-training seeds (paired, Student's t).",
        *([f"Of every run: {' '.join(given.set)}."] if given.set else []),
    ]
    title = "The parts of DI3CL on simulated scenes"
    print(write_report(given.out, title, rows, notes, body=tables(rows)))
    return 0


def one_run(variant: str, seed: int, steps: int, settings: Sequence[str], work: Path) -> list[Row]:
    """The probe's rows of one run; trained where it is not finished."""
    output = work / f"{variant}-{steps}-seed{seed}"
    if not (output / "metrics.json").is_file():
        command = [
            *(sys.executable, "-m", "crossearth_sar", "selfsup", "--resume", "--set", f"output={output}"),
            *(f"seed={seed}", f"steps={steps}", "executor=local", *VARIANTS[variant], *settings),
        ]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        print(f"{output.name} is finished", file=sys.stderr, flush=True)
    found = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    probed = [ProbeRow.from_mapping(row) for row in found["probe"]]
    return [
        {"features": row.encoder, "test": row.test, "labels": int(row.labels), "miou": row.miou}
        for row in probed
    ]


def tables(rows: Sequence[Row]) -> list[str]:
    """A table a test: mIoU of each variant by labels, and its lead over untrained weights and MoCo v2."""
    lines: list[str] = []
    for test in dict.fromkeys(row["test"] for row in rows):
        here = [row for row in rows if row["test"] == test]
        table = [line_of(here, variant) for variant in dict.fromkeys(row["variant"] for row in here)]
        lines += [f"## {test}", "", *markdown_table(table), ""]
    return lines


def line_of(rows: Sequence[Row], variant: str) -> Row:
    line: Row = {"features of": WORDS[variant]}
    with_moco = any(row["variant"] == "moco" for row in rows)
    for labels in sorted({row["labels"] for row in rows}):
        own = scores(rows, variant, "this run", labels)
        untrained = scores(rows, variant, "random initialisation", labels)
        line[f"{labels} labels"] = f"{mean(own):.1f}"
        line[f"{labels}, above untrained"] = difference(own, untrained)
        if with_moco:
            moco = scores(rows, "moco", "this run", labels)
            line[f"{labels}, above MoCo v2"] = "" if variant == "moco" else difference(own, moco)
    return line


def scores(rows: Sequence[Row], variant: str, features: str, labels: int) -> list[float]:
    """Percent, by rising seed."""
    own = [r for r in rows if (r["variant"], r["features"], r["labels"]) == (variant, features, labels)]
    return [100 * row["miou"] for row in sorted(own, key=lambda row: int(row["seed"]))]


def difference(first: Sequence[float], second: Sequence[float]) -> str:
    """Mean of the paired differences, and its interval where there are several."""
    each = [a - b for a, b in zip(first, second, strict=True)]
    if len(each) < 2:
        return f"{mean(each):+.1f}"
    half = float(student.ppf(0.975, len(each) - 1)) * stdev(each) / len(each) ** 0.5
    return f"{mean(each):+.1f} ({mean(each) - half:+.1f} to {mean(each) + half:+.1f})"


if __name__ == "__main__":
    sys.exit(main())
