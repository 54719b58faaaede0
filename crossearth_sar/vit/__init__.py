"""The vision transformer that carries the sparse FFNs."""

from crossearth_sar.vit.block import DenseFFN
from crossearth_sar.vit.vit import VisionTransformer, ViTConfig, ViTOutput

__all__ = ["DenseFFN", "ViTConfig", "ViTOutput", "VisionTransformer"]
