"""The settings of DI3CL: what is compared, how strongly, and against how many negatives.

The defaults of weights, temperature, queue and heads are those of the published method's code; with
`contour_weight` and `region_weight` 0 it is MoCo v2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from crossearth_sar.config import require

Norm = Literal["none", "layer", "batch"]


@dataclass(frozen=True, kw_only=True)
class DI3CLConfig:
    """Global InfoNCE, contour consistency (CC) and dynamic instances (DI) between a query and a key view."""

    global_weight: float = 0.8
    """Weight of the InfoNCE between image vectors of the deep map; 0 leaves it out."""

    contour_weight: float = 0.2
    """Weight of the loss on the shallow map; 0 switches CC off, its head and queue are not built."""

    region_weight: float = 5.0
    """Weight of the agreement of boxes seen in both views; 0 switches DI off, its heads are not built."""

    temperature: float = 0.2
    """Divides the cosines of both InfoNCE losses; MoCo v2's."""

    queue_length: int = 65536
    """Keys kept as negatives in each queue, a multiple of the batch of all ranks. Longer than the data set,
    it holds an image's own earlier keys as negatives."""

    momentum: float = 0.999
    """Share of itself that the key network keeps each step."""

    momentum_rises: bool = False
    """Whether `momentum` is the start of half a cosine that ends at 1 with the last step: for short runs,
    from 0.99."""

    hidden_dim: int = 2048
    """Hidden width of every head."""

    output_dim: int = 128
    """Width of the vectors that are compared."""

    head_norm: Norm = "none"
    """Norm of the hidden layer of the global and the contour head: none as published, layer, or batch
    (statistics over all ranks)."""

    region_norm: Norm | None = None
    """That of the region projector and predictor; batch has the statistics of all ranks' boxes. null: batch,
    as published, on a ResNet, and layer on a ViT."""

    image_vector: Literal["mean", "cls"] = "mean"
    """What the global head is given: the mean over the deep map, or the CLS token, which a ResNet has not."""

    contour: Literal["infonce", "edges"] = "infonce"
    """What CC is. infonce is the published one: the mean over the shallow map in an InfoNCE of its own, in
    which nothing is about contours. edges is this project's: from the query's shallow map the edges of the
    key view inside each box are predicted, as log ratios of averages of neighbouring cells."""

    contour_map: int | None = None
    """Index of the shallow map among the backbone's feature maps. null: on a ViT the second of its blocks'
    maps, on a ResNet the third stage, the published one; its second, 1, is shallower."""

    region_pooling: Literal["area", "roi_align"] = "area"
    """How a box is averaged over the cells of the deep map: area, each cell by its share of the box, or
    roi_align, the published one."""

    edge_grid: int = 4
    """Cells a side in which a box is looked at for edges."""

    boxes: int = 10
    """Boxes drawn in the overlap of the two views, at most."""

    smallest_box: float | None = None
    """Least side of a box in either view, pixels of the view. null: one cell of the deep map."""

    max_iou: float = 0.5
    """Boxes of an image overlap by less than this."""

    shuffle_keys: bool = True
    """Whether key images go through another rank's network where it has BatchNorm, so that what a batch
    shares does not tell which key belongs to which query. On one rank this needs `key_group`."""

    key_group: int | None = None
    """Images that share BatchNorm statistics in the key network; the rank's batch is divided into such groups
    after shuffling. null: all of a rank's pass."""

    collapse_std: float = 0.01
    """Training stops when the standard deviation of the unit embeddings is below this; 0 never stops. Of
    independent directions it would be 1 / sqrt(output_dim), 0.088 of 128."""

    collapse_steps: int = 100
    """So many steps in a row: an encoder from scratch begins with embeddings that are nearly one."""

    def __post_init__(self) -> None:
        weights = (self.global_weight, self.contour_weight, self.region_weight)
        name = "global_weight, contour_weight, region_weight"
        require(all(0 <= w < math.inf for w in weights), name, weights, "0 or more")
        require(any(weights), name, weights, "at least one above 0")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "above 0")
        require(0 <= self.momentum <= 1, "momentum", self.momentum, "in [0, 1]")
        for field in ("queue_length", "hidden_dim", "output_dim", "boxes", "collapse_steps"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        require(self.edge_grid >= 2, "edge_grid", self.edge_grid, "at least 2: an edge is between two cells")
        smallest, group, contour_map = self.smallest_box, self.key_group, self.contour_map
        require(smallest is None or smallest > 0, "smallest_box", smallest, "above 0, or null")
        require(0 < self.max_iou <= 1, "max_iou", self.max_iou, "in (0, 1]")
        require(group is None or group >= 2, "key_group", group, "at least 2 images, or null")
        require(contour_map is None or contour_map >= 0, "contour_map", contour_map, "0 or more, or null")
        require(0 <= self.collapse_std < 1, "collapse_std", self.collapse_std, "in [0, 1)")

    def momentum_at(self, progress: float) -> float:
        """The key network's momentum at `progress` of the run, 0 to 1."""
        if not self.momentum_rises:
            return self.momentum
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
