"""Folders of images and published datasets, as samples of a task.

`register` adds a published dataset from outside the package: a `DatasetSpec` holds all that is known of it.
"""

from crossearth_sar.data.datasets.published import all_datasets, named_dataset, named_task, register
from crossearth_sar.data.datasets.spec import DatasetSpec, DomainSpec, PaperCounts, same_names
from crossearth_sar.data.datasets.tasks import Task, class_table

__all__ = [
    "DatasetSpec",
    "DomainSpec",
    "PaperCounts",
    "Task",
    "all_datasets",
    "class_table",
    "named_dataset",
    "named_task",
    "register",
    "same_names",
]
