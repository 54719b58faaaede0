"""The 22 rows against the paper's table, and against the datasets and class maps that they name."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from crossearth_sar.data.datasets.benchmarks import BENCHMARK_DATASETS
from crossearth_sar.data.datasets.pretraining import PRETRAINING_SOURCES
from crossearth_sar.data.datasets.published import all_datasets, named_task
from crossearth_sar.data.datasets.tasks import TASKS
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.registry import BENCHMARKS, DOMAIN_GAPS, DomainRef, benchmark, paper_methods

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"


def shipped(name: str) -> list[dict[str, str]]:
    text = files("crossearth_sar.evaluation").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_rows_are_the_paper_table() -> None:
    table = shipped("benchmarks.csv")
    assert len(table) == len(BENCHMARKS) == 22
    for line, (key, row) in zip(table, BENCHMARKS.items(), strict=True):
        assert line == {
            "abbreviation": key,
            "domain_gap": row.gap,
            "source_dataset": row.source.dataset,
            "source_domain": row.source.domain,
            "target_dataset": row.target.dataset,
            "target_domain": row.target.domain,
            "train_images": str(row.train_images),
            "test_images": str(row.test_images),
            "categories": str(row.categories),
        }
    assert {row.gap for row in BENCHMARKS.values()} == set(DOMAIN_GAPS)
    assert len({row.slug for row in BENCHMARKS.values()}) == 22
    assert benchmark("C(r)2R").slug == "C-r-2R"
    with pytest.raises(InputError, match="did you mean 'VV2F'"):
        benchmark("VV2H")


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's tables are not beside the repository")
def test_shipped_tables_are_the_originals() -> None:
    for name in ("benchmarks.csv", "results.csv"):
        original = (PAPER / name).read_text(encoding="utf-8")
        assert files("crossearth_sar.evaluation").joinpath(name).read_text(encoding="utf-8") == original
    with (PAPER / "sources.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            source = PRETRAINING_SOURCES[line["dataset"]]
            assert (source.resolution_m, source.bands) == (line["resolution_m"], line["bands"])
            assert (source.polarizations, source.platform) == (line["polarizations"], line["platform"])
            assert source.labels_are == line["labels"]


def test_rows_name_domains_and_maps_that_exist() -> None:
    for row in BENCHMARKS.values():
        for side in (row.source, row.target):
            spec = BENCHMARK_DATASETS[side.dataset]
            assert side.domain in spec.domains
            table = spec.lookup(row.classes)
            reached = {int(i) for i in table[: len(spec.classes)]} - {255}
            assert reached == set(range(len(row.classes.classes))), (
                f"{row.key} leaves a class of the task empty"
            )
    assert {row.task for row in BENCHMARKS.values()} == set(TASKS)


def test_paper_counts_follow_from_the_datasets_counts() -> None:
    """Where the two disagree the paper disagrees with itself: 1566 and 1567 for the same set."""
    wrong = []
    for row in BENCHMARKS.values():
        spec = BENCHMARK_DATASETS[row.source.dataset]
        train = sum(spec.counts[r].train or 0 for r in spec.domains[row.source.domain].regions)
        spec = BENCHMARK_DATASETS[row.target.dataset]
        test = sum(spec.counts[r].test or 0 for r in spec.domains[row.target.domain].regions)
        assert train == row.train_images, row.key
        if test != row.test_images:
            wrong.append((row.key, test, row.test_images))
    assert wrong == [("O2D", 1566, 1567), ("W2D", 1566, 1567)]


def test_every_dataset_class_is_mapped_somewhere_or_dropped_by_name() -> None:
    for spec in all_datasets().values():
        for task, mapping in spec.maps.items():
            assert set(mapping) == set(spec.classes)
            assert spec.lookup(named_task(task)).shape == (256,)
    air = BENCHMARK_DATASETS["AIR-PolSAR-Seg-2.0"]
    assert air.dropped("fusar5") == ("mountain",)
    assert {key for key, source in PRETRAINING_SOURCES.items() if "seven" in source.spec.maps} == {
        key for key, source in PRETRAINING_SOURCES.items() if source.labels_are == "real"
    }
    with pytest.raises(InputError, match="lacks lava"):
        replace(air, classes=("water", "lava"), label_palette={}).lookup(TASKS["air6"])


def test_paper_scores() -> None:
    methods = paper_methods()
    assert len(methods) == 15
    assert all(set(method.scores) == set(BENCHMARKS) for method in methods)
    best = next(m for m in methods if m.name == "CrossEarth-SAR-L")
    assert (best.params_total, best.params_active, best.scores["N2S"]) == ("1.3B", "300M", 37.8)
    assert Counter(len(m.scores) for m in methods) == {22: 15}
    printed = {(r["method"], r["benchmark"]): float(r["miou"]) for r in shipped("results.csv")}
    for method in methods:
        inside = [method.scores[key] for key in list(BENCHMARKS)[:12]]
        assert printed[method.name, "avg12"] == pytest.approx(sum(inside) / 12, abs=1.0)


def test_names_for_reports() -> None:
    assert str(DomainRef("DDHR-SK", "KR")) == "DDHR-SK KR"
    assert str(DomainRef("FUSAR-Map", "FUSAR")) == "FUSAR-Map"
