"""Decoders over the backbone's feature maps: Mask2Former, and an FPN for small models."""

from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.choose import DecoderOutput, make_decoder
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.fpn import FPNDecoder, PixelOutput
from crossearth_sar.decoder.mask2former import Mask2FormerDecoder, MaskOutput

__all__ = [
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "FPNDecoder",
    "Mask2FormerDecoder",
    "MaskOutput",
    "PixelOutput",
    "make_decoder",
]
