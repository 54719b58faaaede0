"""How a run lies on its ranks: what can work together, checked before anything is built, and the DeepSpeed
json that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossearth_sar.config import merge
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import choose_ep_size
from crossearth_sar.engine.planning.selfsup_rules import check_selfsup
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig, model_preset

BUCKET_ELEMENTS = 50_000_000
"""Gradients and parameters travel in buckets of this size; DeepSpeed's default is ten times that."""

LIVE_ELEMENTS = 2 * BUCKET_ELEMENTS
"""ZeRO 3 fetches ahead, and keeps what is needed again soon, while no more parameters than these are whole:
two MoE layers of the L preset. DeepSpeed's default, 1e9, holds all of a smaller model on every rank."""

PERSISTENT_ELEMENTS = 100_000
"""ZeRO 3 keeps parameters up to this size whole on every rank, as DeepSpeed does by default."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A run on `ranks` processes: micro_batch images per pass and rank, experts split over ep_size ranks."""

    ranks: int
    ep_size: int
    micro_batch: int
    use_bf16: bool
    on_gpu: bool


def plan_layout(config: RunConfig, model: ModelConfig, *, ranks: int, on_gpu: bool) -> Layout:
    """Sizes of the run on that many ranks; needs no data, no process group and no DeepSpeed.

    Raises:
        InputError: for settings that cannot work together, with the setting that would.
    """
    use_bf16 = wants_bf16(config, on_gpu=on_gpu)
    micro_batch = micro_batch_of(config, ranks)
    check_selfsup(config)
    ep_size = _ep_size(config, model, ranks)
    _check_zero(config, use_bf16)
    return Layout(ranks=ranks, ep_size=ep_size, micro_batch=micro_batch, use_bf16=use_bf16, on_gpu=on_gpu)


def check_machine(config: RunConfig) -> None:
    """InputError when this machine lacks what the offload settings need; imports DeepSpeed only for NVMe."""
    parallel = config.parallel
    if "nvme" not in (parallel.offload_optimizer, parallel.offload_parameters):
        return
    if not (parallel.nvme_path and Path(parallel.nvme_path).is_dir()):
        raise InputError(
            "parallel.nvme_path is no folder on this machine",
            got=parallel.nvme_path or "nothing",
            expected="a folder on each node's NVMe",
            fix="--set parallel.nvme_path=/local/nvme",
        )
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise InputError(
            "NVMe offload does not work on this machine",
            got="DeepSpeed's async_io cannot be built: libaio is missing",
            fix="install libaio (apt install libaio-dev), or --set parallel.offload_optimizer=cpu",
        )


def run_model_config(config: RunConfig, num_classes: int) -> ModelConfig:
    """The model of a run: its preset with its changes.

    Raises:
        InputError: for what follows from other settings, and for a training crop of another size.
    """
    for key, fix in (
        ("num_classes", "it is the number of classes of the training domain"),
        ("adapter", "see mode and adapter"),
    ):
        if key in config.model:
            raise InputError(f"model.{key} is not set by hand", got=config.model[key], fix=fix)
    model = merge(model_preset(config.preset, num_classes), config.model, "model")
    augment = config.augment
    if augment is not None and augment.crop_size not in (None, model.crop_size):
        raise InputError(
            "training crop and model crop differ",
            got=f"augment.crop_size {augment.crop_size}, model.crop_size {model.crop_size}",
            expected="the same size",
            fix=f"--set augment.crop_size={model.crop_size}",
        )
    if config.selfsup is None:
        return model
    return replace(model, decoder=None)


def deepspeed_config(config: RunConfig, layout: Layout) -> dict[str, Any]:
    """The DeepSpeed json of a run: ZeRO, offload, precision, accumulation and clipping; the rest is ours."""
    parallel = config.parallel
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if parallel.zero_stage == 3:
        zero["stage3_max_live_parameters"] = LIVE_ELEMENTS
        zero["stage3_max_reuse_distance"] = LIVE_ELEMENTS
        zero["stage3_param_persistence_threshold"] = PERSISTENT_ELEMENTS
    for key, device in (
        ("offload_optimizer", parallel.offload_optimizer),
        ("offload_param", parallel.offload_parameters),
    ):
        if device != "none":
            zero[key] = {"device": device, "pin_memory": layout.on_gpu}
            if device == "nvme":
                zero[key]["nvme_path"] = parallel.nvme_path
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optim.clip_norm,
        "bf16": {"enabled": layout.use_bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def wants_bf16(config: RunConfig, *, on_gpu: bool) -> bool:
    """ "auto" is bf16 on a GPU and fp32 on a CPU."""
    return config.precision == "bf16" or (config.precision == "auto" and on_gpu)


def check_local(config: RunConfig) -> None:
    """InputError for settings that the light executor would not carry out."""
    parallel = config.parallel
    asked = [
        f"parallel.{name} {value}"
        for name, value, plain in (
            ("zero_stage", parallel.zero_stage, parallel.zero_stage < 2),
            ("ep_size", parallel.ep_size, parallel.ep_size in ("auto", 1)),
            ("offload_optimizer", parallel.offload_optimizer, parallel.offload_optimizer == "none"),
            ("offload_parameters", parallel.offload_parameters, parallel.offload_parameters == "none"),
        )
        if not plain
    ]
    if asked:
        raise InputError(
            "the local executor keeps the whole model on each rank",
            got=", ".join(asked),
            expected="executor deepspeed for that",
            fix="--set executor=deepspeed (pip install 'crossearth-sar[train]')",
        )


def micro_batch_of(config: RunConfig, ranks: int) -> int:
    """Images of one forward pass on a rank.

    Raises:
        InputError: for a batch that does not divide.
    """
    parts = ranks * config.accumulation
    if config.batch_size % parts:
        nearest_fit = max(parts, config.batch_size // parts * parts)
        raise InputError(
            "batch_size does not divide among ranks",
            got=f"batch_size {config.batch_size} for {ranks} ranks with accumulation {config.accumulation}",
            expected=f"a multiple of {parts}",
            fix=f"--set batch_size={nearest_fit}",
        )
    return config.batch_size // parts


def _ep_size(config: RunConfig, model: ModelConfig, ranks: int) -> int:
    parallel = config.parallel
    if parallel.ep_size == "auto" and (parallel.zero_stage == 3 or config.selfsup is not None):
        return 1
    size = choose_ep_size(parallel.ep_size, model.moe.num_experts if model.moe else 1, ranks)
    if size > 1 and parallel.zero_stage == 0:
        raise InputError(
            "without ZeRO, experts cannot be split among ranks",
            got=f"parallel.zero_stage 0 with parallel.ep_size {parallel.ep_size}, here {size}",
            expected="zero_stage 1 or 2: DeepSpeed would clip by a norm that lacks the other ranks' experts",
            fix="--set parallel.zero_stage=1, or parallel.ep_size=1 for all experts on every rank",
        )
    if size > 1 and parallel.zero_stage == 3:
        raise InputError(
            "ZeRO 3 cannot split experts among ranks as well",
            got=f"parallel.zero_stage 3 with parallel.ep_size {size}",
            expected="ep_size 1: stage 3 already partitions the experts' parameters over all ranks",
            fix="--set parallel.ep_size=1, or parallel.zero_stage=2",
        )
    return size


def _check_zero(config: RunConfig, use_bf16: bool) -> None:
    parallel = config.parallel
    rules: Sequence[tuple[bool, str, str]] = (
        (
            use_bf16 and parallel.zero_stage == 0,
            "bf16 with parallel.zero_stage 0: the float32 masters live in ZeRO's partitions",
            "--set parallel.zero_stage=1, or precision=fp32",
        ),
        (
            parallel.offload_optimizer == "cpu" and parallel.zero_stage == 0,
            "parallel.offload_optimizer cpu with parallel.zero_stage 0: only ZeRO offloads",
            "--set parallel.zero_stage=2",
        ),
        (
            parallel.offload_optimizer == "nvme" and parallel.zero_stage != 3,
            f"parallel.offload_optimizer nvme with parallel.zero_stage {parallel.zero_stage}: only 3 has it",
            "--set parallel.zero_stage=3, or parallel.offload_optimizer=cpu",
        ),
        (
            parallel.offload_parameters != "none" and parallel.zero_stage != 3,
            f"parallel.offload_parameters with parallel.zero_stage {parallel.zero_stage}: only 3 has it",
            "--set parallel.zero_stage=3, or parallel.offload_parameters=none",
        ),
    )
    for broken, got, fix in rules:
        if broken:
            raise InputError("these settings cannot work together", got=got, fix=fix)
