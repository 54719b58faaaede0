"""An objective of a few lines: learn the mean image. What a run needs to know of an objective, no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.engine.objectives.base import Batch, Forward, Load, Losses, Objective


class MeanImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.zeros(1, 8, 8))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        return image - self.image


class LearnTheMeanImage(Objective):
    best_by = "closeness"

    def build(self, *, from_start: bool) -> nn.Module:
        return MeanImage()

    def batches(self, load: Load) -> Iterable[Batch]:
        return load(Ramps(), torch.utils.data.default_collate)

    def losses(self, forward: Forward, model: nn.Module, part: Batch) -> Losses:
        noise = 0.1 * torch.rand(8, 8)  # what the run's seeds decide
        loss = (forward(part["image"]) + noise).square().mean()
        return Losses(loss, {"loss": loss})

    def score(self, model: nn.Module) -> dict[str, float]:
        return {"closeness": -float((model.image.detach() - Ramps().mean).abs().mean())}


class Ramps(torch.utils.data.Dataset[dict[str, Any]]):
    """Draw n: a ramp, n % 5 higher than the lowest."""

    mean = torch.arange(64.0).view(1, 8, 8) / 64 + 2

    def __getitem__(self, draw: int) -> dict[str, Any]:
        return {"image": self.mean - 2 + draw % 5, "name": f"ramp {draw}"}
