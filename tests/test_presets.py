"""The four sizes: their parameters, counted without allocating them, and configs that refuse with words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossearth_sar import CrossEarthSAR
from crossearth_sar.config import from_mapping, merge, read_yaml, to_mapping, write_yaml
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig, MoEConfig, crossearth_sar_tiny, model_preset

SIZES = ("tiny", "s", "b", "l")


def on_meta(name: str, num_classes: int = 7) -> CrossEarthSAR:
    with torch.device("meta"):
        model = CrossEarthSAR(model_preset(name, num_classes))
    assert all(parameter.is_meta for parameter in model.backbone.parameters())
    return model


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("crossearth_sar_s", 93.0e6, 22.1e6),
        ("crossearth_sar_b", 370.0e6, 86.6e6),
        ("crossearth_sar_l", 1311.8e6, 304.5e6),
    ],
)
def test_parameter_counts(name: str, total: float, active: float) -> None:
    """The backbone with six experts, and with the one of them that a token meets."""
    backbone = on_meta(name).backbone
    experts = sum(p.numel() for key, p in backbone.named_parameters() if ".experts." in key)
    assert count(backbone) == pytest.approx(total, rel=0.002)
    assert count(backbone) - experts * 5 // 6 == pytest.approx(active, rel=0.01)


def test_decoder_parameter_counts() -> None:
    head = on_meta("crossearth_sar_s").decoder.head
    assert count(head.pixel_decoder) == pytest.approx(5.4e6, rel=0.02)
    assert count(head.transformer_module) == pytest.approx(14.5e6, rel=0.02)
    assert count(head) == pytest.approx(20e6, rel=0.02)


@pytest.mark.parametrize(
    ("name", "depth", "dim", "heads", "blocks"),
    [
        ("s", 12, 384, 6, (2, 5, 8, 11)),
        ("b", 12, 768, 12, (2, 5, 8, 11)),
        ("l", 24, 1024, 16, (7, 11, 15, 23)),
    ],
)
def test_shapes_are_those_of_the_method(
    name: str, depth: int, dim: int, heads: int, blocks: tuple[int, ...]
) -> None:
    config = model_preset(f"crossearth_sar_{name}", 7)
    vit = config.vit
    assert (vit.depth, vit.dim, vit.num_heads, vit.out_blocks) == (depth, dim, heads, blocks)
    assert (vit.patch_size, vit.image_size, vit.hidden_dim, vit.layer_scale) == (16, 512, 4 * dim, 1e-5)
    assert config.moe == MoEConfig(
        num_experts=6,
        top_k=1,
        gate="straight_through",
        descriptors=("entropy", "enl", "roughness"),
        standardize=True,
        balance_weight=0.005,
    )
    assert (config.num_classes, config.crop_size, config.crop_stride) == (7, 512, 341)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sparse", [True, False])
def test_mapping_and_yaml_round_trip(size: str, sparse: bool, tmp_path: Path) -> None:
    config = model_preset(f"crossearth_sar_{size}", 5)
    if not sparse:
        config = merge(config, {"moe": None})
    assert from_mapping(ModelConfig, to_mapping(config)) == config
    write_yaml(config, tmp_path / "model.yaml")
    assert from_mapping(ModelConfig, read_yaml(tmp_path / "model.yaml")) == config
    assert (config.moe is None) is not sparse


def test_changed_values_survive_the_round_trip() -> None:
    changes = {"moe": {"descriptors": ["enl"], "top_k": 2}, "vit": {"out_blocks": [0, 1, 2, 3]}}
    config = merge(crossearth_sar_tiny(2), changes)
    assert config.moe is not None
    assert config.moe.descriptors == ("enl",)
    assert from_mapping(ModelConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vit": {"out_blocks": [1, 2, 3, 4]}}, "four rising block indices below depth 4"),
        ({"crop_size": 100}, "crop_size.*100.*a multiple of 8"),
        ({"crop_stride": 129}, "crop_stride.*side of the windows"),
        ({"crop_stride": 0}, "crop_stride"),
        ({"moe": {"top_k": 7}}, r"moe.top_k.*7.*1 \.\. 6"),
        ({"moe": {"top_k": 0}}, "moe.top_k"),
        ({"moe": {"num_experts": 0}}, "moe.num_experts"),
        ({"moe": {"balance_weight": -0.1}}, "moe.balance_weight.*0 to 1e"),
        ({"moe": {"descriptors": ["enl", "enl"]}}, "moe.descriptors.*each name once"),
        ({"moe": {"descriptors": ["entropie"]}}, "did you mean 'entropy'"),
        ({"moe": {"gate": "normalised"}}, "did you mean 'normalized'"),
        ({"decoder": {"query_layer": 3}}, "did you mean 'query_layers'"),
    ],
)
def test_config_refuses_with_words(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=f"(?s){words}"):
        merge(crossearth_sar_tiny(3), changes)


def test_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes"):
        replace(crossearth_sar_tiny(1), num_classes=0)


def test_unknown_name_gives_the_nearest_and_the_list() -> None:
    with pytest.raises(InputError, match="did you mean 'crossearth_sar_tiny'") as caught:
        model_preset("crossearth_tiny", 3)
    assert all(f"crossearth_sar_{size}" in str(caught.value) for size in SIZES)
