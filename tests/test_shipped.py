"""The model in the box: it loads by name, is small, says what it is, and tells water from land."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossearth_sar import load_model
from crossearth_sar.cli.main import main
from crossearth_sar.data.domain import open_domain
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.engine.config import simulated_run
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import predict_sample
from crossearth_sar.model import WEIGHTS_FILE
from crossearth_sar.shipped import WEIGHTS, model_folder, shipped_models


def test_the_shipped_model_loads_by_name() -> None:
    assert shipped_models() == ["tiny"]
    model = load_model("tiny")
    assert model.class_names is not None
    assert "water" in model.class_names
    assert (model.config.pixel_m, model.config.bands) == (10.0, 1)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_it_is_small_and_has_a_card() -> None:
    assert (WEIGHTS / "tiny" / WEIGHTS_FILE).stat().st_size <= 10_000_000
    card = (WEIGHTS / "tiny" / "README.md").read_text(encoding="utf-8")
    for words in ("simulated", "Scores", "fails", "make weights"):
        assert words in card


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder("tiny") == WEIGHTS / "tiny"
    (tmp_path / "tiny").mkdir()
    assert model_folder("tiny") == Path("tiny")
    assert model_folder("other") == Path("other")
    with pytest.raises(InputError, match=r"no model in .*(?s:.*)a model of the package: tiny"):
        load_model("other")


def test_it_tells_water_from_land_on_places_it_was_not_trained_on() -> None:
    """Simulated ones of many sensors; a tenth of them is water. What real ones give: bench/reports/real."""
    model, held_out = load_model("tiny"), simulated_run().validation
    assert held_out is not None
    assert model.class_names is not None
    domain, water = open_domain(held_out, "", model.config.pixel_m), model.class_names.index("water")
    both = either = 0
    for index in range(16):
        sample = domain[index]
        known, there = sample["mask"] != IGNORE_INDEX, sample["mask"] == water
        found = predict_sample(model, sample) == water
        both += int((found & there & known).sum())
        either += int(((found | there) & known).sum())
    assert both / either > 0.35


def test_predict_needs_nothing_but_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = torch.rand(2, 70, 90).numpy().astype(np.float32) + 0.1
    np.save(tmp_path / "scene.npy", image)
    assert main(["predict", "--images", "scene.npy"]) == 0
    assert (tmp_path / "maps" / "scene.png").is_file()


def test_evaluate_takes_it_by_name_and_writes_nothing_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (
        "domains: [{name: d, normalize: image, simulated: {length: 2, image_size: 128, resolution_m: 10}}]"
    )
    (tmp_path / "d.yaml").write_text(lines, encoding="utf-8")
    given = ["evaluate", "--config", "d.yaml", "--model", "tiny", "--pictures", "0"]
    assert main([*given, "--calibrate", "d"]) == 2
    assert "a model folder of yours" in capsys.readouterr().err
    assert main(given) == 0
    assert (tmp_path / "runs" / "evaluate" / "README.md").is_file()
