"""Which executor a run has."""

from __future__ import annotations

import importlib.util
from typing import Literal

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.base import Executor
from crossearth_sar.engine.planning.layout import plan_layout, run_model_config
from crossearth_sar.errors import InputError


def executor_name(config: RunConfig) -> Literal["deepspeed", "local"]:
    """What `executor` means here; "auto" is DeepSpeed where it is installed.

    Raises:
        InputError: DeepSpeed is asked for by name and not installed.
    """
    installed = importlib.util.find_spec("deepspeed") is not None
    if config.executor == "auto":
        return "deepspeed" if installed else "local"
    if config.executor == "deepspeed" and not installed:
        raise InputError(
            "executor deepspeed needs DeepSpeed",
            got="it is not installed",
            fix="pip install 'crossearth-sar[train]', or --set executor=local",
        )
    return config.executor


def make_executor(config: RunConfig, ranks: Ranks) -> Executor:
    """The executor of a run on this rank.

    Raises:
        InputError: for a layout of ranks, or settings, that it cannot carry out.
    """
    if executor_name(config) == "local":
        from crossearth_sar.engine.executors.local import LocalExecutor

        return LocalExecutor(config, ranks)
    from crossearth_sar.engine.executors.deepspeed.executor import DeepSpeedExecutor

    model = run_model_config(config, num_classes=1)
    on_gpu = ranks.device.type == "cuda"
    return DeepSpeedExecutor(config, ranks, plan_layout(config, model, ranks=ranks.size, on_gpu=on_gpu))
