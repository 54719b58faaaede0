"""Classes of a model on the labels of a domain: by name, by what was said, as «other», or refused."""

from __future__ import annotations

import pytest

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.class_mapping import map_classes, parse_counts_as, require_known

SEVEN = ("building", "road", "water", "barren", "forest", "agricultural", "background")


def mapped(names: tuple[str, ...] | None, classes: tuple[str, ...], *said: str) -> list[str]:
    count = len(classes) if names is None else len(names)
    found = map_classes("m", names, count, "d", classes, parse_counts_as(said))
    return [classes[i] for i in found.to_domain]


def test_by_name_in_any_order() -> None:
    assert mapped(("a", "Water"), ("water", "A")) == ["A", "water"]
    found = map_classes("m", ("a", "b"), 2, "d", ("a", "b"), {})
    assert found.notes == ()


def test_what_a_domain_does_not_name_is_its_other() -> None:
    expected = ["other", "other", "water", *["other"] * 4]
    assert mapped(SEVEN, ("other", "water")) == expected
    (note,) = map_classes("m", SEVEN, 7, "d", ("other", "water"), {}).notes
    assert "building, road, barren, forest, agricultural, background of the model count as «other»" in note


def test_what_is_said_goes_over_names_and_other() -> None:
    said = ("land=building,road,barren", "green=forest,agricultural", "land2=background")
    assert mapped(SEVEN, ("water", "land", "green", "land2"), *said)[4:] == ["green", "green", "land2"]
    assert mapped(("a", "b", "other"), ("a", "other"), "a=b") == ["a", "a", "other"]
    assert mapped(("a", "b"), ("a", "b"), "unknown=b", "a=elsewhere") == ["a", "b"], "of other models"


def test_a_model_without_names_is_taken_by_order() -> None:
    assert mapped(None, ("a", "b")) == ["a", "b"]
    (note,) = map_classes("m", None, 2, "d", ("a", "b"), {}).notes
    assert "taken to be a, b, in this order" in note
    with pytest.raises(InputError, match=r"m does not say what its classes are[\s\S]*got: 3[\s\S]*2: a, b"):
        map_classes("m", None, 3, "d", ("a", "b"), {})


def test_nothing_is_guessed() -> None:
    with pytest.raises(InputError, match=r"got: building, road[\s\S]*--as water=building,road"):
        mapped(("building", "road", "water"), ("water",))
    with pytest.raises(InputError, match=r"'d' that m cannot predict\n  got: ice"):
        mapped(("water", "land"), ("water", "land", "ice"))


@pytest.mark.parametrize("text", ["other", "=a", "other=", "other=,", "a=b a=c"])
def test_assignments_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="cannot read --as"):
        parse_counts_as(text.split())


def test_names_that_nobody_has_are_refused() -> None:
    require_known({"other": ["road"]}, [("water", "other"), ("road", "x")], [("other", "water")])
    with pytest.raises(InputError, match=r"no domain has a class 'othr' \(did you mean 'other'"):
        require_known({"othr": ["road"]}, [("road",)], [("other",)])
    with pytest.raises(InputError, match="no model has a class 'rod'"):
        require_known({"other": ["rod"]}, [("road",)], [("other",)])
