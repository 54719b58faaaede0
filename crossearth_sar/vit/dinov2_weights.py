"""DINOv2 weights in the forms they come in, as state dicts of `VisionTransformer`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.vit.embed import resize_position_embedding
from crossearth_sar.vit.vit import ViTConfig

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


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' Dinov2Model state dict (of version 5 or earlier) -> the official DINOv2 names."""
    current = {_renamed(key.removeprefix("dinov2."), _OLDER_NAMES): value for key, value in state.items()}
    official: dict[str, Tensor] = {}
    for key, value in current.items():
        if key in _EMBEDDINGS:
            official[_EMBEDDINGS[key]] = value
            continue
        if not key.startswith("encoder.layer."):
            raise InputError(
                "not a key of transformers' Dinov2Model",
                got=repr(key),
                fix="give the state dict of Dinov2Model, without a classification head",
            )
        if ".k_proj." in key or ".v_proj." in key:
            continue  # joined where its q_proj comes by
        name = _renamed(key.replace("encoder.layer.", "blocks."), _IN_BLOCK)
        if ".q_proj." in key:
            value = torch.cat([current[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            name = name.replace("attention.q_proj", "attn.qkv")
        official[name] = value
    return official


def fit_to_config(state: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Resizes patch kernel (bicubic) and position grid of official-name weights to those of `config`.

    Official weights have patch 14 and a 37 x 37 grid; this model has patch 16 and 32 x 32 at 512 pixels.
    """
    fitted = dict(state)
    side = config.patch_size
    kernel = fitted["patch_embed.proj.weight"]
    if kernel.shape[-1] != side:
        resized = F.interpolate(kernel.float(), size=(side, side), mode="bicubic", align_corners=False)
        fitted["patch_embed.proj.weight"] = resized.to(kernel.dtype)
    grid = config.image_size // side
    fitted["pos_embed"] = resize_position_embedding(fitted["pos_embed"], (grid, grid))
    return fitted


def _renamed(key: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        key = key.replace(old, new)
    return key
