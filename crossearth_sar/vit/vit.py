"""The vision transformer: DINOv2's shapes and parameter names, a dense or sparse FFN in every block.

B batch, H W pixels, h w patches, T tokens (1 + h*w), D dim, P descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossearth_sar.config import require, require_range
from crossearth_sar.vit.block import Block, DenseFFN
from crossearth_sar.vit.embed import PatchEmbed, resize_position_embedding

FFNFactory = Callable[[int, int], nn.Module]
"""(dim, hidden_dim) -> an FFN with the signature of DenseFFN."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of the transformer."""

    dim: int
    """Width of a token."""

    depth: int
    """Blocks."""

    num_heads: int
    """Heads of attention, a divisor of dim."""

    out_blocks: tuple[int, ...]
    """Indices of the four blocks whose patch tokens are the feature maps."""

    patch_size: int = 16
    """Side of a patch, pixels."""

    stem: tuple[int, ...] = ()
    """Widths of convolutional stages before the patch projection, each halving the side. Empty is
    DINOv2; a small model from scratch learns edges sooner with one."""

    image_size: int = 512
    """Pixels of the square input whose patch grid the stored position embedding has; other sizes are
    interpolated."""

    ffn_ratio: float = 4.0
    """Hidden width of an FFN, or of one expert, over dim."""

    layer_scale: float = 1e-5
    """Initial residual scale; DINOv2's 1e-5 suits pretrained weights, 1 a small model from scratch."""

    def __post_init__(self) -> None:
        require_range(self, "vit.", 1, 16384, "dim", "num_heads", "image_size")
        require_range(self, "vit.", 1, 512, "depth", "patch_size")
        require_range(self, "vit.", 0, 64, "ffn_ratio")
        require_range(self, "vit.", -1e6, 1e6, "layer_scale")
        require(self.dim % self.num_heads == 0, "vit.num_heads", self.num_heads, f"a divisor of {self.dim}")
        require(
            len(self.out_blocks) == 4
            and list(self.out_blocks) == sorted(set(self.out_blocks))
            and self.out_blocks[0] >= 0
            and self.out_blocks[-1] < self.depth,
            "vit.out_blocks",
            self.out_blocks,
            f"four rising block indices below depth {self.depth}",
        )
        require(
            self.image_size % self.patch_size == 0,
            "vit.image_size",
            self.image_size,
            f"a multiple of patch_size {self.patch_size}",
        )
        require(
            all(1 <= width <= 16384 for width in self.stem), "vit.stem", self.stem, "widths of 1 to 16384"
        )
        require(
            len(self.stem) < 16 and self.patch_size % 2 ** len(self.stem) == 0,
            "vit.stem",
            self.stem,
            f"so few stages that halving patch_size {self.patch_size} goes without rest",
        )

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides in pixels of `ViTOutput.feature_maps`: the stem's, then four times the patch size."""
        return (*(2 << stage for stage in range(len(self.stem))), *4 * (self.patch_size,))

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Their widths."""
        return (*self.stem, *4 * (self.dim,))

    @property
    def size_multiple(self) -> int:
        """What height and width of an image must be multiples of, pixels."""
        return self.patch_size

    @property
    def hidden_dim(self) -> int:
        return int(self.dim * self.ffn_ratio)


class ViTOutput(NamedTuple):
    """feature_maps: those of the stem, if there is one, then one (B, D, h, w) per out block, before the final
    norm; tokens: (B, T, D) after it; routing: one entry per block, None for a dense FFN."""

    feature_maps: list[Tensor]
    tokens: Tensor
    routing: list[Any]


class VisionTransformer(nn.Module):
    """DINOv2's ViT without register tokens.

    Args:
        config: the shape.
        make_ffn: builds each block's FFN; the dense one when not given.

    Attributes:
        activation_checkpointing: True keeps only each block's input for backward and computes the block again
            there; less memory, a third more arithmetic. Off when built; no part of the model's config.
        adapter: a module called after each block as adapter(index, x_BTD, (h, w)), whose result replaces the
            block's tokens (peft/attach.py); None when built.
    """

    adapter: nn.Module | None

    def __init__(self, config: ViTConfig, make_ffn: FFNFactory = DenseFFN) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        grid = config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, config.dim, stem=config.stem)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim), requires_grad=False)  # DINOv2's, unused
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.num_heads,
                make_ffn(config.dim, config.hidden_dim),
                layer_scale=config.layer_scale,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.register_module("adapter", None)
        self._initialise()

    def forward(self, image_B3HW: Tensor, descriptors: Tensor | None = None) -> ViTOutput:
        """(B, 3, H, W) normalised, H and W multiples of the patch size, and descriptors, (B, P) of the
        images or (B, T, P) of the tokens."""
        patches_BhwD, feature_maps = self.patch_embed(image_B3HW)
        batch, rows, columns, _ = patches_BhwD.shape
        x_BTD = torch.cat([self.cls_token.expand(batch, -1, -1), patches_BhwD.flatten(1, 2)], dim=1)
        x_BTD = x_BTD + resize_position_embedding(self.pos_embed, (rows, columns))
        routing = []
        for index, block in enumerate(self.blocks):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTD, block_routing = checkpoint(block, x_BTD, descriptors, use_reentrant=False)
            else:
                x_BTD, block_routing = block(x_BTD, descriptors)
            routing.append(block_routing)
            if self.adapter is not None:
                x_BTD = self.adapter(index, x_BTD, (rows, columns))
            if index in self.config.out_blocks:
                feature_maps.append(x_BTD[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2))
        return ViTOutput(feature_maps, self.norm(x_BTD), routing)

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
