"""What of transformers' Mask2Former is taken: its modules and its loss, built from our settings.

Imported when a decoder is built: transformers takes seconds, and nothing but the decoder needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from crossearth_sar.decoder.config import DecoderConfig


class Mask2FormerHead(Mask2FormerPreTrainedModel):
    """transformers' modules under its own initialisation; the class exists for `post_init` alone."""

    def __init__(self, config: Mask2FormerConfig, in_channels: Sequence[int]) -> None:
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(in_channels))
        self.transformer_module = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()


class Criterion(Mask2FormerLoss):
    """transformers' loss; its class weights stay float32, like the logits it is given, and what it divides by
    are its own targets.

    labelled_share_B: of each image's pixels, set before each call. «No object» counts by it: of what nobody
    labelled, nobody said that nothing is there.
    """

    labelled_share_B: Tensor

    def loss_labels(
        self, class_queries_logits: Tensor, class_labels: list[Tensor], indices: Any
    ) -> dict[str, Tensor]:
        """transformers' weighted cross-entropy, «no object» weighed by its image's labelled share too."""
        empty_B = self.empty_weight[-1] * self.labelled_share_B.to(self.empty_weight)
        target_BQ = class_labels[0].new_full(class_queries_logits.shape[:2], self.num_labels)
        weight_BQ = empty_B[:, None].repeat(1, target_BQ.shape[1])
        for image, (queries, chosen) in enumerate(indices):
            target_BQ[image, queries] = class_labels[image][chosen]
            weight_BQ[image, queries] = 1
        cost_BQ = F.cross_entropy(class_queries_logits.transpose(1, 2), target_BQ, reduction="none")
        return {"loss_cross_entropy": (weight_BQ * cost_BQ).sum() / weight_BQ.sum().clamp(min=1e-12)}

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Targets of these images, at least 1. Where Accelerate is in use, transformers would take a share of
        all ranks' here; how ranks and parts count is said once, in engine/objectives/batch_loss.py."""
        count = sum(len(classes) for classes in class_labels)
        return torch.tensor(float(count), device=device).clamp(min=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows `.to(device)` but not `.bfloat16()` and the like."""
        return super()._apply(lambda t: t.to(fn(t).device), recurse)


def transformers_config(config: DecoderConfig, num_classes: int) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        num_labels=num_classes,
        init_std=config.channels**-0.5,  # the original's Xavier; the default 0.02 starves narrow decoders
        feature_size=config.channels,
        mask_feature_size=config.channels,
        hidden_dim=config.channels,
        num_attention_heads=config.num_heads,
        num_queries=config.num_queries,
        encoder_layers=config.pixel_layers,
        encoder_feedforward_dim=config.pixel_ffn_dim,
        decoder_layers=config.query_layers + 1,  # transformers counts the initial prediction
        dim_feedforward=config.query_ffn_dim,
        train_num_points=config.num_points,
        oversample_ratio=config.oversample_ratio,
        importance_sample_ratio=config.importance_ratio,
        class_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        no_object_weight=config.no_object_weight,
    )
