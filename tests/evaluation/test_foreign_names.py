"""Names of models, domains, classes and files in reports and pages: shown, and never taken for HTML."""

from __future__ import annotations

import html.parser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossearth_sar.data.sample import ClassTable
from crossearth_sar.evaluation.class_mapping import ClassMapping
from crossearth_sar.evaluation.image_scores import ImageScores
from crossearth_sar.evaluation.maps.page import write_page
from crossearth_sar.evaluation.maps.quicklook import QuickLook
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.evaluation.own_report import OwnScore, write_own_report
from crossearth_sar.evaluation.protocol import BenchmarkScore
from crossearth_sar.evaluation.registry import benchmark
from crossearth_sar.evaluation.report import Picture, write_html

NAME = """<script>alert("x")</script> & 'a' <img src=x onerror='y'>"""
CLASSES = ClassTable(names=(NAME, "water"), palette=((0, 0, 0), (0, 0, 255)))


class Seen(html.parser.HTMLParser):
    """Tags, attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), list[tuple[str, str | None]](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def require_harmless(page: str, times: int, *, scripts: bool = False) -> None:
    seen = Seen(page)
    assert "onerror" not in dict(seen.attributes)
    assert ("x", None) not in seen.attributes
    assert page.count("alert") == seen.text.count(NAME) + sum(v == NAME for _, v in seen.attributes)
    assert seen.text.count(NAME) >= times
    assert scripts or "script" not in seen.tags


def test_the_page_of_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = benchmark("A2S")
    named = replace(row.classes, classes=replace(row.classes.classes, names=(NAME, "building")))
    matrix = ConfusionMatrix(2)
    matrix.counts += 1
    monkeypatch.setattr(type(row), "classes", named)
    score = BenchmarkScore(
        row=row, confusion=matrix, images=1, notes=(NAME,),
        expert_share_LE=torch.zeros(0, 0),
    )  # fmt: skip
    picture = tmp_path / "x.png"
    Image.new("L", (2, 2)).save(picture)
    path = write_html(
        tmp_path, NAME, [score], about={NAME: NAME}, absent={"W2D": NAME},
        pictures=[Picture(path=picture, title=NAME, caption=NAME)],
    )  # fmt: skip
    require_harmless(path.read_text(encoding="utf-8"), 7)


def test_the_page_of_a_map(tmp_path: Path) -> None:
    look = QuickLook(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    path = write_page(look, tmp_path / "x.html", NAME, CLASSES, np.bincount([0, 1], minlength=256))
    require_harmless(path.read_text(encoding="utf-8"), 2, scripts=True)


def test_the_report_on_images_of_ones_own(tmp_path: Path) -> None:
    """In Markdown, whose viewers take tags for what they are in HTML."""
    found = ImageScores(counts_CC=[np.ones((2, 2), np.int64)], names=[NAME], units=[NAME])
    mapping = ClassMapping(to_domain=(0, 1), notes=(NAME,))
    score = OwnScore(
        model=NAME, domain=NAME, slug="x", classes=CLASSES, scores=found, mapping=mapping, temperature=None,
        fitted=False, picture=None,
    )  # fmt: skip
    path = write_own_report(tmp_path, [score], about={}, absent={NAME: NAME})
    require_harmless(path.read_text(encoding="utf-8"), 5)
