"""DINOv2 weights in the forms they come in, as state dicts of a dense `VisionTransformer`.

Two forms are read: the official file (facebook's names: cls_token, blocks.0.attn.qkv.weight, …) and what
transformers writes for its Dinov2Model. Both have patch 14 and a square position grid for 518 pixels; patch
kernel and grid are resized to the model's. A .pth file is read with weights_only=True: tensors, no code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossearth_sar.config import read_json
from crossearth_sar.errors import InputError
from crossearth_sar.vit.embed import resize_position_embedding
from crossearth_sar.vit.vit import VisionTransformer, ViTConfig

LISTED_KEYS = 12
"""Keys named per kind of fault; the others are counted."""

OFFICIAL_HEADS = {384: 6, 768: 12, 1024: 16}
"""Width -> attention heads of ViT-S, B and L. A state dict does not hold the number of heads."""

_UNUSED = "mask_token"  # of DINOv2's own training; some exports leave it out

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


def read_dinov2(path: str | Path, config: ViTConfig) -> dict[str, Tensor]:
    """Reads DINOv2 weights and fits them to `config`: the state dict of a dense `VisionTransformer(config)`.

    Args:
        path: an official .pth (or .pt, or the same names in .safetensors), or a folder of transformers with
            config.json and model.safetensors.
        config: the model's; patch kernel and position grid are resized to it, all else must have its shape.

    Raises:
        InputError: the file cannot be read, is no DINOv2, or has unknown, missing or misshaped keys, all of
            which one message lists; or the number of heads differs from that of the weights.
    """
    path = Path(path)
    state = _read_folder(path, config) if path.is_dir() else read_state_file(path)
    if config.num_heads != OFFICIAL_HEADS.get(config.dim, config.num_heads) and not path.is_dir():
        raise _other_heads(path, OFFICIAL_HEADS[config.dim], config)
    if any(key.removeprefix("dinov2.").startswith(("embeddings.", "encoder.layer.")) for key in state):
        state = from_transformers(state)
    fitted = fit_to_config(state, config)
    with torch.device("meta"):
        expected = VisionTransformer(config).state_dict()
    if _UNUSED not in fitted:
        fitted[_UNUSED] = torch.zeros(expected[_UNUSED].shape)
    require_fit(fitted, expected, f"weights {path}", fix=_likely_cause(fitted, config))
    return fitted


def read_state_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, on the CPU; no object in it is built.

    Raises:
        InputError: no such file, another kind, damaged, or something else than named tensors.
    """
    require_state_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"weights {path} cannot be read",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="named tensors alone: files that would run code when read are refused",
            fix="fetch the file again; export tensors only with torch.save(model.state_dict(), …)",
        ) from error
    return _named_tensors(state, path)


def require_state_file(path: Path) -> None:
    """InputError unless a file of a kind that `read_state_file` reads is at `path`; does not open it."""
    if not path.is_file():
        raise InputError(
            f"no weights at {path}",
            got="nothing there" if not path.exists() else "no file",
            expected="a .pth or .safetensors file, or a folder with config.json and model.safetensors",
            fix="give the path of a file already downloaded; nothing is fetched here",
        )
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise InputError(
            f"weights {path} are of no kind read here", got=path.suffix, expected=".pth, .pt, .safetensors"
        )


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
            got=_listed(unknown),
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
        raise InputError("attention projections are missing", got=_listed(missing), expected="q, k and v")
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


def require_fit(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    what: str,
    *,
    may_lack: Callable[[str], bool] = lambda key: False,
    fix: str | None = None,
) -> None:
    """One InputError that lists every unknown, missing and misshaped key of `state`, if there is any.

    Args:
        expected: a state dict with the keys and shapes wanted; its values are not looked at.
        what: the weights, for the message.
        may_lack: keys that the model keeps as they are when absent.
    """
    faults = {
        "unknown": [key for key in state if key not in expected],
        "missing": [key for key in expected if key not in state and not may_lack(key)],
        "misshaped": [
            f"{key} {tuple(value.shape)} for {tuple(expected[key].shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    found = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in faults.items() if keys]
    if found:
        raise InputError(f"{what} do not fit the model", got="; ".join(found), fix=fix)


def _read_folder(folder: Path, config: ViTConfig) -> dict[str, Tensor]:
    """A folder that transformers' save_pretrained wrote; what its config says beyond shapes is checked."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"no weights in folder {folder}",
                got=f"{name} is missing; there: {_listed(sorted(p.name for p in folder.iterdir())) or '-'}",
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
            fix="use DINOv2 ViT-S, B or L without registers",
        )
    heads = theirs.get("num_attention_heads", config.num_heads)
    if heads != config.num_heads:
        raise _other_heads(folder, heads, config)
    return read_state_file(folder / "model.safetensors")


def _named_tensors(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise InputError(f"weights {path} hold no named tensors", got=type(state).__name__)
    other = [
        f"{key!r} ({type(value).__name__})" for key, value in state.items() if not torch.is_tensor(value)
    ]
    if other:
        raise InputError(
            f"weights {path} hold more than named tensors",
            got=_listed(other),
            expected="a state dict at the top level",
            fix="save the inner mapping of the backbone's tensors as a file of its own",
        )
    return {str(key): value for key, value in state.items()}


def _likely_cause(state: Mapping[str, Tensor], config: ViTConfig) -> str | None:
    """What a reader most likely did, from width and depth of the weights."""
    if any(key.endswith("register_tokens") for key in state):
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


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_KEYS} more" if len(names) > LISTED_KEYS else ""
    return ", ".join(names[:LISTED_KEYS]) + more


def _renamed(key: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        key = key.replace(old, new)
    return key
