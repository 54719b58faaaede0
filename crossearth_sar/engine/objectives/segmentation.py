"""Segmentation: pre-training, a decoder on a frozen backbone, an adapter, or all of a model, with labels.

B images of a part, H W pixels, L layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.data.sample import Sample
from crossearth_sar.data.stream import TrainStream, join_samples
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform, center_crop_or_pad
from crossearth_sar.data.views import View
from crossearth_sar.data.working_scale import at_working_scale
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.flop import forward_flop, tokens_per_image
from crossearth_sar.engine.objectives.base import Batch, Finished, Forward, Load, Losses, Objective
from crossearth_sar.engine.objectives.batch_loss import part_weights, weigh, with_global_shares
from crossearth_sar.engine.objectives.domains import evaluate_together, open_domains
from crossearth_sar.engine.objectives.feature_cache import FeatureCache, join_features
from crossearth_sar.engine.objectives.network import (
    build_network,
    check_weights,
    count_parameters,
    frozen_backbone,
)
from crossearth_sar.engine.objectives.segmentation_report import write_report
from crossearth_sar.engine.planning.layout import run_model_config
from crossearth_sar.engine.resume import about_run, require_same_run
from crossearth_sar.engine.throughput import balance_columns
from crossearth_sar.model import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CrossEarthSAR,
    ModelOutput,
    eval_mode,
    save_config,
    save_model,
)

NETWORK_INPUTS = ("image", "db_mean", "db_std")


class Segmentation(Objective):
    """Building it opens and checks data, settings and weights; nothing is computed yet.

    Args:
        config: the run.
        ranks: this process among the others.
        ep_size: ranks that share one set of experts, for the columns of balance.
        goes_on: a checkpoint's weights follow, so that those of step 0 need not be there any more.

    Raises:
        InputError: for data, settings or weights that cannot work.
    """

    best_by = "miou"

    def __init__(self, config: RunConfig, ranks: Ranks, *, ep_size: int = 1, goes_on: bool = False) -> None:
        self.config, self.ranks, self.ep_size = config, ranks, ep_size
        if not goes_on or config.mode != "full":
            check_weights(config)
        model = run_model_config(config, num_classes=1)  # wrong settings are found before data are opened
        self.decoder_config = model.require_decoder()
        self.domains = open_domains(config, model.pixel_m)
        self.classes = self.domains.classes
        self.model_config = run_model_config(config, num_classes=len(self.classes))

    def build(self, *, from_start: bool) -> CrossEarthSAR:
        frozen_from_elsewhere = self.config.mode != "full"
        model = build_network(
            self.config, self.model_config, with_weights=from_start or frozen_from_elsewhere
        )
        model.name_classes(self.classes.names, self.classes.palette)
        model.contract = self.domains.train.contract()
        self.counts = count_parameters(model)
        if from_start or frozen_from_elsewhere:
            self._frozen = model
        return model

    def frozen(self, model: nn.Module) -> set[str]:
        """The backbone without its adapter, unless all trains."""
        if self.config.mode == "full":
            return set()
        return frozen_backbone(model)

    def batches(self, load: Load) -> Iterable[Batch]:
        size, augment = self.model_config.crop_size, self.config.augment
        pixel_m = self.model_config.pixel_m
        transform = (
            _Centre(AugmentConfig(crop_size=size), pixel_m)
            if augment is None
            else TrainTransform(replace(augment, crop_size=size), pixel_m)
        )
        stream = TrainStream(self.domains.train, transform, self.config.seed)
        if self.config.cache_features:
            cache = FeatureCache(stream, self._features, self.config.cache_limit_gb)
            return load(cache, join_features, in_process=True)
        return load(stream, join_samples)

    @torch.no_grad()
    def _features(self, sample: Sample) -> list[Tensor]:
        """What the decoder would be given, on the host."""
        device = self.ranks.device
        inputs = [sample[key][None].to(device) for key in NETWORK_INPUTS]  # type: ignore[literal-required]
        with eval_mode(self._frozen):
            return [m[0].cpu() for m in self._frozen.features(*inputs).feature_maps]

    def prepare(self, parts: list[Batch]) -> list[Batch]:
        """Adds the weights of the losses: of all parts together it is one batch's loss."""
        weights = part_weights([part["mask"] for part in parts], self.decoder_config, self.ranks)
        return [
            {**part, "loss_weights": part_weights} for part, part_weights in zip(parts, weights, strict=True)
        ]

    def losses(self, forward: Forward, model: nn.Module, part: Batch) -> Losses:
        assert isinstance(model, CrossEarthSAR)
        if "maps" in part:
            output = forward(None, feature_maps=part["maps"])
        else:
            output = forward(*(part[key] for key in NETWORK_INPUTS))
        shares = [routing.expert_fraction for routing in output.routing]
        if self.config.parallel.balance == "global":
            output = with_global_shares(output, self.ranks)
        if self.config.mode != "full":
            output = ModelOutput(output.decoder, ())  # frozen routers are not balanced
        terms = weigh(model.loss(output, part["mask"]), part["loss_weights"])
        values = {
            "loss": terms.total,
            "loss_segmentation": terms.segmentation,
            "loss_balance": terms.balance,
            **{f"loss_{name}": value for name, value in terms.parts.items()},
            "share_LE": torch.stack(shares).float() if shares else terms.total.new_zeros(0, 0),
        }
        return Losses(terms.total, values)

    def columns(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        scalars = {name: float(value) for name, value in values.items() if name != "share_LE"}
        return {**scalars, **balance_columns(values["share_LE"], self.ep_size)}

    def train_mode(self, model: nn.Module) -> None:
        """A frozen backbone and its descriptor statistics stay in eval."""
        assert isinstance(model, CrossEarthSAR)
        model.train()
        if self.config.mode != "full":
            model.backbone.eval()
            model.standardizer.eval()
            model.local_standardizer.eval()

    def score(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, CrossEarthSAR)
        held_out, at_most = self.domains.validation, self.config.validation_samples
        scores = evaluate_together(model, held_out, self.ranks, at_most).confusion.scores()
        ious = zip(self.classes.names, scores.iou, strict=True)
        return {
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            **{f"iou_{name}": float(iou) for name, iou in ious},
        }

    def score_words(self, row: Mapping[str, float]) -> str:
        name = self.domains.validation.name
        occurs = [c for c in self.classes.names if not math.isnan(row[f"iou_{c}"])]
        if math.isnan(row["miou"]):
            return f"no mIoU: only {' and '.join(occurs) or 'ignored pixels'} in what was seen of {name}"
        of = f" of {len(occurs)} of {len(self.classes)} classes" * (len(occurs) < len(self.classes))
        return f"mIoU {row['miou']:.3f}{of} on {name}"

    def about(self) -> dict[str, Any]:
        data = {"train": self.domains.train, "validation": self.domains.validation}
        return about_run(self.model_config, data)

    def check_about(self, before: dict[str, Any]) -> None:
        require_same_run(before, self.about(), self.config)

    def save_model(self, model: nn.Module, folder: Path, weights: Mapping[str, Tensor]) -> list[str]:
        assert isinstance(model, CrossEarthSAR)
        save_model(model, folder, weights=weights)
        return [WEIGHTS_FILE, CONFIG_FILE]

    def write_config(self, model: nn.Module, folder: Path) -> list[str]:
        assert isinstance(model, CrossEarthSAR)
        save_config(model, folder)
        return [CONFIG_FILE]

    def meter_images(self) -> tuple[int, float]:
        return tokens_per_image(self.model_config), forward_flop(self.model_config)

    def describe(self, model: nn.Module) -> list[str]:
        assert isinstance(model, CrossEarthSAR)
        config = self.config
        unseen = ", ".join(f"{d.name} ({len(d)})" for d in self.domains.unseen) or "none"
        return [
            f"{config.preset}, mode {config.mode}: {self.counts}; {len(self.classes)} classes",
            f"weights {config.weights or 'none: the backbone is as initialised'}; {config.steps} steps of "
            f"{config.batch_size} images of {self.model_config.crop_size} pixels; "
            f"{forward_flop(self.model_config) / 1e9:.1f} GFLOP a forward pass of one image",
            f"train {self.domains.train.name} ({len(self.domains.train)} images), held out "
            f"{self.domains.validation.name} ({len(self.domains.validation)}), unseen {unseen}",
        ]

    def report(self, finished: Finished, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, CrossEarthSAR)
        return write_report(finished, self.config, self.domains, self.ranks, self.counts, model)


class _Centre(TrainTransform):
    """No augmentation: the sample about its centre, at the model's ground spacing."""

    def __call__(self, source: Sample | View, generator: torch.Generator) -> Sample:
        sample = source.whole() if isinstance(source, View) else source
        return center_crop_or_pad(at_working_scale(sample, self.pixel_m), self.size)
