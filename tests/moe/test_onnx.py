"""The layer and `sar_descriptors` as ONNX, run by ONNX Runtime; with the extra [onnx]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import slow
from test_exported import Described
from torch import Tensor, nn

from crossearth_sar import PhysicsGuidedMoE, sar_descriptors


def run_both(model: nn.Module, inputs: tuple[Tensor, ...], place: Path) -> tuple[Any, Tensor]:
    """The first output as ONNX Runtime has it, and as torch."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'crossearth-sar[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'crossearth-sar[onnx]'")
    with torch.no_grad():
        torch.onnx.export(model.eval(), inputs, place / "model.onnx", dynamo=True, verbose=False)
        expected = torch.utils._pytree.tree_leaves(model(*inputs))[0]
    session = onnxruntime.InferenceSession(place / "model.onnx")
    given = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0]), expected


@slow
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_layer(top_k: int, tmp_path: Path) -> None:
    layer = PhysicsGuidedMoE(8, 16, num_experts=3, top_k=top_k)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    got, expected = run_both(layer, (torch.randn(2, 9, 8), torch.randn(2, 3)), tmp_path)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@slow
def test_descriptors(tmp_path: Path) -> None:
    got, expected = run_both(Described(sar_descriptors), (torch.rand(2, 1, 45, 38),), tmp_path)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
