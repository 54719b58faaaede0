"""Fine-tuning on one device: a frozen backbone with a new decoder, an Earth-Adapter on it, or all of it.

A plain loop: no launcher, no DeepSpeed. As in engine/loop.py, what a step computes depends on (config, step)
alone, so a resumed run repeats an uninterrupted one. Everything is float32.

B batch, H W pixels.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from crossearth_sar.config import merge, require, to_mapping, write_yaml
from crossearth_sar.data.domain import (
    Domain,
    DomainConfig,
    open_domain,
    require_held_out,
    require_labels,
    require_same_classes,
)
from crossearth_sar.data.sample import Sample
from crossearth_sar.data.stream import ShardedDraws, TrainStream, join_samples
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform, center_crop_or_pad
from crossearth_sar.engine.config import OptimConfig, RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.finetune_checkpoint import load_trained, save_trained
from crossearth_sar.engine.log import CsvLog, TensorBoard
from crossearth_sar.engine.loop import Trainer
from crossearth_sar.engine.nonfinite import NonFiniteError, all_finite, first_nonfinite_layer
from crossearth_sar.engine.optim import learning_rate, make_optimizer
from crossearth_sar.engine.results import write_results
from crossearth_sar.engine.resume import find_checkpoint
from crossearth_sar.engine.stopping import StopRequest, leave_stopping_to_training
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import Evaluation, evaluate
from crossearth_sar.model import CrossEarthSAR, ModelOutput
from crossearth_sar.peft import EarthAdapterConfig, attach_earth_adapter, freeze_backbone
from crossearth_sar.presets import ModelConfig, model_preset
from crossearth_sar.pretrained import load_backbone, named_weights

Mode = Literal["frozen", "earth_adapter", "full"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run.

    mode: "frozen" trains the decoder, "earth_adapter" also an adapter on the frozen backbone, "full" all.
    weights: of the backbone, see `pretrained.load_backbone`. Without, it is as initialised, which only mode
        "full" takes; "random" says so of a frozen one.
    expert_noise: for dense weights in a sparse model.
    adapter: of mode "earth_adapter".
    augment: null takes images as they are, cut or padded about their centre to the crop.
    cache_features: keep the backbone's output of each training image in memory; mode "frozen" without
        augmentation only. cache_limit_gb: refuse where that would take more.
    activation_checkpointing: of the backbone's blocks, where gradients pass through them.
    The rest is as in RunConfig.
    """

    output: str
    preset: str
    train: DomainConfig
    validation: DomainConfig
    steps: int
    batch_size: int
    mode: Mode = "frozen"
    weights: str | None = None
    expert_noise: float = 0.0
    adapter: EarthAdapterConfig = field(default_factory=EarthAdapterConfig)
    unseen: tuple[DomainConfig, ...] = ()
    data_root: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    cache_features: bool = False
    cache_limit_gb: float = 4.0
    activation_checkpointing: bool = False
    seed: int = 0
    validate_every: int = 500
    validation_samples: int = 32
    save_every: int = 500
    keep_checkpoints: int = 1
    pictures: int = 4
    workers: int = 0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "validate_every",
            "validation_samples",
            "save_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("pictures", "workers", "seed", "expert_noise", "cache_limit_gb"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        names = [self.train.name, self.validation.name, *(domain.name for domain in self.unseen)]
        require(len(set(names)) == len(names), "domain names", names, "distinct names")
        if self.cache_features and (self.mode != "frozen" or self.augment is not None):
            raise InputError(
                "cached features must be the same at every step",
                got=f"mode {self.mode!r}, augment {'on' if self.augment else 'off'}",
                expected="mode 'frozen' and augment null",
                fix="--set mode=frozen augment=null, or cache_features=false",
            )


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; `trained` counts those that get gradients."""

    backbone: int
    adapter: int
    decoder: int
    trained: int

    def __str__(self) -> str:
        total = self.backbone + self.adapter + self.decoder
        return (
            f"{self.trained:,} of {total:,} parameters train ({self.trained / total:.1%}); "
            f"backbone {self.backbone:,}, adapter {self.adapter:,}, decoder {self.decoder:,}"
        )


def count_parameters(model: CrossEarthSAR) -> ParameterCounts:
    adapter = model.backbone.adapter
    in_adapter = sum(p.numel() for p in adapter.parameters()) if adapter is not None else 0
    return ParameterCounts(
        backbone=sum(p.numel() for p in model.backbone.parameters()) - in_adapter,
        adapter=in_adapter,
        decoder=sum(p.numel() for p in model.decoder.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


class FineTuner:
    """One run in this process. Building it checks data and settings; `start` builds the model; `fit` trains.

    Has what `results.write_results` reads of a Trainer: output, config, domains, replica, evaluate, step.

    Raises:
        InputError: for data, settings or weights that cannot work.
    """

    ep_size = 1

    def __init__(self, config: FinetuneConfig, device: torch.device | None = None) -> None:
        on_gpu = torch.cuda.is_available()
        self.config = config
        self.device = device or torch.device("cuda" if on_gpu else "cpu")
        self.ranks = Ranks(0, 1, self.device)
        self.output = Path(config.output)
        self.weights = _checked_weights(config)
        self.train_domain = open_domain(config.train, config.data_root)
        self.validation = open_domain(config.validation, config.data_root)
        self.unseen = [open_domain(domain, config.data_root) for domain in config.unseen]
        self.classes = self.train_domain.classes
        others = [self.validation, *self.unseen]
        require_same_classes([self.train_domain, *others])
        require_held_out(self.train_domain, others)
        require_labels(self.train_domain)
        self.model_config = _model_config(config, len(self.classes))
        self.step = 0
        self._cache: dict[int, tuple[list[Tensor], Tensor]] = {}

    def start(self, resume: str | None = None) -> None:
        """Builds the model in its mode; with `resume`, "auto" or a checkpoint's path, goes on from there."""
        config = self.config
        torch.manual_seed(config.seed)
        self.model = CrossEarthSAR(self.model_config)
        self.model.name_classes(self.classes.names, self.classes.palette)
        if self.weights is not None:
            load_backbone(self.model, self.weights, expert_noise=config.expert_noise, seed=config.seed)
        if config.mode == "earth_adapter":
            attach_earth_adapter(self.model, config.adapter)
        elif config.mode == "frozen":
            freeze_backbone(self.model)
        self.model.to(self.device)
        self.model.backbone.activation_checkpointing = config.activation_checkpointing
        self.replica = self.model
        self.counts = count_parameters(self.model)
        self.optimizer = make_optimizer(self.model, config.optim)
        checkpoint = find_checkpoint(cast(RunConfig, config), resume, self.say)
        if checkpoint is not None:
            self.step = int(load_trained(checkpoint, self.model, self.optimizer)["step"])
            self.say(f"resumed from {checkpoint}: {self.step} of {config.steps} steps are done")
        self.output.mkdir(parents=True, exist_ok=True)
        write_yaml(config, self.output / "config.yaml")
        self.train_log = CsvLog(self.output / "train.csv", resume_step=self.step)
        validated = self.step + 1 if self.step else 0
        self.validation_log = CsvLog(self.output / "validation.csv", resume_step=validated)
        self.tensorboard = TensorBoard(self.output / "tensorboard", resume_step=self.step)

    def fit(self) -> bool:
        """Trains to the end. False when a signal stopped it; what was done is saved then."""
        config, stop = self.config, StopRequest()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            unit="step",
            mininterval=1.0 if sys.stderr.isatty() else 15.0,
            dynamic_ncols=True,
        )
        for batch in self._batches():
            row = self._train_step(batch)
            self.train_log.append(row)
            self.tensorboard.scalars("train", row, self.step)
            bar.set_postfix(loss=f"{row['loss']:.2f}", lr=f"{row['lr']:.1e}", refresh=False)
            bar.update()
            self.step += 1
            done, stopping = self.step == config.steps, stop.received is not None
            if (self.step % config.validate_every == 0 or done) and not stopping:
                self._validate(bar)
            if self.step % config.save_every == 0 or done or stopping:
                state = {"step": self.step, "run": to_mapping(config)}
                save_trained(
                    self.output / "checkpoints", self.model, self.optimizer, state, config.keep_checkpoints
                )
            if stopping:
                break
        bar.close()
        stop.restore()
        if self.step < config.steps:
            self.say(f"stopped by {stop.received} after step {self.step} of {config.steps}; it is saved. "
                     "Go on with the same command and --resume")  # fmt: skip
        return self.step == config.steps

    def write_results(self) -> dict[str, Any]:
        """Scores, pictures, report and model in the output folder, as after pre-training; and the counts."""
        metrics = write_results(cast(Trainer, self))
        (self.output / "parameters.txt").write_text(f"{self.config.mode}: {self.counts}\n", encoding="utf-8")
        return metrics

    def evaluate(self, domain: Domain, max_samples: int | None = None) -> Evaluation:
        """The current weights on up to `max_samples` evenly spaced samples."""
        count = min(len(domain), max_samples or len(domain))
        return evaluate(self.model, domain, [i * len(domain) // count for i in range(count)])

    def say(self, text: str) -> None:
        """One line to the user."""
        print(text, file=sys.stderr, flush=True)

    def _train_mode(self) -> None:
        """Training mode for what trains: a frozen backbone and its descriptor statistics stay in eval."""
        self.model.train()
        if self.config.mode != "full":
            self.model.backbone.eval()
            self.model.standardizer.eval()

    def _train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        config, started = self.config, time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # the loss samples points
        rate = learning_rate(config.optim, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._train_mode()
        parts, balance = self._losses(batch)
        loss = torch.stack([*parts.values(), balance]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        limit = config.optim.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(trained, limit)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):  # stepped, it would be in every weight
            raise NonFiniteError(
                f"step {self.step}: loss {loss.item():.4g}, gradient norm {float(norm):.4g}: not finite; the "
                "weights are as before this step"
            )
        self.optimizer.step()
        return {
            "step": self.step,
            "loss": loss.item(),
            "loss_balance": balance.item(),
            **{f"loss_{name}": value.item() for name, value in parts.items()},
            "lr": rate,
            "grad_norm": float(norm),
            "images_per_second": config.batch_size / (time.perf_counter() - started),
        }

    def _losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Segmentation loss by kind, and the balance loss: 0 where the routers are frozen.

        Raises:
            NonFiniteError: the model's output has a NaN or infinity, naming the first layer that does.
        """
        mask_BHW, output = batch["mask"].to(self.device), self._output(batch)
        if not all_finite(output.decoder):
            layer = first_nonfinite_layer(self.model, lambda: self._output(batch))
            raise NonFiniteError(f"NaN or infinity at step {self.step}, first in {layer}")
        if self.config.mode == "full":
            terms = self.model.loss(output, mask_BHW)
            return dict(terms.parts), terms.balance
        return self.model.decoder.loss(output.decoder, mask_BHW), torch.zeros((), device=self.device)

    def _output(self, batch: dict[str, Any]) -> ModelOutput:
        if self.config.mode != "frozen":
            return self.model(*(batch[key].to(self.device) for key in ("image", "db_mean", "db_std")))
        maps = batch["features"] if "features" in batch else self._frozen_features(batch)
        return ModelOutput(self.model.decoder([m.to(self.device) for m in maps]), ())

    @torch.no_grad()
    def _frozen_features(self, batch: dict[str, Any]) -> list[Tensor]:
        inputs = (batch[key].to(self.device) for key in ("image", "db_mean", "db_std"))
        return self.model.features(*inputs).feature_maps

    def _batches(self) -> Iterator[dict[str, Any]]:
        config = self.config
        transform = TrainTransform(config.augment) if config.augment else _Centre(self.model_config.crop_size)
        stream = TrainStream(self.train_domain, transform, config.seed)
        draws = ShardedDraws(
            first_step=self.step, last_step=config.steps, batch_size=config.batch_size, rank=0, ranks=1
        )
        if config.cache_features:
            yield from (self._cached_batch(stream, numbers) for numbers in draws)
            return
        yield from DataLoader(
            stream,
            batch_sampler=draws,
            collate_fn=join_samples,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_stopping_to_training,
        )

    def _cached_batch(self, stream: TrainStream, draws: list[int]) -> dict[str, Any]:
        entries = []
        for draw in draws:
            index = stream.index_of(draw)
            if index not in self._cache:
                sample = stream[draw]
                alone = {key: sample[key][None] for key in ("image", "db_mean", "db_std")}
                self._train_mode()
                maps = [m[0].cpu() for m in self._frozen_features(alone)]
                if not self._cache:
                    self._check_cache_size(maps)
                self._cache[index] = (maps, sample["mask"])
            entries.append(self._cache[index])
        levels = zip(*(maps for maps, _ in entries), strict=True)
        features = [torch.stack(level) for level in levels]
        return {"features": features, "mask": torch.stack([mask for _, mask in entries])}

    def _check_cache_size(self, maps: list[Tensor]) -> None:
        each = sum(m.numel() * m.element_size() for m in maps)
        total_gb = len(self.train_domain) * each / 1e9
        self.say(f"feature cache: {len(self.train_domain)} images of {each / 1e6:.1f} MB, {total_gb:.2f} GB")
        if total_gb > self.config.cache_limit_gb:
            raise InputError(
                "the features of all training images do not fit the cache",
                got=f"{total_gb:.1f} GB",
                expected=f"at most cache_limit_gb = {self.config.cache_limit_gb}",
                fix="--set cache_features=false, or a higher limit if the machine has the memory",
            )

    def _validate(self, bar: Any) -> None:
        scores = self.evaluate(self.validation, self.config.validation_samples).confusion.scores()
        row = {
            "step": self.step,
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            **{f"iou_{name}": float(iou) for name, iou in zip(self.classes.names, scores.iou, strict=True)},
        }
        self.validation_log.append(row)
        self.tensorboard.scalars("validation", row, self.step)
        bar.write(f"step {self.step}: mIoU {scores.miou:.3f} on {self.validation.name}", file=sys.stderr)


class _Centre(TrainTransform):
    """No augmentation: the sample about its centre."""

    def __init__(self, size: int) -> None:
        super().__init__(AugmentConfig(crop_size=size))

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return center_crop_or_pad(sample, self.config.crop_size)


def _checked_weights(config: FinetuneConfig) -> str | None:
    """The path of the backbone's weights, None to leave it as initialised."""
    if config.weights is None and config.mode != "full":
        raise InputError(
            f"mode {config.mode!r} freezes the backbone, and there are no weights for it",
            got="weights null",
            expected="a path: DINOv2's official file, a folder of transformers, or a model folder",
            fix="--set weights=BACKBONE; mode=full trains all; weights=random freezes it as initialised",
        )
    return named_weights(config.weights)


def _model_config(config: FinetuneConfig, num_classes: int) -> ModelConfig:
    for key in ("num_classes", "adapter"):
        if key in config.model:
            raise InputError(
                f"model.{key} is not set here",
                fix="the number of classes is that of the training domain; see mode and adapter",
            )
    model = merge(model_preset(config.preset, num_classes), config.model, "model")
    if config.augment is not None and config.augment.crop_size != model.crop_size:
        raise InputError(
            "training crop and model crop differ",
            got=f"augment.crop_size {config.augment.crop_size}, model.crop_size {model.crop_size}",
            expected="the same size",
            fix=f"--set augment.crop_size={model.crop_size}",
        )
    return model
