"""Transformers trained elsewhere: timm's and MAE's layouts, with what SARMAE and torchgeo put round them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm_names import State, random_state, tokens
from torch import Tensor

from crossearth_sar import CrossEarthSAR, InputError, build_model

DIM, DEPTH, HEADS = 32, 4, 2
CHANGES: dict[str, Any] = {
    "vit": {
        "dim": DIM,
        "num_heads": HEADS,
        "patch_size": 16,
        "image_size": 64,
        "stem": (),
        "layer_scale": 1e-5,
    },
    "crop_size": 64,
    "crop_stride": 40,
}


def model(path: Path, *, sparse: bool = False) -> CrossEarthSAR:
    return build_model("crossearth_sar_tiny", 3, changes=CHANGES, sparse=sparse, weights=path).eval()


def write(state: dict[str, Any], folder: Path, name: str = "weights.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def amplitude(bands: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image, the dB statistics of its bands, and what a network of these bands is given."""
    image = torch.rand(1, bands, 64, 64) + 0.1
    mean, std = torch.linspace(-20, -12, bands), torch.linspace(5, 6, bands)
    normalised = (20 * image.log10() - mean[:, None, None]) / std[:, None, None]
    return image, mean, std, normalised.clamp(-5, 5)


def agrees(network: CrossEarthSAR, state: State, bands: int) -> None:
    image, mean, std, normalised = amplitude(bands)
    found = network.features(image, mean, std).tokens
    assert found is not None
    torch.testing.assert_close(found, tokens(state, normalised, HEADS), rtol=0, atol=2e-4)


def with_head(state: State) -> dict[str, Any]:
    """timm's classifier, whose norm after pooling it has beside the encoder's."""
    head = {"head.weight": torch.zeros(5, DIM), "head.bias": torch.zeros(5)}
    return {**state, **head, "fc_norm.weight": torch.ones(DIM), "fc_norm.bias": torch.zeros(DIM)}


def mae(state: State, narrow: int = 16) -> State:
    """The whole of MAE's pre-training network."""
    decoder = random_state(narrow, 2, channels=3, grid=4)
    blocks = {f"decoder_{key}": value for key, value in decoder.items() if key.startswith("blocks.")}
    return {
        **state,
        "mask_token": torch.randn(1, 1, narrow),
        "decoder_pos_embed": torch.randn(1, 17, narrow),
        "decoder_embed.weight": torch.zeros(narrow, DIM),
        "decoder_embed.bias": torch.zeros(narrow),
        **blocks,
        "decoder_norm.weight": torch.ones(narrow),
        "decoder_norm.bias": torch.zeros(narrow),
        "decoder_pred.weight": torch.zeros(768, narrow),
        "decoder_pred.bias": torch.zeros(768),
    }


def checkpoint(state: State) -> dict[str, Any]:
    """As MAE's and SARMAE's code write one, settings of the command line and all."""
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 299,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="mae_vit_base_patch16", lr=1e-4),
    }


def sarmae(state: State) -> dict[str, Any]:
    """Its training network: MAE beside a frozen optical encoder and a projection between the two."""
    beside = {
        "optical_encoder.patch_embed.weight": torch.zeros(DIM, 3, 16, 16),
        "optical_encoder.cls_token": torch.zeros(1, 1, DIM),
        "sar_alignment_ffn.0.weight": torch.zeros(DIM, DIM),
    }
    return checkpoint({**{f"sar_encoder.{key}": value for key, value in mae(state).items()}, **beside})


@torch.no_grad()
@pytest.mark.parametrize(
    ("layout", "bands"),
    [
        (with_head, 3),
        (lambda state: state, 2),
        (lambda state: state, 1),
        (mae, 3),
        (lambda state: checkpoint(mae(state)), 3),
        (sarmae, 3),
        (lambda state: {"state_dict": {f"module.backbone.{k}": v for k, v in state.items()}}, 3),
    ],
    ids=["timm", "torchgeo-s1", "one-band", "mae", "mae-checkpoint", "sarmae", "mmsegmentation"],
)
def test_every_layout_computes_what_it_did(layout: Any, bands: int, tmp_path: Path) -> None:
    state = random_state(DIM, DEPTH, channels=bands, grid=4)
    network = model(write(layout(state), tmp_path))
    agrees(network, state, bands)
    assert bool((network.backbone.blocks[0].ls1.gamma == 1).all())
    assert not bool(network.backbone.mask_token.any())


@torch.no_grad()
def test_upcycled_it_computes_the_same(tmp_path: Path) -> None:
    state = random_state(DIM, DEPTH, channels=2, grid=4)
    agrees(model(write(state, tmp_path), sparse=True), state, 2)


@torch.no_grad()
def test_patch_14_and_another_grid_are_resized(tmp_path: Path) -> None:
    state = random_state(DIM, DEPTH, channels=2, patch=14, grid=7)
    square = state["pos_embed"][:, 1:].unflatten(1, (7, 7)).movedim(-1, 1)
    square = F.interpolate(square, size=(4, 4), mode="bicubic", align_corners=False)
    kernel = F.interpolate(
        state["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False
    )
    positions = torch.cat([state["pos_embed"][:, :1], square.flatten(2).transpose(1, 2)], 1)
    resized = {**state, "pos_embed": positions, "patch_embed.proj.weight": kernel}
    agrees(model(write(state, tmp_path)), resized, 2)


def test_one_band_given_to_weights_of_two_or_three_counts_for_each(tmp_path: Path) -> None:
    """Cycled, a band meets the sum of the kernels of all bands."""
    state = random_state(DIM, DEPTH, channels=2, grid=4)
    network = model(write(state, tmp_path))
    image, mean, std, normalised = amplitude(1)
    found = network.features(image, mean, std).tokens
    expected = tokens(state, normalised.expand(-1, 2, -1, -1), HEADS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"patch_embed.proj.weight": torch.zeros(DIM, 13, 16, 16)}, "13 channels"),
        (lambda s: {"reg_token": torch.zeros(1, 4, DIM)}, r"(?s)unknown: reg_token.*without"),
        (lambda s: {"blocks.0.attn.q_norm.weight": torch.ones(16)}, r"1 unknown: blocks\.0\.attn\.q_norm"),
        (lambda s: {"pos_embed": s["pos_embed"][:, 1:]}, r"misshaped: pos_embed \(1, 16, 32\)"),
        (lambda s: {"norm.weight": None, "fc_norm.weight": s["norm.weight"]}, r"1 missing: norm\.weight"),
        (lambda s: {"blocks.1.attn.qkv.bias": None}, r"1 missing: blocks\.1\.attn\.qkv\.bias"),
    ],
    ids=["bands", "registers", "qk-norm", "no-class-position", "pooled-norm", "no-bias"],
)
def test_what_does_not_fit_is_listed(change: Any, words: str, tmp_path: Path) -> None:
    state = random_state(DIM, DEPTH, channels=3, grid=4)
    changed = {key: value for key, value in {**state, **change(state)}.items() if value is not None}
    with pytest.raises(InputError, match=words):
        model(write(changed, tmp_path))


def test_a_file_without_a_suffix_says_what_to_do(tmp_path: Path) -> None:
    path = write(random_state(DIM, DEPTH, channels=3), tmp_path, "SARMAE_vitb_checkpoint-last")
    with pytest.raises(InputError, match=r"(?s)no suffix.*rename it"):
        model(path)
