"""A published dataset that the package has never heard of, and a benchmark on it, as their own package would
register them; an entry point to offer it, and a small tree of its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from dataset_trees import save, speckle, stripes

from crossearth_sar.data.datasets import (
    DatasetSpec,
    DomainSpec,
    Task,
    class_table,
    published,
    register,
    rows,
)
from crossearth_sar.evaluation import registry
from crossearth_sar.evaluation.registry import Benchmark, DomainRef, register_benchmark

ICE_TASK = Task(key="ice2", classes=class_table(("water", "ice")), scored=("ice",))
ICE = DatasetSpec(
    key="Sea-Ice",
    folder="sea-ice",
    home="tests",
    tree=("{winter,summer}/N_sar.png", "{winter,summer}/N_chart.png"),
    images="{region}/*_sar.*",
    labels="{region}/*_chart.*",
    regions={"winter": ("winter",), "summer": ("summer",)},
    domains={"Winter": DomainSpec(regions=("winter",)), "Summer": DomainSpec(regions=("summer",))},
    classes=("open water", "young ice", "old ice"),
    label_values={10: "open water", 20: "young ice", 30: "old ice", 0: "ignore"},
    maps={
        "ice2": {"open water": "water", "young ice": "ice", "old ice": "ice"},
        "building1": {"open water": "background", "young ice": "background", "old ice": "ignore"},
    },
    window=64,
)
WINTER_TO_SUMMER = Benchmark(
    key="Wi2Su",
    gap="season",
    source=DomainRef("Sea-Ice", "Winter"),
    target=DomainRef("Sea-Ice", "Summer"),
    task="ice2",
)


def register_all() -> None:
    register(ICE, tasks=[ICE_TASK])
    register_benchmark(WINTER_TO_SUMMER)


def write_ice(root: Path) -> Path:
    """Five scenes a season, of 64 x 96 pixels: two windows each. Labels are stripes of 0, 10, 20 and 30."""
    for season in ("winter", "summer"):
        for i in range(5):
            save(root / "sea-ice" / season / f"{i}_sar.png", speckle((64, 96), i))
            save(root / "sea-ice" / season / f"{i}_chart.png", 10 * stripes(64, 96, 4))
    return root


def forget_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is known to that test alone."""
    for table in (published._DATASETS, published._TASKS, registry._ALL):
        monkeypatch.setattr(table, "_added", {})
    monkeypatch.setattr(rows, "_called", set())


@dataclass(frozen=True)
class FakeEntryPoint:
    name: str
    value: str
    target: Any

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def offer(monkeypatch: pytest.MonkeyPatch, target: Callable[[], None] | object) -> None:
    """As if an installed package had an entry point that names `target`, or fails with it."""

    def entry_points(*, group: str) -> list[FakeEntryPoint]:
        assert group == "crossearth_sar.datasets"
        return [FakeEntryPoint("ice", "ice.sar:register_all", target)]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
