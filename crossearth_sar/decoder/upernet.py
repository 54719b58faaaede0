"""UperNet: transformers' head (pyramid pooling of the deepest map, then a feature pyramid) over our maps.

The decoder of DI3CL's published tables. Losses and inference are those of every decoder per pixel.

B batch, H W pixels, h w map at stride 4, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from crossearth_sar.batch_norm import average_over_ranks, use_group_norms
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.pixels import PixelDecoder, PixelOutput
from crossearth_sar.decoder.pyramid import feature_pyramid
from crossearth_sar.errors import InputError

AUXILIARY_MAP = 2
"""Of the four: the one before the deepest, as published."""


class UperNetDecoder(PixelDecoder):
    """Feature maps in, class logits at stride 4 out.

    Args:
        config: channels, norm and weights.
        in_channels, strides: of the feature maps, of which the last four are read.
        num_classes: C.
    """

    def __init__(
        self, config: DecoderConfig, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(config, num_classes)
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        theirs = UperNetConfig(
            hidden_size=config.channels,
            num_labels=num_classes,
            auxiliary_channels=max(config.channels // 2, 16),  # 256 of 512 as published
        )
        self.strides, widths = tuple(strides[-4:]), list(in_channels[-4:])
        self.head = UperNetHead(theirs, widths)
        self.auxiliary_head = (
            UperNetFCNHead(theirs, widths, in_index=AUXILIARY_MAP) if config.auxiliary_weight else None
        )
        if config.norm == "group":
            use_group_norms(self)

    def forward(self, feature_maps: list[Tensor]) -> PixelOutput:
        """The maps as the backbone gives them; the auxiliary head computes in training alone.

        Raises:
            InputError: for one image in training with batch norms, whose pooled map has no spread.
        """
        if self.training and self.config.norm == "batch" and len(feature_maps[-1]) == 1:
            raise InputError(
                "decoder.norm batch normalises over the images of a pass on a rank, and there is one",
                fix="--set model.decoder.norm=group, or larger passes: less accumulation, fewer ranks",
            )
        maps = feature_pyramid(feature_maps[-4:], self.strides)
        logits = self.head(maps)
        beside = self.auxiliary_head(maps) if self.auxiliary_head is not None and self.training else None
        if self.training:
            average_over_ranks(self)
        return PixelOutput(logits, beside)
