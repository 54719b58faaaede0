"""Side-by-side timing: contenders in turn within one run, medians and spread, and agreement before ratios.

On a CPU a call is timed by the host's clock. On a GPU it is timed by events on the stream, after a write that
is larger than the L2 cache; that write also gives the host a head start, as in any busy program, so a call
shows its launches only where they are longer than the work before them. `captured` records a call as a CUDA
graph: what is left is the device's own time.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossearth_sar.provenance import provenance

MIN_ROUNDS = 3
"""A time budget ends a measurement only after so many rounds."""

ERROR_LIMIT = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest ||got - expected|| / ||expected|| of two routes through the same arithmetic, per dtype: a few
roundings of three products, far under what a lost row or a wrong expert causes."""

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the 20th, 50th and 80th percentile over `rounds` calls."""

    p20: float
    p50: float
    p80: float
    rounds: int = 0


class DisagreementError(AssertionError):
    """Two contenders computed different things: their times must not be compared."""


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warm_up: int = 2,
    budget_s: float = math.inf,
    device: torch.device = HOST,
) -> dict[str, Timing]:
    """Each contender once per round, in turn, so that a drift of the machine's speed meets all alike.

    Args:
        budget_s: no further round starts once so many seconds are spent, after MIN_ROUNDS of them.
    """
    stopwatch = _event_stopwatch if device.type == "cuda" else _host_stopwatch
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    deadline = time.perf_counter() + budget_s
    for number in range(warm_up + rounds):
        if number >= warm_up + MIN_ROUNDS and time.perf_counter() > deadline:
            break
        readings = {name: stopwatch(call, device) for name, call in contenders.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= warm_up:
            for name, reading in readings.items():
                seconds[name].append(reading())
    return {name: _percentiles(values) for name, values in seconds.items()}


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Replays `call` as a CUDA graph.

    Raises:
        RuntimeError: where the call synchronises with the host, which a graph cannot hold.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected|| in double precision; inf for another shape, NaN or inf."""
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    expected = expected.double()
    error, size = float((got.double() - expected).norm()), float(expected.norm())
    return error / size if size > 0 else error


def require_close(name: str, got: Tensor, expected: Tensor, *, limit: float) -> float:
    """The relative error; raises DisagreementError above `limit`. Call it before any ratio."""
    error = relative_error(got, expected)
    if not error <= limit:
        raise DisagreementError(
            f"{name} differs from the reference by {error:.2g} (limit {limit:g}): no ratio is printed"
        )
    return error


def require_agreement(name: str, got: Tensor, expected: Tensor, *, rtol: float, atol: float) -> None:
    """Raises DisagreementError unless every element agrees; call it before printing any ratio."""
    if not torch.allclose(got.double(), expected.double(), rtol=rtol, atol=atol):
        worst = float((got.double() - expected.double()).abs().max())
        raise DisagreementError(
            f"{name} disagrees with the reference by up to {worst:g}: no ratio is printed"
        )


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device does at best, measured now: a large product on random data, and a large copy.

    Returns:
        gemm_tflops: of an n^3 product through torch in `dtype`, n = 8192 on a GPU, 1024 on a CPU.
        copy_gb_per_s: bytes read plus bytes written.
    """
    on_gpu = device.type == "cuda"
    side, count = (8192, 1 << 30) if on_gpu else (1024, 1 << 25)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(count // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    timings = time_interleaved(
        {"gemm": lambda: torch.mm(left, right, out=product), "copy": lambda: target.copy_(source)},
        rounds=10,
        device=device,
    )
    return {
        "gemm_tflops": 2 * side**3 / timings["gemm"].p20 / 1e12,
        "copy_gb_per_s": 2 * source.numel() * dtype.itemsize / timings["copy"].p20 / 1e9,
    }


def highest(*ceilings: dict[str, float]) -> dict[str, float]:
    """The best of several measurements, say before and after: a roof is what was reached at all."""
    return {key: max(c[key] for c in ceilings) for key in ceilings[0]}


def gpu_state() -> dict[str, str]:
    """Driver, clocks, power limit and temperature of the first GPU, from nvidia-smi; {} without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
    done = subprocess.run(
        [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    values = done.stdout.partition("\n")[0].split(", ")
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def write_report(
    folder: Path,
    title: str,
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str],
    *,
    body: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Writes results.csv, results.json with provenance and README.md into `folder`; returns the last.

    Args:
        body: Markdown lines to stand in README.md instead of the table of all rows.
        extra: further entries of results.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin = provenance() | gpu_state()
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    everything = {"provenance": origin, **(extra or {}), "rows": list(rows)}
    (folder / "results.json").write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    table = markdown_table(rows) if body is None else body
    source = "; ".join(f"{key} {value}" for key, value in origin.items())
    text = "\n".join([f"# {title}", "", *table, "", *(f"- {note}" for note in notes), "", source, ""])
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def markdown_table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The lines of a Markdown table of rows with the same keys."""
    columns = list(rows[0])
    table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    cells = (" | ".join(str(row[c]).replace("|", "\\|").replace("\n", " ") for c in columns) for row in rows)
    return table + [f"| {line} |" for line in cells]


def _percentiles(values: list[float]) -> Timing:
    ordered = sorted(values)
    return Timing(*(ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8)), rounds=len(ordered))


def _host_stopwatch(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    return lambda: elapsed


def _event_stopwatch(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    _larger_than_l2(device).zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return lambda: start.elapsed_time(end) * 1e-3


@cache
def _larger_than_l2(device: torch.device) -> Tensor:
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(max(4 * l2_bytes, 1 << 27), dtype=torch.int8, device=device)
