"""Image by image the same as in one pass, at the spacing of the model, and the same again from JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from micro_model import MICRO

from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.evaluation.calibration import at_temperature, log_probabilities
from crossearth_sar.evaluation.class_mapping import ClassMapping
from crossearth_sar.evaluation.evaluate import evaluate, predict_sample, sample_scores
from crossearth_sar.evaluation.image_scores import ImageScores, score_images, temperature_of
from crossearth_sar.ground_scale import centre_pixels
from crossearth_sar.model import CrossEarthSAR, build_model

SEVEN = ClassMapping(tuple(range(7)))


def make(pixel_m: float | None = None, kind: str = "mask2former") -> CrossEarthSAR:
    torch.manual_seed(3)
    changes = {**MICRO, "pixel_m": pixel_m, "decoder": {**MICRO["decoder"], "kind": kind}}
    model = build_model("crossearth_sar_tiny", 7, changes=changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def opened(pixel_m: float | None = None) -> Domain:
    scenes = SimulatorConfig(length=4, image_size=90, seed=1)  # of 3 m
    return open_domain(DomainConfig(name="x", simulated=scenes), pixel_m=pixel_m)


@pytest.mark.parametrize(("pixel_m", "kind"), [(None, "mask2former"), (6.0, "mask2former"), (6.0, "fpn")])
def test_images_add_up_to_one_pass(pixel_m: float | None, kind: str) -> None:
    model, domain = make(pixel_m, kind), opened(pixel_m)
    seen = []
    found = score_images(model, domain, [0, 2, 3], SEVEN, on_image=lambda i, s, c: seen.append((i, c)))
    assert torch.equal(found.confusion().counts, evaluate(model, domain, [0, 2, 3]).confusion.counts)
    assert [i for i, _ in seen] == [0, 2, 3]
    for index, classes in seen:
        assert torch.equal(classes, predict_sample(model, domain[index]))
    assert len(set(found.units)) == 3
    rates = found.confusion().rates()
    iou = found.confusion().scores().iou
    torch.testing.assert_close(rates.f1, 2 * iou / (1 + iou), equal_nan=True)
    assert found.after is None


def test_classes_that_count_as_one_and_the_confidence_in_them() -> None:
    model, domain = make(), opened()
    two = ClassMapping((0, 0, 1, 0, 0, 0, 0))
    domain.classes = type(domain.classes)(names=("other", "water"), palette=((0, 0, 0), (0, 0, 255)))
    for_two = [{**domain[i], "mask": (domain[i]["mask"] == 2).long()} for i in range(2)]
    domain.dataset = Listed(for_two, domain)  # type: ignore[assignment]
    found = score_images(model, domain, [0, 1], two, temperature=1.7, fitted_on=[1])
    assert found.after is not None
    scores = sample_scores(model, for_two[0])  # type: ignore[arg-type]
    is_water = scores.argmax(0) == 2
    for bins, used in ((found.before, 1.0), (found.after, 1.7)):
        water = at_temperature(log_probabilities(scores), used)[2]
        sure = torch.where(is_water, water, 1 - water).double()
        assert float(bins.pixels.sum()) == 90 * 90, "the image that was fitted on is left out"
        assert float(bins.confidence.sum()) == pytest.approx(float(sure.sum()), rel=1e-4)
    expected = sum(int((predict_sample(model, s) == 2).eq(s["mask"] == 1).sum()) for s in for_two)  # type: ignore[arg-type]
    assert int(found.confusion().counts.diagonal().sum()) == expected


class Listed:
    """Samples given as a list, from where another domain's come."""

    def __init__(self, samples: list, other: Domain) -> None:
        self.samples, self.origin = samples, other.dataset.origin

    def __getitem__(self, index: int) -> object:
        return self.samples[index]


def test_a_temperature_lowers_the_error_on_images_it_was_not_fitted_on() -> None:
    model, domain = make(6.0), opened(6.0)
    found = temperature_of(model, domain, [0, 2], SEVEN)
    losses = []
    for used in (1.0, found):
        total = 0.0
        for index in (1, 3):
            p = at_temperature(log_probabilities(sample_scores(model, domain[index])), used)
            own = torch.stack([centre_pixels(k, (90, 90)) for k in p])
            total -= float(own.gather(0, domain[index]["mask"][None]).clamp(min=1e-12).log().mean())
        losses.append(total)
    assert found != 1
    assert losses[1] < losses[0]


def test_there_and_back() -> None:
    found = score_images(make(), opened(), [0, 1], SEVEN, temperature=2.0)
    again = ImageScores.from_mapping(json.loads(json.dumps(found.to_mapping())))
    assert again.to_mapping() == found.to_mapping()
    assert again.after is not None
    assert torch.equal(again.after.right, found.after.right)  # type: ignore[union-attr]
    tiles = ImageScores(["a", "b", "c"], ["x", "y", "x"], [np.eye(2, dtype=np.int64) * i for i in (1, 2, 4)])
    assert tiles.unit_counts()[:, 0, 0].tolist() == [5, 2]
