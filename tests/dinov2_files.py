"""Random DINOv2 weights in the official form, and the transformers model that computes the same."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model


def official_state(dim: int, depth: int, *, patch: int = 14, grid: int = 37) -> dict[str, Tensor]:
    """The keys and shapes of dinov2_vit*14_pretrain.pth, in its order; values of a healthy scale."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + grid * grid, dim),
        "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
    }
    for block in range(depth):
        for name, shape in {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "ls1.gamma": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
            "ls2.gamma": (dim,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return {name: _healthy(name, shape) for name, shape in shapes.items()}


def _healthy(name: str, shape: tuple[int, ...]) -> Tensor:
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * torch.randn(shape)
    if name.endswith(".weight"):
        return torch.randn(shape) * torch.Size(shape[1:]).numel() ** -0.5
    return 0.3 * torch.randn(shape)


def transformers_model(state: dict[str, Tensor], heads: int, *, patch: int, grid: int) -> Dinov2Model:
    """Dinov2Model holding official-name weights of this patch and grid; the names are mapped here anew."""
    dim = state["cls_token"].shape[-1]
    depth = sum(key.endswith("norm1.weight") for key in state)
    config = Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=patch * grid,
    )
    with torch.device("meta"):
        model = Dinov2Model(config).eval()
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for block in range(depth):
        ours, layer = f"blocks.{block}.", f"encoder.layer.{block}."
        for kind in ("weight", "bias"):
            parts = state[f"{ours}attn.qkv.{kind}"].chunk(3)
            for part, value in zip("qkv", parts, strict=True):
                theirs[f"{layer}attention.{part}_proj.{kind}"] = value
            theirs[f"{layer}attention.o_proj.{kind}"] = state[f"{ours}attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{layer}{name}.{kind}"] = state[f"{ours}{name}.{kind}"]
        for number in "12":
            theirs[f"{layer}layer_scale{number}.lambda1"] = state[f"{ours}ls{number}.gamma"]
    model.load_state_dict(theirs, assign=True)
    return model
