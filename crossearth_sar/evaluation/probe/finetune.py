"""Few-label fine-tuning: the encoder trains on, with its linear probe as the head, on the same images.

The head starts as the probe that was fitted on the frozen features, so step 0 predicts what the probe does
and no head has to be learnt with the encoder's rate; features stay standardised by the statistics of step 0.
The encoder stays in eval mode: batch norms keep their statistics, which a handful of images could not give
better. The loss is the cross-entropy over labelled pixels of interpolated scores, and nothing beside; of
sparse models the balance loss is left out.

B batch, K classes of the draw, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from crossearth_sar.data.domain import Domain
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.data.stream import TrainStream, join_samples
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform
from crossearth_sar.evaluation.probe.budget import Budget, rate_at
from crossearth_sar.evaluation.probe.cells import joined_maps, working_sample
from crossearth_sar.evaluation.probe.encoder import Encoder
from crossearth_sar.evaluation.probe.fitting import Fitted
from crossearth_sar.evaluation.probe.linear import LinearProbe
from crossearth_sar.model import eval_mode

AUGMENT = AugmentConfig(scale_min=0.8, scale_max=1.25, max_class_share=1.0, gain_db=0.0)
"""Resizing by a quarter at most, and flips."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """steps, or seconds of the processor in place of them; AdamW with warm-up and decay of the rate."""

    steps: int = 100
    seconds: float | None = None
    batch_size: int = 8
    lr: float = 5e-4
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def budget(self) -> Budget:
        return Budget(steps=self.steps) if self.seconds is None else Budget(seconds=self.seconds)


@contextmanager
def fine_tuned(
    name: str, encoder: Encoder, start: Fitted, train: Domain, how: FineTuning
) -> Iterator[Fitted]:
    """Within, the encoder is trained on the images of a draw; after it its weights are as they were.

    Args:
        start: the linear probe of the draw, with whose weights the head starts.

    Raises:
        InputError: the encoder's maps are no maps.
    """
    module, probe = encoder.module, start.probe
    assert module is not None, "the table has looked"
    assert isinstance(probe, LinearProbe)
    before = {key: value.detach().clone() for key, value in module.state_dict().items()}
    try:
        head = [
            value.clone().to(encoder.device).requires_grad_() for value in (probe.weight_KD, probe.bias_K)
        ]
        _train(name, encoder, head, start, train, how)
        weight_KD, bias_K = (value.detach().cpu() for value in head)
        yield replace(start, method="finetune", probe=replace(probe, weight_KD=weight_KD, bias_K=bias_K))
    finally:
        module.load_state_dict(before)


def _train(
    name: str, encoder: Encoder, head: list[Tensor], start: Fitted, train: Domain, how: FineTuning
) -> None:
    module = encoder.module
    assert module is not None
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(_groups([*weights, *head], how.weight_decay), lr=0.0)
    stream = _stream(encoder, start, train)
    classes = torch.full((256,), IGNORE_INDEX)
    classes[start.present] = torch.arange(len(start.present))
    budget = how.budget()
    with eval_mode(module), torch.enable_grad():
        while budget.share < 1:
            with budget.step():
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(budget.share, how.lr)
                first = budget.done * how.batch_size
                batch = join_samples([stream[first + place] for place in range(how.batch_size)])
                logits_BKHW = _logits(name, encoder, start, head, batch)
                target_BHW = classes[batch["mask"]].to(logits_BKHW.device)
                total = F.cross_entropy(logits_BKHW, target_BHW, ignore_index=IGNORE_INDEX, reduction="sum")
                loss = total / (target_BHW != IGNORE_INDEX).sum().clamp(min=1)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_([*weights, *head], how.clip_norm)
                optimizer.step()


def _logits(name: str, encoder: Encoder, start: Fitted, head: list[Tensor], batch: dict[str, Any]) -> Tensor:
    """(B, K, H, W)."""
    image, mean, std = (batch[key].to(encoder.device) for key in ("image", "db_mean", "db_std"))
    maps_BDhw = joined_maps(name, encoder.maps(image, mean, std), len(image))
    probe = start.probe
    assert isinstance(probe, LinearProbe)
    centre, spread = (
        value.to(encoder.device)[:, None, None]
        for value in (probe.standardize.mean_D, probe.standardize.std_D)
    )
    scores = F.conv2d((maps_BDhw - centre) / spread, head[0][..., None, None], head[1])
    return F.interpolate(scores, image.shape[-2:], mode="bilinear", align_corners=False)


def _stream(encoder: Encoder, start: Fitted, train: Domain) -> TrainStream:
    """Crops of the window's side, or of the images' where they are smaller, in whole multiples."""
    images = list(start.draw.images)
    longest = max(working_sample(encoder, train[images[0]])["mask"].shape)
    side = min(encoder.window, longest + -longest % encoder.multiple)
    transform = TrainTransform(replace(AUGMENT, crop_size=side), encoder.pixel_m)
    few = Subset[Any](train, images)  # type: ignore[arg-type]
    return TrainStream(few, transform, start.draw.seed)  # type: ignore[arg-type]


def _groups(parameters: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
