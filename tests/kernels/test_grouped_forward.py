"""The forward kernels against fp64: never worse than twice torch's error in the same dtype.

The same problems run in the interpreter (fp32 and fp16, here) and on a GPU (bf16 too, shipped tiles).
T tokens, K top-k, N = T K rows, E experts, D dim, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from interpreter import poison_empty, run_interpreted
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.kernels.activations import ACTIVATIONS
from crossearth_sar.kernels.grouped_forward import (
    grouped_down,
    grouped_down_reference,
    grouped_up,
    grouped_up_reference,
)
from crossearth_sar.kernels.tiles import DTYPES, Tiles, candidates, current_arch

SMALL = Tiles(block_m=16, block_n=32, block_k=32, num_warps=1, num_stages=1, group_m=3, epilogue_parts=2)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Shapes; routing is "random", "one" (expert takes all) or "sparse" (every other expert is empty)."""

    tokens: int
    top_k: int = 1
    dim: int = 48
    hidden: int = 80
    experts: int = 6
    routing: str = "random"
    routed: bool = True
    gate: torch.dtype | None = torch.float32
    activation: str = "gelu"


PROBLEMS = {
    "no token": Problem(tokens=0),
    "no token, top 2": Problem(tokens=0, top_k=2),
    "one token": Problem(tokens=1),
    "one token among 64 experts": Problem(tokens=1, top_k=4, experts=64, dim=16, hidden=32, gate=None),
    "odd count": Problem(tokens=77),
    "odd count, no gate": Problem(tokens=77, gate=None, activation="gelu_tanh"),
    "all to one": Problem(tokens=67, routing="one", activation="relu"),
    "empty experts": Problem(tokens=50, routing="sparse", gate=torch.float16),
    "top 2": Problem(tokens=33, top_k=2, activation="gelu_tanh"),
    "top 4, relu": Problem(tokens=19, top_k=4, activation="relu", dim=112, hidden=48),
    "64 experts": Problem(tokens=60, experts=64, dim=32, hidden=16),
    "three experts": Problem(tokens=64, experts=3, dim=64, hidden=256),
    "one expert": Problem(tokens=40, experts=1, dim=64, hidden=128),
    "grouped already": Problem(tokens=61, routed=False),
    "grouped already, no gate, empty experts": Problem(tokens=45, routed=False, gate=None, routing="sparse"),
}


@dataclass(frozen=True)
class Data:
    x: Tensor
    expert: Tensor
    source_row: Tensor | None
    offsets: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gate: Tensor | None


def make(problem: Problem, dtype: torch.dtype, device: str = "cpu") -> Data:
    """Random normal data; expert (N,) is the expert of every grouped row."""
    p = problem
    rows = p.tokens * p.top_k
    choice = torch.randint(0, p.experts, (rows,))
    if p.routing == "one":
        choice = torch.full((rows,), p.experts - 2)
    elif p.routing == "sparse":
        choice = choice // 2 * 2
    source_row = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=p.experts)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape) * scale).to(device, dtype)

    gate = None if p.gate is None else (torch.rand(rows) + 0.1).to(device, p.gate)
    return Data(
        normal(p.tokens, p.dim), choice[source_row].to(device),
        source_row.int().to(device) if p.routed else None, offsets.int().to(device),
        normal(p.experts, p.hidden, p.dim, scale=p.dim**-0.5), normal(p.experts, p.hidden),
        normal(p.experts, p.dim, p.hidden, scale=p.hidden**-0.5), normal(p.experts, p.dim), gate,
    )  # fmt: skip


def exact_up(data: Data, problem: Problem) -> tuple[Tensor, Tensor]:
    """(act, pre) in fp64, row by row from the row's own expert."""
    token = slice(None) if data.source_row is None else data.source_row.long() // problem.top_k
    x, w1, b1 = (t.double() for t in (data.x, data.w1, data.b1))
    pre = torch.einsum("nd,nfd->nf", x[token], w1[data.expert]) + b1[data.expert]
    return ACTIVATIONS[problem.activation](pre), pre


def exact_down(act: Tensor, data: Data, problem: Problem) -> Tensor:
    """y in fp64."""
    w2, b2 = data.w2.double(), data.b2.double()
    rows = torch.einsum("nf,ndf->nd", act.double(), w2[data.expert]) + b2[data.expert]
    by_assignment = rows
    if data.source_row is not None:
        by_assignment = torch.zeros_like(rows)
        by_assignment[data.source_row.long()] = rows
    if data.gate is not None:
        by_assignment = by_assignment * data.gate.double()[:, None]
    return by_assignment.reshape(-1, problem.top_k, rows.shape[1]).sum(1)


def require_close(got: Tensor, by_torch: Tensor, exact: Tensor, what: str) -> None:
    """At most twice torch's error, and one rounding of the largest value where torch is exact by luck."""
    assert got.shape == exact.shape
    assert got.dtype == by_torch.dtype
    if exact.numel() == 0:
        return
    assert got.isfinite().all(), f"{what}: something was not written"
    ours, theirs = ((t.double() - exact).abs().max().item() for t in (got, by_torch))
    floor = torch.finfo(got.dtype).eps * exact.abs().max().item()
    assert ours <= 2 * theirs + floor, f"{what}: error {ours:g}, torch has {theirs:g}"


def check(
    problem: Problem, dtype: torch.dtype, tiles: Tiles | None, device: str = "cpu", *, twice: bool = True
) -> None:
    data, p = make(problem, dtype, device), problem
    up = (data.x, data.source_row, data.offsets, data.w1, data.b1)
    options = {"top_k": p.top_k, "activation": p.activation}
    act, pre = grouped_up(*up, **options, save_pre=True, tiles=tiles)
    act_torch, pre_torch = grouped_up_reference(*up, **options, save_pre=True)
    exact_act, exact_pre = exact_up(data, p)
    assert pre is not None
    assert pre_torch is not None
    require_close(act, act_torch, exact_act, "act")
    require_close(pre, pre_torch, exact_pre, "pre")
    down = (act_torch, data.source_row, data.offsets, data.w2, data.b2, data.gate)
    y = grouped_down(*down, top_k=p.top_k, tiles=tiles)
    y_torch = grouped_down_reference(*down, top_k=p.top_k)
    require_close(y, y_torch, exact_down(act_torch, data, p), "y")
    if twice:
        again, absent = grouped_up(*up, **options, save_pre=False, tiles=tiles)
        assert absent is None
        assert torch.equal(again, act), "act differs from run to run"
        assert torch.equal(grouped_down(*down, top_k=p.top_k, tiles=tiles), y), "y differs from run to run"


def check_all(names: list[str], dtype: torch.dtype, tiles: Tiles | None, *, twice: bool = False) -> None:
    for name in names:
        try:
            check(PROBLEMS[name], dtype, tiles, twice=twice)
        except AssertionError as error:
            raise AssertionError(f"{name}, {dtype}, {tiles}: {error}") from error


def interpreted_fp32() -> None:
    check_all(list(PROBLEMS), torch.float32, None)


def interpreted_fp16() -> None:
    check_all(
        ["one token", "odd count", "empty experts", "top 4, relu", "no token"],
        torch.float16,
        None,
        twice=True,
    )


def interpreted_small_tiles() -> None:
    check_all(["odd count", "top 2"], torch.float16, SMALL)
    check_all(["grouped already, no gate, empty experts"], torch.float32, SMALL)


def interpreted_random_shapes() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        tokens, dim, hidden, experts, top_k = (
            int(torch.randint(low, high, ())) for low, high in ((1, 60), (1, 9), (1, 9), (1, 9), (1, 5))
        )
        problem = Problem(
            tokens=tokens, top_k=top_k, dim=16 * dim, hidden=16 * hidden, experts=experts,
            routing="sparse" if seed % 2 else "random", gate=torch.float32 if seed % 3 else None,
        )  # fmt: skip
        tiles = Tiles(block_m=32, block_n=64, block_k=64, num_warps=1, num_stages=1, group_m=1 + seed)
        check(problem, torch.float16 if seed % 4 else torch.float32, tiles, twice=False)


def interpreted_gelu_of_large_and_small() -> None:
    """gelu's 16-bit form over the whole range of fp16, where the fit behind it does not reach either."""
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-6e4, -300.0, -40.0, 0.0, 40.0, 6e4])])
    values = values.half()[: len(values) // 16 * 16]
    wide = values.numel()
    act, _ = grouped_up(
        torch.zeros(1, 16).half(), None, torch.tensor([0, 1], dtype=torch.int32),
        torch.zeros(1, wide, 16).half(), values[None], top_k=1, activation="gelu", save_pre=False,
    )  # fmt: skip
    exact = torch.nn.functional.gelu(values.double())
    allowed = 6e-4 * exact.abs() + 1e-7
    assert ((act[0].double() - exact).abs() <= allowed).all()


def test_in_the_interpreter() -> None:
    assert "5 cases, 0 failed" in run_interpreted(__file__)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_references_are_exact_up_to_rounding(name: str) -> None:
    problem = PROBLEMS[name]
    data = make(problem, torch.float32)
    up = (data.x, data.source_row, data.offsets, data.w1, data.b1)
    act, pre = grouped_up_reference(*up, top_k=problem.top_k, activation=problem.activation, save_pre=True)
    exact_act, exact_pre = exact_up(data, problem)
    torch.testing.assert_close(act.double(), exact_act, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pre.double(), exact_pre, rtol=1e-4, atol=1e-5)
    y = grouped_down_reference(
        act, data.source_row, data.offsets, data.w2, data.b2, data.gate, top_k=problem.top_k
    )
    torch.testing.assert_close(y.double(), exact_down(act, data, problem), rtol=1e-4, atol=1e-5)


def test_no_token_needs_no_device() -> None:
    data = make(PROBLEMS["no token, top 2"], torch.bfloat16)
    act, pre = grouped_up(
        data.x, data.source_row, data.offsets, data.w1, data.b1, top_k=2, activation="gelu", save_pre=True
    )
    assert act.shape == (0, 80)
    assert pre is not None
    assert pre.shape == (0, 80)
    y = grouped_down(act, data.source_row, data.offsets, data.w2, data.b2, data.gate, top_k=2)
    assert y.shape == (0, 48)


WRONG = {
    "a short source_row": ({"source_row": torch.zeros(3, dtype=torch.int32)}, "source_row does not fit"),
    "int64 offsets": ({"offsets": torch.zeros(7, dtype=torch.int64)}, "offsets does not fit"),
    "another dtype": ({"b": torch.zeros(6, 80, dtype=torch.float16)}, "b1 does not fit"),
    "fp64": ({"rows": torch.zeros(5, 48, dtype=torch.float64)}, "x's dtype"),
    "a width no multiple of 16": ({"w": torch.zeros(6, 80, 40)}, "multiples of 16"),
    "65 experts": ({"w": torch.zeros(65, 80, 48)}, "64 experts"),
    "a transposed weight": ({"w": torch.zeros(6, 48, 80).mT}, "not contiguous"),
    "top 5": ({"top_k": 5}, "top_k"),
    "no source_row, top 2": ({"source_row": None, "top_k": 2}, "top_k"),
    "an unknown activation": ({"activation": "silu"}, "activation"),
}


@pytest.mark.parametrize("name", list(WRONG))
@pytest.mark.parametrize("call", [grouped_up, grouped_up_reference])
def test_wrong_input_is_named(name: str, call: object) -> None:
    change, message = WRONG[name]
    data = make(Problem(tokens=5), torch.float32)
    given = {
        "rows": data.x, "source_row": data.source_row, "offsets": data.offsets, "w": data.w1, "b": data.b1,
        "top_k": 1, "activation": "gelu", **change,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        call(  # type: ignore[operator]
            *(given[key] for key in ("rows", "source_row", "offsets", "w", "b")),
            top_k=given["top_k"], activation=given["activation"], save_pre=True,
        )  # fmt: skip


@pytest.mark.parametrize("gate", [torch.ones(4), torch.ones(5, dtype=torch.float64), torch.ones(5, 1)])
def test_a_wrong_gate_is_named(gate: Tensor) -> None:
    data = make(Problem(tokens=5), torch.float32)
    with pytest.raises(InputError, match="gate"):
        grouped_down(torch.zeros(5, 80), data.source_row, data.offsets, data.w2, data.b2, gate, top_k=1)


def test_rows_that_are_no_multiple_of_top_k_are_named() -> None:
    data = make(Problem(tokens=5), torch.float32)
    with pytest.raises(InputError, match="top_k"):
        grouped_down(torch.zeros(5, 80), data.source_row, data.offsets, data.w2, data.b2, None, top_k=2)


gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ON_GPU = {
    **PROBLEMS,
    "several tiles": Problem(tokens=1500, dim=384, hidden=1536),
    "several tiles, top 2": Problem(tokens=700, top_k=2, dim=400, hidden=624, routing="sparse"),
}


@gpu
@needs_cuda
@pytest.mark.parametrize("name", list(ON_GPU))
@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
def test_on_gpu(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch.setattr)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False)
    tiles = {
        row.tiles
        for kernel in ("grouped_up", "grouped_down")
        for row in candidates(kernel, DTYPES[dtype], current_arch())
    }
    for choice in (None, *sorted(tiles, key=repr)):
        check(ON_GPU[name], dtype, choice, device="cuda")


@gpu
@needs_cuda
def test_captured_graph_follows_another_routing() -> None:
    problem = Problem(tokens=900, dim=128, hidden=256)
    first, second = (make(problem, torch.bfloat16, "cuda") for _ in range(2))

    def layer() -> Tensor:
        act, _ = grouped_up(
            first.x, first.source_row, first.offsets, first.w1, first.b1,
            top_k=1, activation="gelu", save_pre=False,
        )  # fmt: skip
        return grouped_down(act, first.source_row, first.offsets, first.w2, first.b2, first.gate, top_k=1)

    layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer()
    assert first.source_row is not None
    assert second.source_row is not None
    first.source_row.copy_(second.source_row)
    first.offsets.copy_(second.offsets)
    graph.replay()
    replayed = y.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        plain = layer()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(plain, replayed)


@gpu
@needs_cuda
def test_offsets_past_two_to_the_31() -> None:
    rows, dim, hidden = 600_000, 16, 4096  # rows * hidden = 2.5e9
    problem = Problem(tokens=8, dim=dim, hidden=hidden, experts=1)
    data = make(problem, torch.bfloat16, "cuda")
    x = data.x.repeat(rows // 8, 1)
    offsets = torch.tensor([0, rows], dtype=torch.int32, device="cuda")
    order = torch.arange(rows, dtype=torch.int32, device="cuda")
    act, _ = grouped_up(x, order, offsets, data.w1, data.b1, top_k=1, activation="gelu", save_pre=False)
    assert torch.equal(act[-8:], act[:8])
    y = grouped_down(act, order, offsets, data.w2, data.b2, None, top_k=1)
    assert torch.equal(y[-8:], y[:8])
