"""The Mask2Former decoder over the backbone's feature maps."""

from crossearth_sar.decoder.config import DecoderConfig
from crossearth_sar.decoder.mask2former import DecoderOutput, Mask2FormerDecoder

__all__ = ["DecoderConfig", "DecoderOutput", "Mask2FormerDecoder"]
