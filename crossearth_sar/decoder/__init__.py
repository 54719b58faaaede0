"""Decoders over the backbone's feature maps: Mask2Former, UperNet, an FPN for small models, a linear one."""

from crossearth_sar.decoder.base import Decoder
from crossearth_sar.decoder.choose import DecoderOutput, make_decoder
from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.fpn import FPNDecoder
from crossearth_sar.decoder.linear import LinearDecoder
from crossearth_sar.decoder.mask2former import Mask2FormerDecoder, MaskOutput
from crossearth_sar.decoder.pixels import PixelOutput
from crossearth_sar.decoder.upernet import UperNetDecoder

__all__ = [
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "FPNDecoder",
    "LinearDecoder",
    "Mask2FormerDecoder",
    "MaskOutput",
    "PixelOutput",
    "UperNetDecoder",
    "make_decoder",
]
