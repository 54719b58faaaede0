"""Lists of classes that datasets are mapped onto: the benchmarks' tasks, the seven classes of pre-training.

A benchmark across datasets is scored over one list of classes that both sides are mapped onto. Here stand the
lists; which class of a dataset is which of a task stands in the dataset's row (`spec.DatasetSpec.maps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossearth_sar.data.datasets.class_colors import colors_by_name
from crossearth_sar.data.files.labels import IGNORE, RGB
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.errors import InputError, nearest


def class_table(names: tuple[str, ...], palette: tuple[RGB, ...] | None = None) -> ClassTable:
    """A ClassTable for `names`; without a palette, colours go by name (`class_colors`)."""
    return ClassTable(names=names, palette=colors_by_name(names) if palette is None else palette)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One list of classes that datasets are mapped onto."""

    key: str
    """What rows and maps call it."""
    classes: ClassTable
    """In the order of their indices."""
    scored: tuple[str, ...]
    """Classes whose mean IoU is a benchmark's score; the paper counts these as its categories."""

    def __post_init__(self) -> None:
        for name in self.scored:
            if name not in self.classes.names:
                raise InputError(
                    f"task {self.key!r} scores {name!r}, which is no class of it"
                    f"{nearest(name, self.classes.names)}",
                    expected=f"some of {', '.join(self.classes.names)}",
                )

    @property
    def scored_indices(self) -> list[int]:
        return [self.classes.names.index(name) for name in self.scored]


def class_lookup(
    dataset: str, classes: tuple[str, ...], mapping: Mapping[str, str], task: Task
) -> np.ndarray:
    """(256,) uint8: index in `classes` of `dataset` -> index in the task, 255 for what is ignored.

    Raises:
        InputError: the map leaves a class of the dataset out, or names one that the task does not have.
    """
    missing = [name for name in classes if name not in mapping]
    if missing:
        raise InputError(
            f"the class map of {dataset} onto task {task.key!r} lacks {', '.join(missing)}",
            got=f"a map of {', '.join(mapping) or 'nothing'}",
            expected=f"each of {', '.join(classes)}",
            fix="name a class of the task for each, or ignore; keep the dataset's own class names",
        )
    known = (*task.classes.names, IGNORE)
    for name in classes:
        if mapping[name] not in known:
            raise InputError(
                f"the class map of {dataset} onto task {task.key!r} names {mapping[name]!r}"
                f"{nearest(mapping[name], known)}",
                expected=f"one of {', '.join(known)}",
            )
    table = np.full(256, IGNORE_INDEX, np.uint8)
    for index, name in enumerate(classes):
        if mapping[name] != IGNORE:
            table[index] = task.classes.names.index(mapping[name])
    return table


_BLUE, _GREEN, _RED, _CYAN, _YELLOW, _PURPLE, _BLACK = (
    (0, 0, 255),
    (0, 255, 0),
    (255, 0, 0),
    (0, 255, 255),
    (255, 255, 0),
    (128, 0, 128),
    (0, 0, 0),
)
_AIR_CLASSES = ("water", "vegetation", "bare ground", "road", "building", "mountain")
_AIR_PALETTE = (_BLUE, _GREEN, _RED, _CYAN, _YELLOW, _PURPLE)
_DDHR_CLASSES = ("building", "farmland", "greenery", "other", "road", "water")
_FUSAR_CLASSES = ("building", "vegetation", "water", "road", "other")

AIR_6 = Task(key="air6", classes=class_table(_AIR_CLASSES, _AIR_PALETTE), scored=_AIR_CLASSES)
# One class of six is left out between north and south; mountain is the one that a region can lack.
AIR_5 = Task(key="air5", classes=class_table(_AIR_CLASSES[:5], _AIR_PALETTE[:5]), scored=_AIR_CLASSES[:5])
DDHR_6 = Task(
    key="ddhr6",
    classes=class_table(_DDHR_CLASSES, (_RED, (255, 165, 0), _GREEN, _BLACK, _YELLOW, _BLUE)),
    scored=_DDHR_CLASSES,
)
FUSAR_5 = Task(
    key="fusar5",
    classes=class_table(_FUSAR_CLASSES, (_RED, _GREEN, _BLUE, _YELLOW, _BLACK)),
    scored=_FUSAR_CLASSES,
)
BUILDING_1 = Task(
    key="building1",
    classes=class_table(("background", "building"), (_BLACK, _YELLOW)),
    # One category in the paper's table; scores down to 2.7 there cannot be a mean with the background's IoU
    # unless nearly everything was called building.
    scored=("building",),
)

TASKS = {task.key: task for task in (AIR_6, AIR_5, DDHR_6, FUSAR_5, BUILDING_1)}
"""The tasks of the 22 benchmarks."""

SEVEN_CLASSES = ClassTable(
    names=("building", "road", "water", "barren", "forest", "agricultural", "background"),
    palette=(
        (220, 60, 50),
        (245, 210, 70),
        (50, 110, 220),
        (190, 150, 110),
        (30, 120, 60),
        (150, 200, 90),
        (120, 120, 130),
    ),
)
"""The land-cover classes of pre-training (CrossEarth-SAR-200K), in the paper's order."""

SEVEN_CLASS_TASK = Task(key="seven", classes=SEVEN_CLASSES, scored=SEVEN_CLASSES.names)
"""Pre-training. Labels of a teacher are of these classes already and need no map."""
