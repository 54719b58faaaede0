"""A segmentation run from its settings: the objective and the executor put together."""

from __future__ import annotations

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.choose import make_executor
from crossearth_sar.engine.objectives.segmentation import Segmentation
from crossearth_sar.engine.run import Run, has_checkpoints


def segmentation_run(config: RunConfig, ranks: Ranks) -> Run:
    """The run on this rank, its settings, data and weights checked.

    Raises:
        InputError: for what cannot work.
    """
    executor = make_executor(config, ranks)
    objective = Segmentation(config, ranks, ep_size=executor.ep_size, goes_on=has_checkpoints(config))
    return Run(config, ranks, objective, executor)
