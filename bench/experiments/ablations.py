"""Ablations over the miniature of the 22 benchmarks: one axis at a time from the default, paired by seed.

    python -m bench.experiments.ablations [--axes gate descriptors] [--seeds 0 1 2] [--rows …] [--out FOLDER]

Axes: balance, descriptors, experts, top_k, gate. Rows: one per kind of gap unless told. Finished runs are
shared with bench22.py when --work and the budget are the same. Axes run in the order given. --gate
normalized takes the paper's gate for the model that the axes change, instead of the default one.

Beside each value stands the paper's, where it has one (paper_ablations.csv), for its sign alone.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.experiments.bench22 import argument_parser, parsed
from bench.experiments.miniature_model import Setting
from bench.experiments.miniature_runs import (
    Estimate,
    RunStore,
    count_runs,
    describe_budget,
    flat_runs,
    level,
    paired,
    run_all,
    seed_means,
    verdict,
)
from bench.speed.harness import markdown_table, write_report
from crossearth_sar.descriptors import PAPER_DESCRIPTORS
from crossearth_sar.evaluation.miniature import one_per_gap
from crossearth_sar.evaluation.registry import paper_methods
from crossearth_sar.moe.router import GATES
from crossearth_sar.presets import MoEConfig

BASE = MoEConfig()


def axes_around(base: MoEConfig) -> dict[str, dict[str, Setting]]:
    """Axis -> value -> what is run; every axis contains `base` once."""

    def changed(**changes: object) -> Setting:
        return Setting(moe=dataclasses.replace(base, **changes))  # type: ignore[arg-type]

    return {
        "gate": {gate: changed(gate=gate) for gate in GATES},
        "descriptors": {
            "all": changed(),
            "none": changed(descriptors=()),
            "shuffled between images": Setting(moe=base, shuffled=True),
            **{f"{name} only": changed(descriptors=(name,)) for name in PAPER_DESCRIPTORS},
        },
        "balance": {f"weight {base.balance_weight}": changed(), "off": changed(balance_weight=0.0)},
        "experts": {f"n={n}": changed(num_experts=n) for n in (6, 5, 4, 3)},
        "top_k": {f"k={k}": changed(top_k=k) for k in (1, 2, 3)},
    }


AXES = axes_around(BASE)

_FULL = ("moe", "+ balance loss + descriptors")
PAPER_ROWS: dict[str, dict[str, tuple[str, str]]] = {
    "descriptors": {
        "all": _FULL,
        "none": ("moe", "+ balance loss"),
        "entropy only": ("descriptor", "directional entropy only"),
        "enl only": ("descriptor", "ENL only"),
        "roughness only": ("descriptor", "local roughness only"),
    },
    "balance": {f"weight {BASE.balance_weight}": _FULL, "off": ("moe", "+ descriptors")},
    "experts": {f"n={n}": ("experts", f"n={n} k=1") for n in (6, 5, 4, 3)},
    "top_k": {f"k={k}": ("top_k", f"n=6 k={k}") for k in (1, 2, 3)},
}
"""Axis -> value -> (group, setting) of paper_ablations.csv, of those that the paper has too."""

PAPER_SIZE = "CrossEarth-SAR-L"
"""Whose published scores stand for all three descriptors in the paper's Table 6, which has no such row."""


@dataclasses.dataclass(frozen=True)
class PaperValue:
    """A figure of the paper, in percent. benchmarks: of a mean over rows of its tables; () for its own
    validation set. default: what the paper's default model has by the same measure."""

    score: float
    default: float
    benchmarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.score:.1f}" + (f", mean of {len(self.benchmarks)} rows" if self.benchmarks else "")


def main() -> None:
    parser = argument_parser(__doc__ or "", Path("runs/bench22/ablations"), list(one_per_gap()))
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--gate", choices=GATES, default=BASE.gate, help="of the model that the axes change")
    arguments = parsed(parser)
    base = dataclasses.replace(BASE, gate=arguments.gate)
    store = RunStore(arguments.work, arguments.budget)
    if not arguments.report_only:
        for axis in arguments.axes:
            values = axes_around(base)[axis].values()
            run_all(store, store.jobs(values, arguments.seeds, arguments.rows), arguments.processes)
    print(report(store, arguments.axes, arguments.seeds, arguments.rows, arguments.out, base))


def report(
    store: RunStore,
    axes: Sequence[str],
    seeds: Sequence[int],
    rows: Sequence[str],
    out: Path,
    base: MoEConfig = BASE,
) -> str:
    """Writes README.md, results.csv and results.json of what the store holds; returns the first."""
    settings = {f"{axis}: {value}": s for axis in axes for value, s in axes_around(base)[axis].items()}
    distinct = dict.fromkeys(settings.values())
    finished, wanted = count_runs(store, distinct, seeds, rows), len(distinct) * len(seeds) * len(rows)
    if finished == 0:
        return f"Nothing is finished yet: 0 of {wanted} runs."
    table = [line for axis in axes for line in axis_table(store, axis, seeds, rows, base)]
    body = [
        f"{finished} of {wanted} runs are finished: {len(distinct)} settings x {len(seeds)} seeds x "
        f"{len(rows)} rows ({', '.join(rows)}).",
        "",
    ]
    for axis in axes:
        body += [f"## {axis}", "", best_of(store, axis, seeds, rows, base), ""]
        body += [*markdown_table(axis_table(store, axis, seeds, rows, base)), ""]
    return write_report(
        out,
        "Ablations on the miniature benchmarks",
        table,
        notes(store),
        body=body,
        extra={
            "finished": finished,
            "wanted": wanted,
            "budget": dataclasses.asdict(store.budget),
            "runs": flat_runs(store, settings, seeds, rows),
        },
    )


def axis_table(
    store: RunStore, axis: str, seeds: Sequence[int], rows: Sequence[str], base: MoEConfig = BASE
) -> list[dict[str, object]]:
    """A line per value: mIoU on the targets, the difference to the default, and how the experts are used."""
    settings = axes_around(base)[axis]
    default = next(value for value, setting in settings.items() if setting == Setting(moe=base))
    lines = []
    for value, setting in settings.items():
        found = level(store, setting, seeds, rows)
        difference = paired(store, setting, settings[default], seeds, rows)
        lines.append(
            {
                "axis": axis,
                "value": value,
                "mIoU": str(found) if found.seeds else "–",
                "seeds": found.seeds,
                f"difference to {base.gate}, n={base.num_experts}, k={base.top_k}": "default"
                if value == default
                else difference.as_difference()
                if difference.seeds
                else "–",
                "against the default, here": "default" if value == default else side(difference),
                **paper_cells(axis, value),
                "experts in use": _mean(
                    seed_means(store, setting, seeds, rows, "effective_experts"), "{:.1f}"
                ),
                "largest share": _mean(seed_means(store, setting, seeds, rows, "largest_share"), "{:.2f}"),
            }
        )
    return lines


def side(difference: Estimate) -> str:
    """On which side of the default a value is, as far as the seeds say."""
    if difference.seeds == 0:
        return "–"
    if not difference.excludes_zero:
        return "not told apart"
    return "higher" if difference.mean > 0 else "lower"


def paper_cells(axis: str, value: str) -> dict[str, str]:
    """The paper's figure and on which side of its default it is, – where the paper has none."""
    theirs = paper_value(axis, value)
    if theirs is None:
        against = "–"
    elif theirs.score == theirs.default:
        against = "default"
    else:
        against = "higher" if theirs.score > theirs.default else "lower"
    return {
        "paper, val mIoU †": "–" if theirs is None else str(theirs),
        "against the default, paper †": against,
    }


def paper_value(axis: str, value: str) -> PaperValue | None:
    row = PAPER_ROWS.get(axis, {}).get(value)
    if row is None:
        return None
    table = paper_table()
    metric, score = table[row]
    if metric == "val_miou":
        return PaperValue(score, table[_FULL][1])
    benchmarks = tuple(metric.split(";"))
    published = next(method.scores for method in paper_methods() if method.name == PAPER_SIZE)
    return PaperValue(score, statistics.fmean(published[key] for key in benchmarks), benchmarks)


def paper_table() -> dict[tuple[str, str], tuple[str, float]]:
    """(group, setting) -> metric, figure in percent; of several figures their mean."""
    with Path(__file__).with_name("paper_ablations.csv").open(encoding="utf-8", newline="") as file:
        return {
            (line["group"], line["setting"]): (
                line["metric"],
                statistics.fmean(map(float, line["value"].split(";"))),
            )
            for line in csv.DictReader(file)
        }


def best_of(
    store: RunStore, axis: str, seeds: Sequence[int], rows: Sequence[str], base: MoEConfig = BASE
) -> str:
    """Which value of the axis has the highest mean, and whether the seeds tell it from each other one."""
    settings = axes_around(base)[axis]
    levels = {value: level(store, setting, seeds, rows) for value, setting in settings.items()}
    most = max(found.seeds for found in levels.values())
    ranked = sorted((v for v in levels if levels[v].seeds == most > 0), key=lambda v: -levels[v].mean)
    missing = [value for value in levels if value not in ranked]
    if len(ranked) < 2:
        return f"Not decided: fewer than two values are finished ({', '.join(missing)} missing)."
    best, *others = ranked
    against = {v: paired(store, settings[best], settings[v], seeds, rows) for v in others}
    tied = [value for value, difference in against.items() if not difference.excludes_zero]
    text = f"Highest mean: **{best}**, {levels[best]} over {most} seeds. "
    text += " ".join(verdict(f"Against {value}", difference) for value, difference in against.items())
    if tied:
        text += f" By this evidence {best} is not better than {', '.join(tied)}."
    else:
        text += f" By this evidence, at this budget, {best} is best."
    return text + (f" Not ranked, with fewer seeds: {', '.join(missing)}." if missing else "")


def _mean(values: dict[int, float], form: str) -> str:
    return form.format(sum(values.values()) / len(values)) if values else "–"


def notes(store: RunStore) -> list[str]:
    alone = paper_value("descriptors", "enl only")
    assert alone is not None
    return [
        "Simulated images; see bench22.py for the protocol. mIoU in percent on the target domain, mean over "
        "the rows; ± is the standard deviation over seeds, brackets hold Student's 95 % interval of the "
        "paired difference. With three seeds these are wide; they are not corrected for their number.",
        "«experts in use»: exp of the entropy of the experts' token shares on the targets, mean over layers; "
        "«largest share»: of any expert in any layer, mean over rows.",
        "«shuffled between images»: the router gets the descriptors of another image of the batch, in "
        "training and in the scores. A row's images come from one sensor, so the control differs in content.",
        "† Figures of the paper, not measured here: its Table 5, mIoU on the validation set of its own "
        "pre-training. Other data, another size of model and another metric than ours: levels cannot be "
        "compared, only on which side of the default a value is. The paper gives no spread, so its side is "
        "as printed; ours is «not told apart» where the interval holds zero. –: no counterpart, or not run.",
        f"† One descriptor alone: Table 6, the mean of its scores on {', '.join(alone.benchmarks)}. It has "
        f"no row with all three; the published scores of {PAPER_SIZE} on the same rows, mean "
        f"{alone.default:.1f}, stand for it, which is our reading.",
        describe_budget(store.budget),
    ]


if __name__ == "__main__":
    main()
