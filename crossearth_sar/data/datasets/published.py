"""Published datasets by name, and the tasks that they are mapped onto.

The package's own rows are listed in `benchmarks.py` and `pretraining.py`; `register` adds one from outside,
and nothing else has to know of it: it opens as `OfficialConfig(dataset=key)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossearth_sar.config import merge
from crossearth_sar.data.datasets.benchmarks import BENCHMARK_DATASETS
from crossearth_sar.data.datasets.pretraining import PRETRAINING_SOURCES
from crossearth_sar.data.datasets.rows import Rows
from crossearth_sar.data.datasets.spec import DatasetSpec
from crossearth_sar.data.datasets.tasks import SEVEN_CLASS_TASK, TASKS, Task

_DATASETS: Rows[DatasetSpec] = Rows(
    "dataset", {**BENCHMARK_DATASETS, **{key: source.spec for key, source in PRETRAINING_SOURCES.items()}}
)
_TASKS: Rows[Task] = Rows("task", {**TASKS, SEVEN_CLASS_TASK.key: SEVEN_CLASS_TASK})


def register(spec: DatasetSpec, *, tasks: Sequence[Task] = ()) -> None:
    """Adds a dataset with a layout, classes and maps of its own; nothing is added where a map does not fit.

    Args:
        spec: its row. Each of its `maps` is onto a known task, or one of `tasks`.
        tasks: lists of classes that the package does not have.

    Raises:
        InputError: another dataset or task has the key, a map is onto an unknown task, leaves a class of
            the dataset out, or names one that the task does not have.
    """
    own = {task.key: task for task in tasks}
    for key in spec.maps:
        spec.lookup(own[key] if key in own else named_task(key))
    for task in tasks:
        _TASKS.add(task)
    _DATASETS.add(spec)


def named_dataset(key: str) -> DatasetSpec:
    """The row of a published dataset; InputError for an unknown key, naming the nearest."""
    return _DATASETS.find(key)


def named_task(key: str) -> Task:
    """The task `key`: of a benchmark, "seven" of pre-training, or a registered one; InputError as above."""
    return _TASKS.find(key)


def all_datasets() -> dict[str, DatasetSpec]:
    """Every published dataset by its key, registered ones last."""
    return _DATASETS.all()


def open_spec(key: str, changes: Mapping[str, Any] | None = None) -> DatasetSpec:
    """The row `key` with `changes` merged over it: `{"label_palette": {}, "label_values": {0: "water", …}}`.

    Raises:
        InputError: for an unknown dataset or key, or a value that does not fit.
    """
    return merge(named_dataset(key), changes or {}, key)
