"""From scores to classes: the largest, or one class against all others together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossearth_sar import build_model
from crossearth_sar.decision import decided, first_class
from crossearth_sar.errors import InputError
from crossearth_sar.model import eval_mode
from tests.micro_model import CLASSES, MICRO, amplitude


def by_hand(scores: list[float], first: int) -> int:
    rest = [score for k, score in enumerate(scores) if k != first]
    if scores[first] > sum(rest):
        return first
    return max((k for k in range(len(scores)) if k != first), key=lambda k: scores[k])


def test_a_class_wins_against_all_others_together_or_not_at_all() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.2], [0.4, 0.6, 0.4], [0.3, 0.3, 0.4]])[:, None]  # 3 classes, 1 x 3
    assert decided(scores).tolist() == [[1, 1, 1]]
    assert decided(scores, 1).tolist() == [[0, 1, 2]]


@given(st.integers(2, 6), st.integers(0, 5), st.integers(0, 2**31))
def test_as_by_hand(classes: int, first: int, seed: int) -> None:
    first %= classes
    scores = torch.rand(2, classes, 3, 4, generator=torch.Generator().manual_seed(seed))
    found = decided(scores, first)
    assert found.shape == (2, 3, 4)
    for image, y, x in np.ndindex(2, 3, 4):
        assert found[image, y, x] == by_hand(scores[image, :, y, x].tolist(), first)


def test_two_classes_need_no_rule() -> None:
    scores = torch.rand(2, 5, 5)
    assert torch.equal(decided(scores, 1), scores.argmax(0))


@pytest.mark.parametrize(
    ("name", "classes", "index"),
    [
        ("water", ("land", "water"), 1),
        ("water", ("land", "sea"), None),
        (None, ("water",), None),
        ("water", None, None),
    ],
)
def test_the_class_goes_by_name(name: str | None, classes: tuple[str, ...] | None, index: int | None) -> None:
    assert first_class(name, classes) == index


def test_a_models_map_keeps_to_it() -> None:
    torch.manual_seed(0)
    image = amplitude(1, 1, 64, 64)
    changes = {**MICRO, "decided_first": "water"}
    model = build_model("crossearth_sar_tiny", CLASSES, changes=changes)
    model.name_classes(["land", "water", "ice"])
    statistics = torch.tensor([0.0]), torch.tensor([5.0])
    with torch.no_grad(), eval_mode(model):
        scores = model.slide_scores(image, *(value[None] for value in statistics))
    found = model.predict(image, *statistics)
    assert torch.equal(found, decided(scores, 1))
    assert not torch.equal(found, scores.argmax(1)), "or nothing is shown"


def test_windows_may_be_larger_than_crops() -> None:
    model = build_model("crossearth_sar_tiny", CLASSES, changes={**MICRO, "window_size": 128})
    assert model.config.window == 128
    windows: list[object] = []
    model.predict(amplitude(1, 1, 128, 128), on_window=windows.append)
    assert len(windows) == 1
    with pytest.raises(InputError, match="window_size"):
        build_model("crossearth_sar_tiny", CLASSES, changes={**MICRO, "window_size": 60})
