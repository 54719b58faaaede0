"""The 22 benchmarks in miniature: dense baseline, MoE, and MoE with descriptors, on simulated stand-ins.

    python -m bench.experiments.bench22 [--seeds 0 1 2] [--rows N2S K2C …] [--work FOLDER] [--out FOLDER]

The protocol is the paper's in small: pre-training on a mixture of sensors, then a frozen backbone and a new
head per source domain, scored on the target. A stopped run goes on with the same command; `--report-only`
writes the report of what is finished. `--set steps=1200 head_steps=200` changes the budget and starts anew.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bench.experiments.miniature_model import Budget, Setting
from bench.experiments.miniature_runs import (
    Estimate,
    RunStore,
    count_runs,
    default_processes,
    describe_budget,
    flat_runs,
    level,
    paired,
    run_all,
    seed_means,
    verdict,
)
from bench.speed.harness import markdown_table, write_report
from crossearth_sar.config import merge, parse_overrides
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.miniature import STAND_INS, stand_in
from crossearth_sar.presets import MoEConfig

DENSE, PLAIN, PHYSICS = "dense", "MoE", "MoE + descriptors"
VARIANTS: dict[str, Setting] = {
    DENSE: Setting(),
    PLAIN: Setting(moe=MoEConfig(descriptors=())),
    PHYSICS: Setting(moe=MoEConfig()),
}
COMPARISONS = ((PLAIN, DENSE), (PHYSICS, DENSE), (PHYSICS, PLAIN))


def main() -> None:
    arguments = parsed(argument_parser(__doc__ or "", Path("runs/bench22/report"), list(STAND_INS)))
    store = RunStore(arguments.work, arguments.budget)
    if not arguments.report_only:
        jobs = store.jobs(VARIANTS.values(), arguments.seeds, arguments.rows)
        run_all(store, jobs, arguments.processes)
    print(report(store, arguments.seeds, arguments.rows, arguments.out))


def argument_parser(text: str, out: Path, rows: list[str]) -> argparse.ArgumentParser:
    """The options that this script and the ablations share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=rows, help="keys, with or without -sim")
    parser.add_argument("--work", type=Path, default=Path("runs/bench22"), help="finished runs and weights")
    parser.add_argument("--out", type=Path, default=out, help="folder of the report")
    parser.add_argument("--processes", type=int, default=default_processes())
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", help="of the budget, steps=1200")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments with rows by their full keys, in the table's order, and `budget`; a bad one ends here."""
    arguments = parser.parse_args()
    try:
        wanted = {stand_in(key).key for key in arguments.rows}
        arguments.budget = merge(Budget(), parse_overrides(arguments.overrides))
    except InputError as error:
        parser.error(str(error))
    arguments.rows = [key for key in STAND_INS if key in wanted]
    arguments.seeds = list(dict.fromkeys(arguments.seeds))
    return arguments


def report(store: RunStore, seeds: Sequence[int], rows: Sequence[str], out: Path) -> str:
    """Writes README.md, results.csv and results.json of what the store holds; returns the first."""
    finished = count_runs(store, VARIANTS.values(), seeds, rows)
    wanted = len(VARIANTS) * len(seeds) * len(rows)
    if finished == 0:
        return f"Nothing is finished yet: 0 of {wanted} runs."
    table = [row_scores(store, key, seeds) for key in rows]
    body = [
        f"{finished} of {wanted} runs are finished: {len(rows)} rows x {len(VARIANTS)} variants x "
        f"{len(seeds)} seeds.",
        "",
        *(f"- {line}" for line in conclusions(store, seeds, rows)),
        "",
        "## By kind of gap",
        "",
        *markdown_table(gap_table(store, seeds, rows)),
        "",
        "## By row",
        "",
        *markdown_table(table),
        "",
    ]
    return write_report(
        out,
        "The 22 benchmarks in miniature, on simulated stand-ins",
        table,
        notes(store),
        body=body,
        extra={
            "finished": finished,
            "wanted": wanted,
            "budget": dataclasses.asdict(store.budget),
            "settings": {name: setting.mapping() for name, setting in VARIANTS.items()},
            "gaps": gap_table(store, seeds, rows),
            "runs": flat_runs(store, VARIANTS, seeds, rows),
        },
    )


def conclusions(store: RunStore, seeds: Sequence[int], rows: Sequence[str]) -> list[str]:
    """A sentence per comparison, over rows that every counted seed has."""
    lines = []
    for name, baseline in COMPARISONS:
        difference = paired(store, VARIANTS[name], VARIANTS[baseline], seeds, rows)
        per_row = [paired(store, VARIANTS[name], VARIANTS[baseline], seeds, [key]) for key in rows]
        better = sum(d.mean > 0 for d in per_row)
        known = sum(d.seeds > 0 for d in per_row)
        lines.append(
            verdict(f"{name} against {baseline}, mean over {len(rows)} rows", difference)
            + (f" Its mean is higher on {better} of {known} rows." if known else "")
        )
    return lines


def gap_table(store: RunStore, seeds: Sequence[int], rows: Sequence[str]) -> list[dict[str, object]]:
    """A line per kind of gap, and one over all rows."""
    gaps = dict.fromkeys(STAND_INS[key].gap for key in rows)
    groups = {gap: [key for key in rows if STAND_INS[key].gap == gap] for gap in gaps}
    return [scores(store, gap, keys, seeds) for gap, keys in [*groups.items(), ("all", list(rows))]]


def scores(store: RunStore, gap: str, keys: Sequence[str], seeds: Sequence[int]) -> dict[str, object]:
    """mIoU on the targets, mean over `keys`, and the paired differences."""
    line: dict[str, object] = {"gap": gap, "rows": len(keys)}
    line |= {"majority": reference(store, keys, seeds, "majority_miou")}
    line |= {name: shown(level(store, setting, seeds, keys)) for name, setting in VARIANTS.items()}
    line |= {f"{DENSE}, in its own domain": reference(store, keys, seeds, "source_miou")}
    for name, baseline in COMPARISONS:
        difference = paired(store, VARIANTS[name], VARIANTS[baseline], seeds, keys)
        line[f"{name} − {baseline}"] = difference.as_difference() if difference.seeds else "–"
    return line


def row_scores(store: RunStore, key: str, seeds: Sequence[int]) -> dict[str, object]:
    row = STAND_INS[key]
    return {"row": key, "classes": len(row.task.scored)} | {
        name: value for name, value in scores(store, row.gap, [key], seeds).items() if name != "rows"
    }


def reference(store: RunStore, keys: Sequence[str], seeds: Sequence[int], field: str) -> str:
    """A figure of the dense runs, mean over seeds and rows."""
    means = seed_means(store, VARIANTS[DENSE], seeds, keys, field)
    return f"{sum(means.values()) / len(means):.1f}" if means else "–"


def shown(value: Estimate) -> str:
    return str(value) if value.seeds else "–"


def notes(store: RunStore) -> list[str]:
    gate = VARIANTS[PHYSICS].moe
    assert gate is not None
    return [
        "Simulated images throughout: nothing here is a score on a real dataset, and none may be compared "
        "with the paper's.",
        "mIoU in percent over the row's scored classes. ± is the standard deviation over seeds; brackets "
        "hold Student's 95 % interval of the mean difference, paired by seed. A seed changes the initial "
        "weights and the order of batches; images stay the same, so the spread says nothing about others.",
        "Intervals of single rows and gaps are many: about one in twenty leaves out zero by chance.",
        "«in its own domain»: unseen places of the source domain, same head. «majority»: every pixel the "
        "commonest class of the training masks.",
        f"Gate: {gate.gate}; {gate.num_experts} experts, top {gate.top_k}, balance {gate.balance_weight}. "
        "All variants have the same active size, routers aside. Experts start independently, not upcycled, "
        "for there are no dense weights to start from; what is outside the FFNs starts as the dense model's.",
        "Pre-training sees all three regions and bands L to X, in single channels; the span of all channels "
        "and real and imaginary parts are first met in the rows. The head is two linear maps per patch, not "
        "Mask2Former.",
        describe_budget(store.budget),
    ]


if __name__ == "__main__":
    main()
