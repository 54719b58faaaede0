"""What a training run is: model, data, optimisation, ranks. Built in code, from YAML, or by --set.

One config for every kind of run; the commands differ in what they start from: `simulated_run` for
pre-training, `finetuning_settings` for fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from crossearth_sar.config import require
from crossearth_sar.config_keys import settings_of
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.data.transforms import AugmentConfig
from crossearth_sar.descriptors.named import SCALE_FREE_DESCRIPTORS
from crossearth_sar.engine.selfsup_config import ProbeAtEnd, SelfSupConfig
from crossearth_sar.errors import InputError
from crossearth_sar.peft import EarthAdapterConfig
from crossearth_sar.presets import ModelConfig
from crossearth_sar.selfsup.config import DI3CLConfig

DOMAINS = ("train", "validation", "unseen", "probe")
"""Keys that belong together: a config that names one of them names its data."""

Mode = Literal["full", "frozen", "earth_adapter"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or SGD, with linear warm-up and decay (METHOD sec. 4)."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with `momentum`."""
    lr: float = 3e-5
    """Learning rate after warm-up."""
    weight_decay: float = 0.05
    """Of matrices; none on norms, biases and embeddings."""
    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean squared gradient."""
    momentum: float = 0.9
    """Of sgd: share of the last step that is taken again."""
    warmup_steps: int = 100
    """Steps from 0 to lr."""
    decay: Literal["polynomial", "cosine"] = "polynomial"
    """After the warm-up: lr * (1 - progress) ** decay_power, or half a cosine from lr to 0."""
    decay_power: float = 0.9
    """Of the polynomial."""
    clip_norm: float = 1.0
    """Of the global gradient norm; 0 for none."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "above 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "in [0, 1)")
        require(0 < self.momentum < 1, "optim.momentum", self.momentum, "in (0, 1)")
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How ranks share the work and the memory; engine/planning/layout.py refuses what cannot work together.

    All but activation_checkpointing, balance and timeout_minutes are of the DeepSpeed executor.
    """

    ep_size: int | Literal["auto"] = "auto"
    """Ranks that share one set of experts; auto divides experts and ranks, and is 1 with ZeRO 3."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Partitioned: 0 nothing, 1 optimizer, 2 gradients too, 3 parameters too; 0 and 3 want ep_size 1."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where masters and moments live and are stepped; nvme wants ZeRO 3."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """The same of parameters, ZeRO 3 only."""
    nvme_path: str = ""
    """Folder on the NVMe of each node."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the block again in backward."""
    balance: Literal["local", "global"] = "local"
    """Over which tokens the balance loss takes its shares f: a rank's pass, or all ranks'."""
    timeout_minutes: float = 30.0
    """After which a collective call of ours that some rank never joins is an error."""

    def __post_init__(self) -> None:
        require(self.timeout_minutes > 0, "parallel.timeout_minutes", self.timeout_minutes, "above 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    output: str = "runs/train"
    """Folder for logs, checkpoints, pictures, metrics and the model."""
    selfsup: SelfSupConfig | None = None
    """Self-supervised pre-training of a backbone on images without labels; null: segmentation."""
    preset: str = "crossearth_sar_tiny"
    """Of the model: crossearth_sar_tiny, _s, _b or _l, resnet50 or resnet101."""
    model: dict[str, Any] = settings_of(ModelConfig)
    """Keys of the model changed on top of the preset; num_classes is the training domain's."""
    mode: Mode = "full"
    """What trains: full, the decoder (frozen), or an adapter too (earth_adapter)."""
    weights: str | None = None
    """Of the backbone at step 0: a file (of DINOv2, MAE, timm, torchvision, MoCo) or a model folder; random
    says that none are meant."""
    expert_noise: float = 0.0
    """For dense weights, which become equal experts: standard deviation of noise, as a share."""
    adapter: EarthAdapterConfig = field(default_factory=EarthAdapterConfig)
    """Of mode earth_adapter."""
    train: DomainConfig | None = None
    """The source domain."""
    validation: DomainConfig | None = None
    """Images of it held out; null takes a share of train."""
    unseen: tuple[DomainConfig, ...] = ()
    """Domains never trained on, scored at the end."""
    probe: ProbeAtEnd | None = None
    """Of a self-supervised run: what its features are tried on at the end; null: nothing."""
    data_root: str = ""
    """What relative folder roots of the domains start from."""
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    """How training samples are varied; null takes images cut or padded about their centre."""
    cache_features: bool = False
    """Keep the frozen backbone's output of each training image in memory; wants augment null."""
    cache_limit_gb: float = 4.0
    """Refuse a feature cache above this."""
    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 8
    """Images per optimizer step over all ranks."""
    accumulation: int = 1
    """Forward passes per step and rank."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and its schedule."""
    executor: Literal["auto", "deepspeed", "local"] = "auto"
    """Who steps: DeepSpeed, or a light one over Accelerate; auto is DeepSpeed where it is installed."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How ranks share the work."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 on a GPU and fp32 on a CPU, where bf16 is slower."""
    changed_data: Literal["stop", "go_on"] = "stop"
    """Where a resumed run finds other training or validation data than before: end, or go on with them."""
    seed: int = 0
    """Of weights, draws and augmentation."""
    validate_every: int = 100
    """Steps between validations; the last step is validated anyway."""
    validation_samples: int = 32
    """At most so many images in validation while training; the final one takes all."""
    patience: int | None = None
    """End after so many validations in a row without a better one; null trains to the end."""
    save_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest ones left on disk, and besides them the one with the best validation."""
    trackers: tuple[str, ...] = ()
    """Loggers beside CSV and TensorBoard, by Accelerate's names: wandb, mlflow, comet_ml, …"""
    pictures: int = 4
    """Rows of the prediction picture of each domain."""
    workers: int = 0
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = 2
    """Batches that each worker has ready."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does: end the run, or leave the step out."""
    nonfinite_limit: int = 10
    """So many steps left out in a row end the run."""

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "accumulation", "validate_every", "validation_samples", "save_every",
            "keep_checkpoints", "prefetch", "nonfinite_limit",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("pictures", "workers", "seed", "expert_noise", "cache_limit_gb"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1, or null")
        domains = [self.train, self.validation, *self.unseen]
        if self.probe is not None:
            domains.append(self.probe.labelled)
        names = [domain.name for domain in domains if domain is not None]
        require(len(set(names)) == len(names), "domain names", names, "distinct names")
        if self.cache_features and (self.mode != "frozen" or self.augment is not None):
            raise InputError(
                "cached features must be the same at every step",
                got=f"mode {self.mode!r}, augment {'on' if self.augment else 'off'}",
                expected="mode 'frozen' and augment null",
                fix="--set mode=frozen augment=null, or cache_features=false",
            )


def simulated_run() -> RunConfig:
    """The default: the tiny model on a wide mixture of simulated sensors about 10 m, tried on finer ones.

    Every scene has a sensor, a landscape and a statistic of its own. With domains of one's own in place of
    these (DOMAINS), what pre-training from scratch starts from.
    """
    wide = SimulatorConfig(sensors="wide", resolution_m=10.0, length=65536, image_size=128, seed=1)
    held_out = replace(wide, length=96, seed=2)
    fine = SimulatorConfig(
        length=48, image_size=256, seed=3, region="arid_south", band="X", polarization="VV", looks=2,
        resolution_m=5.0, ground="landscape", speckle_correlation=0.5,
    )  # fmt: skip
    return RunConfig(
        output="runs/cpt",
        model={"pixel_m": 10.0, "bands": 1, "moe": {"descriptors": list(SCALE_FREE_DESCRIPTORS)}},
        augment=AugmentConfig(scale_min=1.0, scale_max=1.0, max_class_share=1.0, gain_db=0.0),
        optim=OptimConfig(lr=2e-3, warmup_steps=100),  # from scratch, and small
        steps=600,
        validate_every=300,
        save_every=300,
        train=DomainConfig(name="sensors", simulated=wide, normalize="image"),
        validation=DomainConfig(name="sensors-heldout", simulated=held_out, normalize="image"),
        unseen=(DomainConfig(name="unseen", simulated=fine, normalize="image"),),
    )


def selfsup_run() -> RunConfig:
    """The default of self-supervised pre-training: the dense tiny model, three simulated sensors, a probe.

    Learnt from scenes of three sensors without their labels; the probe learns from labelled scenes of one of
    them, and is scored on others of it and on a sensor that nothing was trained on.
    """
    scenes = SimulatorConfig(length=200, image_size=128, seed=11)
    sensors = {
        "C-HH": replace(scenes, band="C", polarization="HH", looks=4),
        "X-VV": replace(scenes, band="X", polarization="VV", looks=2, seed=12),
        "L-HV": replace(scenes, band="L", polarization="HV", looks=4, seed=13),
    }
    labelled = replace(sensors["C-HH"], length=64, seed=21)
    unseen = replace(scenes, length=32, seed=23, region="arid_south", band="S", polarization="VV", looks=2)
    return RunConfig(
        output="runs/di3cl",
        model={"moe": None, "crop_size": 96, "crop_stride": 64},
        selfsup=SelfSupConfig(
            method=DI3CLConfig(
                queue_length=512,
                momentum=0.99,
                momentum_rises=True,
                head_norm="batch",
                hidden_dim=256,
                output_dim=64,
            ),
        ),
        probe=ProbeAtEnd(labelled=DomainConfig(name="C-HH-labelled", simulated=labelled)),
        optim=OptimConfig(lr=1e-3, warmup_steps=30, decay="cosine"),
        steps=300,
        batch_size=16,
        save_every=100,
        train=DomainConfig(
            name="three-sensors",
            mixture=tuple(DomainConfig(name=name, simulated=one) for name, one in sensors.items()),
        ),
        validation=DomainConfig(name="C-HH-held-out", simulated=replace(sensors["C-HH"], length=32, seed=22)),
        unseen=(DomainConfig(name="S-VV-unseen", simulated=unseen),),
    )


def finetuning_settings() -> RunConfig:
    """What fine-tuning starts from: a new decoder on a frozen backbone, without DeepSpeed."""
    return RunConfig(
        output="runs/finetune",
        mode="frozen",
        executor="local",
        optim=OptimConfig(lr=1e-4),
        validate_every=500,
        save_every=500,
        keep_checkpoints=1,
    )
