"""ResNet-50 and -101: torchvision's function under every name, its norms, its place in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision_names import State, random_state, stages

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model, save_model
from crossearth_sar.config import merge
from crossearth_sar.engine.flop import forward_flop, tokens_per_image
from crossearth_sar.engine.optim import parameter_groups
from crossearth_sar.engine.planning.memory import activation_bytes, count_parameters
from crossearth_sar.peft import attach_earth_adapter, freeze_backbone
from crossearth_sar.presets import ModelConfig, model_preset
from crossearth_sar.resnet import ResNet, ResNetConfig
from crossearth_sar.resnet.weights import read_resnet

DEPTHS, WIDTH = (2, 1, 3, 1), 8
SMALL: dict[str, Any] = {"depths": list(DEPTHS), "width": WIDTH}
UPERNET = {"kind": "upernet", "channels": 32}


def small(norm: str = "batch") -> ResNet:
    return ResNet(ResNetConfig(depths=DEPTHS, width=WIDTH, norm=norm))  # type: ignore[arg-type]


def model(resnet: dict[str, Any] | None = None, **options: Any) -> CrossEarthSAR:
    changes = {
        "resnet": {**SMALL, **(resnet or {})}, "decoder": UPERNET, "crop_size": 64, "crop_stride": 40
    }  # fmt: skip
    return build_model("resnet50", 3, changes=changes, **options)


def write(state: dict[str, Any], folder: Path, name: str = "weights.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize(("name", "count"), [("resnet50", 23_508_032), ("resnet101", 42_500_160)])
def test_parameters_are_torchvisions_without_fc(name: str, count: int) -> None:
    with torch.device("meta"):
        backbone = CrossEarthSAR(model_preset(name, 7)).backbone
    assert sum(p.numel() for p in backbone.parameters()) == count


@torch.no_grad()
def test_forward_is_torchvisions(tmp_path: Path) -> None:
    state = random_state(DEPTHS, WIDTH)
    network = small().eval()
    network.load_state_dict(read_resnet(write(state, tmp_path), network.config))
    image = torch.randn(2, 3, 64, 96)
    output = network(image)
    for found, expected in zip(output.feature_maps, stages(state, image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    shapes = [tuple(m.shape[1:]) for m in output.feature_maps]
    strides, widths = network.config.map_strides, network.config.map_channels
    assert shapes == [(wide, 64 // s, 96 // s) for wide, s in zip(widths, strides, strict=True)]
    assert (output.tokens, output.routing) == (None, [])


def moco(state: State, before: str) -> dict[str, Any]:
    """A checkpoint of the query and key networks with their heads, of which the query's encoder is read."""
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    head = "global_head" if before else "fc"
    return {
        "epoch": 400,
        "arch": "resnet50",
        "state_dict": {
            **{f"module.encoder_q.{before}{key}": value for key, value in state.items()},
            **{f"module.encoder_k.{before}{key}": value for key, value in other.items()},
            f"module.encoder_q.{head}.0.weight": other["bn1.bias"],
            "module.queue": torch.zeros(4, 8),
        },
        "optimizer": {"param_groups": [{"lr": 0.03}]},
    }


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {**state, "fc.weight": torch.zeros(5, 256), "fc.bias": torch.zeros(5)},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: moco(state, "encoder."),
        lambda state: moco(state, ""),
        lambda state: {"state_dict": {f"backbone.{key}": value for key, value in state.items()}},
        lambda state: {f"resnet.{key}": value for key, value in theirs(state).items()},
    ],
    ids=["imagenet", "older", "di3cl", "moco", "mmsegmentation", "transformers"],
)
def test_every_layout_gives_the_same_weights(layout: Any, tmp_path: Path) -> None:
    state, config = random_state(DEPTHS, WIDTH), small().config
    plain = read_resnet(write(state, tmp_path, "plain.pth"), config)
    found = read_resnet(write(layout(state), tmp_path), config)
    assert found.keys() == plain.keys()
    counters = {key for key in plain if key.endswith("num_batches_tracked")}
    assert all(torch.equal(found[key], plain[key]) for key in plain.keys() - counters)


def theirs(state: State) -> State:
    """transformers' names, from their own module in the order of its entries."""
    from transformers import ResNetBackbone
    from transformers import ResNetConfig as TheirConfig

    module = ResNetBackbone(
        TheirConfig(
            depths=list(DEPTHS), embedding_size=WIDTH, hidden_sizes=[4 * WIDTH << i for i in range(4)]
        )
    )
    names = sorted(module.state_dict(), key=_torchvision_order)
    return dict(zip(names, sorted_values(state), strict=True))


def _torchvision_order(name: str) -> tuple[Any, ...]:
    parts = name.split(".")
    stage, block = (int(parts[2]), int(parts[4])) if parts[0] == "encoder" else (-1, 0)
    layer = int(parts[6]) if "layer" in parts else 9
    return stage, block, layer, parts[-2] == "normalization", parts[-1]


def sorted_values(state: State) -> list[Tensor]:
    def order(name: str) -> tuple[Any, ...]:
        parts = name.split(".")
        stage, block = (int(parts[0][5:]) - 1, int(parts[1])) if parts[0].startswith("layer") else (-1, 0)
        part = parts[2] if stage >= 0 else parts[0]
        layer = 9 if part == "downsample" else int(part[-1]) - 1 if stage >= 0 else 9
        is_norm = parts[3] == "1" if part == "downsample" else part.startswith("bn")
        return stage, block, layer, is_norm, parts[-1]

    return [state[name] for name in sorted(state, key=order)]


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
def test_kernels_of_one_and_two_bands_see_the_bands_as_they_did(channels: int, tmp_path: Path) -> None:
    """torchgeo's Sentinel-1 ResNet-50 is timm's, which has these names, with VV and VH."""
    state = random_state(DEPTHS, WIDTH, channels)
    network = model(weights=write(state, tmp_path)).eval()
    image = torch.rand(1, channels, 64, 64) + 0.1
    mean, std = torch.full((channels,), -12.0), torch.full((channels,), 5.5)
    normalised = ((20 * image.log10() - mean[:, None, None]) / std[:, None, None]).clamp(-5, 5)
    found = network.features(image, mean, std).feature_maps[-1]
    torch.testing.assert_close(found, stages(state, normalised)[-1], rtol=1e-4, atol=1e-4)


def test_other_channels_and_wrong_keys_are_named(tmp_path: Path) -> None:
    config = small().config
    with pytest.raises(InputError, match=r"13 channels"):
        read_resnet(write(random_state(DEPTHS, WIDTH, 13), tmp_path), config)
    state = random_state(DEPTHS, WIDTH)
    del state["layer3.1.bn2.running_var"]
    state["layer5.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(InputError) as caught:
        read_resnet(write(state, tmp_path), config)
    assert "1 unknown: layer5.0.conv1.weight" in str(caught.value)
    assert "1 missing: stages.2.layers.1.layer.1.normalization.running_var" in str(caught.value)
    with pytest.raises(InputError, match=r"misshaped: embedder.*\(8, 3, 7, 7\) for \(64, 3, 7, 7\)"):
        read_resnet(write(random_state(DEPTHS, WIDTH), tmp_path), ResNetConfig())
    with pytest.raises(InputError, match=r"(?s)trained with batch normalisation.*norm=frozen"):
        read_resnet(write(random_state(DEPTHS, WIDTH), tmp_path), small("group").config)


# --- norms ------------------------------------------------------------------------------------------------


def test_frozen_statistics_stay_and_batch_statistics_move() -> None:
    image = torch.randn(2, 3, 64, 64)
    for norm, moves in (("batch", True), ("frozen", False)):
        network = small(norm).train()
        before = {key: value.clone() for key, value in network.named_buffers()}
        network(image)
        changed = any(not torch.equal(before[key], value) for key, value in network.named_buffers())
        assert changed == moves


def test_group_norms_know_one_image_at_a_time() -> None:
    network, image = small("group").train(), torch.randn(2, 3, 64, 64)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    both, first = network(image).feature_maps[-1], network(image[:1]).feature_maps[-1]
    torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_computing_again_in_backward_changes_nothing(norm: str) -> None:
    plain, again = small(norm).train(), small(norm).train()
    again.load_state_dict(plain.state_dict())
    again.activation_checkpointing = True
    image = torch.randn(2, 3, 64, 64)
    for network in (plain, again):
        network(image).feature_maps[-1].square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad)
    for one, other in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other)


def test_no_decay_on_norms() -> None:
    decay, no_decay = parameter_groups(small(), 0.1)
    if decay["name"] != "decay":
        decay, no_decay = no_decay, decay
    assert {p.ndim for p in decay["params"]} == {4}
    assert {p.ndim for p in no_decay["params"]} == {1}


# --- in a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask2former", "fpn", "upernet", "linear"])
def test_every_decoder_learns_a_step_on_it_and_predicts(kind: str) -> None:
    decoder = {"kind": kind, "channels": 32, "num_queries": 4, "pixel_layers": 1, "query_layers": 1,
               "num_points": 64, "num_heads": 2}  # fmt: skip
    changes = {"resnet": SMALL, "decoder": decoder, "crop_size": 64, "crop_stride": 40}
    network = build_model("resnet50", 3, changes=changes)
    image, mask = torch.rand(2, 1, 64, 64) + 0.1, torch.randint(0, 3, (2, 64, 64))
    network.loss(network(image), mask).total.backward()
    unused = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert network.predict(image[..., :50, :40]).shape == (2, 50, 40)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(image[:1])
    assert forward_flop(network.config) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_saved_read_back_and_the_start_of_another(tmp_path: Path) -> None:
    network = model().eval()
    save_model(network, tmp_path)
    again = load_model(tmp_path)
    assert again.config == network.config
    image = torch.rand(1, 2, 64, 64) + 0.1
    assert torch.equal(again(image).decoder.logits, network(image).decoder.logits)
    other = model({"norm": "frozen"}, weights=tmp_path).eval()
    deepest = other.features(image).feature_maps[-1]
    assert torch.equal(deepest, network.features(image).feature_maps[-1])
    with pytest.raises(InputError, match=r"(?s)resnet with batch norms.*resnet with group norms"):
        model({"norm": "group"}, weights=tmp_path)
    with pytest.raises(InputError, match=r"(?s)computes something else.*resnet with batch norms.*vit"):
        build_model("crossearth_sar_tiny", 3, weights=tmp_path)


def test_freezing_it_and_what_it_has_no_place_for() -> None:
    network = model()
    trained = freeze_backbone(network)
    assert len(trained) == len(list(network.backbone.parameters()))
    assert not any(p.requires_grad for p in network.backbone.parameters())
    with pytest.raises(InputError, match="no place for an adapter"):
        attach_earth_adapter(network)
    with pytest.raises(InputError, match=r"multiples of 32"):
        network(torch.ones(1, 1, 64, 48))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe": {}}, "(?s)moe.*null with a resnet"),
        ({"adapter": {}}, "(?s)adapter.*null with a resnet"),
        ({"resnet": None}, "one backbone"),
        ({"vit": {"dim": 32, "depth": 4, "num_heads": 2, "out_blocks": [0, 1, 2, 3]}}, "one backbone"),
        ({"crop_size": 48}, "(?s)crop_size.*a multiple of 32"),
        ({"resnet": {"depths": [3, 4, 6]}}, "resnet.depths"),
    ],
)
def test_configs_that_are_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_model("resnet50", 3, changes=changes)


def test_plan_and_throughput() -> None:
    config: ModelConfig = model_preset("resnet50", 7)
    assert tokens_per_image(config) == 256
    alone = merge(config, {"decoder": None, "crop_size": 224, "crop_stride": 224})
    assert forward_flop(alone) == pytest.approx(2 * 4.09e9, rel=0.01)  # the figure every table has
    assert count_parameters(alone).total == 23_508_032
    tiny = model().config
    kept = [activation_bytes(tiny, bf16=True, checkpointing=flag) for flag in (False, True)]
    assert 0 < kept[1] < kept[0]
