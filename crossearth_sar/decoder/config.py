"""What a decoder is: its kind, sizes and weights. Needs nothing but this file to be read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crossearth_sar.config import require, require_range


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and weights; the defaults are Mask2Former's of METHOD sec. 3.

    The kinds that give classes per pixel (fpn, upernet, linear) read `channels`, `norm`, `maps` and the
    weights of class, dice and auxiliary loss alone, as each says.
    """

    kind: Literal["mask2former", "fpn", "upernet", "linear"] = "mask2former"
    """mask2former: masks and their classes from queries, for S, B and L. fpn: classes per pixel from a
    feature pyramid, at a fraction of the cost, for small models. upernet: pyramid pooling and a pyramid of
    wide convolutions, under which DI3CL and SARMAE compare. linear: a linear classifier of each position,
    which shows what the backbone knows."""

    num_queries: int = 100
    """Queries, each of which gives one mask and its class."""

    channels: int = 256
    """Width of pixel decoder, masks and queries; a multiple of 32 (its group norms) and of num_heads. Of an
    fpn the width at its coarsest stride, of an upernet that of all its convolutions (512 as published), a
    multiple of 16."""

    norm: Literal["group", "batch"] = "group"
    """Of an upernet. group: by each image's own values, so that a pass of one image is like any other.
    batch: by the images of a pass on a rank, as published; wants several."""

    maps: Literal["deepest", "all"] = "deepest"
    """What a linear decoder classifies: the deepest feature map, or the last four."""

    num_heads: int = 8
    """Heads of all its attentions."""

    pixel_layers: int = 6
    """Deformable-attention layers of the pixel decoder."""

    pixel_ffn_dim: int = 1024
    """Hidden width of their FFNs."""

    query_layers: int = 9
    """Masked-attention layers after the initial prediction."""

    query_ffn_dim: int = 2048
    """Hidden width of their FFNs."""

    num_points: int = 12544
    """Points sampled per mask in loss and matching."""

    oversample_ratio: float = 3.0
    """So many times more points are drawn at random for the loss, of which the uncertain ones are chosen."""

    importance_ratio: float = 0.75
    """Share of the loss's points that are the uncertain ones; the rest are drawn anew at random."""

    class_weight: float = 2.0
    """Weight of the classification loss; of classes per pixel, of the cross-entropy."""

    mask_weight: float = 5.0
    """Weight of the per-point mask loss."""

    dice_weight: float = 5.0
    """Weight of the dice loss."""

    auxiliary_weight: float = 0.0
    """Of an upernet: weight of the cross-entropy of a second head on the map before the deepest, 0.4 as
    published; 0 for none."""

    no_object_weight: float = 0.1
    """Weight of the class «no object» inside the classification loss."""

    def __post_init__(self) -> None:
        require_range(self, "decoder.", 1, 65536, "num_queries", "channels", "pixel_ffn_dim", "query_ffn_dim")
        require_range(self, "decoder.", 1, 128, "num_heads", "pixel_layers", "query_layers")
        require_range(self, "decoder.", 1, 1 << 24, "num_points")
        require_range(self, "decoder.", 1, 1000, "oversample_ratio")
        require_range(self, "decoder.", 0, 1, "importance_ratio")
        weights = ("class_weight", "mask_weight", "dice_weight", "no_object_weight", "auxiliary_weight")
        require_range(self, "decoder.", 0, 1e6, *weights)
        if self.kind != "mask2former":
            require(self.channels % 16 == 0, "decoder.channels", self.channels, "a multiple of 16")
            return
        require(
            self.channels % 32 == 0 and self.channels % self.num_heads == 0,
            "decoder.channels",
            self.channels,
            f"a multiple of 32 and of num_heads = {self.num_heads}",
        )
