"""Means of feature maps over boxes, without torchvision: the weight of a cell is a product of one weight per
axis, so that all boxes of an image are two matrix products, on any device and with a gradient.

N images, K boxes, D channels, h w cells of a map, G parts of a box along an axis.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crossearth_sar.selfsup.losses import at_least_float32

Pooling = Literal["area", "roi_align"]


def region_means(maps_NDhw: Tensor, boxes_NK4: Tensor, size: int, pooling: Pooling = "area") -> Tensor:
    """(N, K, D), float32 at least: what the map holds, on average, inside each box.

    Args:
        boxes_NK4: x0, y0, x1, y1 in pixels of the view; what lies outside the view is left out, and a box
            wholly outside it or without an area has 0.
        size: side of the view, pixels, that the map covers.
        pooling: area takes each cell by the share of the box that it covers; roi_align is RoIAlign with one
            bin (`roi_align_weights`).
    """
    height, width = maps_NDhw.shape[-2:]
    weights = area_weights if pooling == "area" else roi_align_weights
    columns_NKw = weights(boxes_NK4[..., 0], boxes_NK4[..., 2], size, width)
    rows_NKh = weights(boxes_NK4[..., 1], boxes_NK4[..., 3], size, height)
    return _weighed(maps_NDhw, rows_NKh[:, :, None], columns_NKw[:, :, None])[:, :, 0, 0]


def region_grids(maps_NDhw: Tensor, boxes_NK4: Tensor, size: int, grid: int) -> Tensor:
    """(N, K, G, G, D): `region_means` by area of each box's grid x grid equal parts, rows first."""
    height, width = maps_NDhw.shape[-2:]
    steps = torch.arange(grid + 1, device=boxes_NK4.device) / grid
    low, high = at_least_float32(boxes_NK4)[..., None].tensor_split(2, dim=2)
    edges_x, edges_y = (low + (high - low) * steps).unbind(2)
    columns = area_weights(edges_x[..., :-1], edges_x[..., 1:], size, width)
    rows = area_weights(edges_y[..., :-1], edges_y[..., 1:], size, height)
    return _weighed(maps_NDhw, rows, columns)


def area_weights(low: Tensor, high: Tensor, size: int, cells: int) -> Tensor:
    """(…, cells): the share of the interval low..high, view pixels, that lies in each of the map's cells."""
    low, high = (at_least_float32(end)[..., None] * (cells / size) for end in (low, high))
    first = torch.arange(cells, device=low.device)
    covered = (torch.minimum(high, first + 1) - torch.maximum(low, first)).clamp(min=0)
    total = covered.sum(-1, keepdim=True)
    return covered / torch.where(total > 0, total, 1)


def roi_align_weights(low: Tensor, high: Tensor, size: int, cells: int) -> Tensor:
    """(…, cells): the weights of RoIAlign's samples, as the published method takes them.

    One bin; positions are those of cells' middles («aligned»); as many samples as the interval is cells
    long, rounded up; each is interpolated linearly between two cells.
    """
    low, high = (at_least_float32(end) * (cells / size) - 0.5 for end in (low, high))
    number = (high - low).ceil().clamp(1, cells + 1)[..., None]
    index = torch.arange(cells + 1, device=low.device)
    sample = low[..., None] + (index + 0.5) * (high - low)[..., None] / number
    taken = (index < number) & (sample >= -1) & (sample <= cells)
    place = sample.clamp(0, cells - 1)[..., None]
    hat = (1 - (place - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    return (hat * taken[..., None]).sum(-2) / number


def _weighed(maps_NDhw: Tensor, rows_NKGh: Tensor, columns_NKGw: Tensor) -> Tensor:
    """(N, K, G, G, D). In float32 also under autocast: a box's edge between cells needs its bits."""
    maps = at_least_float32(maps_NDhw)
    with torch.autocast(maps.device.type, enabled=False):
        by_rows = torch.einsum("nkgh,ndhw->nkgdw", rows_NKGh.to(maps), maps)
        return torch.einsum("nkgdw,nkfw->nkgfd", by_rows, columns_NKGw.to(maps))
