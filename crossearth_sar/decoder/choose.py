"""Which decoder a config means."""

from __future__ import annotations

from collections.abc import Sequence

from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.fpn import FPNDecoder, PixelOutput
from crossearth_sar.decoder.mask2former import Mask2FormerDecoder, MaskOutput

DecoderOutput = MaskOutput | PixelOutput
"""What decoders give."""


def make_decoder(
    config: DecoderConfig, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
) -> Decoder:
    """The decoder for feature maps of these widths and strides (`ViTConfig.map_channels`, `map_strides`)."""
    if config.kind == "fpn":
        return FPNDecoder(config, in_channels=in_channels, strides=strides, num_classes=num_classes)
    return Mask2FormerDecoder(
        config, in_channels=in_channels[-1], num_classes=num_classes, patch_size=strides[-1]
    )
