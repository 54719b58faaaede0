"""Which decoder a config means."""

from __future__ import annotations

from collections.abc import Sequence

from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.fpn import FPNDecoder
from crossearth_sar.decoder.linear import LinearDecoder
from crossearth_sar.decoder.mask2former import Mask2FormerDecoder, MaskOutput
from crossearth_sar.decoder.pixels import PixelOutput
from crossearth_sar.decoder.upernet import UperNetDecoder

DecoderOutput = MaskOutput | PixelOutput
"""What decoders give."""


def make_decoder(
    config: DecoderConfig, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
) -> Decoder:
    """The decoder for maps of these widths and strides (`map_channels`, `map_strides` of a backbone)."""
    match config.kind:
        case "fpn":
            return FPNDecoder(config, in_channels=in_channels, strides=strides, num_classes=num_classes)
        case "upernet":
            return UperNetDecoder(config, in_channels=in_channels, strides=strides, num_classes=num_classes)
        case "linear":
            return LinearDecoder(config, in_channels=in_channels, num_classes=num_classes)
        case "mask2former":
            return Mask2FormerDecoder(
                config, in_channels=in_channels, strides=strides, num_classes=num_classes
            )
