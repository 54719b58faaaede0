"""The MoE layer against everything it could be replaced by: dense FFNs, loops, F.grouped_mm, other projects.

    python -m bench.speed.bench_moe_layer [--out FOLDER] [--tokens 1024 4096] [--dims 384] [--budget SECONDS]

Same tokens, weights and routing for all; outputs and gradients are compared with a higher-precision
reference first, and a contender that disagrees gets no ratio. Contenders take turns within one run. «layer»
includes the router, «experts» is given the routing. On a GPU each case is timed as called («eager») and,
where nothing in it waits for the host, as a replayed CUDA graph («graph»). Without a GPU: float32, C = 384.
The exit code is 1 where this project's layer fails or is wrong.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from bench.speed.harness import (
    ERROR_LIMIT,
    DisagreementError,
    Timing,
    captured,
    highest,
    markdown_table,
    measure_ceilings,
    require_close,
    time_interleaved,
    write_report,
)
from bench.speed.moe_peers import build_contenders, first_line
from bench.speed.moe_problem import (
    NUM_EXPERTS,
    SHARES,
    Absent,
    Contender,
    Problem,
    Scope,
    make_problem,
    reference,
)
from bench.speed.moe_targets import judge
from bench.speed.ratio_pictures import ratio_figure
from crossearth_sar.backend import moe_backend_status, resolve_moe_backend

PASSES = ("forward", "forward+backward")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured. budget_s: no further case starts after it; case_s: of one set of turns."""

    device: torch.device
    dtype: torch.dtype
    tokens: list[int]
    dims: list[int]
    routings: list[str]
    scopes: list[Scope]
    gate: str
    rounds: int
    budget_s: float
    case_s: float
    compiled: bool
    ours: str
    only: list[str] = field(default_factory=list)


def cases(options: Options) -> Iterator[tuple[int, int, str]]:
    """(T, C, routing), what matters most first, so that a budget cuts off the rest."""
    for routing in options.routings:
        for dim in sorted(options.dims, key=lambda d: (d != 1024, d != 384)):
            for tokens in sorted(options.tokens, key=lambda t: (t not in (16384, 65536, 4096), t)):
                yield tokens, dim, routing


def measure(
    options: Options, after_case: Callable[[list[Row], list[str]], object]
) -> tuple[list[Row], list[str]]:
    """A row per case, scope, pass, launch and contender; and the cases for which no time was left.

    `after_case` gets both as they stand, so that a run that is cut short leaves its figures.
    """
    rows: list[Row] = []
    unmeasured: list[str] = []
    deadline = time.perf_counter() + options.budget_s
    for tokens, dim, routing in cases(options):
        if rows and time.perf_counter() > deadline:
            unmeasured.append(f"C {dim}, T {tokens}, {routing}")
            continue
        problem = make_problem(
            tokens, dim, routing, device=options.device, dtype=options.dtype, gate=options.gate
        )
        for scope in options.scopes:
            case = {"scope": scope, "C": dim, "T": tokens, "routing": routing}
            rows += _measure_scope(problem, scope, case, options)
        after_case(rows, unmeasured)
    return rows, unmeasured


def _measure_scope(problem: Problem, scope: Scope, case: Row, options: Options) -> list[Row]:
    built = build_contenders(problem, scope, compiled=options.compiled, only=options.only)
    agreeing, errors, refused = _agreeing(problem, scope, [c for c in built if isinstance(c, Contender)])
    refused |= {c.name: c.reason for c in built if isinstance(c, Absent)}
    rows: list[Row] = []
    for direction in PASSES:
        calls = {c.name: _call(c, problem, direction) for c in agreeing}
        for launch in ("eager", "graph") if problem.x_TD.is_cuda else ("eager",):
            reasons = dict(refused)
            if launch == "graph":
                calls, failed = _as_graphs(agreeing, calls)
                reasons |= failed
            timings = time_interleaved(
                calls, rounds=options.rounds, budget_s=options.case_s, device=options.device
            )
            head = {**case, "pass": direction, "launch": launch}
            rows += _timed_rows(problem, head, agreeing, timings, errors, options)
            rows += [_row(head, name, note=reason) for name, reason in reasons.items()]
            if launch == "graph":
                del calls
                torch.cuda.empty_cache()
    return rows


def _agreeing(
    problem: Problem, scope: Scope, contenders: list[Contender]
) -> tuple[list[Contender], dict[str, float], dict[str, str]]:
    """(those whose output and gradients agree, the largest relative error of each, the others' reasons)."""
    references: dict[tuple[str, str, bool], tuple[Tensor, dict[str, Tensor]]] = {}
    agreeing, errors, refused = [], {}, {}
    for contender in contenders:
        key = (contender.family, contender.activation, contender.biases)
        if key not in references:
            alike = problem.with_activation(contender.activation)
            references[key] = reference(
                alike, scope, dense=contender.family == "dense", biases=contender.biases
            )
        try:
            errors[contender.name] = _largest_error(problem, contender, *references[key])
            agreeing.append(contender)
        except (DisagreementError, RuntimeError, ValueError) as error:
            refused[contender.name] = first_line(error)
    return agreeing, errors, refused


def _largest_error(
    problem: Problem, contender: Contender, y_TD: Tensor, gradients: dict[str, Tensor]
) -> float:
    limit = ERROR_LIMIT[problem.x_TD.dtype]
    with torch.no_grad():
        worst = require_close(f"{contender.name}: y", contender.forward(problem.x_TD), y_TD, limit=limit)
    names = list(contender.parameters)
    flat = _gradients(contender, problem)
    got = {"x": flat[0]}
    flat = flat[1:]
    for name in names:
        tensors, flat = flat[: len(contender.parameters[name])], flat[len(contender.parameters[name]) :]
        stacked = torch.stack(tensors) if len(tensors) > 1 else tensors[0]
        got[name] = (
            stacked.reshape(gradients[name].shape) if name != "w2" else _like(stacked, gradients[name])
        )
    for name, value in got.items():
        worst = max(
            worst, require_close(f"{contender.name}: gradient of {name}", value, gradients[name], limit=limit)
        )
    return worst


def _like(got: Tensor, expected: Tensor) -> Tensor:
    """w2's gradient as (E, D, F), also from a peer that keeps it as (E F, D)."""
    experts, dim, hidden = expected.shape
    if got.shape == (experts * hidden, dim):
        return got.view(experts, hidden, dim).transpose(1, 2)
    return got.view(expected.shape)


def _gradients(contender: Contender, problem: Problem) -> list[Tensor]:
    x_TD = problem.x_TD.detach().requires_grad_()
    leaves = [x_TD, *(tensor for tensors in contender.parameters.values() for tensor in tensors)]
    return list(torch.autograd.grad(contender.forward(x_TD), leaves, problem.dy_TD))


def _call(contender: Contender, problem: Problem, direction: str) -> Callable[[], object]:
    if direction == "forward":
        return torch.no_grad()(lambda: contender.forward(problem.x_TD))
    return lambda: _gradients(contender, problem)


def _as_graphs(
    contenders: list[Contender], calls: dict[str, Callable[[], object]]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    graphs: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for contender in contenders:
        if contender.host_sync:
            failed[contender.name] = "waits for the host: no graph"
            continue
        try:
            graphs[contender.name] = captured(calls[contender.name])
        except RuntimeError as error:
            failed[contender.name] = first_line(error)
    return graphs, failed


def _timed_rows(
    problem: Problem,
    head: Row,
    contenders: list[Contender],
    timings: dict[str, Timing],
    errors: dict[str, float],
    options: Options,
) -> list[Row]:
    rows = []
    both = head["pass"] == "forward+backward"
    flop, moved = problem.flop * (3 if both else 1), problem.bytes_moved(backward=both)
    for contender in contenders:
        if contender.name not in timings:
            continue
        timing = timings[contender.name]
        suffix = ", tanh" if contender.activation == "gelu_tanh" else ""
        ours = timings.get(f"ours, {options.ours}{suffix}")
        rows.append(_row(
            head, contender.name, ms_p50=f"{timing.p50 * 1e3:.4g}", ms_p20=f"{timing.p20 * 1e3:.4g}",
            ms_p80=f"{timing.p80 * 1e3:.4g}", rounds=timing.rounds, tflops=f"{flop / timing.p50 / 1e12:.4g}",
            error=f"{errors[contender.name]:.1e}", ratio=f"{timing.p50 / ours.p50:.3f}" if ours else "",
            gflop=f"{flop / 1e9:.4g}", megabytes=f"{moved / 1e6:.4g}",
            note="" if contender.biases else "without biases",
        ))  # fmt: skip
    return rows


def _row(head: Row, name: str, **values: object) -> Row:
    """A row of the table; what was not measured stays empty, its reason in `note`."""
    fields = {
        "ms p50": "ms_p50", "ms p20": "ms_p20", "ms p80": "ms_p80", "rounds": "rounds", "TFLOP/s": "tflops",
        "its time / ours": "ratio", "relative error": "error", "GFLOP": "gflop", "MB": "megabytes",
        "note": "note",
    }  # fmt: skip
    return {**head, "contender": name, **{column: values.get(key, "") for column, key in fields.items()}}


def tables(rows: list[Row]) -> list[str]:
    """Markdown: a table per scope, width, pass and launch, a line per contender; then who is missing."""
    timed = [row for row in rows if row["ms p50"]]
    parts: dict[tuple[object, ...], list[Row]] = {}
    for row in timed:
        parts.setdefault((row["scope"], row["C"], row["pass"], row["launch"]), []).append(row)
    lines: list[str] = []
    for (scope, dim, direction, launch), part in parts.items():
        columns = list(dict.fromkeys((row["routing"], row["T"]) for row in part))
        cells: dict[str, Row] = {}
        for row in part:
            line = cells.setdefault(
                row["contender"], {"contender": row["contender"]} | {f"{r}, T {t}": "" for r, t in columns}
            )
            line[f"{row['routing']}, T {row['T']}"] = f"{row['ms p50']} ({row['its time / ours'] or '-'})"
        head = f"## {scope}, C = {dim}, {direction}, {launch}: ms (its time / ours)"
        lines += [head, "", *markdown_table(list(cells.values())), ""]
    missing: dict[str, list[str]] = {}
    for row in rows:
        if not row["ms p50"]:
            missing.setdefault(f"{row['contender']}: {row['note']}", []).append(row["scope"])
    lines += ["## Without a figure", ""]
    return lines + [f"- {reason} ({', '.join(dict.fromkeys(at))})" for reason, at in missing.items()]


def draw(rows: list[Row], path: Path) -> None:
    """The layer's ratios under uniform routing (else the first one's), a panel per size and pass."""
    timed = sorted(
        (row for row in rows if row["its time / ours"]), key=lambda row: (row["C"], row["T"], row["launch"])
    )
    scope = "layer" if any(row["scope"] == "layer" for row in timed) else "experts"
    shown = [row for row in timed if row["scope"] == scope and row["routing"] == timed[0]["routing"]]
    panels: dict[str, dict[str, float]] = {}
    for row in shown:
        name = f"C {row['C']}, T {row['T']}, {row['pass']}, {row['launch']}"
        panels.setdefault(name, {})[row["contender"]] = float(row["its time / ours"])
    if panels:
        ratio_figure(path, f"MoE {scope}, {shown[0]['routing']} routing: time of each / time of ours", panels)


def own_backend(requested: str, *, on_gpu: bool) -> str:
    """The backend ratios are against: by itself the kernels on a GPU, which "auto" may not take yet, and on a
    CPU the experts in C++."""
    usable = {status.name for status in moe_backend_status() if status.usable}
    if requested != "auto":
        return resolve_moe_backend(requested)
    kernels = "triton" if on_gpu else "cpu"
    return kernels if kernels in usable else "reference"


def parse() -> tuple[Options, Path]:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench/reports/moe-layer-" + ("gpu" if on_gpu else "cpu"))
    )
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--dims", type=int, nargs="+")
    parser.add_argument("--routings", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--scopes", nargs="+", choices=get_args(Scope), default=list(get_args(Scope)))
    parser.add_argument("--gate", choices=["normalized", "probability"], default="normalized")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=900, help="seconds; no further case starts after it")
    parser.add_argument("--case-budget", type=float, default=15, help="seconds of one set of turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--ours", default="auto", help="the backend that ratios are against")
    parser.add_argument("--only", nargs="+", default=[], help="contenders whose name holds one of these")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    on_gpu = given.device.startswith("cuda")
    options = Options(
        device=torch.device(given.device),
        dtype=getattr(torch, given.dtype),
        tokens=given.tokens or ([1024, 4096, 16384, 65536, 131072] if on_gpu else [1024, 4096, 8192]),
        dims=given.dims or ([384, 768, 1024] if on_gpu else [384]),
        routings=given.routings,
        scopes=given.scopes,
        gate=given.gate,
        rounds=given.rounds,
        budget_s=given.budget,
        case_s=given.case_budget,
        compiled=not given.no_compile,
        ours=own_backend(given.ours, on_gpu=on_gpu),
        only=given.only,
    )
    return options, given.out


def write(
    out: Path, options: Options, ceilings: dict[str, float], rows: list[Row], unmeasured: list[str]
) -> str:
    """The report of what was measured so far; returns its Markdown."""
    rows = sorted(rows, key=lambda row: (row["C"], row["T"]))
    targets = judge(rows, on_gpu=options.device.type == "cuda", ours=options.ours)
    name = str(options.dtype).removeprefix("torch.")
    notes = [
        f"{name}, hidden = 4 C, {NUM_EXPERTS} experts, top-1, gate «{options.gate}»; shares of the tokens: "
        + "; ".join(f"{r} {' / '.join(f'{100 * s:.3g}' for s in SHARES[r])} %" for r in options.routings),
        f"Ours in ratios: backend {options.ours} with the peer's activation. Above 1 ours is the faster.",
        "Relative error: the largest over the output and every gradient, against float64 (float32 for half).",
        f"Measured beside it: a large product {ceilings['gemm_tflops']:.3g} TFLOP/s, "
        f"a large copy {ceilings['copy_gb_per_s']:.4g} GB/s (read + write).",
        "Forward is without gradients. GFLOP and MB: of the two products, and the fewest bytes they move.",
        f"Rounds: up to {options.rounds}, fewer where a set of turns took {options.case_s:g} s (its column).",
        "The ratios of uniform routing as [a picture](ratios.png).",
    ]
    notes += [f"Not measured, the time budget was spent: {'; '.join(unmeasured)}"] if unmeasured else []
    return write_report(
        out, f"MoE layer, {'GPU' if options.device.type == 'cuda' else 'CPU'}", rows, notes,
        body=["## Targets", "", *markdown_table(targets), "", *tables(rows)],
        extra={"ceilings": ceilings, "targets": targets},
    )  # fmt: skip


def main() -> int:
    options, out = parse()
    before = measure_ceilings(options.device, options.dtype)
    rows, unmeasured = measure(options, partial(write, out, options, before))
    ceilings = highest(before, measure_ceilings(options.device, options.dtype))
    print(write(out, options, ceilings, rows, unmeasured))
    draw(rows, out / "ratios.png")
    wrong = sorted({f"{r['contender']}: {r['note']}" for r in rows if is_own_failure(r)})
    for line in wrong:
        print(f"WRONG {line}")
    return 1 if wrong else 0


def is_own_failure(row: Row) -> bool:
    """Whether this project's layer, on a backend that should work here, failed or disagreed."""
    return row["contender"].startswith("ours") and "Error: " in row["note"]


if __name__ == "__main__":
    raise SystemExit(main())
