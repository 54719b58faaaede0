"""The benchmarks: which domain trains, which one tests, over which classes; and the paper's scores.

The paper's 22 rows stand here as code, so that a key is checked when it is typed; a test holds them against
`benchmarks.csv`, the paper's table as data. `results.csv` are the paper's scores of 15 methods. Rows of other
datasets are added by `register_benchmark`. What this is not: a reader of anything; `protocol.py` opens a
row's data.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from crossearth_sar.data.datasets.published import named_dataset, named_task
from crossearth_sar.data.datasets.rows import Rows
from crossearth_sar.data.datasets.tasks import Task
from crossearth_sar.errors import InputError, nearest

DOMAIN_GAPS = (
    "region",
    "polarization",
    "complex",
    "region+polarization",
    "region+platform",
    "region+band",
    "region+polarization+band",
    "region+platform+band",
)
"""The eight kinds of gap, in the paper's order."""


@dataclass(frozen=True)
class DomainRef:
    """A domain of a dataset, by the names of its row."""

    dataset: str
    domain: str

    def __str__(self) -> str:
        return self.dataset if self.domain in self.dataset else f"{self.dataset} {self.domain}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row of the paper's table, or one beside it."""

    key: str
    """Its abbreviation: N2S."""
    gap: str
    """What differs between source and target: one of DOMAIN_GAPS in the paper's rows."""
    source: DomainRef
    """What trains."""
    target: DomainRef
    """What tests."""
    task: str
    """The classes: a key of `data.datasets.tasks.TASKS`, or of a registered task."""
    train_images: int | None = None
    """The paper's patches of 512 x 512 for training; None in a row that is not the paper's."""
    test_images: int | None = None
    """The paper's patches for testing."""

    @property
    def slug(self) -> str:
        """The key as part of a file name: `C(r)2R` -> `C-r-2R`."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.key).strip("-")

    @property
    def classes(self) -> Task:
        return named_task(self.task)

    @property
    def categories(self) -> int:
        """How many classes are scored."""
        return len(self.classes.scored)


_AIR, _DDHR, _FUSAR = "AIR-PolSAR-Seg-2.0", "DDHR-SK", "FUSAR-Map"
_VV, _HH, _FULL = DomainRef(_AIR, "VV"), DomainRef(_AIR, "HH"), DomainRef(_AIR, "Full")
_REAL_PART, _IMAGINARY_PART = DomainRef(_AIR, "Complex(r)"), DomainRef(_AIR, "Complex(i)")
_AMPLITUDE, _ANY_AIR = DomainRef(_AIR, "Real"), DomainRef(_AIR, "AIR")
_NORTH, _SOUTH = DomainRef(_AIR, "North"), DomainRef(_AIR, "South")
_KOREA, _CHINA, _ANY_DDHR = DomainRef(_DDHR, "KR"), DomainRef(_DDHR, "CN"), DomainRef(_DDHR, "DDHR")
_ANY_FUSAR = DomainRef(_FUSAR, "FUSAR")
_OEM = DomainRef("OpenEarthMap-SAR", "OpenEarthMap")
_SARBUD, _WHU = DomainRef("SARBuD", "SARBuD"), DomainRef("WHU-OPT-SAR", "WHU-SAR")

_ROWS: tuple[tuple[str, str, DomainRef, DomainRef, int, int, str], ...] = (
    ("N2S", "region", _NORTH, _SOUTH, 600, 159, "air5"),
    ("S2N", "region", _SOUTH, _NORTH, 633, 150, "air5"),
    ("K2C", "region", _KOREA, _CHINA, 4916, 1566, "ddhr6"),
    ("C2K", "region", _CHINA, _KOREA, 6265, 1229, "ddhr6"),
    ("VV2F", "polarization", _VV, _FULL, 1233, 309, "air6"),
    ("F2VV", "polarization", _FULL, _VV, 1233, 309, "air6"),
    ("HH2F", "polarization", _HH, _FULL, 1233, 309, "air6"),
    ("F2HH", "polarization", _FULL, _HH, 1233, 309, "air6"),
    ("C(r)2R", "complex", _REAL_PART, _AMPLITUDE, 1233, 309, "air6"),
    ("R2C(r)", "complex", _AMPLITUDE, _REAL_PART, 1233, 309, "air6"),
    ("C(i)2R", "complex", _IMAGINARY_PART, _AMPLITUDE, 1233, 309, "air6"),
    ("R2C(i)", "complex", _AMPLITUDE, _IMAGINARY_PART, 1233, 309, "air6"),
    ("F2A", "region+polarization", _ANY_FUSAR, _ANY_AIR, 1952, 309, "fusar5"),
    ("A2F", "region+polarization", _ANY_AIR, _ANY_FUSAR, 1233, 488, "fusar5"),
    ("O2D", "region+platform", _OEM, _ANY_DDHR, 13865, 1567, "ddhr6"),
    ("D2O", "region+platform", _ANY_DDHR, _OEM, 6265, 3467, "ddhr6"),
    ("S2A", "region+band", _SARBUD, _ANY_AIR, 20000, 309, "building1"),
    ("A2S", "region+band", _ANY_AIR, _SARBUD, 1233, 5000, "building1"),
    ("D2F", "region+polarization+band", _ANY_DDHR, _ANY_FUSAR, 6265, 488, "fusar5"),
    ("F2D", "region+polarization+band", _ANY_FUSAR, _ANY_DDHR, 1952, 1566, "fusar5"),
    ("W2D", "region+platform+band", _WHU, _ANY_DDHR, 7040, 1567, "ddhr6"),
    ("D2W", "region+platform+band", _ANY_DDHR, _WHU, 6265, 1760, "ddhr6"),
)

BENCHMARKS = {
    key: Benchmark(
        key=key, gap=gap, source=source, target=target, train_images=train, test_images=test, task=task
    )
    for key, gap, source, target, train, test, task in _ROWS
}
"""The paper's, by key and in its order: twelve inside one dataset, then ten across datasets."""

_ALL: Rows[Benchmark] = Rows("benchmark", BENCHMARKS)


def register_benchmark(row: Benchmark) -> None:
    """Adds a row of known or registered datasets; `evaluate` and `finetune --benchmark` then know its key.

    Raises:
        InputError: another row has the key, or a side is no domain of its dataset or lacks a map.
    """
    for side in (row.source, row.target):
        spec = named_dataset(side.dataset)
        if side.domain not in spec.domains:
            raise InputError(
                f"benchmark {row.key!r}: {spec.key} has no domain {side.domain!r}"
                f"{nearest(side.domain, spec.domains)}",
                expected=f"one of {', '.join(spec.domains)}",
            )
        spec.lookup(row.classes)
    _ALL.add(row)


def benchmark(key: str) -> Benchmark:
    """The row `key`; InputError for an unknown key, naming the nearest."""
    return _ALL.find(key)


def all_benchmarks() -> dict[str, Benchmark]:
    """Every row by its key: the paper's 22, then registered ones."""
    return _ALL.all()


@dataclass(frozen=True, kw_only=True)
class PaperMethod:
    """A method of the paper's tables. scores: benchmark key -> mIoU in percent, as printed there."""

    name: str
    backbone: str
    params_total: str
    params_active: str
    scores: dict[str, float]

    def score(self, key: str) -> float:
        """On one benchmark; NaN where that is not a row of the paper's."""
        return self.scores.get(key, math.nan)


@cache
def paper_methods() -> tuple[PaperMethod, ...]:
    """The 15 methods of the paper with their scores on the 22 benchmarks, in its order."""
    text = files("crossearth_sar.evaluation").joinpath("results.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return tuple(
        PaperMethod(
            name=name,
            backbone=mine[0]["backbone"],
            params_total=mine[0]["params_total"],
            params_active=mine[0]["params_active"],
            scores={row["benchmark"]: float(row["miou"]) for row in mine if row["benchmark"] in BENCHMARKS},
        )
        for name, mine in _grouped(rows).items()
    )


def _grouped(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return groups
