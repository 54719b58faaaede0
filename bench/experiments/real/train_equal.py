"""Contenders trained on the same stream for the same processor time of one thread.

Seconds are `time.process_time`: reading or simulating, augmenting, forward, backward and the step count,
what is between them does not. All draw the same samples in the same order; who is faster sees more of them.
The learning rate warms up and decays by the share of the seconds that is spent, so at an intermediate point
it has not decayed. A contender that starts from the shipped weights has a lower one, and trains whole too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Subset

from bench.experiments.real.sets import RealSet
from bench.experiments.real.shipped_start import started_from_shipped
from bench.experiments.real.unet import PeerConfig, SmallUNet
from crossearth_sar.config import layered, parse_overrides
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.sample import Sample
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.data.stream import TrainStream, join_samples
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform
from crossearth_sar.engine.config import simulated_run
from crossearth_sar.engine.optim import parameter_groups
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.probe.budget import Budget, rate_at
from crossearth_sar.model import CrossEarthSAR, build_model
from crossearth_sar.presets import ModelConfig
from crossearth_sar.provenance import provenance

BATCH, RATE, WEIGHT_DECAY, CLIP_NORM = 8, 2e-3, 0.05, 1.0
FINE_TUNING_RATE = 5e-4
"""Of what starts from the shipped weights."""
CROP = 128
CONTENDERS = ("tiny", "dense", "unet")
"""From scratch. One more, shipped, is tiny from the shipped weights, on a real source."""
SOURCES = ("wide", "old", "ombria-tr")

Contender = CrossEarthSAR | SmallUNet


@dataclass(frozen=True)
class Source:
    """What is trained on: a domain, its augmentation, the ground spacing that models of it work at.

    images: so many of the domain's, drawn by the run's seed; None: all.
    """

    domain: DomainConfig
    augment: AugmentConfig
    pixel_m: float | None
    images: int | None = None


def open_source(name: str, sets: dict[str, RealSet], data: Path, images: int | None = None) -> Source:
    """wide: what the default run trains on. old: what it did before, kept here as it was. Else a real set, or
    so many `images` of it."""
    if name == "wide":
        run = simulated_run()
        assert run.train is not None
        assert run.augment is not None
        return Source(run.train, run.augment, run.model["pixel_m"])
    if name == "old":
        scenes = SimulatorConfig(
            length=4096, image_size=160, seed=1, region="temperate_north", band="C", polarization="HH",
            looks=4, resolution_m=3.0, ground="settlement",
        )  # fmt: skip
        augment = AugmentConfig(scale_min=0.8, scale_max=1.25, gain_db=1.0)
        return Source(DomainConfig(name="old", simulated=scenes), augment, None)
    augment = AugmentConfig(scale_min=0.8, scale_max=1.25, max_class_share=1.0, gain_db=0.0)
    return Source(sets[name].domain(data), augment, 10.0, images)


def build(contender: str, classes: Sequence[str], pixel_m: float | None) -> Contender:
    """A contender before its first step: one of CONTENDERS, tiny with settings (tiny+moe.local_physics=true),
    or shipped."""
    base, *settings = contender.split("+")
    if base == "unet":
        return SmallUNet(PeerConfig(len(classes), pixel_m))
    if base == "shipped":
        return started_from_shipped(classes, pixel_m)
    default = {**simulated_run().model, "pixel_m": pixel_m, "bands": None}
    changes = layered(ModelConfig, default, parse_overrides(settings))
    model = build_model("crossearth_sar_tiny", len(classes), changes=changes, sparse=base == "tiny")
    model.name_classes(classes)
    return model


def trained(
    contender: str, source: Source, seed: int, seconds: float, at: list[float], folder: Path
) -> dict[float, Contender]:
    """Seconds -> contender in eval mode, for each of `at` and for `seconds` itself; kept in `folder`."""
    points = sorted({*(point for point in at if point < seconds), seconds})
    domain = open_domain(source.domain, "", source.pixel_m)
    paths = {point: folder / f"at-{point:g}.safetensors" for point in points}
    if not all(path.is_file() for path in paths.values()):
        torch.manual_seed(seed)
        model = build(contender, domain.classes.names, source.pixel_m)
        peak = FINE_TUNING_RATE if contender == "shipped" else RATE
        spend(model, stream_of(domain, source, seed), seconds, points, folder, peak)
    found = {}
    for point, path in paths.items():
        model = build(contender, domain.classes.names, source.pixel_m)
        model.load_state_dict(load_file(path))
        found[point] = model.eval()
    return found


def stream_of(domain: Domain, source: Source, seed: int) -> TrainStream[Sample]:
    """The samples of a run, the same for every contender."""
    transform = TrainTransform(replace(source.augment, crop_size=CROP), source.pixel_m)
    if source.images is None:
        return TrainStream(domain, transform, seed)
    few = Subset(domain, drawn(len(domain), source.images, seed))  # type: ignore[arg-type]
    return TrainStream(few, transform, seed)  # type: ignore[arg-type]


def drawn(length: int, images: int, seed: int) -> list[int]:
    """The first so many of an order that the seed decides: a smaller draw is part of a larger one.

    Raises:
        InputError: there are not so many.
    """
    if not 1 <= images <= length:
        raise InputError("so many labelled images cannot be drawn", got=images, expected=f"1 to {length}")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return order[:images].tolist()


def spend(
    model: Contender,
    stream: TrainStream[Sample],
    seconds: float,
    points: list[float],
    folder: Path,
    peak: float,
) -> None:
    """Trains for `seconds` and leaves the weights of each point, and log.json, in `folder`.

    Args:
        peak: the learning rate after warm-up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(decay_groups(model), lr=0.0)
    model.train()
    budget, left, log, loss = Budget(seconds=seconds), list(points), [], 0.0
    while left:
        with budget.step():
            rate = rate_at(budget.share, peak)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = join_samples([stream[budget.done * BATCH + place] for place in range(BATCH)])
            total = loss_of(model, batch["image"], batch["db_mean"], batch["db_std"], batch["mask"])
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            loss = float(total.detach())
        while left and budget.spent >= left[0]:
            point = left.pop(0)
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(state, folder / f"at-{point:g}.safetensors")
            log.append({"seconds": point, "step": budget.done, "loss": loss})
            print(f"{folder.name}: {point:g} s, step {budget.done}, loss {loss:.3f}", flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    about = {"parameters": parameters, "rate": peak, "images": len(stream.dataset), "points": log}
    about |= provenance()
    (folder / "log.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def loss_of(model: Contender, image: Tensor, mean: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    if isinstance(model, SmallUNet):
        return model.loss(model(image, mean, std), mask)
    return model.loss(model(image, mean, std), mask).total


def decay_groups(model: Contender) -> list[dict]:
    """Weights decay, norms and biases do not."""
    if isinstance(model, CrossEarthSAR):
        return parameter_groups(model, WEIGHT_DECAY)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
