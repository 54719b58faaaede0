"""Real images at the end of a pre-training's report: what `make cpt` adds to report.md where they are there.

    python -m bench.experiments.real.after_training --real ../shared [what train/cpt.py was given]

The finished model is scored on water as `bench_real --model` does, beside one Otsu threshold: land cover and
the other methods take minutes. Images and scores are kept in WORK, so that no model is scored twice; the
report gets numbers, no picture. Where nothing can be scored, a line says why. Nothing in here trains.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.experiments.real.bench_real import Bench, slug
from bench.experiments.real.scoring import drawn_scores, estimate
from bench.experiments.real.sets import SETS, TASKS, RealSet, has_images, prepare
from bench.experiments.real.simple import FINER_M
from bench.speed.harness import markdown_table
from crossearth_sar.cli import train
from crossearth_sar.cli.config_arguments import built_config
from crossearth_sar.cli.plugins import add_plugin_option, import_plugins
from crossearth_sar.engine.config import DOMAINS, simulated_run
from crossearth_sar.errors import InputError
from crossearth_sar.model import CONFIG_FILE

TITLE = "## Real images"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True, help="folder with corpus/ and real_data/")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-real"))
    train.add_arguments(parser)
    add_plugin_option(parser)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)  # as bench_real: images are small, and two threads wait for each other
    import_plugins(arguments.plugin)
    run = Path(built_config(simulated_run(), arguments, whole=DOMAINS).output)
    if not (run / "model" / CONFIG_FILE).is_file() or not (run / "report.md").is_file():
        print(f"{run} holds no finished run: nothing to score on real images")
        return
    try:
        added = section(run, arguments.real, arguments.work)
    except InputError as error:  # a model of several bands, say: the training was well all the same
        added = f"{TITLE}\n\nNot scored: {error}\n"
    append(run / "report.md", added)
    print(f"\n{added}\nAdded to {run / 'report.md'}")


def section(run: Path, real: Path, work: Path) -> str:
    """The text for the report: a table, or the line that says why there is none."""
    if not has_images(real):
        return f"{TITLE}\n\nNot scored: there are none below {real} (docs/BENCHMARKS.md, «Real images»).\n"
    water = [row for row in SETS if row.task == "water" and not row.is_source]
    bench = Bench(work, prepare(real.resolve(), work, water), pictures=0)
    for row in bench.scored:
        bench.otsu(row, only=(otsu_of(row),))
    method = bench.saved(run / "model")
    lines = table(bench, method)
    if not lines:
        return f"{TITLE}\n\nNot scored: none of the sets has classes that the model knows.\n"
    notes = (
        "Percent, in brackets a 95 % bootstrap interval over images, of a set of one image over its blocks "
        "of 128 pixels. Otsu: one threshold a set on the mean power of 9 x 9 pixels, at 10 m where they are "
        "finer. Land cover and more methods: `make bench-real`; the sets: docs/BENCHMARKS.md, «Real images»."
    )
    return "\n".join([TITLE, "", *lines, "", notes, ""])


def table(bench: Bench, method: str) -> list[str]:
    """A row a set that the model was scored on, and the plain mean over sets."""
    found = bench.store.all()
    rows: list[dict[str, object]] = []
    plain: list[list[float]] = []
    for row in bench.scored:
        there = found.get(row.name, {})
        if method not in there:
            continue
        water = TASKS[row.task].classes.index("water")
        entries = {"model": there[method], "Otsu": there[slug(otsu_of(row))]}
        scores = {who: drawn_scores(entry["counts"], water) for who, entry in entries.items()}
        cells = {
            f"{title}, {who}": estimate([score[part]])
            for part, title in (("miou", "mIoU"), ("water", "water IoU"))
            for who, score in scores.items()
        }
        rows.append({"set": row.name, "sensor": row.sensor, "images": entries["model"]["images"], **cells})
        plain.append([cell.value for cell in cells.values()])
    if rows:
        means = (f"{sum(column) / len(rows):.1f}" for column in zip(*plain, strict=True))
        rows.append(dict(zip(rows[0], [f"mean of the {len(rows)} sets", "", "", *means], strict=True)))
    return markdown_table(rows) if rows else []


def otsu_of(row: RealSet) -> str:
    """bench_real's label of one method for all sets: pooled, 9 x 9 pixels, at 10 m where they are finer."""
    return f"Otsu pooled, 9 x 9{' at 10 m' if row.pixel_m < FINER_M else ''}"


def append(report: Path, added: str) -> None:
    """Puts the section at the end, in place of one that is there already."""
    text = report.read_text(encoding="utf-8")
    before = text.partition(f"\n{TITLE}\n")[0].rstrip("\n")
    report.write_text(f"{before}\n\n{added}", encoding="utf-8")


if __name__ == "__main__":
    main()
