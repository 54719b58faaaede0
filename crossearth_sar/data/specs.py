"""The one table of class lists and palettes. Rows of datasets join it as their loaders do."""

from __future__ import annotations

from crossearth_sar.data.sample import ClassTable

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

DISTINCT_COLORS = (
    (120, 120, 130),
    (50, 110, 220),
    (220, 60, 50),
    (245, 210, 70),
    (30, 120, 60),
    (150, 200, 90),
    (190, 150, 110),
    (150, 80, 190),
    (240, 140, 60),
    (90, 200, 210),
    (230, 130, 180),
    (100, 70, 50),
)
"""Colours for a task that brings none."""


def class_table(
    names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...] | None = None
) -> ClassTable:
    """A ClassTable for `names`; without a palette, colours are taken from a fixed list in turn."""
    if palette is None:
        palette = tuple(DISTINCT_COLORS[i % len(DISTINCT_COLORS)] for i in range(len(names)))
    return ClassTable(names=names, palette=palette)
