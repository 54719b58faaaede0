"""The layer on the Triton backend: against the reference in the interpreter, and its promises on a GPU."""

from __future__ import annotations

import pytest
import torch
from interpreter import run_interpreted
from torch import Tensor

from crossearth_sar import PhysicsGuidedMoE
from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends import BACKENDS, REFERENCE
from crossearth_sar.moe.dispatch import DispatchPlan

TRITON = BACKENDS["triton"]
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def pair(device: str = "cpu", dim: int = 32, **kwargs: object) -> tuple[PhysicsGuidedMoE, PhysicsGuidedMoE]:
    """The same layer on the Triton and on the reference backend."""
    layers = [PhysicsGuidedMoE(dim, 2 * dim, backend=name, **kwargs) for name in ("triton", "reference")]  # type: ignore[arg-type]
    for parameter in layers[0].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layers[1].load_state_dict(layers[0].state_dict())
    return layers[0].to(device), layers[1].to(device)


def step(layer: PhysicsGuidedMoE, x: Tensor, d: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output, and every gradient of loss = <y, dy> + balance."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y, routing = layer(x, d)
    ((y * dy).sum() + routing.balance_loss(0.1)).backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, "expert_index": routing.expert_index, **gradients}


def check_agreement(device: str, tolerance: float, **kwargs: object) -> None:
    fast, slow = pair(device, **kwargs)
    for images, tokens in ((2, 37), (1, 1), (2, 0)):
        x, dy = torch.randn(2, images, tokens, 32, device=device).unbind(0)
        d = torch.randn(images, 3, device=device)
        got, expected = step(fast, x, d, dy), step(slow, x, d, dy)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def interpreted_layer_agrees_with_the_reference() -> None:
    check_agreement("cpu", 2e-5)
    check_agreement("cpu", 2e-5, gate="probability", top_k=2)
    check_agreement("cpu", 2e-5, gate="straight_through", activation="gelu_tanh", num_experts=3)


def interpreted_descriptors_of_each_token() -> None:
    """Every token is an image of its own to the kernel; gradients to 1e-5 of their tensor's length."""
    fast, slow = pair(gate="straight_through")
    x, dy = torch.randn(2, 2, 37, 32).unbind(0)
    d = torch.randn(2, 37, 3)
    got, expected = step(fast, x, d, dy), step(slow, x, d, dy)
    assert torch.equal(got.pop("expert_index"), expected.pop("expert_index"))
    for name, value in expected.items():
        assert float((got[name] - value).norm()) <= 1e-5 * float(value.norm()), name


def interpreted_rows_already_grouped() -> None:
    fast, _ = pair()
    x, index = torch.randn(19, 32), torch.randint(0, 6, (1, 19, 1))
    plan = TRITON.make_plan(index, 6)
    expected = fast.experts(x, None, plan)
    assert plan.source_row is not None
    order = plan.source_row.long()
    rows = x[order].requires_grad_()
    got = fast.experts(rows, None, DispatchPlan(None, plan.offsets, 1, TRITON))
    torch.testing.assert_close(got, expected[order])
    got.sum().backward()
    assert rows.grad is not None
    assert bool(torch.isfinite(rows.grad).all())


def interpreted_views_are_taken_as_the_reference_takes_them() -> None:
    """Tokens from a convolution come transposed; a branch of a wider layer comes as a slice."""
    fast, slow = pair(gate="probability")
    wide = torch.randn(2, 7, 64)
    transposed, branch = torch.randn(1, 32, 7).transpose(1, 2), wide[..., :32]
    for x in (transposed, branch):
        outputs = []
        for layer in (fast, slow):
            leaf = x.detach().requires_grad_()
            assert not leaf.flatten(0, 1).is_contiguous()
            y, _ = layer(leaf)
            outputs.append((y, *torch.autograd.grad(y.square().sum(), [leaf, layer.experts.w1])))
        torch.testing.assert_close(*outputs, rtol=2e-5, atol=2e-5)


def interpreted_router_reads_weights_of_the_tokens_type_as_they_are() -> None:
    """float16 stands for bfloat16, which the interpreter gets wrong; under autocast weights stay float32."""
    from crossearth_sar.kernels import routing

    read: list[tuple[torch.dtype, torch.dtype]] = []
    original = routing.router_probability

    def noted(x: Tensor, weight: Tensor, *rest: Tensor, **options: int) -> Tensor:
        read.append((x.dtype, weight.dtype))
        return original(x, weight, *rest, **options)

    routing.router_probability = noted
    x, d = torch.randn(2, 5, 32).half(), torch.randn(2, 3).half()
    for dtype in (torch.float16, torch.float32):
        router = pair(gate="probability")[0].router.to(dtype)
        outputs = []
        for backend in (TRITON, REFERENCE):
            probability = router.probability(x, d, backend)
            outputs.append((probability, torch.autograd.grad(probability.square().sum(), router.weight)[0]))
        torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outputs[0][1], outputs[1][1], rtol=1e-2, atol=2e-3)
    assert read == [(torch.float16, torch.float16), (torch.float16, torch.float32)]


def interpreted_both_backends_plan_alike() -> None:
    for index in (torch.randint(0, 6, (2, 50, 2)), torch.zeros(0, 4, 1, dtype=torch.long)):
        fast, slow = (backend.make_plan(index, 6) for backend in (TRITON, REFERENCE))
        assert torch.equal(fast.offsets, slow.offsets)
        assert fast.source_row is not None
        assert torch.equal(fast.source_row.long(), slow.source_row)  # type: ignore[arg-type]


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def test_without_a_gpu_the_name_is_refused_with_the_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="no CUDA device"):
        PhysicsGuidedMoE(32, backend="triton")


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("gate", ["normalized", "probability"])
    @pytest.mark.parametrize("top_k", [1, 2])
    def test_agrees_with_the_reference(self, top_k: int, gate: str) -> None:
        check_agreement("cuda", 1e-4, top_k=top_k, gate=gate)

    def test_same_bits_twice(self) -> None:
        fast, _ = pair("cuda", gate="probability")
        x, dy = torch.randn(2, 2, 500, 32, device="cuda").unbind(0)
        d = torch.randn(2, 3, device="cuda")
        first, second = step(fast, x, d, dy), step(fast, x, d, dy)
        for name, value in first.items():
            assert torch.equal(value, second[name]), name

    def test_never_waits_for_the_device(self) -> None:
        fast, _ = pair("cuda")
        x, dy = torch.randn(2, 2, 500, 32, device="cuda").unbind(0)
        d = torch.randn(2, 3, device="cuda")
        step(fast, x, d, dy)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(fast, x, d, dy)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_captured_graph_replays_with_another_routing(self) -> None:
        fast, slow = pair("cuda")
        d, dy = torch.randn(2, 3, device="cuda"), torch.randn(2, 300, 32, device="cuda")
        static_x = torch.randn(2, 300, 32, device="cuda", requires_grad=True)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                fast.zero_grad()
                (fast(static_x, d)[0] * dy).sum().backward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        fast.zero_grad()
        static_x.grad = None
        with torch.cuda.graph(graph):
            static_y, _ = fast(static_x, d)
            (static_y * dy).sum().backward()
        for shift in (0.0, 2.0):
            fresh = torch.randn(2, 300, 32, device="cuda") + shift
            with torch.no_grad():
                static_x.copy_(fresh)
            graph.replay()
            leaf = fresh.clone().requires_grad_()
            slow.zero_grad()
            y, _ = slow(leaf, d)
            (y * dy).sum().backward()
            torch.testing.assert_close(static_y, y, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(static_x.grad, leaf.grad, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(fast.experts.w1.grad, slow.experts.w1.grad, rtol=1e-3, atol=1e-3)

    def test_compiles_fullgraph(self) -> None:
        fast, _ = pair("cuda")
        x, d = torch.randn(2, 100, 32, device="cuda"), torch.randn(2, 3, device="cuda")
        compiled = torch.compile(lambda x, d: fast(x, d)[0], fullgraph=True)
        torch.testing.assert_close(compiled(x, d), fast(x, d)[0], rtol=1e-4, atol=1e-4)

    def test_compiles_forward_and_backward_for_transposed_tokens(self) -> None:
        fast, slow = pair("cuda")
        x = torch.randn(1, 32, 100, device="cuda", requires_grad=True)

        def output_and_gradient(layer: PhysicsGuidedMoE, compiles: bool) -> tuple[Tensor, Tensor]:
            run = lambda x: layer((x * 1.5).transpose(1, 2))[0]  # noqa: E731
            y = torch.compile(run, fullgraph=True)(x) if compiles else run(x)
            return y, torch.autograd.grad(y.square().sum(), x)[0]

        got, expected = output_and_gradient(fast, True), output_and_gradient(slow, False)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)

    def test_bfloat16_error_is_at_most_twice_that_of_torch(self) -> None:
        fast, slow = pair("cuda")
        exact = pair("cuda")[1].double()
        exact.load_state_dict(fast.state_dict())
        x, d = torch.randn(2, 700, 32, device="cuda"), torch.randn(2, 3, device="cuda")
        routing = fast(x, d)[1].expert_index
        plans = {name: BACKENDS[name].make_plan(routing, 6) for name in ("triton", "reference")}
        truth = exact.experts(x.flatten(0, 1).double(), None, plans["reference"])
        errors = {}
        for name, layer in (("triton", fast), ("reference", slow)):
            half = layer.to(torch.bfloat16)
            y = half.experts(x.flatten(0, 1).bfloat16(), None, plans[name])
            errors[name] = float((y.double() - truth).abs().max())
        assert errors["triton"] <= 2 * errors["reference"] + 1e-6
