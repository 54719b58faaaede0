"""The experts' biases have two axes: they are named, for optimizers that would take them for matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from crossearth_sar import PhysicsGuidedMoE, replace_ffn
from crossearth_sar.moe import ExpertSpec, stacked_biases


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (ExpertSpec(), {"experts.b1", "experts.b2"}),
        (ExpertSpec(shared=1), {"experts.b1", "experts.b2", "shared.b1", "shared.b2"}),
        (ExpertSpec(kind="swiglu"), {"experts.b_gate", "experts.b_up", "experts.b_down"}),
        (ExpertSpec(bias=False), set()),
    ],
)
def test_of_a_layer(spec: ExpertSpec, names: set[str]) -> None:
    layer = PhysicsGuidedMoE(8, 16, expert=spec)
    assert stacked_biases(layer) == layer.no_weight_decay() == names
    matrices = {name for name, p in layer.named_parameters() if p.ndim > 1} - names
    assert all("w" in name.rpartition(".")[2] for name in matrices), "nothing but weights is left"


def test_of_a_replaced_model_and_its_wrapper() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
    replace_ffn(model, "*", num_experts=2)
    found = stacked_biases(model)
    assert found == {"0.moe.experts.b1", "0.moe.experts.b2"} <= {name for name, _ in model.named_parameters()}
    assert stacked_biases(torch.optim.swa_utils.AveragedModel(model)) == {f"module.{name}" for name in found}


def test_the_trainer_of_transformers_leaves_them_out(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    class Spared(Trainer):
        def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
            spared = stacked_biases(model)
            return [name for name in super().get_decay_parameter_names(model) if name not in spared]

    model = PhysicsGuidedMoE(8, 16)
    arguments = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True, report_to=[])
    groups = Spared(model, arguments).create_optimizer().param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {"router.weight", "experts.w1", "experts.w2"}
