"""Where the time of an MoE layer's forward and backward pass goes: table, Chrome trace and picture.

    python -m bench.speed.profile_layer [--tokens 16384] [--dim 1024] [--backend triton] [--out FOLDER]

On a GPU a stage's time is its kernels' time on the device, and the rest of the wall clock is the device
waiting for launches; on a CPU it is the self time of the operators. Names decide the stage, and for matrix
products on a CPU the shapes do. Open trace.json.gz in chrome://tracing or ui.perfetto.dev.

T tokens, D dim, F hidden.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from bench.speed.harness import write_report
from bench.speed.moe_problem import NUM_EXPERTS, SHARES, Problem, make_problem
from bench.speed.ratio_pictures import stage_figure
from crossearth_sar import PhysicsGuidedMoE
from crossearth_sar.backend import moe_backend_status, resolve_moe_backend

STAGES = (
    (r"router_probability|softmax|argmax|max_", "router"),
    (r"count_by_expert|place_by_expert|group_by_expert|[sS]ort|searchsorted|bincount|one_hot|cumsum", "sort"),
    (r"grouped_up_dgrad", "dgrad 1 (dx)"),
    (r"grouped_down_dgrad|gate_grad", "dgrad 2 + activation"),
    (r"wgrad|sum_shares", "wgrad"),
    (r"grouped_up", "GEMM 1 + activation"),
    (r"grouped_down", "GEMM 2 + scatter"),
    (r"gelu|Gelu|GELU|relu", "activation"),
    (r"index_select|index_copy|index_put|gather|scatter|[iI]ndexing|::index", "gather and scatter"),
    (r"addmm|::mm$|::bmm|grouped_mm|gemm|cutlass|nvjet|xmma|mkldnn|::linear", "product"),
    (r"memcpy|Memcpy|::copy_|::cat|CatArray|::clone|direct_copy|::contiguous", "copies"),
    (r"fill|zero|Memset|memset", "fills"),
    (r"sum|reduce|addmv|::add|::mul|elementwise", "elementwise and sums"),
)
"""Pattern in the name of an operator or kernel -> stage; the first match counts. Fused kernels come first."""

MARKS = {"moe: forward": "forward", "moe: backward": "backward"}


@dataclass(frozen=True)
class Piece:
    """Time of one stage in one pass: calls and ms per run of the layer, names by falling time."""

    direction: str
    stage: str
    names: tuple[str, ...]
    calls: float
    ms: float


def profiled(layer: PhysicsGuidedMoE, problem: Problem, runs: int) -> profile:
    """`runs` forward and backward passes, apart on the device, under the names in MARKS."""
    on_gpu = problem.x_TD.is_cuda
    physics = torch.zeros(1, 3, device=problem.x_TD.device)
    x_BTD = problem.x_TD[None].requires_grad_()
    dy_BTD = problem.dy_TD[None]
    leaves = [x_BTD, *(p for p in layer.parameters() if p.requires_grad)]

    def run() -> None:
        with record_function("moe: forward"):
            y_BTD, _ = layer(x_BTD, physics)
            if on_gpu:
                torch.cuda.synchronize()
        with record_function("moe: backward"):
            torch.autograd.grad(y_BTD, leaves, dy_BTD, allow_unused=True)
            if on_gpu:
                torch.cuda.synchronize()

    for _ in range(3):
        run()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities, record_shapes=True) as recorded:
        for _ in range(runs):
            run()
    return recorded


def stage_of(name: str, shapes: list[Any], direction: str, dims: tuple[int, int]) -> str:
    """The stage an operator or kernel of a pass belongs to."""
    stage = next((stage for pattern, stage in STAGES if re.search(pattern, name)), "dispatch and views")
    return _which_product(name, shapes, direction, dims) if stage == "product" else stage


def _which_product(name: str, shapes: list[Any], direction: str, dims: tuple[int, int]) -> str:
    """Which of the layer's products, from the operands' shapes; «product» where they do not say."""
    dim, hidden = dims
    # addmm's first input is what is added, a vector or a matrix.
    operands = shapes[1:3] if "addmm" in name else [shape for shape in shapes if len(shape) >= 2][:2]
    if len(operands) < 2 or min(map(len, operands)) < 2:
        return "product"
    left, right = operands
    # left (rows, depth) times right (depth, columns); linear's weight is (columns, depth).
    rows, depth, columns = left[-2], left[-1], right[-2] if "linear" in name else right[-1]
    if NUM_EXPERTS in (rows, columns):
        return "router"
    if {rows, columns} == {dim, hidden}:
        return "wgrad"
    kinds = {
        ("forward", dim, hidden): "GEMM 1",
        ("forward", hidden, dim): "GEMM 2",
        ("backward", dim, hidden): "dgrad 2 (dy W2)",
        ("backward", hidden, dim): "dgrad 1 (dx)",
    }
    return kinds.get((direction, depth, columns), "product")


def pieces(recorded: profile, dims: tuple[int, int], runs: int) -> tuple[list[Piece], dict[str, float]]:
    """Time by pass and stage, longest first, and the wall-clock ms of each pass; per run."""
    events = list(recorded.events())
    spans = [(e.time_range.start, e.time_range.end, MARKS[e.name]) for e in events
             if e.name in MARKS and e.device_type == DeviceType.CPU]  # fmt: skip
    on_device = any(e.device_type == DeviceType.CUDA for e in events)
    ms: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    names: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.name in MARKS or (event.device_type == DeviceType.CUDA) != on_device:
            continue
        begin = event.time_range.start
        direction = next((d for start, end, d in spans if start <= begin <= end), None)
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        if direction is None or not spent:
            continue
        key = (direction, stage_of(event.name, event.input_shapes or [], direction, dims))
        ms[key] += spent / 1e3
        calls[key] += 1
        names[key][event.name] += spent
    wall: dict[str, float] = defaultdict(float)
    for start, end, direction in spans:
        wall[direction] += (end - start) / 1e3 / runs
    found = [
        Piece(*key, tuple(sorted(names[key], key=names[key].__getitem__, reverse=True)), calls[key] / runs,
              spent / runs)
        for key, spent in ms.items()
    ]  # fmt: skip
    return sorted(found, key=lambda p: (p.direction != "forward", -p.ms)), dict(wall)


def report(found: list[Piece], wall: dict[str, float]) -> list[dict[str, object]]:
    """A row per pass and stage, and one for what of the wall clock no stage covers."""
    rows: list[dict[str, object]] = []
    for direction, whole in wall.items():
        parts = [piece for piece in found if piece.direction == direction]
        for piece in parts:
            shown = ", ".join(_short(name) for name in piece.names[:4])
            rows.append({
                "pass": direction, "stage": piece.stage, "ms": f"{piece.ms:.4f}",
                "share": f"{piece.ms / whole:.1%}", "calls": f"{piece.calls:g}",
                "names": shown + (", …" if len(piece.names) > 4 else ""),
            })  # fmt: skip
        rest = whole - sum(piece.ms for piece in parts)
        rows.append({
            "pass": direction, "stage": "no stage: waiting, or the profiler", "ms": f"{rest:.4f}",
            "share": f"{rest / whole:.1%}", "calls": "", "names": "",
        })  # fmt: skip
        rows.append({
            "pass": direction, "stage": "wall clock", "ms": f"{whole:.4f}", "share": "100.0%", "calls": "",
            "names": "",
        })  # fmt: skip
    return rows


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "…"


def make_layer(problem: Problem, backend: str) -> PhysicsGuidedMoE:
    """The layer with the problem's router and weights."""
    _, hidden, dim = problem.weights["w1"].shape
    layer = PhysicsGuidedMoE(dim, hidden, num_experts=NUM_EXPERTS, backend=backend).to(problem.x_TD)
    with torch.no_grad():
        layer.router.weight.zero_()[:, :dim] = problem.router_ED
        for key, value in problem.weights.items():
            getattr(layer.experts, key).copy_(value)
    return layer


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = Path("bench/reports/profile-" + ("gpu" if on_gpu else "cpu"))
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--tokens", type=int, default=16384 if on_gpu else 4096)
    parser.add_argument("--dim", type=int, default=1024 if on_gpu else 384)
    parser.add_argument("--routing", choices=list(SHARES), default="uniform")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    usable = {status.name for status in moe_backend_status() if status.usable}
    kernels = "triton" if device.type == "cuda" and "triton" in usable else "reference"
    backend = kernels if given.backend == "auto" else resolve_moe_backend(given.backend)
    problem = make_problem(given.tokens, given.dim, given.routing, device=device, dtype=dtype)
    recorded = profiled(make_layer(problem, backend), problem, given.runs)
    found, wall = pieces(recorded, (given.dim, 4 * given.dim), given.runs)
    title = f"One MoE layer, {backend}: C = {given.dim}, T = {given.tokens}, {given.routing}, {given.dtype}"
    notes = [
        f"Means of {given.runs} runs. The profiler itself costs time: for the layer's, bench_moe_layer.py.",
        "On a GPU: time of kernels on the device. On a CPU: self time of operators.",
    ]
    print(write_report(given.out, title, report(found, wall), notes))
    bars = {
        direction: [(piece.stage, piece.ms) for piece in found if piece.direction == direction]
        for direction in wall
    }
    stage_figure(given.out / "stages.png", title, bars)
    trace = given.out / "trace.json"
    recorded.export_chrome_trace(str(trace))
    with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    trace.unlink()


if __name__ == "__main__":
    main()
