"""One of DI3CL's two networks: encoder, what is pooled from its maps, and the heads that both have.

N images, C bands, S pixels, K boxes, D channels, G parts of a box along an axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.encoders import Encoder
from crossearth_sar.selfsup.heads import Head
from crossearth_sar.selfsup.losses import unit
from crossearth_sar.selfsup.regions import region_grids, region_means


class Pooled(NamedTuple):
    """Before the heads: vector (N, D) of the deep map, shallow (N, D') mean of the shallow one, regions
    (N, K, D) means over boxes of the deep one, parts (N, K, G, G, D') of the shallow one. What no loss needs
    is None."""

    vector: Tensor
    shallow: Tensor | None
    regions: Tensor | None
    parts: Tensor | None
    routing: tuple[Any, ...]


class Vectors(NamedTuple):
    """Unit vectors: global_ and contour (N, D), regions (N, K, D); projected are the latter before they were
    made units. None where switched off."""

    global_: Tensor | None
    contour: Tensor | None
    regions: Tensor | None
    projected: Tensor | None


class Network(nn.Module):
    """Encoder, global and contour head and region projector, as far as their losses have a weight."""

    def __init__(self, model: CrossEarthSAR, config: DI3CLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder = Encoder(model, config)
        hidden, out = config.hidden_dim, config.output_dim
        self.region_norm = config.region_norm or ("layer" if encoder.is_vit else "batch")
        """Norm of the region heads."""
        self.global_head = self.contour_head = self.region_projector = None
        if config.global_weight:
            self.global_head = Head(encoder.deep_dim, hidden, out, config.head_norm)
        if contrasts_contours(config):
            self.contour_head = Head(encoder.shallow_dim, hidden, out, config.head_norm)
        if config.region_weight:
            self.region_projector = Head(encoder.deep_dim, hidden, out, self.region_norm)

    def pool(
        self, image_NCSS: Tensor, db_mean: Tensor, db_std: Tensor, boxes_NK4: Tensor, *, parts: bool
    ) -> Pooled:
        """parts: whether boxes are also looked at in parts, for their edges."""
        config, size = self.config, image_NCSS.shape[-1]
        features = self.encoder(image_NCSS, db_mean, db_std)
        mean, regions, grids = None, None, None
        if features.shallow is not None and self.contour_head is not None:
            mean = features.shallow.mean((2, 3))
        if features.shallow is not None and parts:
            grids = region_grids(features.shallow, boxes_NK4, size, config.edge_grid)
        if self.region_projector is not None:
            regions = region_means(features.deep, boxes_NK4, size, config.region_pooling)
        return Pooled(features.vector, mean, regions, grids, features.routing)

    def heads(self, pooled: Pooled, valid_NK: Tensor) -> Vectors:
        """A collective call where a head has batch statistics."""
        projected, shallow = None, pooled.shallow
        if self.region_projector is not None and pooled.regions is not None:
            rows = self.region_projector(pooled.regions.flatten(0, 1), valid_NK.flatten())
            projected = rows.view(*valid_NK.shape, -1)
        return Vectors(
            global_=unit(self.global_head(pooled.vector)) if self.global_head is not None else None,
            contour=unit(self.contour_head(shallow)) if self.contour_head is not None else None,
            regions=unit(projected) if projected is not None else None,
            projected=projected,
        )


def contrasts_contours(config: DI3CLConfig) -> bool:
    """Whether the contour loss is an InfoNCE, with a head in both networks and a queue."""
    return config.contour_weight > 0 and config.contour == "infonce"


def predicts_edges(config: DI3CLConfig) -> bool:
    """Whether the contour loss is about edges."""
    return config.contour_weight > 0 and config.contour == "edges"
