"""A model on a domain: confusion matrix and expert shares, in one pass over its samples.

L layers, E experts, C classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from crossearth_sar.data.sample import Sample, SegmentationDataset
from crossearth_sar.data.working_scale import at_working_scale
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.ground_scale import classes_at
from crossearth_sar.model import CrossEarthSAR, ModelOutput, eval_mode
from crossearth_sar.network_input import checked_amplitude, statistics_of


@dataclass
class Evaluation:
    """What one pass gives; sums, so that those of several ranks can be added.

    confusion: of predictions against labels. tokens_LE: routed tokens per layer and expert, (0, 0) for a
    dense model.
    """

    confusion: ConfusionMatrix
    tokens_LE: Tensor

    @property
    def expert_share_LE(self) -> Tensor:
        """(L, E), each row summing to 1."""
        return self.tokens_LE / self.tokens_LE.sum(1, keepdim=True).clamp(min=1)


def evaluate(model: CrossEarthSAR, dataset: SegmentationDataset, indices: Iterable[int]) -> Evaluation:
    """Predicts the samples `indices` of `dataset` one by one, whole (slide inference where larger than the
    crop), and compares with their labels."""
    device = next(model.parameters()).device
    config = model.config
    layers, experts = (config.vit.depth, config.moe.num_experts) if config.vit and config.moe else (0, 0)
    result = Evaluation(
        ConfusionMatrix(config.num_classes, device=device),
        torch.zeros(layers, experts, dtype=torch.float64, device=device),
    )

    def count_tokens(output: ModelOutput) -> None:
        for layer, routing in enumerate(output.routing):
            routed = routing.expert_fraction.double() * routing.expert_index.numel()
            result.tokens_LE[layer] += routed.round()

    for index in indices:
        sample = dataset[index]
        prediction = predict_sample(model, sample, count_tokens)
        result.confusion.update(prediction, sample["mask"].to(device))
    return result


@torch.no_grad()
def sample_scores(
    model: CrossEarthSAR, sample: Sample, on_window: Callable[[ModelOutput], None] | None = None
) -> Tensor:
    """(K, h, w) scores of one sample at the model's spacing, normalised by the statistics it carries or else
    by its own; interpolated to its pixels, the largest is the class it predicts."""
    device = next(model.parameters()).device
    working = at_working_scale(sample, model.config.pixel_m)
    amplitude = checked_amplitude(working["image"][None], model.config.bands).to(device)
    mean, std = statistics_of(amplitude, *_statistics(sample, device))
    with eval_mode(model):
        return model.slide_scores(amplitude, mean, std, on_window)[0]


def _statistics(sample: Sample, device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Those the sample carries, (1, C) each."""
    mean, std = sample.get("db_mean"), sample.get("db_std")
    return (None, None) if mean is None or std is None else (mean[None].to(device), std[None].to(device))


def predict_sample(
    model: CrossEarthSAR, sample: Sample, on_window: Callable[[ModelOutput], None] | None = None
) -> Tensor:
    """(H, W) int64 classes of one sample, see `sample_scores`.

    A sample that knows its ground spacing is seen at the model's, as in training; the classes are of its own
    pixels.
    """
    size = (sample["mask"].shape[0], sample["mask"].shape[1])
    return classes_at(sample_scores(model, sample, on_window), size)
