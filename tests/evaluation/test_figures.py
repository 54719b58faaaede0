"""Pictures: that they are written, how large, with which colours, and that nothing global is touched.

How they look is judged by eye; these tests hold what an eye would not check twice.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from PIL import Image
from torch import Tensor

from crossearth_sar.data.sample import Sample
from crossearth_sar.data.specs import SEVEN_CLASSES, class_table
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation import figures
from crossearth_sar.evaluation.figures import (
    WRONG_COLOR,
    colorize,
    curves_figure,
    expert_share_figure,
    neutral_color,
    prediction_figure,
)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count_of(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == np.array(color, dtype=np.uint8)).all(-1).sum())


def scene(seed: int, height: int = 64, width: int = 64, classes: int = 7) -> tuple[Sample, Tensor]:
    """Stripes of all classes under speckle, and a prediction that errs in one band of rows."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width) * classes // width).expand(height, width).clone()
    amplitude = 0.1 * (1 + mask) * -torch.rand(height, width, generator=generator).clamp_min(1e-6).log()
    prediction = mask.clone()
    prediction[: height // 4] = 0
    return Sample(image=amplitude[None], mask=mask, name=f"scene_{seed}.tif"), prediction


@pytest.fixture(autouse=True)
def _nothing_global_changes() -> object:
    before = dict(rcParams)
    yield
    assert dict(rcParams) == before


def test_pyplot_is_never_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from crossearth_sar.evaluation.figures import expert_share_figure, curves_figure;"
        f"expert_share_figure(torch.full((2, 4), 0.25), {str(tmp_path / 'a.png')!r});"
        f"curves_figure({{'loss': [1.0, 2.0]}}, {str(tmp_path / 'b.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(figures.__file__).parents[2]
    )


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8])
def test_prediction_figure_fits_a_slide(tmp_path: Path, rows: int) -> None:
    pairs = [scene(i) for i in range(rows)]
    path = prediction_figure(
        [s for s, _ in pairs],
        [p for _, p in pairs],
        SEVEN_CLASSES,
        tmp_path / "new" / "folder" / "p.png",
        "Title",
    )
    height, width, _ = pixels(path).shape
    assert path == tmp_path / "new" / "folder" / "p.png"
    assert 1000 < width < 2600
    assert 500 < height < 1900


def test_label_and_prediction_panels_hold_exactly_the_palette(tmp_path: Path) -> None:
    sample, prediction = scene(0)
    sample["mask"][-16:] = 255
    path = prediction_figure([sample], [prediction], SEVEN_CLASSES, tmp_path / "p.png")
    picture = pixels(path)
    panel = int((2.3 * 150) ** 2)
    neutral = neutral_color(SEVEN_CLASSES.palette)
    for index, color in enumerate(SEVEN_CLASSES.palette):
        labelled = (sample["mask"] == index).float().mean() + (prediction == index).float().mean()
        assert count_of(picture, color) == pytest.approx(panel * float(labelled), rel=0.08)
    assert count_of(picture, neutral) == pytest.approx(panel * 2 * 0.25, rel=0.08)  # label and error map
    wrong = ((prediction != sample["mask"]) & (sample["mask"] != 255)).float().mean()
    assert count_of(picture, WRONG_COLOR) == pytest.approx(panel * float(wrong), rel=0.08)
    plain = pixels(
        prediction_figure([sample], [prediction], SEVEN_CLASSES, tmp_path / "q.png", error_map=False)
    )
    assert count_of(plain, WRONG_COLOR) == 0
    assert plain.shape[1] < picture.shape[1]


def test_nodata_is_striped_and_dark_pixels_are_black(tmp_path: Path) -> None:
    sample, prediction = scene(1)
    sample["image"][:, :32], sample["mask"][:32] = 0.0, 255  # nodata
    sample["image"][:, 48:] = 0.0  # no echo, yet labelled
    picture = pixels(prediction_figure([sample], [prediction], SEVEN_CLASSES, tmp_path / "p.png"))
    panel = (2.3 * 150) ** 2
    stripes = sum(count_of(picture, color) for color in figures.STRIPE_COLORS)
    assert 0.3 * panel < stripes < 0.55 * panel  # half of the panel, less what resampling blends
    assert count_of(picture, (0, 0, 0)) > 0.2 * panel


def test_prediction_figure_takes_odd_samples(tmp_path: Path) -> None:
    wide, wide_prediction = scene(2, 30, 90)
    constant, prediction = scene(3, 17, 23)
    constant["image"].fill_(0.5)
    constant["mask"].fill_(255)
    constant["name"] = "a name with $dollar_ and_ much more of it, " * 9
    black, black_prediction = scene(4)
    black["image"].zero_()
    path = prediction_figure(
        [wide, constant, black],
        [wide_prediction, prediction, black_prediction],
        SEVEN_CLASSES,
        tmp_path / "p.png",
        "cost $5 and $x_^",
        band=0,
    )
    assert pixels(path).std() > 0


def test_prediction_figure_refuses_what_does_not_fit(tmp_path: Path) -> None:
    sample, prediction = scene(0)
    path = tmp_path / "p.png"
    for samples, predictions, says in (
        ([], [], "samples and predictions"),
        ([sample], [], "samples and predictions"),
        ([sample], [prediction[1:]], "differ in shape"),
        ([sample], [prediction + 7], "outside the task"),
        ([sample], [prediction.float()], "holds no class indices"),
    ):
        with pytest.raises(InputError, match=says):
            prediction_figure(samples, predictions, SEVEN_CLASSES, path)
    with pytest.raises(InputError, match="does not fit"):
        prediction_figure([sample], [prediction], SEVEN_CLASSES, path, band=1)
    with pytest.raises(InputError, match="PNG"):
        prediction_figure([sample], [prediction], SEVEN_CLASSES, tmp_path / "p.jpg")
    assert not path.exists()


def test_colorize_is_the_palette() -> None:
    table = class_table(("a", "b"), ((1, 2, 3), (250, 0, 9)))
    picture = colorize(torch.tensor([[0, 1, 255]]), table)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[1, 2, 3], [250, 0, 9], list(neutral_color(table.palette))]]
    for bad in (torch.tensor([[2]]), torch.tensor([[-1]]), torch.tensor([0]), torch.zeros(2, 2)):
        with pytest.raises(InputError, match="index map"):
            colorize(bad, table)


@pytest.mark.parametrize("palette", [((0, 0, 0), (255, 255, 255)), ((210, 210, 210), (120, 120, 130))])
def test_the_neutral_tone_stands_off_the_palette(palette: tuple[tuple[int, int, int], ...]) -> None:
    assert min(math.dist(neutral_color(palette), color) for color in palette) > 40


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
    for color in (figures.BLUE, figures.VERMILION, figures.PURPLE, figures.GREEN):
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
    vermilion = tuple(bytes.fromhex(figures.VERMILION[1:]))
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
    means = figures._running_mean(values, 3)
    np.testing.assert_allclose(means, [1.5, 1.5, np.nan, 8.0, 8.0])


@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (6, 3), (12, 6), (13, 4), (24, 3), (24, 6)])
def test_expert_shares_fit_a_slide(tmp_path: Path, layers: int, experts: int) -> None:
    share = torch.softmax(torch.randn(layers, experts, generator=torch.Generator().manual_seed(0)), 1)
    picture = pixels(expert_share_figure(share, tmp_path / "e.png", "Share of tokens"))
    assert 700 <= picture.shape[1] < 2500
    assert 250 < picture.shape[0] < 1300


def test_bubble_area_follows_the_share(tmp_path: Path) -> None:
    """Half the share has half the area: the diameters of the two strong bubbles stand as 1 to sqrt(2)."""
    path = expert_share_figure(torch.tensor([[0.9, 0.05, 0.05], [0.45, 0.3, 0.25]]), tmp_path / "e.png")
    strong = (pixels(path) == np.array(tuple(bytes.fromhex(figures.BLUE[1:])))).all(-1).any(1)
    edges = np.flatnonzero(np.diff(strong.astype(int), prepend=0, append=0))
    first, second, *_ = edges[1::2] - edges[::2]  # heights of the bubbles, and of the legend's dot
    assert first == pytest.approx(2 * figures._MAX_RADIUS * figures.DPI, abs=2)
    assert first / second == pytest.approx(math.sqrt(2), rel=0.04)


@pytest.mark.parametrize(
    "share",
    [
        torch.ones(3),
        torch.empty(0, 4),
        torch.ones(2, 2),
        torch.tensor([[1.5, -0.5]]),
        torch.tensor([[math.nan, 1.0]]),
        torch.tensor([[120, 80]]),
    ],
)
def test_shares_that_are_none_are_refused(tmp_path: Path, share: Tensor) -> None:
    with pytest.raises(InputError, match="share"):
        expert_share_figure(share, tmp_path / "e.png")
