"""Known temperatures come out, calibration errors agree with another's, and a model keeps its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from micro_model import micro
from torchmetrics.functional.classification import multiclass_calibration_error

from crossearth_sar import InputError, load_model, save_model
from crossearth_sar.evaluation.calibration import (
    BINS,
    Reliability,
    at_temperature,
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
    negative_log_likelihood,
    store_temperature,
)
from crossearth_sar.pretrained import load_backbone


def drawn(pixels: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (K, N), and labels drawn by their softmax: calibrated by construction."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(classes, pixels)
    return logits, torch.multinomial(logits.softmax(0).T, 1)[:, 0]


@pytest.mark.parametrize("known", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(known: float) -> None:
    logits, target = drawn(40_000)
    log_p = (known * logits).log_softmax(0)
    found = fit_temperature(log_p, target)
    assert found == pytest.approx(known, rel=0.03)
    own = torch.arange(4)
    best = negative_log_likelihood(log_p, target, own, found)
    for other in (0.9 * found, 1.1 * found):
        assert best < negative_log_likelihood(log_p, target, own, other)
    right = logits.argmax(0) == target
    errors = [expected_calibration_error(at_temperature(log_p, t).amax(0), right) for t in (None, found)]
    assert errors[1] < 0.01
    if known != 1:
        assert errors[0] > 0.05
    assert torch.equal(at_temperature(log_p, found).argmax(0), logits.argmax(0)), "classes stay"


def test_classes_that_count_as_one_are_fitted_as_one() -> None:
    logits, target = drawn(40_000)
    group = torch.tensor([0, 1, 1, 0])
    assert fit_temperature((2 * logits).log_softmax(0), group[target], group) == pytest.approx(2, rel=0.05)
    with pytest.raises(InputError, match="no labelled pixel"):
        fit_temperature(logits[:, :0], target[:0])


def test_scores_that_are_no_probabilities_become_shares() -> None:
    scores = torch.tensor([[3.0, 0.0, 0.2], [1.0, 0.0, 0.6]])
    expected = torch.tensor([[0.75, 0.5, 0.25], [0.25, 0.5, 0.75]])
    torch.testing.assert_close(log_probabilities(scores).exp(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(at_temperature(log_probabilities(scores), None), expected, rtol=0, atol=1e-5)
    squared = torch.tensor([9.0, 1.0]) / 10
    torch.testing.assert_close(
        at_temperature(log_probabilities(scores), 0.5)[:, 0], squared, rtol=0, atol=1e-5
    )


def test_the_calibration_error_is_the_usual_one() -> None:
    logits, target = drawn(5_000)
    probability = (1.7 * logits).softmax(0)
    expected = multiclass_calibration_error(probability.T, target, num_classes=4, n_bins=BINS, norm="l1")
    right = probability.argmax(0) == target
    assert expected_calibration_error(probability.amax(0), right) == pytest.approx(float(expected), abs=1e-6)
    parts = Reliability()
    for piece in range(5):
        parts.update(probability.amax(0)[piece::5], right[piece::5])
    assert parts.expected_calibration_error == pytest.approx(float(expected), abs=1e-6)
    sure = expected_calibration_error(torch.ones(4), torch.tensor([True, True, True, False]))
    assert sure == pytest.approx(0.25)
    assert Reliability().expected_calibration_error != Reliability().expected_calibration_error, "NaN"


def test_a_model_folder_keeps_its_temperature(tmp_path: Path) -> None:
    model = micro()
    model.name_classes("abc")
    save_model(model, tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    assert "temperature" not in before
    assert load_model(tmp_path).temperature is None
    for value in (1.5, 2.25):
        store_temperature(tmp_path, value)
        loaded = load_model(tmp_path)
        assert loaded.temperature == value
        assert loaded.class_names == ("a", "b", "c")
    assert json.loads((tmp_path / "config.json").read_text()) == {**before, "temperature": 2.25}
    save_model(loaded, tmp_path / "again")
    assert load_model(tmp_path / "again").temperature == 2.25
    load_backbone(micro(), tmp_path)
    store_temperature(tmp_path, -1.0)
    with pytest.raises(InputError, match=r"«temperature» in .*config.json is none\n  got: -1.0"):
        load_model(tmp_path)
