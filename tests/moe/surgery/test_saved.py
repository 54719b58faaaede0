"""A replaced model goes through save_pretrained, from_pretrained and the Trainer's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_replace import DINOV2, LAYERS, dinov2, large_routers, part_experts
from torch import Tensor, nn
from transformers import Dinov2Model

from crossearth_sar import InputError, replace_ffn
from crossearth_sar.descriptors import RunningStandardizer
from crossearth_sar.moe import ExpertSpec, load_replaced


def describe(model: nn.Module, pixel_values: Tensor) -> Tensor:
    return model.standardizer(pixel_values.mean((2, 3)) * 10)  # type: ignore[operator]


def add_standardizer(model: nn.Module) -> None:
    model.standardizer = RunningStandardizer()


@torch.no_grad()
def test_save_pretrained_and_back(tmp_path: Path) -> None:
    model, pixels = dinov2(), torch.randn(2, 3, 28, 28)
    add_standardizer(model)
    moe = replace_ffn(
        model, DINOV2, num_experts=4, top_k=2, expert=ExpertSpec(shared=1), descriptors=describe
    )
    large_routers(moe)
    part_experts(moe)
    model.train()(3 * pixels)
    expected = model.eval()(pixels).last_hidden_state
    model.save_pretrained(tmp_path)
    loaded, handle = load_replaced(Dinov2Model, tmp_path, descriptors=describe, prepare=add_standardizer)
    assert type(loaded) is Dinov2Model
    torch.testing.assert_close(loaded.eval()(pixels).last_hidden_state, expected)
    assert len(handle.routing()) == LAYERS
    assert handle.layers["encoder.layer.0.mlp"].router.top_k == 2
    loaded.save_pretrained(tmp_path / "again")
    again, _ = load_replaced(Dinov2Model, tmp_path / "again", descriptors=describe, prepare=add_standardizer)
    torch.testing.assert_close(again.eval()(pixels).last_hidden_state, expected)
    with pytest.raises(InputError, match=r"do not fill(.|\n)*left over: standardizer(.|\n)*prepare="):
        load_replaced(Dinov2Model, tmp_path)


def test_models_of_one_config_keep_their_own_record(tmp_path: Path) -> None:
    config = dinov2().config
    models = [Dinov2Model(config) for _ in range(3)]
    for model, experts in zip(models[:2], (2, 3), strict=True):
        replace_ffn(model, DINOV2, num_experts=experts)
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    for number, experts in enumerate((2, 3)):
        _, handle = load_replaced(Dinov2Model, tmp_path / str(number))
        assert handle.layers["encoder.layer.0.mlp"].router.num_experts == experts
    with pytest.raises(InputError, match="no replaced FFN"):
        load_replaced(Dinov2Model, tmp_path / "2")


def test_a_model_without_replacement_is_told(tmp_path: Path) -> None:
    dinov2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no replaced FFN"):
        load_replaced(Dinov2Model, tmp_path)


def test_the_trainer_of_transformers_trains_it_and_its_checkpoint_loads(tmp_path: Path) -> None:
    from transformers import Dinov2ForImageClassification, Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(0)
    config = dinov2().config
    config.num_labels = 3
    model = Dinov2ForImageClassification(config)
    moe = replace_ffn(model, "dinov2.encoder.layer.*.mlp", num_experts=3, gate="straight_through")

    class Balanced(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            output = model(**inputs)
            loss = output.loss + moe.balance_loss()
            return (loss, output) if return_outputs else loss

    data = [{"pixel_values": torch.randn(3, 28, 28), "labels": n % 3} for n in range(8)]
    before = [layer.router.weight.detach().clone() for layer in moe.layers.values()]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, save_steps=2, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    Balanced(model, arguments, train_dataset=data, callbacks=list[TrainerCallback]()).train()
    assert all(
        not torch.equal(layer.router.weight, old)
        for layer, old in zip(moe.layers.values(), before, strict=True)
    )
    loaded, _ = load_replaced(Dinov2ForImageClassification, tmp_path / "checkpoint-2")
    pixels = torch.stack([row["pixel_values"] for row in data])  # type: ignore[misc]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixels).logits, model.eval()(pixels).logits)
