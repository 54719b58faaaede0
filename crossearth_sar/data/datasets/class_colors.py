"""One table of colours by the names of classes, so that water is blue whatever its index.

The seven classes of pre-training as SEVEN_CLASSES draws them; other names as the published palettes do (air6,
ddhr6, fusar5). A name that stands nowhere, or whose colour another class has already, gets one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

RGB = tuple[int, int, int]

NAMED_COLORS: dict[str, RGB] = {
    "water": (50, 110, 220),
    "building": (220, 60, 50),
    "road": (245, 210, 70),
    "barren": (190, 150, 110),
    "forest": (30, 120, 60),
    "agricultural": (150, 200, 90),
    "background": (120, 120, 130),
    "vegetation": (0, 255, 0),
    "greenery": (0, 255, 0),
    "farmland": (255, 165, 0),
    "mountain": (128, 0, 128),
    "other": (0, 0, 0),
    # the same by other names
    "flood": (50, 110, 220),
    "open water": (50, 110, 220),
    "sea": (50, 110, 220),
    "buildings": (220, 60, 50),
    "built up": (220, 60, 50),
    "urban": (220, 60, 50),
    "roads": (245, 210, 70),
    "bare ground": (190, 150, 110),
    "bare soil": (190, 150, 110),
    "trees": (30, 120, 60),
    "cropland": (150, 200, 90),
    "agriculture": (150, 200, 90),
    "land": (120, 120, 130),
    "not water": (120, 120, 130),
}
"""Name in small letters, with spaces: its colour."""

DISTINCT_COLORS: tuple[RGB, ...] = (
    (150, 80, 190),
    (240, 140, 60),
    (90, 200, 210),
    (230, 130, 180),
    (100, 70, 50),
    (160, 160, 40),
    (200, 30, 120),
    (0, 130, 130),
    (250, 190, 190),
    (110, 110, 200),
    (190, 240, 160),
    (255, 250, 200),
)
"""For names without one: none is a colour of the table, nor blue."""


def colors_by_name(names: Sequence[str]) -> tuple[RGB, ...]:
    """One colour a class; what has none of its own gets those that are left, in order."""
    keys = [name.lower().replace("_", " ").replace("-", " ").strip() for name in names]
    found: list[RGB | None] = []
    for key in keys:
        color = NAMED_COLORS.get(key)
        found.append(None if color in found else color)
    free = iter([color for color in DISTINCT_COLORS if color not in found])
    return tuple(color or next(free, None) or _spread(i) for i, color in enumerate(found))


def _spread(index: int) -> RGB:
    """Colours beyond the table: steps that no small number of classes repeats."""
    return (40 + 67 * index % 200, 40 + 113 * index % 200, 40 + 31 * index % 200)
