"""ResNet over transformers' modules, with the output of the transformer: four feature maps, no tokens.

B batch, H W pixels, D channels of a stage.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossearth_sar.batch_norm import (
    average_over_ranks,
    batch_norms,
    keep_statistics_float32,
    uncounted,
    use_group_norms,
)
from crossearth_sar.errors import InputError
from crossearth_sar.resnet.config import ResNetConfig


class ResNetOutput(NamedTuple):
    """feature_maps: (B, D, h, w) of each stage, at strides 4, 8, 16, 32; tokens: None, there are none;
    routing: empty, nothing is sparse."""

    feature_maps: list[Tensor]
    tokens: None
    routing: list[Any]


class ResNet(nn.Module):
    """The four stages of a ResNet, pooling and classifier cut off.

    Running statistics of batch norms are the same on all ranks: each training pass averages them.

    Args:
        config: the shape.

    Attributes:
        activation_checkpointing: True keeps only each bottleneck's input for backward and computes it again
            there. Off when built; no part of the model's config.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        from transformers import ResNetBackbone  # seconds, and nothing else of this package's needs it
        from transformers import ResNetConfig as TheirConfig

        self.config = config
        self.activation_checkpointing = False
        theirs = ResNetBackbone(
            TheirConfig(
                depths=list(config.depths),
                embedding_size=config.width,
                hidden_sizes=list(config.map_channels),
            )
        )
        self.embedder, self.stages = theirs.embedder, theirs.encoder.stages
        if config.norm == "group":
            use_group_norms(self)
        else:
            keep_statistics_float32(self)

    def forward(self, image_B3HW: Tensor, descriptors: Tensor | None = None) -> ResNetOutput:
        """(B, 3, H, W) normalised, H and W multiples of 32; descriptors are not looked at."""
        height, width = image_B3HW.shape[-2:]
        multiple = self.config.size_multiple
        if height % multiple or width % multiple:
            raise InputError(
                "image size is not a multiple of the coarsest stride",
                got=f"{height} x {width}",
                expected=f"multiples of {multiple}",
                fix="pad the image, or use predict(), which does",
            )
        x, feature_maps = self.embedder(image_B3HW), []
        for stage in self.stages:
            for block in stage.layers:
                x = self._run(block, x)
            feature_maps.append(x)
        if self.training:
            average_over_ranks(self)
        return ResNetOutput(feature_maps, None, [])

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; frozen statistics stay as they are."""
        super().train(mode)
        if self.config.norm == "frozen":
            for norm in batch_norms(self):
                norm.eval()
        return self

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False, context_fn=partial(_count_once, block))
        return block(x)


def _count_once(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first computation, and of the second, in backward."""
    return nullcontext(), uncounted(block)
