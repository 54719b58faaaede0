"""The experts' operation: values and gradients against float64, and its manners under torch's tools."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar import PhysicsGuidedMoE
from crossearth_sar.errors import InputError
from crossearth_sar.moe import layer as layer_module
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.backends import BACKENDS, REFERENCE, reference
from crossearth_sar.moe.dispatch import DispatchPlan
from crossearth_sar.moe.expert_types import FFN
from crossearth_sar.moe.ffn_op import moe_ffn, moe_ffn_backward

DIM, HIDDEN = 16, 48
NAMES = ("x", "gate", "w1", "b1", "w2", "b2")


def case(
    tokens: int,
    experts: int = 5,
    top_k: int = 1,
    *,
    only: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], Tensor]:
    """[x, gate, w1, b1, w2, b2] and (1, T, K) choices; `only` sends all first choices to one expert."""
    shapes = [(tokens, DIM), (tokens * top_k,), (experts, HIDDEN, DIM), (experts, HIDDEN)]
    shapes += [(experts, DIM, HIDDEN), (experts, DIM)]
    tensors = [(torch.randn(shape, dtype=torch.float64) * 0.5).to(dtype) for shape in shapes]
    index = torch.rand(tokens, experts).argsort(-1)[:, :top_k]
    if only is not None:
        index[:, 0] = only
    return tensors, index[None]


def plain(tensors: list[Tensor], index: Tensor, activation: str) -> Tensor:
    """The definition, expert by expert with a mask, differentiable by torch itself."""
    x, gate, w1, b1, w2, b2 = tensors
    y = torch.zeros_like(x)
    for k in range(index.shape[-1]):
        for e in range(w1.shape[0]):
            out = F.linear(ACTIVATIONS[activation](F.linear(x, w1[e], b1[e])), w2[e], b2[e])
            y = y + torch.where(
                index[0, :, k, None] == e, gate.view(-1, index.shape[-1])[:, k, None] * out, 0
            )
    return y


def results(function: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Output and gradients of all tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(leaves)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]


def ffn(
    x: Tensor, gate: Tensor | None, plan: DispatchPlan, weights: list[Tensor], activation: str = "gelu"
) -> Tensor:
    """The experts as the layer runs them, on the backend of the plan."""
    return FFN(activation).run(x, gate, plan, dict(zip(NAMES[2:], weights, strict=True)))


def ours(index: Tensor, activation: str, backend: str = "reference") -> Callable[[list[Tensor]], Tensor]:
    def run(tensors: list[Tensor]) -> Tensor:
        x, gate, *weights = tensors
        plan = BACKENDS[backend].make_plan(index, weights[0].shape[0])
        return ffn(x, gate, plan, weights, activation)

    return run


@pytest.mark.parametrize("backend", ["reference", "grouped_mm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "top_k", "only"), [(0, 1, None), (1, 2, None), (67, 1, None), (67, 3, None), (40, 1, 2)]
)
def test_error_is_at_most_twice_that_of_torch(
    tokens: int,
    top_k: int,
    only: int | None,
    dtype: torch.dtype,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "BLOCK_ROWS", 16)  # several blocks per expert
    for activation in ACTIVATIONS:
        if activation == "relu" and dtype == torch.bfloat16:
            continue  # its derivative jumps: rounding near 0 flips it, for torch as for us
        tensors, index = case(tokens, top_k=top_k, only=only, dtype=dtype)
        dy = torch.randn(tokens, DIM)
        exact = results(lambda t, a=activation, i=index: plain(t, i, a), [t.double() for t in tensors], dy)
        torchs = results(lambda t, a=activation, i=index: plain(t, i, a), tensors, dy)
        got = results(ours(index, activation, backend), tensors, dy)
        for name, one, other, truth in zip(("y", *NAMES), got, torchs, exact, strict=True):
            assert one.shape == truth.shape, name
            floor = 4 * torch.finfo(dtype).eps * (float(truth.abs().max()) if truth.numel() else 0.0)
            error, allowed = (
                float((v.double() - truth).abs().max()) if v.numel() else 0.0 for v in (one, other)
            )
            assert error <= 2 * allowed + floor, f"{name}, {activation}: {error} against {allowed}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weight_gradients_of_many_blocks_are_as_exact_as_one_product(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums that are rounded to 16 bits after each block drift further, the more blocks there are."""
    monkeypatch.setattr(reference, "BLOCK_ROWS", 32)
    tensors, index = case(2048, experts=1, dtype=dtype)  # 64 blocks
    tensors[0] += 0.5
    tensors[1].fill_(1.0)
    dy = torch.randn(2048, DIM) * 0.1 + 0.02
    truth = results(lambda t: plain(t, index, "gelu"), [t.double() for t in tensors], dy)
    torchs = results(lambda t: plain(t, index, "gelu"), tensors, dy)
    got = results(ours(index, "gelu"), tensors, dy)
    for name, *values in list(zip(("y", *NAMES), got, torchs, truth, strict=True))[3:]:
        error, allowed = (float((v.double() - values[2]).norm() / values[2].norm()) for v in values[:2])
        assert error <= 2 * allowed, f"{name}: {error:g} against {allowed:g}"


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gradcheck(top_k: int, activation: str) -> None:
    tensors, index = case(7, experts=3, top_k=top_k, dtype=torch.float64)
    tensors = [t[..., :4].contiguous() if t.ndim == 2 and t.shape[-1] == DIM else t for t in tensors]
    tensors[2], tensors[4] = tensors[2][..., :4].contiguous(), tensors[4][:, :4].contiguous()
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: ours(index, activation)(list(t)), leaves, fast_mode=True)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck(gated: bool, grouped: bool) -> None:
    (x, gate, *weights), index = case(9)
    plan = REFERENCE.make_plan(index, 5)
    leaves = [t.requires_grad_() for t in (x, *weights)]
    arguments = (
        leaves[0], gate.requires_grad_() if gated else None,
        None if grouped else plan.source_row, plan.offsets,
        *leaves[1:], 1, "gelu", "reference", True,
    )  # fmt: skip
    torch.library.opcheck(moe_ffn, arguments)


@pytest.mark.parametrize("want_weights", [False, True])
def test_what_the_compiler_is_told_of_the_backward_is_so_for_transposed_tokens(want_weights: bool) -> None:
    """Inductor asserts the strides that the fake announces; this is its check without its C++ compiler."""
    (x, gate, *weights), index = case(9)
    plan = REFERENCE.make_plan(index, 5)
    transposed = (w.transpose(-1, -2).contiguous().transpose(-1, -2) for w in weights)
    arguments = (
        torch.randn(9, DIM), x.t().contiguous().t(), torch.randn(9, HIDDEN), gate, plan.source_row,
        plan.offsets, *transposed, 1, "gelu", "reference", want_weights,
    )  # fmt: skip
    torch.library.opcheck(moe_ffn_backward, arguments, test_utils="test_faketensor")


def test_rows_already_grouped() -> None:
    (x, gate, *weights), index = case(33)
    plan = REFERENCE.make_plan(index, 5)
    assert plan.source_row is not None
    expected = ffn(x, gate, plan, weights)
    there = DispatchPlan(None, plan.offsets, 1, REFERENCE)
    got = ffn(x[plan.source_row], gate[plan.source_row], there, weights)
    torch.testing.assert_close(got, expected[plan.source_row], rtol=0, atol=0)


def test_the_gate_that_is_one_may_be_left_out() -> None:
    (x, _, *weights), index = case(33)
    plan = REFERENCE.make_plan(index, 5)
    one = ffn(x, torch.ones(33), plan, weights)
    assert torch.equal(one, ffn(x, None, plan, weights))


def test_saves_tokens_and_pre_activation_only() -> None:
    """At most (D + F) numbers a token and indices: 10 * T * D bytes in 16 bits at F = 4 D."""
    tokens, dim = 64, 32
    layer = PhysicsGuidedMoE(dim)
    x = torch.randn(1, tokens, dim, requires_grad=True)
    plan = REFERENCE.make_plan(torch.randint(0, 6, (1, tokens, 1)), 6)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer.experts(x[0], None, plan)
    for parameter in layer.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    indices = tokens * 8 + plan.offsets.numel() * 4
    assert sum(saved.values()) == tokens * (dim + 4 * dim) * 4 + indices


def test_inference_keeps_no_pre_activation() -> None:
    (x, gate, *weights), index = case(8)
    plan = REFERENCE.make_plan(index, 5)
    y, pre = moe_ffn(x, gate, plan.source_row, plan.offsets, *weights, 1, "gelu", "reference", False)
    assert pre.shape == (0, HIDDEN)
    assert y.shape == x.shape


def test_frozen_experts_cost_no_weight_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("weight gradients were computed")

    monkeypatch.setattr(reference, "_WeightGradients", fail)
    layer = PhysicsGuidedMoE(DIM, HIDDEN, backend="reference").requires_grad_(False)
    x = torch.randn(2, 9, DIM, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


def test_compiles_fullgraph_and_agrees() -> None:
    layer = PhysicsGuidedMoE(DIM, HIDDEN, gate="probability")
    x, d = torch.randn(2, 9, DIM), torch.randn(2, 3)
    compiled = torch.compile(lambda x, d: layer(x, d)[0], fullgraph=True, backend="aot_eager")
    expected = layer(x, d)[0]
    torch.testing.assert_close(compiled(x, d), expected)
    compiled(x, d).square().sum().backward()
    got = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    layer(x, d)[0].square().sum().backward()
    for one, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_auto_on_a_gpu_compiles_and_runs_in_every_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if "auto" had taken grouped_mm, which torch compiles in bfloat16 only and lacks in float64."""
    real = layer_module.auto_moe_backend_for_call
    monkeypatch.setattr(
        layer_module, "auto_moe_backend_for_call", lambda best, _, dtype, __: real(best, "cuda", dtype)
    )
    layer, x = PhysicsGuidedMoE(DIM, HIDDEN).to(dtype), torch.randn(1, 7, DIM, dtype=dtype)
    expected = layer.experts(x[0], None, REFERENCE.make_plan(layer(x)[1].expert_index, 6))
    layer.backend = BACKENDS["grouped_mm"]
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend="aot_eager")
    for run in (layer, compiled):
        y = run(x)[0] if run is layer else run(x)
        tolerance = 0.02 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(y[0], expected, rtol=tolerance, atol=tolerance)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    layer, x = PhysicsGuidedMoE(DIM, HIDDEN, gate="probability"), torch.randn(2, 9, DIM)
    gradients = []
    for checkpointed in (False, True):
        layer.zero_grad()
        run = lambda x: layer(x)[0]  # noqa: E731
        y = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False) if checkpointed else run(x)
        y.square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_autocast_runs_the_experts_in_its_dtype_and_routes_in_float32() -> None:
    layer, x = PhysicsGuidedMoE(DIM, HIDDEN), torch.randn(2, 9, DIM)
    exact, routing = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, same = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(same.expert_index, routing.expert_index)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=2e-3)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    (x, gate, *weights), index = case(5)
    x.requires_grad_()
    y = ffn(x, gate, REFERENCE.make_plan(index, 5), weights)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        dx.sum().backward()


def test_grouped_mm_names_the_dtypes_it_knows() -> None:
    with pytest.raises(InputError, match="float64"):
        PhysicsGuidedMoE(16, backend="grouped_mm").double()(torch.randn(1, 3, 16, dtype=torch.float64))


def test_megablocks_is_called_as_its_gemm_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of its signature, for the package needs CUDA: counts on the host, weights (E, Q, P)."""

    def gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool = False) -> Tensor:
        assert trans_b
        assert batch_sizes.device.type == "cpu"
        assert batch_sizes.dtype == torch.int64
        return torch.cat([r @ w.T for r, w in zip(a.split(batch_sizes.tolist()), b, strict=True)])

    stand_in = types.SimpleNamespace(ops=types.SimpleNamespace(gmm=gmm))
    monkeypatch.setitem(sys.modules, "megablocks.grouped_gemm_util", stand_in)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "megablocks", types.ModuleType("megablocks"))
    tensors, index = case(40, top_k=2, dtype=torch.bfloat16)
    got = ours(index, "gelu", "megablocks")(tensors)
    expected = ours(index, "gelu", "grouped_mm")(tensors)
    torch.testing.assert_close(got, expected, rtol=0.03, atol=0.03)
    with pytest.raises(InputError, match="bfloat16"):
        ours(index, "gelu", "megablocks")([t.float() for t in tensors])
