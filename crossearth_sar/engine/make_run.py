"""A run from its settings: what it learns and how it is executed, put together."""

from __future__ import annotations

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.choose import make_executor
from crossearth_sar.engine.objectives.base import Objective
from crossearth_sar.engine.objectives.di3cl import SelfSupervised
from crossearth_sar.engine.objectives.segmentation import Segmentation
from crossearth_sar.engine.run import Run, has_checkpoints


def make_run(config: RunConfig, ranks: Ranks) -> Run:
    """The run on this rank, its settings, data and weights checked.

    Raises:
        InputError: for what cannot work.
    """
    executor, goes_on = make_executor(config, ranks), has_checkpoints(config)
    objective: Objective
    if config.selfsup is not None:
        objective = SelfSupervised(config, ranks, goes_on=goes_on)
    else:
        objective = Segmentation(config, ranks, ep_size=executor.ep_size, goes_on=goes_on)
    return Run(config, ranks, objective, executor)
