"""What a training run is: model, domains, optimisation, ranks. Built in code, from YAML, or by --set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from crossearth_sar.config import require
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.data.transforms import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and polynomial decay (METHOD sec. 4).

    warmup_steps: from 0 to lr. decay_power: lr * (1 - progress) ** decay_power after it.
    clip_norm: of the global gradient norm; 0 for none.
    """

    lr: float = 3e-5
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 100
    decay_power: float = 0.9
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "above 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "in [0, 1)")
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How ranks share the work and the memory; engine/layout.py refuses what cannot work together.

    ep_size: ranks that share one set of experts; "auto" is the largest number that divides both the
        experts and the ranks, 1 with ZeRO 3.
    zero_stage: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too are partitioned; 0 and 3 are
        for ep_size 1 only.
    offload_optimizer: where masters and moments live and are stepped: on the device, in the host's memory, or
        on NVMe (ZeRO 3 only). offload_parameters: the same for parameters, ZeRO 3 only.
    nvme_path: folder on the NVMe of each node.
    activation_checkpointing: keep only each block's input and compute the block again in backward.
    balance: over which tokens the balance loss takes its shares f: those of a rank's pass, or of all ranks'.
    timeout_minutes: after which a collective call of ours that some rank never joins is an error; the groups
        that DeepSpeed makes keep torch's own limits.
    """

    ep_size: int | Literal["auto"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: str = ""
    activation_checkpointing: bool = False
    balance: Literal["local", "global"] = "local"
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        require(self.timeout_minutes > 0, "parallel.timeout_minutes", self.timeout_minutes, "above 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run.

    output: folder for logs, checkpoints, pictures and metrics.
    preset, model: a model preset and the keys changed on top; num_classes comes from the training domain.
    weights: of the backbone at step 0, see `pretrained.load_backbone`: DINOv2's official file, a folder of
        transformers, or a model folder of this package; null or "random" leaves it as initialised. A resumed
        run has its own. expert_noise: for dense weights, which become equal experts.
    data_root: what relative folder roots of the domains start from.
    train, validation, unseen: the source domain, images of it held out, and domains never trained on.
    batch_size: images per optimizer step over all ranks; accumulation: forward passes per step and rank.
    precision: "auto" is bf16 on a GPU and fp32 on a CPU, where bf16 is slower.
    validate_every, save_every: steps. keep_checkpoints: newest ones left on disk, and besides them the one
        with the best validation mIoU, which is saved whenever it improves.
    nonfinite: what a loss or gradient that is NaN or infinite does: "stop" ends the run, "skip" leaves the
        step out and ends the run after nonfinite_limit such steps in a row. Both name the layer.
    validation_samples: at most so many images in validation while training; the final one takes all.
    pictures: rows of the prediction picture of each domain.
    workers: loader processes per rank; 0 loads in the training process. prefetch: batches each has ready.
    """

    output: str
    preset: str
    train: DomainConfig
    validation: DomainConfig
    steps: int
    batch_size: int
    weights: str | None = None
    expert_noise: float = 0.0
    unseen: tuple[DomainConfig, ...] = ()
    data_root: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    accumulation: int = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    validate_every: int = 100
    validation_samples: int = 32
    save_every: int = 100
    keep_checkpoints: int = 2
    pictures: int = 4
    workers: int = 0
    prefetch: int = 2
    nonfinite: Literal["stop", "skip"] = "stop"
    nonfinite_limit: int = 10

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulation",
            "validate_every",
            "validation_samples",
            "save_every",
            "keep_checkpoints",
            "prefetch",
            "nonfinite_limit",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("pictures", "workers", "seed", "expert_noise"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        names = [self.train.name, self.validation.name, *(domain.name for domain in self.unseen)]
        require(len(set(names)) == len(names), "domain names", names, "distinct names")


def simulated_run() -> RunConfig:
    """The default: the tiny model on simulated C-band scenes, tried on X-band scenes of another region."""
    source = SimulatorConfig(
        length=4096, image_size=160, seed=1, region="temperate_north", band="C", polarization="HH", looks=4
    )
    unseen = replace(
        source, length=64, image_size=128, seed=3, region="arid_south", band="X", polarization="VV", looks=2
    )
    return RunConfig(
        output="runs/cpt",
        preset="crossearth_sar_tiny",
        train=DomainConfig(name="source", simulated=source),
        validation=DomainConfig(
            name="source-heldout", simulated=replace(source, length=64, image_size=128, seed=2)
        ),
        unseen=(DomainConfig(name="unseen", simulated=unseen),),
        steps=500,
        batch_size=8,
        augment=AugmentConfig(crop_size=128, scale_min=0.8, scale_max=1.25, gain_db=1.0),
        optim=OptimConfig(lr=2e-3, warmup_steps=40),  # from scratch, and small
    )
