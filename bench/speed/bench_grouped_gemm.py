"""The grouped-GEMM kernels alone, launcher by launcher, against bare products of the same rows.

    python -m bench.speed.bench_grouped_gemm [--out FOLDER] [--tokens 4096 65536] [--dims 384 1024]

Ours do more than the product: they gather, add the bias, apply the activation or its gradient, and scatter.
The peers are given rows that lie grouped already and do the product only: one BLAS call per expert with the
splits on the host (cuBLAS on a GPU), or F.grouped_mm. TFLOP/s count the product alone for all. Every output
is compared with a higher-precision reference first. On a GPU every call is a replayed CUDA graph. Without a
GPU the torch references of the launchers take our place.

T tokens, N = T routed rows, D dim, F hidden, E experts.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.speed.harness import (
    ERROR_LIMIT,
    DisagreementError,
    captured,
    highest,
    measure_ceilings,
    require_close,
    time_interleaved,
    write_report,
)
from bench.speed.moe_peers import first_line
from bench.speed.moe_problem import NUM_EXPERTS, SHARES, Problem, make_problem
from crossearth_sar.kernels.probe import triton_status

Row = dict[str, Any]
LAUNCHERS = ("grouped_up", "grouped_down", "grouped_down_dgrad", "grouped_up_dgrad", "grouped_wgrad")


@dataclass(frozen=True)
class Routed:
    """The tensors of one case, rows grouped by expert: x, dy (N, D); pre, act, dpre (N, F)."""

    problem: Problem
    source_row: Tensor
    offsets: Tensor
    x_ND: Tensor
    dy_ND: Tensor
    pre_NF: Tensor
    act_NF: Tensor
    dpre_NF: Tensor

    @property
    def splits(self) -> list[int]:
        return self.problem.splits


@dataclass(frozen=True)
class Product:
    """A launcher, and the bare product in it: out = left @ right_e^T per expert (or left_e^T right_e).

    launcher(module): our call, whose first output is checked against `ours_expected`.
    """

    name: str
    module: str
    launcher: Callable[[Any], Tensor]
    ours_expected: Callable[[], Tensor]
    left: Tensor
    right: Tensor
    is_wgrad: bool = False


def make_routed(problem: Problem) -> Routed:
    source_row = problem.expert_T.argsort(stable=True)
    ends = torch.tensor([0, *problem.splits], device=source_row.device).cumsum(0)
    x_ND, dy_ND = problem.x_TD[source_row], problem.dy_TD[source_row]
    w1, b1, w2 = (problem.weights[k] for k in ("w1", "b1", "w2"))
    pre_NF = torch.cat([F.linear(x, w1[e], b1[e]) for e, x in enumerate(x_ND.split(problem.splits))])
    act_NF = F.gelu(pre_NF)
    dact_NF = torch.cat([dy @ w2[e] for e, dy in enumerate(dy_ND.split(problem.splits))])
    dpre_NF = torch.ops.aten.gelu_backward(dact_NF, pre_NF)
    return Routed(
        problem, source_row.to(torch.int32), ends.to(torch.int32), x_ND, dy_ND, pre_NF, act_NF, dpre_NF
    )


def products(routed: Routed) -> list[Product]:
    """Every launcher with the arguments the layer calls it with."""
    problem, where = routed.problem, (routed.source_row, routed.offsets)
    x_TD, dy_TD = problem.x_TD, problem.dy_TD
    w1, b1, w2, b2 = (problem.weights[k] for k in ("w1", "b1", "w2", "b2"))
    top = {"top_k": 1}
    both = {"top_k": 1, "activation": "gelu"}
    experts = {"num_experts": NUM_EXPERTS, "gather": "right", "gate_A": None, "top_k": 1}
    return [
        Product(
            "grouped_up", "grouped_forward",
            lambda m: m(x_TD, *where, w1, b1, **both, save_pre=True)[0],
            lambda: F.gelu(_per_expert(routed, routed.x_ND, w1, b1)), routed.x_ND, w1,
        ),
        Product(
            "grouped_down", "grouped_forward",
            lambda m: m(routed.act_NF, *where, w2, b2, None, **top),
            lambda: _to_tokens(routed, _per_expert(routed, routed.act_NF, w2, b2)), routed.act_NF, w2,
        ),
        Product(
            "grouped_down_dgrad", "grouped_dgrad",
            lambda m: m(dy_TD, *where, w2, b2, None, routed.pre_NF, **both, want_gate_grad=False)[0],
            lambda: torch.ops.aten.gelu_backward(
                _per_expert(routed, routed.dy_ND, w2.transpose(1, 2)), _wide(routed.pre_NF)
            ),
            routed.dy_ND, w2.transpose(1, 2),
        ),
        Product(
            "grouped_up_dgrad", "grouped_dgrad",
            lambda m: m(routed.dpre_NF, *where, w1, **top),
            lambda: _to_tokens(routed, _per_expert(routed, routed.dpre_NF, w1.transpose(1, 2))),
            routed.dpre_NF, w1.transpose(1, 2),
        ),
        Product(
            "grouped_wgrad", "grouped_wgrad",
            lambda m: m(routed.dpre_NF, x_TD, *where, **experts)[0],
            lambda: _wgrad(routed, _wide(routed.dpre_NF), _wide(routed.x_ND)),
            routed.dpre_NF, routed.x_ND, is_wgrad=True,
        ),
    ]  # fmt: skip


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float64 if value.dtype == torch.float32 else torch.float32)


def _per_expert(routed: Routed, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows_e @ weight_e^T + bias_e in higher precision."""
    parts = enumerate(_wide(rows).split(routed.splits))
    return torch.cat(
        [F.linear(r, _wide(weight[e]), None if bias is None else _wide(bias[e])) for e, r in parts]
    )


def _to_tokens(routed: Routed, rows: Tensor) -> Tensor:
    return torch.zeros_like(rows).index_copy(0, routed.source_row.long(), rows)


def _wgrad(routed: Routed, left: Tensor, right: Tensor) -> Tensor:
    parts = zip(left.split(routed.splits), right.split(routed.splits), strict=True)
    return torch.stack([a.t() @ b for a, b in parts])


def calls(product: Product, routed: Routed, *, on_gpu: bool) -> Iterator[tuple[str, Any, Any]]:
    """(contender, call, what its output must be), or (contender, None, the reason there is none)."""
    bare = (
        _wgrad(routed, _wide(product.left), _wide(product.right))
        if product.is_wgrad
        else _per_expert(routed, product.left, product.right)
    )
    module = importlib.import_module(f"crossearth_sar.kernels.{product.module}")
    usable, reason = triton_status()
    if on_gpu and usable:
        yield "ours, triton", lambda: product.launcher(getattr(module, product.name)), product.ours_expected()
    else:
        yield "ours, triton", None, reason if not usable else "the interpreter is for tests, not for speed"
    own_reference = getattr(module, product.name + "_reference")
    yield "ours, torch reference", lambda: product.launcher(own_reference), product.ours_expected()
    yield "per expert, product only", lambda: _bare_loop(product, routed), bare
    yield "F.grouped_mm, product only", lambda: _bare_grouped_mm(product, routed), bare


def _bare_loop(product: Product, routed: Routed) -> Tensor:
    if product.is_wgrad:
        return _wgrad(routed, product.left, product.right)
    rows, columns = product.left.shape[0], product.right.shape[1]
    out = torch.empty(rows, columns, dtype=product.left.dtype, device=product.left.device)
    parts = zip(product.left.split(routed.splits), out.split(routed.splits), strict=True)
    for e, (left, target) in enumerate(parts):
        torch.mm(left, product.right[e].t(), out=target)
    return out


def _bare_grouped_mm(product: Product, routed: Routed) -> Tensor:
    ends = routed.offsets[1:]
    if product.is_wgrad:
        return F.grouped_mm(product.left.t(), product.right, offs=ends)
    return F.grouped_mm(product.left, product.right.transpose(1, 2), offs=ends)


def measure(
    tokens: int, dim: int, routing: str, *, device: torch.device, dtype: torch.dtype, rounds: int
) -> list[Row]:
    """A row per launcher and contender."""
    on_gpu = device.type == "cuda"
    problem = make_problem(tokens, dim, routing, device=device, dtype=dtype)
    routed = make_routed(problem)
    rows: list[Row] = []
    for product in products(routed):
        agreeing: dict[str, Callable[[], object]] = {}
        notes: dict[str, str] = {}
        errors: dict[str, float] = {}
        for name, call, expected in calls(product, routed, on_gpu=on_gpu):
            if call is None:
                notes[name] = expected
                continue
            try:
                errors[name] = require_close(name, call(), expected, limit=ERROR_LIMIT[dtype])
                # The references size their slices on the host, which a graph cannot hold.
                wants_graph = on_gpu and name != "ours, torch reference"
                agreeing[name] = captured(call) if wants_graph else call
            except (DisagreementError, RuntimeError) as error:
                notes[name] = first_line(error)
        timings = time_interleaved(agreeing, rounds=rounds, device=device)
        first = timings.get("ours, triton", timings.get("ours, torch reference"))
        for name in [*timings, *notes]:
            row: Row = {"C": dim, "T": tokens, "routing": routing, "kernel": product.name, "contender": name}
            timing = timings.get(name)
            row |= dict.fromkeys(("ms p50", "ms p20 .. p80", "TFLOP/s", "its time / ours", "error"), "")
            if timing is not None:
                row["ms p50"] = f"{timing.p50 * 1e3:.4g}"
                row["ms p20 .. p80"] = f"{timing.p20 * 1e3:.4g} .. {timing.p80 * 1e3:.4g}"
                row["TFLOP/s"] = f"{problem.flop / 2 / timing.p50 / 1e12:.4g}"
                row["its time / ours"] = f"{timing.p50 / first.p50:.3f}" if first else ""
                row["error"] = f"{errors[name]:.1e}"
            rows.append(row | {"note": notes.get(name, "")})
    return rows


def main() -> int:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = Path("bench/reports/grouped-gemm-" + ("gpu" if on_gpu else "cpu"))
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 65536] if on_gpu else [1024])
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 768, 1024] if on_gpu else [384])
    parser.add_argument("--routings", nargs="+", choices=list(SHARES), default=["uniform", "skewed"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    before = measure_ceilings(device, dtype)
    rows = [
        row
        for routing in given.routings
        for dim in given.dims
        for tokens in given.tokens
        for row in measure(tokens, dim, routing, device=device, dtype=dtype, rounds=given.rounds)
    ]
    ceilings = highest(before, measure_ceilings(device, dtype))
    notes = [
        f"{given.dtype}, hidden = 4 C, {NUM_EXPERTS} experts. TFLOP/s: of the product, 8 T C^2 FLOP each.",
        "«product only»: rows lie grouped already, no bias, activation, gather or scatter.",
        f"Measured beside it: a large product {ceilings['gemm_tflops']:.3g} TFLOP/s, "
        f"a large copy {ceilings['copy_gb_per_s']:.4g} GB/s (read + write).",
    ]
    print(write_report(given.out, "Grouped-GEMM kernels", rows, notes, extra={"ceilings": ceilings}))
    wrong = [r for r in rows if r["contender"].startswith("ours") and "Error: " in r["note"]]
    for row in wrong:
        print(f"WRONG {row['kernel']}, {row['contender']}: {row['note']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
