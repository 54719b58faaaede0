"""Water and land cover on real images: simple methods, saved models, and contenders trained for equal time.

    python -m bench.experiments.real.bench_real --real ../shared [--model runs/cpt/model …] [--in-domain]
        [--sources wide old] [--contenders tiny dense unet] [--seeds 0 1 2] [--seconds 400] [--curves]
        [--few-labels [2 8 64]] [--few-seconds 60]

REAL holds corpus/ and real_data/. Without further words: the simple methods on every set, and each --model.
--sources trains contenders on simulated scenes, --in-domain on OMBRIA's training side, --curves scores them
after 50, 100 and 200 seconds too; --few-labels trains on so many images of that side, from the shipped
weights and from scratch. What is finished is kept below WORK and not repeated; the report is of all that WORK
holds. Pictures are written to WORK alone: most of the images may not be redistributed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.experiments.real import few_labels, simple
from bench.experiments.real.scoring import Predict, Store, unit_counts
from bench.experiments.real.sets import SETS, TASKS, RealSet, class_lookup, prepare
from bench.experiments.real.shipped_start import SHIPPED
from bench.experiments.real.tables import report
from bench.experiments.real.train_equal import (
    CONTENDERS,
    SOURCES,
    Contender,
    Source,
    open_source,
    trained,
)
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.domain import Domain, open_domain
from crossearth_sar.data.sample import Sample
from crossearth_sar.engine.config import simulated_run
from crossearth_sar.evaluation.evaluate import predict_sample
from crossearth_sar.evaluation.figures.predictions import prediction_figure
from crossearth_sar.model import WEIGHTS_FILE, load_model
from crossearth_sar.shipped import model_folder
from crossearth_sar.spacing import evenly_spaced

CURVE_SECONDS = [50.0, 100.0, 200.0]
IN_DOMAIN = "ombria-tr"
PICTURES = 4


class Bench:
    """The sets that are there, and what is known of them."""

    def __init__(self, work: Path, sets: Sequence[RealSet], pictures: int = PICTURES) -> None:
        self.work, self.data, self.pictures = work, work / "data", pictures
        self.sets = {row.name: row for row in sets}
        self.scored = [row for row in sets if not row.is_source]
        self.store = Store(work / "results")

    def record(
        self,
        method: str,
        row: RealSet,
        predict: Predict,
        domain: Domain,
        *,
        label: str,
        kind: str,
        key: str,
        **about: object,
    ) -> None:
        """Counts of a method on a set, into the store."""
        counts = unit_counts(predict, domain)
        unit = "image" if len(domain) > 1 else "block"
        about |= {"label": label, "kind": kind, "unit": unit, "images": len(domain)}
        self.store.put(method, row.name, counts, key, **about)
        print(f"{row.name}: {label} done", flush=True)

    def simple(self, row: RealSet) -> None:
        """All simple methods on one set."""
        self.otsu(row)
        domain = open_domain(row.domain(self.data))
        key = digest(repr(simulated_run().train).encode())
        if row.task == "water" and self.store.get("fixed-threshold", row.name, key) is None:
            predict = simple.fixed_predict(*simple.fixed_threshold(SEVEN_CLASSES.names.index("water")))
            self.record(
                "fixed-threshold", row, predict, domain, label="fixed threshold", kind="simple", key=key
            )
        if self.store.get("random-forest", row.name, key) is None:
            lookup = class_lookup(SEVEN_CLASSES.names, TASKS[row.task])
            assert lookup is not None
            predict = simple.forest_predict(simple.forest(), lookup)
            self.record("random-forest", row, predict, domain, label="random forest", kind="simple", key=key)

    def otsu(self, row: RealSet, only: Sequence[str] = ()) -> None:
        """Otsu's threshold on a water set, in all its forms or those that `only` names."""
        if row.task != "water":
            return
        domain = open_domain(row.domain(self.data))
        for label, method in simple.otsu_methods(row.pixel_m).items():
            if (label in only or not only) and self.store.get(slug(label), row.name) is None:
                predict = simple.otsu_predict(method, domain)
                self.record(slug(label), row, predict, domain, label=label, kind="simple", key="")

    def model(
        self,
        model: Contender,
        names: Sequence[str],
        method: str,
        *,
        label: str,
        key: str,
        draws: bool = False,
        kind: str = "model",
        **about: object,
    ) -> None:
        """A model on every set whose classes it knows, with pictures where `draws`; few labels: on water."""
        for row in self.scored:
            if kind == few_labels.KIND and row.task != "water":
                continue
            lookup = class_lookup(names, TASKS[row.task])
            if lookup is None or self.store.get(method, row.name, key) is not None:
                continue
            predict = model_predict(model, lookup)
            domain = open_domain(row.domain(self.data), "", model.config.pixel_m)
            self.record(method, row, predict, domain, label=label, kind=kind, key=key, **about)
            if draws and self.pictures:
                self.draw(row, domain, predict, label, method)

    def draw(self, row: RealSet, domain: Domain, predict: Predict, label: str, method: str) -> None:
        """WORK/pictures/SET-METHOD.png: image | truth | prediction | errors of a few samples."""
        samples = [domain[i] for i in evenly_spaced(len(domain), min(self.pictures, len(domain)))]
        path = self.work / "pictures" / f"{row.name}-{method}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        prediction_figure(
            samples, [predict(s) for s in samples], domain.classes, path, f"{row.name}: {label}"
        )

    def saved(self, folder: Path) -> str:
        """A model folder, called after the run that it is of; the method's name in the store."""
        model = load_model(folder)
        named = folder.parent if folder.name == "model" else folder
        key = digest((folder / WEIGHTS_FILE).read_bytes())
        name = named.resolve().name
        names = model.class_names or ()
        method = slug(f"model-{name}")
        self.model(model, names, method, label=f"model {name}", key=key, draws=True)
        return method

    def contender(self, contender: str, source_name: str, seed: int, seconds: float, at: list[float]) -> None:
        """Trains it, unless that is done, and scores it at each point."""
        source: Source = open_source(source_name, self.sets, self.data)
        classes = TASKS["water"].classes if source.domain.folder else SEVEN_CLASSES.names
        run = f"{slug(contender)}-{source_name}-{seconds:g}s-seed{seed}"
        folder = self.work / "models" / run
        for point, model in trained(contender, source, seed, seconds, at, folder).items():
            key = digest((folder / f"at-{point:g}.safetensors").read_bytes())
            part = "" if point == seconds else f"of {seconds:g} "
            label = f"{contender} {source_name} {point:g} s {part}".strip()
            draws = seed == 0 and point == seconds
            self.model(model, classes, f"{run}-at{point:g}", label=label, key=key, draws=draws)

    def few_labels(self, images: int, seed: int, seconds: float) -> None:
        """Each start trained on so many images of IN_DOMAIN, and scored, unless that is done."""
        source = open_source(IN_DOMAIN, self.sets, self.data, images)
        for contender in few_labels.STARTS:
            run = f"{contender}-{IN_DOMAIN}-{images}-images-{seconds:g}s-seed{seed}"
            folder = self.work / "models" / run
            model = trained(contender, source, seed, seconds, [], folder)[seconds]
            key = digest((folder / f"at-{seconds:g}.safetensors").read_bytes())
            about = few_labels.about(contender, images, seed, seconds)
            self.model(model, TASKS["water"].classes, run, key=key, **about)

    def no_labels(self) -> None:
        """The shipped model as it is, beside those that had a few."""
        folder, about = model_folder(SHIPPED), few_labels.about("shipped", 0, 0, 0.0)
        model, key = load_model(folder), digest((folder / WEIGHTS_FILE).read_bytes())
        self.model(model, model.class_names or (), "shipped-0-images", key=key, **about)


def model_predict(model: Contender, lookup: np.ndarray) -> Predict:
    """Classes of the set's task, on the image's own pixels."""
    table = torch.from_numpy(lookup.astype(np.int64))

    def predict(sample: Sample) -> Tensor:
        return table[predict_sample(model, sample)]  # type: ignore[arg-type]

    return predict


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in SETS]
    parser.add_argument("--real", type=Path, required=True, help="folder with corpus/ and real_data/")
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="folders of saved models")
    parser.add_argument("--rows", nargs="+", choices=names, help="sets to score; all without")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=[], help="what contenders train on")
    parser.add_argument("--in-domain", action="store_true", help=f"train on {IN_DOMAIN} too")
    parser.add_argument(
        "--contenders", nargs="+", default=list(CONTENDERS), help="tiny, dense, unet, tiny+KEY=VALUE, shipped"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="default 0; with --few-labels 0 1 2")
    parser.add_argument(
        "--few-labels", type=int, nargs="*", metavar="N", help=f"train on N images of {IN_DOMAIN}: 2 8 64"
    )
    parser.add_argument(
        "--few-seconds", type=float, default=few_labels.SECONDS, help="processor time of each of those"
    )
    parser.add_argument("--seconds", type=float, default=400.0, help="processor time of each training")
    parser.add_argument("--at", type=float, nargs="+", default=[], help="seconds to score at on the way")
    parser.add_argument("--curves", action="store_true", help="--at 50 100 200")
    parser.add_argument("--no-simple", action="store_true", help="leave the simple methods out")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="rows of each picture")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-real"))
    parser.add_argument("--out", type=Path, default=Path("bench/reports/real"))
    arguments = parser.parse_args(words)
    if arguments.few_labels == []:
        arguments.few_labels = list(few_labels.COUNTS)
    if arguments.seeds is None:
        arguments.seeds = list(few_labels.SEEDS) if arguments.few_labels else [0]
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    torch.set_num_threads(1)
    sources = [*arguments.sources, *([IN_DOMAIN] if arguments.in_domain else [])]
    trained_on = {*sources, *([IN_DOMAIN] if arguments.few_labels else [])}
    wanted = [
        row for row in SETS
        if (row.name in trained_on if row.is_source else not arguments.rows or row.name in arguments.rows)
    ]  # fmt: skip
    bench = Bench(
        arguments.work, prepare(arguments.real.resolve(), arguments.work, wanted), arguments.pictures
    )
    if not arguments.no_simple:
        for row in bench.scored:
            bench.simple(row)
    for folder in arguments.model:
        bench.saved(folder)
    at = [*arguments.at, *(CURVE_SECONDS if arguments.curves else [])]
    for seed in arguments.seeds:
        for source in dict.fromkeys(sources):
            for contender in arguments.contenders:
                bench.contender(contender, source, seed, arguments.seconds, at)
    if arguments.few_labels:
        bench.no_labels()
        for seed in arguments.seeds:
            for images in arguments.few_labels:
                bench.few_labels(images, seed, arguments.few_seconds)
    print(report(bench.store, SETS, arguments.out))
    if bench.pictures and (arguments.work / "pictures").is_dir():
        print(f"pictures, not to be passed on: {arguments.work / 'pictures'}")


if __name__ == "__main__":
    main()
