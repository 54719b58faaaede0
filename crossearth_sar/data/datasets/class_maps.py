"""Which class of a dataset is which class of a task; what has no counterpart is ignored.

A benchmark across datasets is scored over one list of classes that both sides are mapped onto. Each map
names every class of its dataset, so that a class cannot be lost by an omission. The paper gives the number
of classes of each task, not the maps; where it leaves a choice, the reason stands beside the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossearth_sar.data.datasets.benchmarks import (
    AIR_POLSAR_SEG_2,
    DDHR_SK,
    FUSAR_MAP,
    SEVEN_CLASSES,
    class_table,
)
from crossearth_sar.data.files.labels import IGNORE
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class Task:
    """One list of classes, and how datasets map onto it.

    scored: the classes whose mean IoU is the benchmark's score; the paper counts these as its categories.
    maps: dataset -> its class -> a class of the task, or "ignore".
    """

    key: str
    classes: ClassTable
    scored: tuple[str, ...]
    maps: Mapping[str, Mapping[str, str]]

    def __post_init__(self) -> None:
        assert set(self.scored) <= set(self.classes.names)
        for dataset, mapping in self.maps.items():
            unknown = set(mapping.values()) - {*self.classes.names, IGNORE}
            assert not unknown, f"{dataset} of task {self.key} maps onto unknown classes {unknown}"

    @property
    def scored_indices(self) -> list[int]:
        return [self.classes.names.index(name) for name in self.scored]

    def dropped(self, dataset: str) -> tuple[str, ...]:
        """Classes of `dataset` whose pixels are ignored in this task."""
        return tuple(name for name, onto in self.maps[dataset].items() if onto == IGNORE)

    def lookup(self, dataset: str, classes: tuple[str, ...]) -> np.ndarray:
        """(256,) uint8: class index of `dataset`, whose classes are `classes`, -> index in this task.

        Raises:
            InputError: for a dataset without a map, or classes that its map does not name.
        """
        if dataset not in self.maps:
            raise InputError(
                f"task {self.key!r} has no class map for {dataset!r}{nearest(dataset, self.maps)}",
                expected=f"one of {', '.join(self.maps)}",
            )
        mapping = self.maps[dataset]
        missing = [name for name in classes if name not in mapping]
        if missing:
            raise InputError(
                f"the class map of {dataset} onto task {self.key!r} lacks {', '.join(missing)}",
                got=f"classes {', '.join(classes)}",
                expected=f"classes among {', '.join(mapping)}",
                fix="keep the dataset's class names, and change label_values or label_palette only",
            )
        table = np.full(256, IGNORE_INDEX, np.uint8)
        for index, name in enumerate(classes):
            if mapping[name] != IGNORE:
                table[index] = self.classes.names.index(mapping[name])
        return table


def _colors(spec_classes: tuple[str, ...], spec_palette: tuple | None, names: tuple[str, ...]) -> ClassTable:
    assert spec_palette is not None
    by_name = dict(zip(spec_classes, spec_palette, strict=True))
    return class_table(names, tuple(by_name[name] for name in names))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_AIR_5 = ("water", "vegetation", "bare ground", "road", "building")
_DDHR_6 = ("building", "farmland", "greenery", "other", "road", "water")
_FUSAR_5 = ("building", "vegetation", "water", "road", "other")

AIR_6 = Task(
    key="air6",
    classes=class_table(AIR_POLSAR_SEG_2.classes, AIR_POLSAR_SEG_2.palette),
    scored=AIR_POLSAR_SEG_2.classes,
    maps={"AIR-PolSAR-Seg-2.0": _same(*AIR_POLSAR_SEG_2.classes)},
)
AIR_5 = Task(
    key="air5",
    classes=_colors(AIR_POLSAR_SEG_2.classes, AIR_POLSAR_SEG_2.palette, _AIR_5),
    scored=_AIR_5,
    # One class of six is left out between north and south; mountain is the one that a region can lack.
    maps={"AIR-PolSAR-Seg-2.0": {**_same(*_AIR_5), "mountain": IGNORE}},
)
DDHR_6 = Task(
    key="ddhr6",
    classes=_colors(DDHR_SK.classes, DDHR_SK.palette, _DDHR_6),
    scored=_DDHR_6,
    maps={
        "DDHR-SK": _same(*_DDHR_6),
        "OpenEarthMap-SAR": {
            "background": IGNORE,  # unlabelled there, not a kind of ground
            "bareland": "other",
            "rangeland": "greenery",
            "developed": "other",  # paved ground without buildings
            "road": "road",
            "tree": "greenery",
            "water": "water",
            "agriculture": "farmland",
            "building": "building",
        },
        "WHU-OPT-SAR": {
            "background": IGNORE,  # the margin of a scene
            "farmland": "farmland",
            "city": "building",
            "village": "building",
            "water": "water",
            "forest": "greenery",
            "road": "road",
            "other": "other",
        },
    },
)
FUSAR_5 = Task(
    key="fusar5",
    classes=_colors(FUSAR_MAP.classes, FUSAR_MAP.palette, _FUSAR_5),
    scored=_FUSAR_5,
    maps={
        "FUSAR-Map": _same(*_FUSAR_5),
        "AIR-PolSAR-Seg-2.0": {
            **_same("building", "vegetation", "water", "road"),
            "bare ground": "other",
            "mountain": IGNORE,  # wooded or bare: neither vegetation nor other would be right
        },
        "DDHR-SK": {
            **_same("building", "water", "road", "other"),
            "farmland": "vegetation",
            "greenery": "vegetation",
        },
    },
)
BUILDING_1 = Task(
    key="building1",
    classes=class_table(("background", "building"), ((0, 0, 0), (255, 255, 0))),
    # One category in the paper's table; scores down to 2.7 there cannot be a mean with the background's IoU
    # unless nearly everything was called building.
    scored=("building",),
    maps={
        "SARBuD": _same("background", "building"),
        "AIR-PolSAR-Seg-2.0": {
            **dict.fromkeys(AIR_POLSAR_SEG_2.classes, "background"),
            "building": "building",
        },
    },
)

TASKS = {task.key: task for task in (AIR_6, AIR_5, DDHR_6, FUSAR_5, BUILDING_1)}

SEVEN_CLASS_TASK = Task(
    key="seven",
    classes=SEVEN_CLASSES,
    scored=SEVEN_CLASSES.names,
    maps={
        "DDHR-X": {
            "building": "building",
            "road": "road",
            "greenery": "forest",
            "water": "water",
            "farmland": "agricultural",
            "other": "background",
        },
        "MPOLSAR-1.0": _same(*SEVEN_CLASSES.names),
        "AIR-MDSAR-Map": {
            "water": "water",
            "bare soil": "barren",
            "road": "road",
            "industry": "building",
            "resident": "building",
            "vegetation": "forest",
            "woodland": "forest",
            "paddy": "agricultural",
            "planting": "agricultural",
            "human-built": "building",
        },
        "AIR-PolSAR-Seg-1.0": {
            "industrial area": "building",
            "natural area": "forest",
            "land use area": "agricultural",
            "water area": "water",
            "housing area": "building",
            "other": "background",
        },
    },
)
"""Pre-training. Sources with pseudo labels are not in it: their labels are the seven classes already."""


def named_task(key: str) -> Task:
    """The task `key`: one of TASKS, or "seven".

    Raises:
        InputError: for an unknown key, naming the nearest.
    """
    tasks = {**TASKS, SEVEN_CLASS_TASK.key: SEVEN_CLASS_TASK}
    if key not in tasks:
        raise InputError(f"no task {key!r}{nearest(key, tasks)}", expected=f"one of {', '.join(tasks)}")
    return tasks[key]
