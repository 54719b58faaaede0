"""Training curves: of a whole log, of what a log may hold, and of values that are not finite."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pictures import count_of, pixels

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures import curves_figure
from crossearth_sar.evaluation.figures.canvas import BLUE, GREEN, PURPLE, VERMILION
from crossearth_sar.evaluation.figures.curves import _running_mean


def test_curves_of_a_whole_log(tmp_path: Path) -> None:
    steps = list(range(0, 4000, 10))
    log = {
        "step": steps,
        "loss": [30 * math.exp(-s / 800) + 5 for s in steps],
        "loss_segmentation": [30 * math.exp(-s / 800) + 4 for s in steps],
        "loss_balance": [0.06] * 400,
        "lr": [1e-4 * (1 - s / 4000) for s in steps],
        "grad_norm": [10 ** (s % 70 / 30) for s in steps],
        "seconds": [0.5] * 400,
    }
    validation = {"step": [1000, 2000, 3000], "miou": [0.2, 0.35, 0.3]}
    picture = pixels(curves_figure(log, tmp_path / "c.png", "Run", validation=validation))
    assert picture.shape[1] == 1650
    assert 1000 < picture.shape[0] < 1400
    for color in (BLUE, VERMILION, PURPLE, GREEN):
        assert count_of(picture, tuple(bytes.fromhex(color[1:]))) > 100


@pytest.mark.parametrize(
    "log",
    [
        {"step": [7], "loss": [3.0], "lr": [0.0], "grad_norm": [1.0], "miou": [0.1]},
        {"loss": [math.nan]},
        {"loss": [math.nan, None, math.inf], "lr": [None] * 3, "miou": [math.nan] * 3},
        {"step": list(range(300)), "loss": [math.nan if i > 200 else 300.0 - i for i in range(300)]},
        {"lr": [1e-4, 1e-5]},
        {"loss": []},
        {"loss": [0.0, -1.0, 1e6]},
    ],
)
@pytest.mark.filterwarnings("error")
def test_curves_take_what_a_log_may_hold(tmp_path: Path, log: dict[str, list[float]]) -> None:
    assert pixels(curves_figure(log, tmp_path / "c.png")).shape[1] == 1650


def test_values_that_are_not_finite_are_marked(tmp_path: Path) -> None:
    vermilion = tuple(bytes.fromhex(VERMILION[1:]))
    sound = pixels(curves_figure({"loss": [1.0, 2.0, 3.0]}, tmp_path / "a.png"))
    broken = pixels(curves_figure({"loss": [1.0, math.nan, 3.0]}, tmp_path / "b.png"))
    assert count_of(sound, vermilion) == 0
    assert count_of(broken, vermilion) > 0


def test_curves_refuse_a_log_they_cannot_read(tmp_path: Path) -> None:
    for log, says in (
        ({}, "nothing to draw"),
        ({"step": [1]}, "nothing to draw"),
        ({"step": [1, 2], "loss": [1.0]}, "differ in length"),
        ({"step": [math.nan], "loss": [1.0]}, "not finite"),
    ):
        with pytest.raises(InputError, match=says):
            curves_figure(log, tmp_path / "c.png")


def test_running_mean_is_the_mean_of_what_is_there() -> None:
    values = np.array([1.0, 2.0, np.nan, 6.0, 10.0])
    means = _running_mean(values, 3)
    np.testing.assert_allclose(means, [1.5, 1.5, np.nan, 8.0, 8.0])
