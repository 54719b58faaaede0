"""The table of scores against training time, on counts made up so that its numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.experiments.real.curves import curve_table
from bench.experiments.real.sets import SETS

WATER = [row for row in SETS if row.task == "water"][:3]


def entry(right: int) -> dict[str, Any]:
    """One image of 100 pixels a class, `right` of each found: mIoU right / (200 - right)."""
    return {"counts": np.array([[[right, 100 - right], [100 - right, right]]])}


def test_a_row_a_training_means_of_the_sets_that_all_have_and_seeds_in_order() -> None:
    first, second, third = (row.name for row in WATER)
    runs = {
        "tiny-wide-400s-seed0": (50, 100),
        "tiny-wide-400s-seed1": (100, 100),
        "tiny-old-400s-seed0": (100, 50),
    }
    found: dict[str, dict[str, Any]] = {first: {}, second: {}, third: {}}
    for run, (early, late) in runs.items():
        for name in (first, second):
            found[name] |= {f"{run}-at50": entry(early), f"{run}-at400": entry(late)}
    found[third]["tiny-wide-400s-seed0-at50"] = entry(0)  # scored there by one alone: left out
    found[first] |= {"unet-ombria-tr-200s-seed0-at200": entry(7), "Otsu": entry(7)}  # one point is no curve
    assert curve_table(found, SETS) == [
        "| trained | sets | 50 s | 400 s |",
        "|---|---|---|---|",
        "| tiny-wide-400s | 2 | 66.7 (33.3, 100.0) | 100.0 (100.0, 100.0) |",
        "| tiny-old-400s | 2 | 100.0 (100.0) | 33.3 (33.3) |",
    ]
    assert curve_table({first: {"Otsu": entry(7)}}, SETS) == []
