"""Predictions beside labels: size, palette, nodata, odd samples, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import count_of, pixels
from torch import Tensor

from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES, class_table
from crossearth_sar.data.sample import Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures import colorize, neutral_color, prediction_figure
from crossearth_sar.evaluation.figures.predictions import STRIPE_COLORS, WRONG_COLOR


def scene(seed: int, height: int = 64, width: int = 64, classes: int = 7) -> tuple[Sample, Tensor]:
    """Stripes of all classes under speckle, and a prediction that errs in one band of rows."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width) * classes // width).expand(height, width).clone()
    amplitude = 0.1 * (1 + mask) * -torch.rand(height, width, generator=generator).clamp_min(1e-6).log()
    prediction = mask.clone()
    prediction[: height // 4] = 0
    return Sample(image=amplitude[None], mask=mask, name=f"scene_{seed}.tif"), prediction


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
    stripes = sum(count_of(picture, color) for color in STRIPE_COLORS)
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
