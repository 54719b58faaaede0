"""The backward kernels against torch: interpreted (fp32, fp16), compiled ahead of time, on a GPU if any.

Names as in the kernels. `exact` results are the references' in fp64; the references themselves are held to
autograd through the forward formula.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from interpreter import run_interpreted
from torch import Tensor

from bench.compiled.ahead import compile_case
from bench.compiled.ahead_cases import dgrad_cases, wgrad_cases
from crossearth_sar.kernels import grouped_dgrad, grouped_wgrad
from crossearth_sar.kernels.activations import ACTIVATIONS
from crossearth_sar.kernels.tiles import Tiles, candidates, current_arch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One problem; routing "random" | "one expert" | "every third" | "skewed" | "grouped" (no source_row)."""

    tokens: int
    dim: int = 48
    hidden: int = 80
    experts: int = 4
    top_k: int = 1
    routing: str = "random"
    gated: bool = True
    activation: str = "gelu"

    @property
    def rows(self) -> int:
        return self.tokens * self.top_k


SHAPES = (
    Shape(tokens=0),
    Shape(tokens=1, activation="relu"),
    Shape(tokens=1, gated=False, top_k=4),
    Shape(tokens=37, activation="gelu_tanh", routing="every third"),
    Shape(tokens=37, activation="gelu_tanh", gated=False),
    Shape(tokens=101, dim=16, hidden=16, top_k=2, experts=3),
    Shape(tokens=101, dim=80, hidden=96, routing="one expert", gated=False),
    Shape(tokens=67, dim=112, routing="skewed", top_k=4, activation="relu"),
    Shape(tokens=45, routing="grouped", experts=5),
    Shape(tokens=45, routing="grouped", gated=False, activation="relu"),
    Shape(tokens=83, dim=32, experts=1),
    Shape(tokens=90, dim=16, hidden=16, experts=64),
)

_SMALL = {"num_warps": 1, "num_stages": 1, "group_m": 2}
INTERPRETER_TILES = (
    Tiles(block_m=32, block_n=64, block_k=32, epilogue_parts=2, **_SMALL),
    None,
    Tiles(block_m=64, block_n=64, block_k=64, epilogue_parts=4, split_k=3, **_SMALL),
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs of every backward launcher for one shape."""

    shape: Shape
    source_row: Tensor | None
    offsets: Tensor
    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    gate: Tensor | None
    dy: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """The same with every floating tensor in `dtype`, but the gate in fp32 at least."""
        wide = torch.promote_types(dtype, torch.float32)
        changed = {name: getattr(self, name).to(dtype) for name in ("x", "w1", "b1", "w2", "b2", "dy")}
        gate = None if self.gate is None else self.gate.to(wide)
        return Problem(**{**vars(self), **changed, "gate": gate})

    @property
    def token(self) -> Tensor:
        """(N,) the token of each grouped row."""
        return self.assignment // self.shape.top_k

    @property
    def assignment(self) -> Tensor:
        rows = torch.arange(self.shape.rows, device=self.x.device)
        return rows if self.source_row is None else self.source_row.long()

    @property
    def expert(self) -> Tensor:
        """(N,) the expert of each grouped row."""
        experts = torch.arange(self.shape.experts, device=self.x.device)
        return torch.repeat_interleave(experts, self.offsets.diff())


def make_problem(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Problem:
    """Random values of about unit size in `dtype`."""
    tokens, dim, hidden, experts = shape.tokens, shape.dim, shape.hidden, shape.experts

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size) * scale).to(dtype).to(device)

    expert_A = torch.randint(experts, (shape.rows,))
    if shape.routing == "one expert":
        expert_A.fill_(experts // 2)
    elif shape.routing == "every third":
        expert_A = expert_A // 3 * 3
    elif shape.routing == "skewed":
        expert_A = torch.where(torch.rand(shape.rows) < 0.7, experts - 1, expert_A)
    counts = torch.bincount(expert_A, minlength=experts)
    offsets = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    source_row = torch.argsort(expert_A, stable=True).to(torch.int32)
    return Problem(
        shape=shape,
        source_row=None if shape.routing == "grouped" else source_row.to(device),
        offsets=offsets.to(device),
        x=normal(tokens, dim),
        w1=normal(experts, hidden, dim, scale=dim**-0.5),
        b1=normal(experts, hidden),
        w2=normal(experts, dim, hidden, scale=hidden**-0.5),
        b2=normal(experts, dim),
        gate=torch.rand(shape.rows).to(device) if shape.gated else None,
        dy=normal(tokens, dim),
    )


def pre_activation(problem: Problem) -> Tensor:
    """(N, F) in x's dtype, each value rounded once."""
    rows = problem.x.double()[problem.token].split(problem.offsets.diff().tolist())
    experts = zip(rows, problem.w1.double().unbind(0), problem.b1.double().unbind(0), strict=True)
    return torch.cat([F.linear(part, w, b) for part, w, b in experts]).to(problem.x.dtype)


def backward(
    problem: Problem, pre: Tensor, *, suffix: str = "", tiles: Tiles | None = None
) -> dict[str, Tensor]:
    """Every gradient by the launchers, or with suffix "_reference" by theirs, on the same inputs.

    dpre and act, which the later products read, are the fp64 reference's, rounded to the dtype: each launcher
    answers for its own error only.
    """
    shape, dtype = problem.shape, problem.x.dtype
    plan = (problem.source_row, problem.offsets)
    common = {"top_k": shape.top_k, "tiles": tiles}
    down_dgrad = getattr(grouped_dgrad, f"grouped_down_dgrad{suffix}")
    up_dgrad = getattr(grouped_dgrad, f"grouped_up_dgrad{suffix}")
    wgrad = getattr(grouped_wgrad, f"grouped_wgrad{suffix}")
    wide = problem.to(torch.float64)
    dpre, act, _ = grouped_dgrad.grouped_down_dgrad_reference(
        wide.dy, *plan, wide.w2, wide.b2, wide.gate, pre.double(), top_k=shape.top_k,
        activation=shape.activation, want_gate_grad=False,
    )  # fmt: skip
    dpre, act = dpre.to(pre.dtype), act.to(pre.dtype)
    found = dict(
        zip(
            ("dpre", "act", "dgate"),
            down_dgrad(
                problem.dy, *plan, problem.w2, problem.b2, problem.gate, pre, activation=shape.activation,
                want_gate_grad=shape.gated, **common,
            ),
            strict=True,
        )
    )  # fmt: skip
    dpre, act = dpre.to(dtype), act.to(dtype)
    found["dx"] = up_dgrad(dpre, *plan, problem.w1, **common)
    experts = {"num_experts": shape.experts, **common}
    found["dw1"], found["db1"] = wgrad(dpre, problem.x, *plan, gather="right", gate_A=None, **experts)
    found["dw2"], found["db2"] = wgrad(problem.dy, act, *plan, gather="left", gate_A=problem.gate, **experts)
    if problem.source_row is None:
        found["dw_rows"], found["db_rows"] = wgrad(dpre, act, *plan, gather=None, gate_A=None, **experts)
    return {name: value for name, value in found.items() if value is not None}


def check_against_torch(problem: Problem, tiles: Tiles | None, *, twice: bool = True) -> None:
    """At most twice torch's error in the same dtype, all of it written, the same bits if run twice."""
    pre = pre_activation(problem)
    with torch.no_grad():
        exact = backward(problem.to(torch.float64), pre.double(), suffix="_reference")
        plain = backward(problem, pre, suffix="_reference")
        ours = backward(problem, pre, tiles=tiles)
        again = backward(problem, pre, tiles=tiles) if twice else ours
    assert ours.keys() == exact.keys()
    assert ("dgate" in ours) == problem.shape.gated
    for name, value in ours.items():
        where = f"{name}, {problem.shape}, {tiles and tiles.label}, {problem.x.dtype}"
        assert value.shape == exact[name].shape, where
        assert value.dtype == plain[name].dtype, where
        assert torch.equal(value, again[name]), f"{where}: other bits the second time"
        if value.numel():
            error = (value.double() - exact[name]).abs().max().item()
            allowed = (plain[name].double() - exact[name]).abs().max().item()
            # One rounding of the largest value: torch can be luckier than that on a handful of numbers.
            floor = torch.finfo(value.dtype).eps * exact[name].abs().max().item()
            assert error <= 2 * allowed + floor, f"{where}: {error:.3g} off, torch {allowed:.3g}"


def interpreted_against_torch() -> None:
    """Every shape with some tiles in one dtype, and half of them with other tiles in the other dtype."""
    for turn, shapes in enumerate((SHAPES, SHAPES[3:9])):
        for index, (shape, tiles) in enumerate(zip(shapes, itertools.cycle(INTERPRETER_TILES), strict=False)):
            dtype = (torch.float32, torch.float16)[(index // 3 + turn) % 2]
            check_against_torch(make_problem(shape, dtype), tiles, twice=False)


def interpreted_shares_of_long_experts() -> None:
    """split_k well above the blocks an expert has, and shares that only some experts need."""
    for routing, split in (("skewed", 2), ("every third", 16)):
        shape = Shape(tokens=150, dim=32, hidden=48, routing=routing)
        tiles = Tiles(block_m=64, block_n=32, block_k=16, split_k=split, **_SMALL)
        check_against_torch(make_problem(shape, torch.float32), tiles, twice=split == 2)


def interpreted_an_infinity_stays_with_its_expert() -> None:
    problem = make_problem(Shape(tokens=90, dim=32, hidden=32, gated=False), torch.float32)
    problem.dy[problem.token[problem.expert == 2]] = float("inf")
    found = backward(problem, pre_activation(problem), tiles=INTERPRETER_TILES[2])
    for name in ("dw1", "db1", "dw2", "db2"):
        assert found[name][[0, 1, 3]].isfinite().all(), name
        assert not found[name][2].isfinite().all(), name


def interpreted_empty_experts_get_zeros() -> None:
    problem = make_problem(Shape(tokens=40, routing="one expert"), torch.float32)
    for tiles in INTERPRETER_TILES[1:]:
        found = backward(problem, pre_activation(problem), tiles=tiles)
        for name in ("dw1", "db1", "dw2", "db2"):
            assert found[name][[0, 1, 3]].eq(0).all(), name
            assert found[name][2].ne(0).any(), name


def test_in_the_interpreter() -> None:
    run_interpreted(__file__, timeout_s=580)


@pytest.mark.parametrize("shape", [*SHAPES[1:], Shape(tokens=0, top_k=2)], ids=str)
def test_references_against_autograd(shape: Shape) -> None:
    """fp64, through the formula of the layer written down token by token."""
    problem = make_problem(shape, torch.float64).to(torch.float64)
    names = ["x", "w1", "b1", "w2", "b2", *(["gate"] if shape.gated else [])]
    leaves = {name: getattr(problem, name).clone().requires_grad_() for name in names}
    expert, token = problem.expert, problem.token
    pre = torch.einsum("nd,nfd->nf", leaves["x"][token], leaves["w1"][expert]) + leaves["b1"][expert]
    act = ACTIVATIONS[shape.activation](pre)
    out = torch.einsum("nf,ndf->nd", act, leaves["w2"][expert]) + leaves["b2"][expert]
    if shape.gated:
        out = out * leaves["gate"][problem.assignment, None]
    y = torch.zeros_like(problem.x).index_add(0, token, out)
    expected = dict(zip(names, torch.autograd.grad(y, list(leaves.values()), problem.dy), strict=True))
    found = backward(problem, pre.detach(), suffix="_reference")
    for name, value in expected.items():
        torch.testing.assert_close(found[f"d{name}"], value, rtol=1e-9, atol=1e-10, msg=name)


def test_shares_follow_shapes() -> None:
    tiles = Tiles(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
    split = Tiles(**{**vars(tiles), "split_k": 4})
    count = grouped_wgrad.rows_per_share
    # C = 1024, hidden 4096: 256 tiles per expert fill a GPU. C = 384: 36 do not.
    assert count(tiles, rows=32768, num_experts=6, tiles_per_expert=256, sms=132) is None
    assert count(tiles, rows=32768, num_experts=6, tiles_per_expert=36, sms=132) == 6827
    assert count(tiles, rows=320_000, num_experts=64, tiles_per_expert=36, sms=132) is None
    assert count(tiles, rows=4096, num_experts=6, tiles_per_expert=36, sms=132) is None
    assert count(split, rows=4096, num_experts=6, tiles_per_expert=4, sms=132) == 214
    assert count(split, rows=10, num_experts=6, tiles_per_expert=4, sms=132) == 64


def sampled_ahead_cases(arch: str) -> Iterator[object]:
    """The heaviest of each kernel; bench/compiled/kernels_ahead.py compiles them all."""
    for cases, prefix in ((dgrad_cases, "grouped_down_dgrad bf16"), (wgrad_cases, "grouped_wgrad bf16")):
        yield next(case for case in cases(arch) if case.name.startswith(prefix))
    if arch == "sm_90":
        yield next(case for case in wgrad_cases(arch) if case.name.endswith("gate and shares"))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_compile_ahead_of_time(arch: str) -> None:
    for case in sampled_ahead_cases(arch):
        resources = compile_case(case, arch)
        assert not resources.problems(case, arch), (case.name, resources)
        assert resources.mma == ("HGMMA" if arch == "sm_90" else "HMMA"), case.name
        assert resources.has_async_copy, case.name


GPU_SHAPES = (
    *SHAPES,
    Shape(tokens=1000, dim=384, hidden=1536),
    Shape(tokens=777, dim=768, hidden=3072, routing="skewed", activation="gelu_tanh", top_k=2),
    Shape(tokens=20_000, dim=64, hidden=128, routing="skewed", gated=False),
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_on_a_gpu(shape: Shape, dtype: torch.dtype) -> None:
    check_against_torch(make_problem(shape, dtype, "cuda"), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["grouped_down_dgrad", "grouped_up_dgrad", "grouped_wgrad"])
def test_every_shipped_tile_on_a_gpu(kernel: str) -> None:
    problem = make_problem(Shape(tokens=700, dim=272, hidden=400, top_k=2), torch.bfloat16, "cuda")
    for candidate in candidates(kernel, "bf16", current_arch()):
        for split in (1, 3):
            check_against_torch(problem, Tiles(**{**vars(candidate.tiles), "split_k": split}))
