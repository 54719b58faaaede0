"""The whole network in one graph of torch.compile: descriptors, routers, experts and decoder's inputs.

Compiled by aot_eager, which keeps every operation as it is: what is tried is that the graph is one, and that
nothing of a call (a setting of the process, a count of what was seen) is frozen into it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from crossearth_sar.descriptors import sar_descriptor_map, sar_descriptors
from crossearth_sar.descriptors.scale_free_ops import scale_free_descriptors_and_map
from crossearth_sar.model import CrossEarthSAR, build_model
from tests.micro_model import CLASSES, MICRO, amplitude
from tests.ranks import slow

MEAN, STD = torch.tensor([-5.0]), torch.tensor([6.0])


@pytest.fixture(autouse=True)
def _fresh_graphs() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize(
    "describe",
    [
        lambda x: sar_descriptors(x, check_finite=False, enl_domain="linear"),
        lambda x: sar_descriptor_map(x, 16, check_finite=False),
        lambda x: torch.cat(
            [v.flatten(1) for v in scale_free_descriptors_and_map(x, 16, check_finite=False)], 1
        ),
    ],
    ids=["paper", "map", "scale-free"],
)
def test_descriptors_are_one_graph(describe: object) -> None:
    run = torch.compile(describe, fullgraph=True, backend="aot_eager")  # type: ignore[call-overload]
    x = amplitude(2, 1, 64, 64)
    torch.testing.assert_close(run(x), describe(x))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("decoder", "moe", "training"),
    [
        ("fpn", {}, True),
        pytest.param("fpn", {"descriptors": ["looks"], "local_physics": True}, False, marks=slow),
        pytest.param("mask2former", {"descriptors": [], "gate": "normalized"}, False, marks=slow),
    ],
    ids=["default", "local physics", "mask2former, no physics"],
)
def test_the_network_is_one_graph(decoder: str, moe: dict[str, Any], training: bool) -> None:
    """Two batches: the second meets statistics that the first has moved."""
    torch.manual_seed(0)
    model = _network(decoder, moe).train(training)
    twin = deepcopy(model)
    run = torch.compile(_scores, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = amplitude(2, 1, 64, 64)
        expected, got = _scores(twin, x), run(model, x)
        torch.testing.assert_close(got, expected)
        expected.square().mean().backward()
        got.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) > 15
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients.get(name), parameter.grad, msg=name)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer, msg=name)


def _network(decoder: str, moe: dict[str, Any]) -> CrossEarthSAR:
    parts = MICRO["decoder"] if decoder == "mask2former" else {"kind": decoder, "channels": 16}
    return build_model("crossearth_sar_tiny", CLASSES, changes={**MICRO, "decoder": parts, "moe": moe})


def _scores(model: CrossEarthSAR, image_B1HW: Tensor) -> Tensor:
    output = model(image_B1HW, MEAN, STD)
    assert model.decoder is not None
    return model.decoder.semantic_scores(output.decoder, (64, 64))
