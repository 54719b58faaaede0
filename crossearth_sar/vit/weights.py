"""Weights of vision transformers in the forms they come in, as state dicts of a dense `VisionTransformer`.

Two sets of names are read: timm's (cls_token, blocks.0.attn.qkv.weight, …), which DINOv2's official files,
MAE's and with them SARMAE's, and torchgeo's have too; and what transformers writes for its Dinov2Model. What
one of them has beside the encoder, or lacks, the tables here say. Patch kernel (of 1 to 3 bands) and the
square position grid are resized to the model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import read_json
from crossearth_sar.errors import InputError
from crossearth_sar.state_files import below, for_three_channels, listed, read_state_file, require_fit
from crossearth_sar.vit.embed import resize_position_embedding
from crossearth_sar.vit.vit import VisionTransformer, ViTConfig

OFFICIAL_HEADS = {384: 6, 768: 12, 1024: 16}
"""Width -> attention heads of ViT-S, B and L. A state dict does not hold the number of heads."""

_UNUSED = "mask_token"  # of DINOv2's own training; others leave it out, MAE's is its decoder's

ENCODERS = ("sar_encoder.", "backbone.", "encoder.", "")
"""What stands before the encoder's names, «module.» taken off: of SARMAE's training checkpoints, of
mmsegmentation's and Lightning's, and of files of the encoder alone. With a prefix, what does not have it is
another part (an optical encoder, heads of a loss) and left out."""

_OTHER_PARTS = (  # of timm's classifiers, and of MAE's decoder
    "head.", "fc_norm.", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.",
    "decoder_pred.",
)  # fmt: skip

_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_IN_BLOCK = {
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_OLDER_NAMES = {  # transformers' names before version 5, which are also those on its hub
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_THEIR_CONFIG = {"model_type": "dinov2", "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}


def read_vit(path: str | Path, config: ViTConfig) -> dict[str, Tensor]:
    """Reads weights and fits them to `config`: the state dict of a dense `VisionTransformer(config)`.

    Args:
        path: a .pth, .pt or .safetensors file with timm's names, or a folder of transformers' Dinov2Model
            with config.json and model.safetensors.
        config: the model's; patch kernel and position grid are resized to it, all else must have its shape.

    Raises:
        InputError: the file cannot be read, or has unknown, missing or misshaped keys, all of which one
            message lists; or the number of heads differs from that of the weights.
    """
    path = Path(path)
    state = _read_folder(path, config) if path.is_dir() else read_state_file(path)
    if config.num_heads != OFFICIAL_HEADS.get(config.dim, config.num_heads) and not path.is_dir():
        raise _other_heads(path, OFFICIAL_HEADS[config.dim], config)
    if any(key.removeprefix("dinov2.").startswith(("embeddings.", "encoder.layer.")) for key in state):
        state = from_transformers(state)
    fitted = fit_to_config(encoder_of(state, f"weights {path}"), config)
    with torch.device("meta"):
        expected = VisionTransformer(config).state_dict()
    if _UNUSED not in fitted:
        fitted[_UNUSED] = torch.zeros(expected[_UNUSED].shape)
    require_fit(fitted, expected, f"weights {path}", fix=_likely_cause(fitted, config))
    return fitted


def encoder_of(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The transformer among tensors of timm's names, as DINOv2 has it.

    LayerScale that the weights lack is 1, kernels of 1 or 2 bands become those of 3 (`for_three_channels`).
    A name in no table stays, for `require_fit` to list.

    Raises:
        InputError: kernels of more bands.
    """
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    prefix = next(p for p in ENCODERS if not p or f"{p}patch_embed.proj.weight" in plain)
    found = {k: v for k, v in below(prefix, plain).items() if not k.startswith(_OTHER_PARTS)}
    if found.get(_UNUSED, torch.zeros(1, 1)).ndim != 2:
        del found[_UNUSED]
    kernel, cls_token = found.get("patch_embed.proj.weight"), found.get("cls_token")
    if kernel is not None and kernel.ndim == 4:
        found["patch_embed.proj.weight"] = for_three_channels(kernel, what)
    if cls_token is not None and not any(key.endswith(".gamma") for key in found):
        ones = torch.ones_like(cls_token.flatten())
        for block in {key.split(".")[1] for key in found if key.startswith("blocks.")}:
            found |= {f"blocks.{block}.ls{number}.gamma": ones for number in (1, 2)}
    return found


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' Dinov2Model state dict (of version 5 or earlier) -> the official DINOv2 names.

    Raises:
        InputError: listing all keys that Dinov2Model does not have, or query, key or value projections that
            are missing beside the others of their layer.
    """
    current = {_renamed(key.removeprefix("dinov2."), _OLDER_NAMES): value for key, value in state.items()}
    unknown = [key for key in current if key not in _EMBEDDINGS and not key.startswith("encoder.layer.")]
    if unknown:
        raise InputError(
            "not keys of transformers' Dinov2Model",
            got=listed(unknown),
            fix="give the state dict of Dinov2Model, without a classification head or register tokens",
        )
    official: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in current.items():
        head, dot, tail = key.partition(".attention.")
        part, _, kind = tail.partition("_proj.")
        if dot and part in ("q", "k", "v"):
            projections[f"{head.replace('encoder.layer.', 'blocks.')}.attn.qkv.{kind}"][part] = value
        elif key in _EMBEDDINGS:
            official[_EMBEDDINGS[key]] = value
        else:
            official[_renamed(key.replace("encoder.layer.", "blocks."), _IN_BLOCK)] = value
    missing = [
        f"{part} of {name}" for name, parts in projections.items() for part in "qkv" if part not in parts
    ]
    if missing:
        raise InputError("attention projections are missing", got=listed(missing), expected="q, k and v")
    joined = {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in projections.items()}
    return official | joined


def fit_to_config(state: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Resizes patch kernel (bicubic) and position grid of official-name weights to those of `config`.

    Official weights have patch 14 and a 37 x 37 grid; this model has patch 16 and 32 x 32 at 512 pixels.
    What is absent, or not of such a form, stays as it is: `require_fit` names it.
    """
    fitted = dict(state)
    side = config.patch_size
    kernel = fitted.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-2:] != (side, side):
        resized = F.interpolate(kernel.float(), size=(side, side), mode="bicubic", align_corners=False)
        fitted["patch_embed.proj.weight"] = resized.to(kernel.dtype)
    positions = fitted.get("pos_embed")
    if positions is not None and positions.ndim == 3 and _is_square(positions.shape[1] - 1):
        grid = config.image_size // side
        fitted["pos_embed"] = resize_position_embedding(positions, (grid, grid))
    return fitted


def _read_folder(folder: Path, config: ViTConfig) -> dict[str, Tensor]:
    """A folder that transformers' save_pretrained wrote; what its config says beyond shapes is checked."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"no weights in folder {folder}",
                got=f"{name} is missing; there: {listed(sorted(p.name for p in folder.iterdir())) or '-'}",
                expected="config.json and model.safetensors",
            )
    theirs = read_json(folder / "config.json")
    other = {key: theirs.get(key) for key, value in _THEIR_CONFIG.items() if theirs.get(key, value) != value}
    if theirs.get("use_swiglu_ffn"):
        other["use_swiglu_ffn"] = True
    if other or "model_type" not in theirs:
        raise InputError(
            f"{folder / 'config.json'} describes another model",
            got=other or "no model_type",
            expected=f"{_THEIR_CONFIG} and no SwiGLU",
            fix="use DINOv2 ViT-S, B or L without registers; other transformers as files of timm's names",
        )
    heads = theirs.get("num_attention_heads", config.num_heads)
    if heads != config.num_heads:
        raise _other_heads(folder, heads, config)
    return read_state_file(folder / "model.safetensors")


def _likely_cause(state: Mapping[str, Tensor], config: ViTConfig) -> str | None:
    """What a reader most likely did, from width and depth of the weights."""
    if any(key.endswith(("register_tokens", "reg_token")) for key in state):
        return "these weights have register tokens; use those without"
    cls_token = state.get("cls_token")
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    if cls_token is None or (cls_token.shape[-1], len(blocks)) == (config.dim, config.depth):
        return None
    return (
        f"the weights are {cls_token.shape[-1]} wide with {len(blocks)} blocks, the model {config.dim} with "
        f"{config.depth}: choose the preset (s 384 x 12, b 768 x 12, l 1024 x 24) of their size"
    )


def _other_heads(path: Path, heads: int, config: ViTConfig) -> InputError:
    return InputError(
        f"weights {path} are of another number of attention heads",
        got=f"{heads}, the model has vit.num_heads {config.num_heads}",
        fix=f"set vit.num_heads to {heads}",
    )


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def _renamed(key: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        key = key.replace(old, new)
    return key
