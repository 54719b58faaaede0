"""Colours go by the names of classes, not by their order."""

from __future__ import annotations

from itertools import permutations

from crossearth_sar.data.datasets.class_colors import DISTINCT_COLORS, NAMED_COLORS, colors_by_name
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES, TASKS, class_table

WATER = (50, 110, 220)


def test_water_is_blue_wherever_it_stands() -> None:
    for names in permutations(("water", "land", "something else")):
        table = dict(zip(names, class_table(names).palette, strict=True))
        assert table["water"] == WATER
        assert table["land"] == NAMED_COLORS["land"]
    assert colors_by_name(("Open_Water", "x"))[0] == WATER
    for task in TASKS.values():
        if "water" in task.classes.names:
            red, green, blue = task.classes.palette[task.classes.names.index("water")]
            assert blue > 200 > max(red, green)


def test_the_seven_classes_have_their_own_colours() -> None:
    assert colors_by_name(SEVEN_CLASSES.names) == SEVEN_CLASSES.palette


def test_colours_are_distinct() -> None:
    assert not {*DISTINCT_COLORS} & {*NAMED_COLORS.values()}
    for names in (("water", "flood", "sea"), ("vegetation", "greenery"), tuple(f"c{i}" for i in range(60))):
        colors = colors_by_name(names)
        assert len({*colors}) == len(names)
