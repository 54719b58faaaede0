"""The experts in C++: values and every gradient on each instruction set; where they are taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from crossearth_sar import PhysicsGuidedMoE, backend
from crossearth_sar.errors import InputError
from crossearth_sar.moe import ExpertSpec
from crossearth_sar.moe.backends import BACKENDS, REFERENCE, cpu
from crossearth_sar.moe.backends.base import DispatchPlan, ExpertWeights, FFNGradients
from crossearth_sar.moe.expert_types import FFN
from crossearth_sar.moe.ffn_op import moe_ffn, moe_ffn_backward
from crossearth_sar.moe.oracle import moe_oracle
from tests.forks import in_a_child

SETS = backend.extension_status().instruction_sets
pytestmark = pytest.mark.skipif(not SETS, reason="no extension, or no processor for it")
CPU = BACKENDS["cpu"]
NAMES = ("y", "dx", "dgate", "dw1", "db1", "dw2", "db2")


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every one that this processor has, in turn."""
    monkeypatch.setattr(cpu, "instruction_set", lambda: request.param)
    return str(request.param)


class Case:
    """Random weights, tokens and routing; `sizes` are the rows of each expert where given."""

    def __init__(
        self, tokens: int, dim: int, hidden: int, *, top_k: int = 1, experts: int = 4, gated: bool = True,
        only: int | None = None,
    ) -> None:  # fmt: skip
        index = torch.rand(tokens, experts).argsort(-1)[:, :top_k]
        if only is not None:
            index[:, 0] = only
        self.index, self.experts, self.top_k = index[None], experts, top_k
        self.x, self.dy = torch.randn(tokens, dim), torch.randn(tokens, dim)
        self.gate = torch.rand(tokens * top_k) + 0.5 if gated else None
        self.weights = ExpertWeights(
            torch.randn(experts, hidden, dim) * dim**-0.5, torch.randn(experts, hidden),
            torch.randn(experts, dim, hidden) * hidden**-0.5, torch.randn(experts, dim),
        )  # fmt: skip

    def run(self, name: str, dtype: torch.dtype = torch.float32, want_weights: bool = True) -> list[Tensor]:
        """y and every gradient that there is."""
        runs = BACKENDS[name]
        plan = runs.make_plan(self.index, self.experts)
        x, dy, *weights = (t.to(dtype) for t in (self.x, self.dy, *self.weights))
        gate = None if self.gate is None else self.gate.to(dtype)
        stacked = ExpertWeights(*weights)
        y, pre = runs.forward(x, gate, plan, stacked, "gelu", True)  # type: ignore[attr-defined]
        found: FFNGradients = runs.backward(  # type: ignore[attr-defined]
            dy, x, pre, gate, plan, stacked, "gelu", want_weights
        )
        return [y, found.dx_TD, *([] if gate is None else [found.dgate_A]), *(found.dweights or ())]


@pytest.mark.parametrize(
    ("tokens", "dim", "hidden", "top_k", "only", "gated"),
    [
        (0, 16, 32, 1, None, True),
        (1, 16, 16, 1, None, True),
        (1, 32, 48, 2, None, False),
        (37, 48, 208, 1, None, True),
        (101, 32, 400, 3, None, True),
        (130, 400, 64, 2, None, False),
        (450, 64, 80, 1, 2, True),
        (900, 16, 32, 1, 0, False),
    ],
)
@pytest.mark.usefixtures("instruction_set")
def test_error_is_at_most_twice_that_of_torch(
    tokens: int, dim: int, hidden: int, top_k: int, only: int | None, gated: bool
) -> None:
    case = Case(tokens, dim, hidden, top_k=top_k, only=only, gated=gated)
    names = [name for name in NAMES if gated or name != "dgate"]
    exact, torchs, got = case.run("reference", torch.float64), case.run("reference"), case.run("cpu")
    for name, one, other, truth in zip(names, got, torchs, exact, strict=True):
        assert one.shape == truth.shape, name
        error, allowed = (float((v.double() - truth).norm()) for v in (one, other))
        assert error <= 2 * allowed + 1e-7 * float(truth.norm()), f"{name}: {error} against {allowed}"


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("gate", ["normalized", "straight_through", "probability"])
@pytest.mark.usefixtures("instruction_set")
def test_the_layer_agrees_with_the_oracle(gate: str, top_k: int) -> None:
    layer = PhysicsGuidedMoE(16, 32, top_k=top_k, gate=gate, backend="cpu")  # type: ignore[arg-type]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_BTD, physics_BP = torch.randn(17, 2, 16).transpose(0, 1), torch.randn(2, 3)  # not contiguous
    y_BTD, _ = layer(x_BTD, physics_BP)
    torch.testing.assert_close(y_BTD.double(), moe_oracle(layer, x_BTD, physics_BP), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("instruction_set")
def test_gelu_is_exact_to_the_rounding_of_float32() -> None:
    """|error| / |x|, of Phi(x), against erf in float64: 1.2e-7, two steps of a float32 below 1."""
    x_N = torch.cat([torch.linspace(-15, 15, 300_001), torch.logspace(-30, -2, 1000), torch.zeros(7)])
    rows = x_N[: x_N.numel() // 16 * 16].view(-1, 16)
    eye, nothing = torch.eye(16)[None], torch.zeros(1, 16)
    weights = ExpertWeights(eye, nothing, eye, nothing)
    plan = DispatchPlan(None, torch.tensor([0, rows.shape[0]], dtype=torch.int32), 1, CPU)
    y, _ = CPU.forward(rows, None, plan, weights, "gelu", False)  # type: ignore[attr-defined]
    exact = torch.nn.functional.gelu(rows.double())
    assert float(((y.double() - exact).abs() / rows.double().abs().clamp(min=1e-30)).max()) < 1.3e-7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("instruction_set")
def test_nan_and_infinity_stay_in_their_token_and_are_those_of_the_reference(value: float) -> None:
    case = Case(40, 16, 32, gated=False)
    case.x[7, 3] = value
    got, expected = case.run("cpu"), case.run("reference")
    for name, one, other in zip(("y", "dx"), got, expected, strict=False):
        assert torch.equal(one.isnan(), other.isnan()), name
        assert torch.equal(one.isinf(), other.isinf()), name
    assert not bool(got[0][7].isfinite().any())


@pytest.mark.usefixtures("instruction_set")
def test_the_result_does_not_depend_on_threads_or_on_other_tokens() -> None:
    case, threads = Case(700, 32, 64, top_k=2), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(case.run("cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    one, gate = Case(1, 32, 64, top_k=2), case.gate
    assert gate is not None
    one.x, one.gate, one.weights, one.index = case.x[5:6], gate[10:12], case.weights, case.index[:, 5:6]
    assert torch.equal(one.run("cpu")[0][0], results[0][0][5])


def test_frozen_experts_get_no_gradient() -> None:
    case = Case(60, 16, 32, gated=False)
    both = zip(case.run("cpu", want_weights=False), case.run("cpu")[:2], strict=True)
    assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck(gated: bool, grouped: bool) -> None:
    case = Case(9, 16, 32, gated=gated)
    plan = CPU.make_plan(case.index, case.experts)
    leaves = [t.requires_grad_() for t in (case.x, *case.weights)]
    gate = None if case.gate is None else case.gate.requires_grad_()
    arguments = (
        leaves[0], gate, None if grouped else plan.source_row, plan.offsets, *leaves[1:],
        1, "gelu", "cpu", True,
    )  # fmt: skip
    torch.library.opcheck(moe_ffn, arguments)


def test_what_the_compiler_is_told_of_the_backward_is_so_for_transposed_operands() -> None:
    case = Case(9, 16, 32)
    plan = CPU.make_plan(case.index, case.experts)
    transposed = (w.transpose(-1, -2).contiguous().transpose(-1, -2) for w in case.weights)
    arguments = (
        case.dy, case.x.t().contiguous().t(), torch.randn(9, 32), case.gate, plan.source_row, plan.offsets,
        *transposed, 1, "gelu", "cpu", True,
    )  # fmt: skip
    torch.library.opcheck(moe_ffn_backward, arguments, test_utils="test_faketensor")


def test_compiles_fullgraph_and_agrees() -> None:
    layer = PhysicsGuidedMoE(16, 32, gate="probability")
    assert layer.backend_of(torch.randn(1, 3, 16)) is CPU
    x_BTD = torch.randn(2, 9, 16)
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_BTD), layer(x_BTD)[0])


def test_works_in_a_fork_of_a_process_that_has_used_it() -> None:
    case = Case(200, 16, 32)
    expected = case.run("cpu")

    def work() -> None:
        assert all(torch.equal(a, b) for a, b in zip(case.run("cpu"), expected, strict=True))

    assert in_a_child(work) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_auto_leaves_other_dtypes_to_the_reference_and_the_name_refuses_them(dtype: torch.dtype) -> None:
    x_BTD = torch.randn(1, 3, 16, dtype=dtype)
    auto = PhysicsGuidedMoE(16, 32).to(dtype)
    assert auto.backend_of(x_BTD) is REFERENCE
    assert auto(x_BTD)[0].dtype == dtype
    with pytest.raises(InputError, match=r"expected: torch\.float32 on cpu"):
        PhysicsGuidedMoE(16, 32, backend="cpu").to(dtype)(x_BTD)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dim": 24}, "widths that 16 divides, not 24 and 96"),
        ({"dim": 16, "activation": "relu"}, "activation 'gelu', not 'relu'"),
        ({"dim": 16, "expert": ExpertSpec(kind="swiglu")}, "of type 'ffn', not 'swiglu'"),
    ],
)
def test_auto_leaves_other_experts_to_the_reference_and_the_name_says_why(
    options: dict[str, object], said: str
) -> None:
    layer = PhysicsGuidedMoE(**options)  # type: ignore[arg-type]
    assert layer.backend_of(torch.randn(1, 3, layer.router.dim)) is REFERENCE
    with pytest.raises(InputError, match=said):
        PhysicsGuidedMoE(**options, backend="cpu")  # type: ignore[arg-type]


def test_wide_tokens_are_left_to_the_reference_but_not_the_name() -> None:
    assert backend.moe_backend_on_cpu(384, 1536, "ffn", None) == "cpu"
    assert backend.moe_backend_on_cpu(768, 3072, "ffn", None) == "reference"
    assert backend.resolve_moe_backend("auto", 768, 3072) == "reference"
    assert backend.resolve_moe_backend("cpu", 768, 3072) == "cpu"


def test_without_the_extension_auto_is_the_reference_and_the_name_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = backend.ExtensionStatus(False, "the C++ extension is not built", False)
    monkeypatch.setattr(backend, "extension_status", lambda: missing)
    assert PhysicsGuidedMoE(16).backend_of(torch.randn(1, 3, 16)) is REFERENCE
    with pytest.raises(InputError, match="not built"):
        PhysicsGuidedMoE(16, backend="cpu")


def test_experts_without_biases() -> None:
    case = Case(50, 16, 32)
    plans = [BACKENDS[name].make_plan(case.index, case.experts) for name in ("cpu", "reference")]
    weights = {"w1": case.weights.w1_EFD, "w2": case.weights.w2_EDF}
    got, expected = (FFN(bias=False).run(case.x, case.gate, plan, weights) for plan in plans)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
