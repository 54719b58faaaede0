"""A model without a decoder: features, no classes; saved, read back, and the start of a segmenter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from micro_model import MICRO, amplitude, label, micro

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model, save_model
from crossearth_sar.config import merge
from crossearth_sar.engine.config import simulated_run
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.flop import forward_flop
from crossearth_sar.engine.objectives.segmentation import Segmentation
from crossearth_sar.engine.planning.memory import activation_bytes, count_parameters
from crossearth_sar.model import ModelOutput


def backbone_alone(sparse: bool = True) -> CrossEarthSAR:
    changes = {**MICRO, "decoder": None}
    return build_model("crossearth_sar_tiny", 1, changes=changes, sparse=sparse)


@pytest.mark.parametrize("sparse", [True, False])
def test_its_features_are_those_that_a_decoder_is_given(sparse: bool) -> None:
    whole, alone, image = micro(sparse=sparse).eval(), backbone_alone(sparse).eval(), amplitude(2, 1, 64, 48)
    state = {key: value for key, value in whole.state_dict().items() if not key.startswith("decoder.")}
    alone.load_state_dict(state)
    statistics = torch.tensor([3.0]), torch.tensor([6.0])
    expected, found = whole.features(image, *statistics), alone.features(image, *statistics)
    assert torch.equal(found.tokens, expected.tokens)
    for one, other in zip(found.feature_maps, expected.feature_maps, strict=True):
        assert torch.equal(one, other)
    assert [tuple(m.shape) for m in found.feature_maps] == [(2, 32, 8, 6)] * 4
    backbone = alone.config.backbone
    assert (backbone.map_channels, backbone.map_strides, backbone.size_multiple) == ((32,) * 4, (8,) * 4, 8)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model(amplitude(1, 1, 64, 64)),
        lambda model: model(None, feature_maps=[torch.zeros(1, 32, 8, 8)] * 4),
        lambda model: model.predict(amplitude(1, 1, 64, 64)),
        lambda model: model.loss(ModelOutput(None, ()), label(1)),
    ],
)
def test_whoever_asks_for_classes_is_told(use: Callable[[CrossEarthSAR], object]) -> None:
    with pytest.raises(InputError, match=r"a backbone without a decoder(.|\n)*to do: .*finetune"):
        use(backbone_alone())


def test_a_segmentation_run_refuses_it_before_data_are_opened() -> None:
    config = merge(simulated_run(), {"model": {"decoder": None}, "train": None})  # no domain to open
    with pytest.raises(InputError, match="a backbone without a decoder"):
        Segmentation(config, Ranks(0, 1, torch.device("cpu")))


def test_saved_and_read_back(tmp_path: Path) -> None:
    model = backbone_alone()
    model.features(amplitude(2, 1, 64, 64))  # in training mode: the standardizer learns
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["decoder"] is None
    again = load_model(tmp_path)
    assert again.config == model.config
    assert again.decoder is None
    assert not [key for key in again.state_dict() if key.startswith("decoder.")]
    image = amplitude(1, 1, 64, 64)
    assert torch.equal(again.features(image).tokens, model.eval().features(image).tokens)


def test_it_is_what_weights_start_from(tmp_path: Path) -> None:
    """Dense from self-supervised training, upcycled where it is taken; descriptor statistics come along."""
    dense = backbone_alone(sparse=False).eval()
    save_model(dense, tmp_path)
    model = build_model("crossearth_sar_tiny", 3, changes=MICRO, weights=tmp_path).eval()
    image = amplitude(1, 1, 64, 64)
    assert torch.allclose(model.features(image).tokens, dense.features(image).tokens, atol=1e-5)
    assert model(image).decoder.class_logits.shape[-1] == 4


def test_plan_and_throughput_count_no_decoder() -> None:
    whole, alone = micro().config, backbone_alone().config
    counted = count_parameters(alone)
    assert counted.decoder == 0
    assert counted.backbone == count_parameters(whole).backbone
    assert 0 < forward_flop(alone) < forward_flop(whole)
    kept = [activation_bytes(c, bf16=False, checkpointing=False) for c in (alone, whole)]
    assert 0 < kept[0] < kept[1]


def test_a_decoder_is_given_back_by_settings() -> None:
    config = merge(backbone_alone().config, {"decoder": {"kind": "fpn", "channels": 32}})
    assert config.decoder is not None
    assert config.decoder.kind == "fpn"
