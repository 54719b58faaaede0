"""DI3CL as an objective of a run: a backbone learns from pairs of views of images without labels.

The method is selfsup/di3cl.py. Here it meets what a run is: domains, parts of a batch, ranks, checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.data.domain import open_domain
from crossearth_sar.data.stream import TrainStream
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks, sum_over_ranks
from crossearth_sar.engine.executors.base import Executor
from crossearth_sar.engine.flop import forward_flop, tokens_per_image
from crossearth_sar.engine.objectives.base import Batch, Finished, Forward, Load, Losses, Objective
from crossearth_sar.engine.objectives.di3cl_probe import ProbeDomains, open_probe
from crossearth_sar.engine.objectives.di3cl_report import write_report
from crossearth_sar.engine.objectives.network import build_network, check_weights, count_parameters
from crossearth_sar.engine.planning.layout import run_model_config
from crossearth_sar.engine.resume import about_run, require_same_run
from crossearth_sar.errors import InputError
from crossearth_sar.model import save_model
from crossearth_sar.selfsup.di3cl import DI3CL, DI3CLTerms
from crossearth_sar.selfsup.pairs import Pair, PairTransform, join_pairs

STEPS = "steps"
"""Key of the number of optimizer steps done in the objective's state."""


class SelfSupervised(Objective):
    """Building it opens and checks data, settings and weights; nothing is computed yet.

    Args:
        config: the run; `config.selfsup` is set.
        ranks: this process among the others.
        goes_on: a checkpoint's weights follow, so that those of step 0 need not be there any more.

    Raises:
        InputError: for data, settings or weights that cannot work.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, *, goes_on: bool = False) -> None:
        assert config.selfsup is not None
        self.config, self.ranks, self.selfsup = config, ranks, config.selfsup
        if not goes_on:
            check_weights(config)
        self.model_config = run_model_config(config, num_classes=1)
        if config.train is None:
            raise InputError(
                "the run names no images",
                expected="train: {name: …, folder: {…}}, or simulated, official, mixture",
                fix="add train to the config; docs/SELF_SUPERVISED.md",
            )
        pixel_m = self.model_config.pixel_m
        self.images = open_domain(config.train, config.data_root, pixel_m, labels=False)
        self.probe: ProbeDomains | None = open_probe(config, self.images, pixel_m)
        self.steps = 0
        self._trained: DI3CL | None = None

    def build(self, *, from_start: bool) -> DI3CL:
        encoder = build_network(self.config, self.model_config, with_weights=from_start)
        encoder.contract = self.images.contract()
        self.counts = count_parameters(encoder)
        network = DI3CL(encoder, self.selfsup.method)
        if self._trained is None:  # a second one is the executor's copy for scoring
            self._trained = network
        return network

    @property
    def trained(self) -> DI3CL:
        """The network that trains on this rank, with its key network and queues."""
        assert self._trained is not None, "built when the run started"
        return self._trained

    def transform(self) -> PairTransform:
        """What makes the pairs of the run."""
        return PairTransform(
            self.selfsup.views,
            self.selfsup.method,
            size=self.model_config.crop_size,
            smallest=self.trained.smallest_box,
            pixel_m=self.model_config.pixel_m,
        )

    def batches(self, load: Load) -> Iterable[Batch]:
        stream: TrainStream[Pair] = TrainStream(self.images, self.transform(), self.config.seed)
        return load(stream, join_pairs)

    def prepare(self, parts: list[Batch]) -> list[Batch]:
        """Adds the boxes of a part in the mean over all parts and ranks: a box counts the same in any."""
        self.trained.begin_step()
        boxes = torch.stack([part["valid"].sum() for part in parts]).sum().double().to(self.ranks.device)
        mean = (sum_over_ranks(boxes) / (len(parts) * self.ranks.size)).float()
        return [{**part, "mean_boxes": mean} for part in parts]

    def losses(self, forward: Forward, model: nn.Module, part: Batch) -> Losses:
        terms: DI3CLTerms = forward(part)
        values = {
            "loss": terms.total,
            "loss_global": terms.global_,
            "loss_contour": terms.contour,
            "loss_region": terms.region,
            "loss_balance": terms.balance,
            **terms.values,
        }
        return Losses(terms.total, values)

    def after_step(self, executor: Executor) -> None:
        """New keys into the queues; then the key network follows.

        Raises:
            CollapseError: on all ranks, for embeddings that have become one.
        """
        self.steps += 1
        self.trained.push_keys()
        rounded = any(p.dtype != torch.float32 for p in executor.module.parameters())
        momentum = self.selfsup.method.momentum_at(self.steps / self.config.steps)
        self.trained.update_keys(momentum, executor.weights() if rounded else None)

    def state(self) -> dict[str, Tensor]:
        return {**self.trained.state(), STEPS: torch.tensor(self.steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state[STEPS])
        self.trained.load_state({name: value for name, value in state.items() if name != STEPS})

    def about(self) -> dict[str, Any]:
        return about_run(self.model_config, {"train": self.images})

    def check_about(self, before: dict[str, Any]) -> None:
        require_same_run(before, self.about(), self.config)

    def save_result(self, model: nn.Module, folder: Path) -> None:
        """The backbone alone: what `weights=` takes."""
        assert isinstance(model, DI3CL)
        save_model(model.encoder, folder)

    def meter_images(self) -> tuple[int, float]:
        """Of a pair: the query trains, three forward passes, and the key network's is a fourth."""
        return 2 * tokens_per_image(self.model_config), 4 / 3 * forward_flop(self.model_config)

    def describe(self, model: nn.Module) -> list[str]:
        assert isinstance(model, DI3CL)
        config, size = self.config, self.model_config.crop_size
        heads = sum(p.numel() for p in model.parameters()) - self.counts.backbone
        lines = [
            f"{config.preset}, DI3CL: a backbone of {self.counts.backbone:,} parameters, {heads:,} in heads, "
            "and a key network as large",
            f"weights {config.weights or 'none: the backbone is as initialised'}; {config.steps} steps of "
            f"{config.batch_size} pairs of {size} pixels on {self.images.name} ({len(self.images)} images, "
            "no label is used)",
            *model.words(len(self.images)),
        ]
        if self.probe is not None:
            scored = ", ".join(f"{domain.name} ({len(domain)})" for domain in self.probe.scored)
            lines.append(f"probe: labels of {self.probe.labelled.name}, scored on {scored}")
        return lines

    def report(self, finished: Finished, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, DI3CL)
        pairs = TrainStream(self.images, self.transform(), self.config.seed)
        return write_report(finished, self.config, self.probe, self.ranks, model, pairs)
