"""The layer and the descriptors as exported programs, in which none of this package's operations is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossearth_sar import PhysicsGuidedMoE, sar_descriptors, scale_free_descriptors
from crossearth_sar.moe import ExpertSpec


def own_operations(program: torch.export.ExportedProgram) -> set[str]:
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return {name for name in calls if "crossearth" in name}


LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two choices": {"top_k": 2},
    "probability": {"gate": "probability"},
    "gated, shared": {"expert": ExpertSpec(kind="swiglu", shared=1)},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_for_any_number_of_tokens(kind: str) -> None:
    layer = PhysicsGuidedMoE(8, 16, num_experts=4, **LAYERS[kind]).eval()
    nn.init.normal_(layer.router.weight)
    tokens = torch.export.Dim("tokens", min=1, max=4096)
    shapes = {"x_BTD": {1: tokens}, "descriptors": None}
    program = torch.export.export(layer, (torch.randn(2, 5, 8), torch.randn(2, 3)), dynamic_shapes=shapes)
    assert not own_operations(program)
    for count in (5, 1, 40):  # some experts without a token, and none without
        x, physics = torch.randn(2, count, 8), torch.randn(2, 3)
        y, routing = program.module()(x, physics)
        expected, decided = layer(x, physics)
        torch.testing.assert_close(y, expected)
        assert torch.equal(routing.expert_index, decided.expert_index)


class Described(nn.Module):
    def __init__(self, describe: Any) -> None:
        super().__init__()
        self.describe = describe

    def forward(self, image: Tensor) -> Tensor:
        return self.describe(image, check_finite=False)


@pytest.mark.parametrize("describe", [sar_descriptors, scale_free_descriptors])
def test_descriptors(describe: Any) -> None:
    image = torch.rand(2, 1, 45, 38)
    program = torch.export.export(Described(describe), (image,))
    assert not own_operations(program)
    other = torch.rand(2, 1, 45, 38)
    torch.testing.assert_close(program.module()(other), describe(other), rtol=1e-4, atol=1e-5)
