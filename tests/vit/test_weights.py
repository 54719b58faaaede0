"""DINOv2 weights: the same outputs as transformers' Dinov2Model, under all names they come with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from crossearth_sar.errors import InputError
from crossearth_sar.state_files import LISTED_KEYS, require_fit
from crossearth_sar.vit import VisionTransformer, ViTConfig
from crossearth_sar.vit.weights import fit_to_config, from_transformers

DIM, DEPTH, HEADS = 48, 4, 3
OLDER = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}


def theirs(patch: int, image_size: int) -> Dinov2Model:
    """Dinov2Model with every parameter drawn from a normal distribution; matrices scaled by fan-in."""
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=DIM,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            patch_size=patch,
            image_size=image_size,
        )
    ).eval()
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and parameter.ndim > 1
        std = parameter[0].numel() ** -0.5 if is_matrix else 1.0
        torch.nn.init.normal_(parameter, std=std)
    return model


def config(patch: int, image_size: int) -> ViTConfig:
    return ViTConfig(
        dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        out_blocks=(0, 1, 2, 3),
        patch_size=patch,
        image_size=image_size,
    )


def ours(state: dict[str, Tensor], patch: int, image_size: int) -> VisionTransformer:
    model = VisionTransformer(config(patch, image_size)).eval()
    model.load_state_dict(state)
    return model


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    ("patch", "image_size", "size"),
    [
        (16, 224, (224, 224)),
        (16, 224, (512, 512)),
        (16, 224, (224, 320)),
        (16, 512, (512, 512)),
        (16, 512, (224, 224)),
        (16, 512, (320, 192)),
        (14, 518, (518, 518)),
        (14, 518, (224, 224)),
        (14, 518, (224, 308)),
    ],
)
def test_parity_with_transformers(patch: int, image_size: int, size: tuple[int, int]) -> None:
    reference = theirs(patch, image_size)
    model = ours(from_transformers(reference.state_dict()), patch, image_size)
    image = torch.randn(1, 3, *size)
    expected = reference(image, output_hidden_states=True)
    got = model(image)
    assert largest_difference(got.tokens, expected.last_hidden_state) <= 1e-4
    grid = (size[0] // patch, size[1] // patch)
    for features, hidden in zip(got.feature_maps[:-1], expected.hidden_states[1:DEPTH], strict=True):
        their_map = hidden[:, 1:].transpose(1, 2).unflatten(2, grid)
        assert largest_difference(features, their_map) <= 1e-4


def older_name(key: str) -> str:
    for new, old in OLDER.items():
        key = key.replace(f"attention.{new}", f"attention.{old}")
    return key.replace("attention.o_proj", "attention.output.dense")


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_older_and_prefixed_names(prefix: str) -> None:
    state = theirs(16, 64).state_dict()
    renamed = {prefix + older_name(key): value for key, value in state.items()}
    assert f"{prefix}encoder.layer.0.attention.attention.query.weight" in renamed
    assert f"{prefix}encoder.layer.3.attention.output.dense.bias" in renamed
    current, older = from_transformers(state), from_transformers(renamed)
    assert current.keys() == older.keys() == VisionTransformer(config(16, 64)).state_dict().keys()
    assert all(torch.equal(current[key], older[key]) for key in current)


@pytest.mark.parametrize("key", ["classifier.weight", "embeddings.register_tokens", "encoder.norm.weight"])
def test_unknown_key_is_named(key: str) -> None:
    state = {**theirs(16, 64).state_dict(), key: torch.zeros(1)}
    with pytest.raises(InputError, match=rf"(?s)Dinov2Model.*{key}.*give the state dict"):
        from_transformers(state)


def test_fit_to_config_has_the_shapes_of_the_model() -> None:
    official = from_transformers(theirs(14, 518).state_dict())
    assert official["patch_embed.proj.weight"].shape == (DIM, 3, 14, 14)
    assert official["pos_embed"].shape == (1, 1 + 37 * 37, DIM)
    fitted = fit_to_config(official, config(16, 512))
    assert fitted["patch_embed.proj.weight"].shape == (DIM, 3, 16, 16)
    assert fitted["pos_embed"].shape == (1, 1 + 32 * 32, DIM)
    ours(fitted, 16, 512)
    untouched = official.keys() - {"patch_embed.proj.weight", "pos_embed"}
    assert all(fitted[key] is official[key] for key in untouched)
    assert official["pos_embed"].shape[1] == 1 + 37 * 37, "the state given is left as it was"


def test_fit_to_config_is_the_identity_when_nothing_changes() -> None:
    official = from_transformers(theirs(14, 518).state_dict())
    fitted = fit_to_config(official, config(14, 518))
    assert official.keys() == fitted.keys()
    assert all(torch.equal(fitted[key], official[key]) for key in official)


def test_fit_to_config_keeps_constants_and_dtype() -> None:
    state = {
        "patch_embed.proj.weight": torch.full((4, 3, 14, 14), 0.75, dtype=torch.float16),
        "pos_embed": torch.full((1, 1 + 37 * 37, 4), -1.5, dtype=torch.float16),
    }
    fitted = fit_to_config(state, config(16, 512))
    for key, value in (("patch_embed.proj.weight", 0.75), ("pos_embed", -1.5)):
        assert fitted[key].dtype == torch.float16
        torch.testing.assert_close(fitted[key], torch.full_like(fitted[key], value), rtol=1e-3, atol=0)


@torch.no_grad()
def test_fitted_positions_act_like_transformers_resizing_at_run_time() -> None:
    """Their 37 x 37 grid resized as they run at 512 pixels, ours resized once to 32 x 32."""
    reference = theirs(16, 37 * 16)
    model = ours(
        fit_to_config(from_transformers(reference.state_dict()), config(16, 512)), patch=16, image_size=512
    )
    image = torch.randn(1, 3, 512, 512)
    assert largest_difference(model(image).tokens, reference(image).last_hidden_state) <= 1e-4


def test_states_without_kernel_or_positions_are_left_to_the_check() -> None:
    """Also one whose positions are no square grid: `require_fit` names them all."""
    assert fit_to_config({}, config(16, 512)) == {}
    state = {"pos_embed": torch.zeros(1, 8, DIM), "patch_embed.proj.weight": torch.zeros(DIM, 3)}
    fitted = fit_to_config(state, config(16, 512))
    assert {key: value.shape for key, value in fitted.items()} == {k: v.shape for k, v in state.items()}
    expected = VisionTransformer(config(16, 512)).state_dict()
    with pytest.raises(InputError) as caught:
        require_fit(fitted, expected, "weights x", fix="look again")
    message = str(caught.value)
    assert f"{len(expected) - 2} missing: cls_token, mask_token" in message
    assert f"and {len(expected) - 2 - LISTED_KEYS} more" in message
    assert f"2 misshaped: pos_embed (1, 8, {DIM}) for (1, 1025, {DIM})" in message
    assert "look again" in message


def test_absent_keys_that_may_be_lacking() -> None:
    require_fit({}, {"router": torch.zeros(1)}, "weights", may_lack=lambda key: key == "router")
    with pytest.raises(InputError, match="1 missing: other"):
        require_fit({}, {"other": torch.zeros(1)}, "weights", may_lack=lambda key: key == "router")


def test_a_missing_projection_is_named() -> None:
    state = theirs(16, 64).state_dict()
    del state["encoder.layer.2.attention.v_proj.weight"]
    with pytest.raises(InputError, match=r"v of blocks\.2\.attn\.qkv\.weight"):
        from_transformers(state)


def test_all_unknown_keys_are_named() -> None:
    state = {**theirs(16, 64).state_dict(), "classifier.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    with pytest.raises(InputError, match=r"classifier\.weight, head\.bias"):
        from_transformers(state)
