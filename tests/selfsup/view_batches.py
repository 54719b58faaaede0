"""Encoders of the smallest size, and batches of two views whose boxes fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from micro_model import MICRO
from torch import Tensor

from crossearth_sar import CrossEarthSAR, build_model
from crossearth_sar.selfsup.boxes import sample_boxes
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.di3cl import DI3CL
from crossearth_sar.selfsup.render import render
from crossearth_sar.selfsup.views import draw_view

SIZE = 32
Batch = dict[str, Tensor]


def micro_encoder(*, sparse: bool = False, decoder: dict[str, Any] | None = None) -> CrossEarthSAR:
    torch.manual_seed(0)
    vit = {"dim": 16, "depth": 4, "num_heads": 2, "image_size": SIZE, "stem": ()}
    changes = {**MICRO, "vit": vit, "decoder": decoder, "crop_size": SIZE, "crop_stride": SIZE}
    return build_model("crossearth_sar_tiny", 2, changes=changes, sparse=sparse)


def micro_resnet(norm: str = "batch") -> CrossEarthSAR:
    torch.manual_seed(0)
    resnet = {"depths": [1, 1, 1, 1], "width": 4, "norm": norm}
    changes = {"resnet": resnet, "decoder": None, "crop_size": 64, "crop_stride": 64}
    return build_model("resnet50", 2, changes=changes)


def micro_di3cl(*, sparse: bool = False, **changes: Any) -> DI3CL:
    encoder = micro_encoder(sparse=sparse)
    torch.manual_seed(1)
    config = {"queue_length": 24, "hidden_dim": 12, "output_dim": 6, "collapse_std": 0.0, **changes}
    return DI3CL(encoder, DI3CLConfig(**config)).train()


def view_batch(images: int, *, without: tuple[int, ...] = (), seed: int = 0, size: int = SIZE) -> Batch:
    """Speckled images of random steps, two views of each; `without` have no box."""
    random, torch_random = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    rows: list[Batch] = []
    for index in range(images):
        steps = 0.2 + torch.rand(1, 6, 5, generator=torch_random)
        speckle = torch.rand(1, 60, 50, generator=torch_random) + 0.5
        image = steps.repeat_interleave(10, 1).repeat_interleave(10, 2) * speckle
        query, key = (draw_view(random, 50, 60, size=size, area=(0.5, 1.0)) for _ in range(2))
        boxes = sample_boxes(query, key, random, smallest=8)[: 0 if index in without else None]
        row = {"valid": torch.arange(10) < len(boxes)}
        for name, view in (("query", query), ("key", key)):
            there = torch.zeros(10, 4)
            there[: len(boxes)] = torch.from_numpy(view.to_view(boxes)).float()
            row[f"{name}_boxes"], row[f"{name}_image"] = there, render(image, view)[0]
            row[f"{name}_mean"], row[f"{name}_std"] = torch.tensor([-4.0]), torch.tensor([6.0])
        row["mirrored"] = torch.tensor([query.flip_x != key.flip_x, query.flip_y != key.flip_y])
        rows.append(row)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def every(batch: Batch, start: int, step: int) -> Batch:
    """Every `step`-th image from `start` on: a rank's share."""
    return {name: value[start::step] for name, value in batch.items()}
