"""The layer's targets, each beside the figure that was measured: reached, missed, or not measured.

A figure is the worst over the sizes a target names, under uniform routing, and is given for each scope and
launch; the verdict is the whole layer's, called eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """At least `wanted` for every T in [low, high] of width `dim`; kind: ratio | best | tflops | skew."""

    peer: str
    direction: str
    dim: int
    low: int
    high: float
    wanted: float
    kind: str = "ratio"

    @property
    def words(self) -> str:
        sizes = f"T >= {self.low}" if self.high == float("inf") else f"T = {self.low}"
        what = {"ratio": f"against {self.peer}", "best": f"against the best of {self.peer}",
                "tflops": "TFLOP/s", "skew": "speed under skewed routing / uniform"}[self.kind]  # fmt: skip
        return f"{what}, {self.direction}, C = {self.dim}, {sizes}"


UP = float("inf")
FORWARD, BOTH = "forward", "forward+backward"
FUSED = "dense, torch.compile | dense, _addmm_activation"


def _cpu() -> list[Target]:
    dense = "dense, eager"
    return [
        Target(dense, FORWARD, 384, 1024, 1024, 1.0),
        Target(dense, FORWARD, 384, 4096, UP, 1.15),
        Target(dense, BOTH, 384, 1024, 1024, 0.95),
        Target(dense, BOTH, 384, 4096, UP, 1.05),
        Target("ours, reference", FORWARD, 768, 1024, UP, 1.0),
        Target("ours, reference", BOTH, 768, 1024, UP, 1.0),
        Target("ours, reference", FORWARD, 1024, 1024, UP, 1.0),
        Target("ours, reference", BOTH, 1024, 1024, UP, 1.0),
        Target("DeepSpeed MoE", FORWARD, 384, 4096, 4096, 2.5),
        Target("DeepSpeed MoE", BOTH, 384, 4096, 4096, 2.5),
    ]


def _gpu() -> list[Target]:
    targets = [
        Target("dense, eager", FORWARD, 1024, 16384, UP, 1.03),
        Target("dense, eager", FORWARD, 384, 16384, UP, 1.1),
        Target("dense, eager", BOTH, 1024, 16384, UP, 1.0),
        Target("dense, eager", BOTH, 384, 16384, UP, 1.0),
    ]
    for direction in (FORWARD, BOTH):
        for low, high, wanted in ((65536, UP, 0.95), (16384, 16384, 0.92), (4096, 4096, 0.75)):
            targets.append(Target(FUSED, direction, 1024, low, high, wanted, "best"))
    targets += [
        Target("loop, splits known", FORWARD, 1024, 16384, UP, 1.05),
        Target("loop, splits known", FORWARD, 1024, 4096, 4096, 1.2),
        Target("loop, splits known", BOTH, 1024, 16384, UP, 1.05),
        Target("loop, host sync", FORWARD, 1024, 16384, UP, 1.15),
        Target("loop, host sync", BOTH, 1024, 16384, UP, 1.1),
        Target("F.grouped_mm", FORWARD, 1024, 4096, UP, 1.25),
        Target("F.grouped_mm", BOTH, 1024, 4096, UP, 1.25),
        Target("ScatterMoE", FORWARD, 1024, 16384, UP, 1.6),
        Target("ScatterMoE", BOTH, 1024, 16384, UP, 1.5),
        Target("MegaBlocks", FORWARD, 1024, 16384, UP, 1.5),
        Target("MegaBlocks", BOTH, 1024, 16384, UP, 1.4),
        Target("", FORWARD, 1024, 32768, UP, 560, "tflops"),
        Target("", BOTH, 1024, 32768, UP, 540, "tflops"),
    ]
    for dim in (1024, 384):
        for direction in (FORWARD, BOTH):
            targets.append(Target("", direction, dim, 16384, UP, 0.95, "skew"))
    return targets


def judge(rows: list[Row], *, on_gpu: bool, ours: str) -> list[Row]:
    """A row per target with its figure per scope and launch; empty where rows hold none of its sizes."""
    timed = [row for row in rows if row["ms p50"]]
    columns = list(dict.fromkeys((row["scope"], row["launch"]) for row in timed))
    table: list[Row] = []
    for target in _gpu() if on_gpu else _cpu():
        figures = {
            column: _figure(target, [r for r in timed if (r["scope"], r["launch"]) == column], ours)
            for column in columns
        }
        first = figures.get(("layer", "eager"))
        verdict = "not measured" if first is None else "reached" if first >= target.wanted else "missed"
        cells = {f"{s}, {w}": "" if v is None else f"{v:.3g}" for (s, w), v in figures.items()}
        table.append({"target": target.words, "wanted": f">= {target.wanted:g}", **cells, "verdict": verdict})
    return table


def _figure(target: Target, rows: list[Row], ours: str) -> float | None:
    """The worst figure over the target's sizes, or None where none of them was measured."""
    chosen = [
        row
        for row in rows
        if row["pass"] == target.direction
        and row["C"] == target.dim
        and target.low <= row["T"] <= target.high
    ]
    measures: dict[str, Callable[[list[Row]], float | None]] = {
        "ratio": lambda at: _least(r["its time / ours"] for r in at if r["contender"] == target.peer),
        "best": lambda at: _least(
            r["its time / ours"] for r in at if r["contender"] in target.peer.split(" | ")
        ),
        "tflops": lambda at: _least(r["TFLOP/s"] for r in at if r["contender"] == f"ours, {ours}"),
    }
    if target.kind == "skew":
        return _skew([row for row in chosen if row["contender"] == f"ours, {ours}"])
    uniform = [row for row in chosen if row["routing"] == "uniform"]
    found = [
        value
        for size in {row["T"] for row in uniform}
        if (value := measures[target.kind]([row for row in uniform if row["T"] == size])) is not None
    ]
    return min(found, default=None)


def _skew(rows: list[Row]) -> float | None:
    times = {(row["T"], row["routing"]): float(row["ms p50"]) for row in rows}
    ratios = [
        times[size, "uniform"] / ms
        for (size, routing), ms in times.items()
        if routing == "skewed" and (size, "uniform") in times
    ]
    return min(ratios, default=None)


def _least(cells: Any) -> float | None:
    return min((float(cell) for cell in cells if cell), default=None)
