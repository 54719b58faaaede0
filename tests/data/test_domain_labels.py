"""Labels that cannot teach what the classes say are refused, with the values that were found in them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossearth_sar.config import from_mapping
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.domain_labels import RARE_SAMPLES, require_labels, tell_absent_classes
from crossearth_sar.errors import InputError

WATER = np.zeros((32, 40), bool)
WATER[:8] = True


def folder(root: Path, values: dict[bool, int], name: str = "x", number: int = 1, **settings: Any) -> Domain:
    """`number` images with one label map, in which land and water have these values."""
    place = root / name
    for kind in ("i", "l"):
        (place / kind).mkdir(parents=True, exist_ok=True)
    label = np.where(WATER, values[True], values[False]).astype(np.uint8)
    for i in range(number):
        Image.fromarray(np.full(WATER.shape, 9, np.uint8)).save(place / "i" / f"{i:03}.png")
        Image.fromarray(label).save(place / "l" / f"{i:03}.png")
    config = {
        "root": str(place),
        "images": "i/*.png",
        "labels": "l/*.png",
        "values": "amplitude",
        "classes": ["land", "water"],
        **settings,
    }
    return open_domain(from_mapping(DomainConfig, {"name": name, "folder": config}))


def test_labels_of_0_and_255_with_two_classes_are_refused_with_what_would_fit(tmp_path: Path) -> None:
    words = (
        r"(?s)no pixel is water.*1 of 1 label files: 0 \(land\) 75.0 %, 255 \(ignore\) 25.0 %"
        r".*label_values: \{0: land, 255: water\}"
    )
    with pytest.raises(InputError, match=words):
        require_labels(folder(tmp_path, {False: 0, True: 255}))
    require_labels(folder(tmp_path, {False: 0, True: 255}, label_values={0: "land", 255: "water"}))
    require_labels(folder(tmp_path, {False: 0, True: 1}))


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    fits = r"classes: \[other, water\] and label_values: \{0: other, 255: water\}"
    words = rf"(?s)water is the only one.*0 \(water\) 75.0 %.*{fits}"
    with pytest.raises(InputError, match=words):
        require_labels(folder(tmp_path, {False: 0, True: 255}, classes=["water"]))


def test_a_class_that_no_label_shows_is_refused(tmp_path: Path) -> None:
    names = ["land", "water", "ice"]
    with pytest.raises(InputError, match=r"(?s)no pixel is ice.*leave a class that no label shows out"):
        require_labels(folder(tmp_path, {False: 0, True: 1}, classes=names))


def test_parts_of_a_mixture_may_have_a_class_each(tmp_path: Path) -> None:
    settings = {"root": str(tmp_path), "values": "amplitude", "classes": ["land", "water"]}
    for name, value in (("a", 0), ("b", 1)):
        folder(tmp_path, {False: value, True: value}, name)
    parts = [
        {"name": n, "folder": {**settings, "images": f"{n}/i/*.png", "labels": f"{n}/l/*.png"}} for n in "ab"
    ]
    require_labels(open_domain(from_mapping(DomainConfig, {"name": "both", "mixture": parts})))
    with pytest.raises(InputError, match=r"'both' cannot teach its classes: no pixel is water"):
        require_labels(open_domain(from_mapping(DomainConfig, {"name": "both", "mixture": parts[:1]})))


def test_a_rare_class_is_looked_for_in_more_files(tmp_path: Path) -> None:
    domain = folder(tmp_path, {False: 0, True: 0}, number=100)
    Image.fromarray(WATER.astype(np.uint8)).save(tmp_path / "x" / "l" / "001.png")  # not of the first 64
    require_labels(domain)
    assert RARE_SAMPLES > 100


def test_what_is_scored_without_a_class_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tell_absent_classes(folder(tmp_path, {False: 0, True: 1}))
        assert "no score" not in caplog.text
        tell_absent_classes(folder(tmp_path, {False: 0, True: 255}))
    assert "domain 'x': no pixel is water, so that no score says anything of it" in caplog.text
    assert "255 (ignore) 25.0 %" in caplog.text
