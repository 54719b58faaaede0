"""Scores of a model on the 22 benchmarks, beside the paper's; of any models on images of your own.

    crossearth-sar evaluate --list                                  the rows, and where their data belong
    crossearth-sar evaluate --published                             the DI3CL paper's scores
    crossearth-sar evaluate --data-root /data --benchmark N2S K2C --model runs/finetune-{benchmark}/model
    crossearth-sar evaluate --data-root /data --all --model runs/finetune-{benchmark}/model
    crossearth-sar evaluate --data-root /data --all --adapter mypackage.mymodel:build --name mymodel
    crossearth-sar evaluate --config my.yaml --model runs/a/model runs/b/model      images of your own
    crossearth-sar evaluate --config my.yaml --model runs/a/model --calibrate       and a temperature for it

--model is a folder that save_model, finetune or train wrote; {benchmark} in it stands for the row's name
as part of a file name (C(r)2R is C-r-2R). --adapter names a function of any other model: called with
num_classes= and device=, it returns a callable from a (B, C, H, W) image in linear amplitude to logits of
shape (B, num_classes, h, w). --all leaves out rows whose data are not there, and says so.

Models and data of all rows are looked at before the first is scored. A row that cannot be run is listed with
its reason and the others go on; the exit status is then 1. The tables are written after each row.

Writes results.json, results.csv, results.md, confusion-*.csv, pictures and report.html into --output; of a
sparse model also which experts each domain uses, experts-by-domain.csv and, from two rows on, as a picture.

--config is a YAML file that lists `domains`, or a training run's: then what it holds out and its unseen
domains are scored. All models stand side by side in README.md, metrics.json, classes.csv, images.csv and
confusion-*.csv in --output. Run the same command again to go on after a stop. docs/BENCHMARKS.md says more.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from crossearth_sar.cli.evaluate_own import run_own
from crossearth_sar.cli.options import (
    add_data_root_option,
    add_device_option,
    add_protocol_options,
    add_set_option,
    protocol_config,
)
from crossearth_sar.cli.process import look_in_working_folder
from crossearth_sar.data.datasets.published import all_datasets
from crossearth_sar.data.domain import Domain
from crossearth_sar.device import checked_device
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.di3cl_results import published_lines
from crossearth_sar.evaluation.figures import expert_domain_figure, expert_share_figure, prediction_figure
from crossearth_sar.evaluation.figures.radar import radar_figure
from crossearth_sar.evaluation.protocol import (
    BenchmarkScore,
    Predictor,
    ProtocolConfig,
    absent_rows,
    as_predictor,
    load_adapter,
    open_target,
    run_benchmark,
    slide_predictor,
)
from crossearth_sar.evaluation.registry import Benchmark, all_benchmarks, benchmark, paper_methods
from crossearth_sar.evaluation.report import EXPERTS_TABLE, Picture, write_html, write_tables
from crossearth_sar.folder_lock import FolderLock
from crossearth_sar.model import CONFIG_FILE, CrossEarthSAR, load_model
from crossearth_sar.provenance import provenance
from crossearth_sar.spacing import evenly_spaced

OUTPUT = "runs/evaluate"
"""Where results go unless --output says so."""

PLACEHOLDER = "{benchmark}"
"""In --model: the row's name as part of a file name."""

RADAR_REFERENCES = ("DINOv2", "CrossEarth-SAR-L")
"""Methods of the paper drawn into the radar chart."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="print the 22 rows and end")
    parser.add_argument("--published", action="store_true", help="print the DI3CL paper's scores and end")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--benchmark", nargs="+", metavar="KEY", help="rows to run, by their names")
    rows.add_argument("--all", action="store_true", help="all rows whose target data are there")
    rows.add_argument("--config", metavar="YAML|NAME", help="domains of your own, or a training run's")
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "--model", metavar="FOLDER", nargs="+", help="a saved model of this package; with --config several"
    )
    models.add_argument("--adapter", metavar="MODULE:FUNCTION", help="another model")
    add_own_options(parser)
    add_data_root_option(parser)
    parser.set_defaults(data_root=None)  # as --config says, else here
    add_protocol_options(parser)
    parser.add_argument("--max-images", type=int, metavar="N", help="score N evenly spaced images a row only")
    parser.add_argument("--pictures", type=int, default=4, metavar="N", help="predictions shown a row")
    parser.add_argument("--crop", type=int, default=512, help="window of an adapter's slide inference")
    parser.add_argument("--stride", type=int, default=341, help="step of an adapter's slide inference")
    parser.add_argument("--name", help="what to call the model in the tables")
    parser.add_argument("--output", metavar="FOLDER", help=f"default {OUTPUT}")
    add_device_option(parser)


def add_own_options(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("with --config")
    add_set_option(own)
    own.add_argument(
        "--as",
        metavar="CLASS=MODEL_CLASSES",
        nargs="+",
        action="extend",
        default=[],
        dest="counts_as",
        help="what classes of a model count as that a domain does not have: other=building,road",
    )
    own.add_argument(
        "--calibrate",
        metavar="DOMAIN",
        nargs="?",
        const="",
        help="fit each model's temperature on every second sample of this domain, the first if none is "
        "named, and keep it in the model's config.json",
    )

    own.add_argument(
        "--probe",
        action="store_true",
        help="and probe the models' features on few labels of the file's `train`, as `crossearth-sar probe`",
    )


def print_rows() -> None:
    rows = all_benchmarks().values()
    benchmark_datasets = {side.dataset for row in rows for side in (row.source, row.target)}
    for row in rows:
        print(f"{row.key:8} {row.gap:26} {row.source!s:26} -> {row.target!s:26} {row.categories} classes")
    for spec in (spec for spec in all_datasets().values() if spec.key in benchmark_datasets):
        print(f"\n{spec.key}, from {spec.home}\n  {spec.folder}/")
        print("\n".join(f"    {line}" for line in spec.tree))


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print_rows()
        return 0
    if arguments.published:
        print("\n".join(published_lines()))
        return 0
    if arguments.config:
        if not arguments.model:
            raise InputError("no model is named", fix="give --model FOLDER …; --adapter is for benchmarks")
        return run_own(arguments)
    take_row_defaults(arguments)
    config = protocol_config(arguments, data_root=arguments.data_root, seed=arguments.seed)
    if arguments.adapter:
        look_in_working_folder()
    checked_device(arguments.device)
    rows, absent = chosen_rows(arguments, config)
    targets, failed = checked_rows(arguments, rows, config)
    name = arguments.name or (arguments.adapter or Path(arguments.model).parent.name or arguments.model)
    with FolderLock(Path(arguments.output), "evaluate"):
        score_rows(arguments, [row for row in rows if row.key in targets], targets, name, absent, failed)
    return 1 if failed else 0


def score_rows(
    arguments: argparse.Namespace,
    waiting: list[Benchmark],
    targets: dict[str, Domain],
    name: str,
    absent: Mapping[str, str],
    failed: dict[str, str],
) -> None:
    """Scores the rows that wait and writes the tables anew after each; why a row cannot be is in `failed`
    then."""
    about, output = provenance(), Path(arguments.output)
    scores: list[BenchmarkScore] = []
    pictures: list[Picture] = []
    while waiting:
        row = waiting.pop(0)
        try:
            score, drawn = score_row(arguments, row, targets.pop(row.key), output)
        except InputError as error:
            failed[row.key] = not_run(row, error)
        else:
            scores.append(score)
            pictures += drawn
        later = {row.key: "not scored yet" for row in waiting}
        write_tables(output, name, scores, about=about, absent={**absent, **failed, **later})
    if scores:
        pictures = [*overall_pictures(name, scores, output), *pictures]
        page = write_html(output, name, scores, about=about, absent={**absent, **failed}, pictures=pictures)
        print(f"\n{(output / 'results.md').read_text(encoding='utf-8')}\nAll of it: {page}")


def take_row_defaults(arguments: argparse.Namespace) -> None:
    """What the options are where benchmarks are run; InputError for those of --config."""
    own = arguments.overrides or arguments.counts_as or arguments.probe
    if own or arguments.calibrate is not None:
        raise InputError(
            "--set, --as, --calibrate and --probe are for --config", fix="name a YAML file: --config"
        )
    if arguments.model and len(arguments.model) > 1:
        raise InputError(
            "benchmarks take one model",
            got=" ".join(arguments.model),
            fix="name them one by one; {benchmark} in a path stands for the row's name",
        )
    arguments.model = arguments.model[0] if arguments.model else None
    arguments.data_root = "." if arguments.data_root is None else arguments.data_root
    arguments.output = OUTPUT if arguments.output is None else arguments.output


def checked_rows(
    arguments: argparse.Namespace, rows: list[Benchmark], config: ProtocolConfig
) -> tuple[dict[str, Domain], dict[str, str]]:
    """Targets of the rows that can be run, opened, and why others cannot: known before any is scored."""
    targets: dict[str, Domain] = {}
    problems: dict[str, InputError] = {}
    for row in rows:
        try:
            targets[row.key] = open_target(row, config, working_pixel_m(arguments, row))
        except InputError as error:
            problems[row.key] = error
    if targets:
        check_shared_model(arguments, rows[0])
    for row in [row for row in rows if row.key in targets and arguments.model]:
        try:  # only: do they fit?
            run_benchmark(row, open_model(arguments, row), targets[row.key], max_images=0)
        except InputError as error:
            problems[row.key] = error
            del targets[row.key]
    if len(rows) == len(problems) == 1:
        raise problems[rows[0].key]
    failed = {row.key: not_run(row, problems[row.key]) for row in rows if row.key in problems}
    if not targets:
        raise InputError("none of the rows can be run", got=", ".join(failed), fix="see above, row by row")
    return targets, failed


def working_pixel_m(arguments: argparse.Namespace, row: Benchmark) -> float | None:
    """Ground spacing of the row's model, for the statistics of its target; None for another's model."""
    if not arguments.model:
        return None
    try:
        path = Path(arguments.model.replace(PLACEHOLDER, row.slug)) / CONFIG_FILE
        found = json.loads(path.read_text(encoding="utf-8"))["pixel_m"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # older than this setting, or no model: loading it says so
    return found if isinstance(found, int | float) else None


def check_shared_model(arguments: argparse.Namespace, any_row: Benchmark) -> None:
    """InputError where the one model or adapter of all rows cannot be loaded: not said row by row."""
    if arguments.adapter:
        load_adapter(arguments.adapter)
    elif PLACEHOLDER not in arguments.model:
        open_model(arguments, any_row)


def not_run(row: Benchmark, error: InputError) -> str:
    """Says it now, and gives the reason as one line for the tables."""
    print(f"\n{row.key} is not run: {error}\n", file=sys.stderr, flush=True)
    return "; ".join(line.strip() for line in str(error).splitlines())


def score_row(
    arguments: argparse.Namespace, row: Benchmark, target: Domain, output: Path
) -> tuple[BenchmarkScore, list[Picture]]:
    model = open_model(arguments, row)
    score = run_benchmark(row, model, target, max_images=arguments.max_images)
    print(f"{row.key:8} mIoU {100 * score.miou:5.1f}  {score.images} images", flush=True)
    return score, row_pictures(row, model, target, score, output, arguments.pictures)


def chosen_rows(
    arguments: argparse.Namespace, config: ProtocolConfig
) -> tuple[list[Benchmark], dict[str, str]]:
    if not arguments.benchmark and not arguments.all:
        raise InputError("no benchmark is named", fix="give --benchmark N2S …, --all, or --list to see them")
    if not arguments.model and not arguments.adapter:
        raise InputError("no model is named", fix="give --model FOLDER or --adapter MODULE:FUNCTION")
    if arguments.benchmark:
        return [benchmark(key) for key in dict.fromkeys(arguments.benchmark)], {}
    absent = absent_rows(all_benchmarks(), config)
    present = [row for key, row in all_benchmarks().items() if key not in absent]
    if not present:
        raise InputError(
            "no benchmark's data are there",
            got="; ".join(dict.fromkeys(absent.values())),
            fix="give --data-root, or fetch a dataset: --list says where from",
        )
    return present, absent


def open_model(arguments: argparse.Namespace, row: Benchmark) -> CrossEarthSAR | Predictor:
    if arguments.model:
        return load_model(arguments.model.replace(PLACEHOLDER, row.slug), device=arguments.device)
    classes = len(row.classes.classes)
    network = load_adapter(arguments.adapter)(num_classes=classes, device=arguments.device)
    return slide_predictor(
        network, classes, crop=arguments.crop, stride=arguments.stride, device=arguments.device
    )


def row_pictures(
    row: Benchmark,
    model: CrossEarthSAR | Predictor,
    target: Domain,
    score: BenchmarkScore,
    output: Path,
    count: int,
) -> list[Picture]:
    pictures: list[Picture] = []
    count = min(count, len(target))
    if count:
        predict = as_predictor(model)
        samples = [target[i] for i in evenly_spaced(len(target), count)]
        title = f"{row.key}: predictions on {row.target}"
        path = prediction_figure(
            samples,
            [predict(sample).cpu() for sample in samples],
            target.classes,
            output / f"predictions-{row.slug}.png",
            title,
        )
        caption = "Test images evenly spaced over the domain; the mIoU above each is of that image alone."
        pictures.append(Picture(path=path, title=title, caption=caption, row=row.key))
    if score.expert_share_LE.numel():
        title = f"{row.key}: share of tokens per expert and layer"
        path = expert_share_figure(score.expert_share_LE, output / f"experts-{row.slug}.png", title)
        caption = (
            "The area of a bubble is the share of the domain's tokens that go to the expert; the ring is an "
            "even share. «effective»: so many experts, evenly used, would be as mixed."
        )
        pictures.append(Picture(path=path, title=title, caption=caption, row=row.key))
    return pictures


def overall_pictures(name: str, scores: list[BenchmarkScore], output: Path) -> list[Picture]:
    pictures: list[Picture] = []
    if len(scores) >= 3:
        caption = (
            "A spoke a row, from 0 in the middle to the largest score on it, which is printed at its end: "
            "spokes have scales of their own. Dashed lines are figures of the paper, not measured here."
        )
        title = "mIoU of all rows"
        pictures.append(Picture(path=draw_radar(name, scores, output), title=title, caption=caption))
    sparse = [score for score in scores if score.expert_share_LE.numel()]
    shapes = {tuple(score.expert_share_LE.shape) for score in sparse}
    if len(shapes) > 1:
        logging.warning("no picture of experts against domains: (layers, experts) differ, %s", sorted(shapes))
    elif len(sparse) > 1:
        pictures.append(draw_experts_by_domain(sparse, output))
    return pictures


def draw_experts_by_domain(scores: list[BenchmarkScore], output: Path) -> Picture:
    targets = list(dict.fromkeys(str(score.row.target) for score in scores))
    ordered = sorted(scores, key=lambda score: targets.index(str(score.row.target)))
    title = "Experts against domains: share of tokens"
    path = expert_domain_figure(
        {f"{score.row.target} · {score.row.key}": score.expert_share_LE for score in ordered},
        output / "experts-by-domain.png",
        title,
    )
    caption = (
        "A line a target domain, a block a layer, a cell an expert. Blue: more than an even share of the "
        "domain's tokens goes to the expert; orange: less. A column of one colour is an expert that all "
        "domains use alike; a column that changes from line to line is one that serves some domains. Bits: "
        "how far a domain's shares are from the mean of the lines; under a layer, how much the expert of a "
        "token tells about its domain. Lines of one target show the same images through the models of "
        "several rows; experts can be compared where those share a backbone. "
        f"Numbers: {EXPERTS_TABLE}."
    )
    return Picture(path=path, title=title, caption=caption)


def draw_radar(name: str, scores: list[BenchmarkScore], output: Path) -> Path:
    table = {name: {score.row.key: 100 * score.miou for score in scores}}
    references = {f"{m.name} (paper)": m.scores for m in paper_methods() if m.name in RADAR_REFERENCES}
    spokes = [score.row.key for score in scores]
    return radar_figure(
        spokes, {**table, **references}, output / "radar.png", "mIoU (%)", reference=tuple(references)
    )
