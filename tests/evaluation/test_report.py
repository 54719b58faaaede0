"""Tables and the page of benchmark scores: what is ours, what is the paper's; the page stands alone."""

from __future__ import annotations

import csv
import html.parser
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossearth_sar.evaluation.figures.canvas import DPI
from crossearth_sar.evaluation.figures.radar import radar_figure
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.evaluation.protocol import BenchmarkScore
from crossearth_sar.evaluation.registry import benchmark
from crossearth_sar.evaluation.report import EXPERTS_TABLE, Picture, write_html, write_tables

ABOUT, ABSENT = {"device": "x"}, {"W2D": "WHU-OPT-SAR is not at /data", "D2W": "WHU-OPT-SAR is not at /data"}
DENSE = torch.zeros(0, 0)


def perfect(key: str, share_LE: Tensor = DENSE) -> BenchmarkScore:
    """Every pixel right, ten of each class."""
    row = benchmark(key)
    matrix = ConfusionMatrix(len(row.classes.classes))
    matrix.counts += 10 * torch.eye(len(row.classes.classes), dtype=torch.int64)
    notes = ("got 5 patches, the paper has 792",)
    return BenchmarkScore(row=row, confusion=matrix, images=1, notes=notes, expert_share_LE=share_LE)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_tables(tmp_path: Path) -> None:
    scores = [perfect(key) for key in ("N2S", "A2S", "K2C")]
    write_tables(tmp_path, "<ours>", scores, about=ABOUT, absent=ABSENT)
    content = json.loads((tmp_path / "results.json").read_text())
    assert [b["miou"] for b in content["benchmarks"]] == [1.0, 1.0, 1.0]
    assert content["paper"]["CrossEarth-SAR-L"] == {"N2S": 37.8, "A2S": 52.4, "K2C": 38.1}
    head, *rows = rows_of(tmp_path / "results.csv")
    assert head == ["method", "benchmark", "miou_percent", "origin"]
    assert len(rows) == 3 * 16
    assert {origin for method, *_, origin in rows if method == "<ours>"} == {"measured"}
    assert {origin for method, *_, origin in rows if method != "<ours>"} == {"paper"}
    markdown = (tmp_path / "results.md").read_text()
    assert "| &lt;ours> |  | 100.0 | 100.0 | 100.0 | 100.0 |" in markdown
    assert "| CrossEarth-SAR-L † | ViT-L (1.3B, 300M active) | 37.8 | 52.4 | 38.1 | 42.8 |" in markdown
    assert "| background (not scored) | 100.0 |" in markdown
    assert "W2D: WHU-OPT-SAR is not at /data" in markdown
    matrix = rows_of(tmp_path / "confusion-A2S.csv")
    assert matrix[0][1:] == ["background", "building"]
    assert matrix[1][1:] == ["10", "0"]
    assert not (tmp_path / EXPERTS_TABLE).exists(), "a dense model has no experts"


def test_expert_shares_as_a_table(tmp_path: Path) -> None:
    shares = torch.tensor([[0.75, 0.25], [1.0, 0.0]], dtype=torch.float64)
    scores = [perfect("N2S", shares), perfect("K2C"), perfect("S2N", shares.flip(1))]
    write_tables(tmp_path, "ours", scores, about=ABOUT, absent={})
    head, *rows = rows_of(tmp_path / EXPERTS_TABLE)
    assert head == ["benchmark", "layer", "expert", "share"]
    assert rows[:4] == [
        ["N2S", "0", "0", "0.750000"],
        ["N2S", "0", "1", "0.250000"],
        ["N2S", "1", "0", "1.000000"],
        ["N2S", "1", "1", "0.000000"],
    ]
    assert [row[3] for row in rows if row[0] == "S2N"] == ["0.250000", "0.750000", "0.000000", "1.000000"]
    assert len(rows) == 8


class Page(html.parser.HTMLParser):
    """Headings and captions in their order, attributes of images, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: set[str | None] = set()
        self.links: set[str | None] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id"))
        if tag == "a":
            self.links.add(found["href"])
        if tag == "img":
            self.images.append(found)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3", "figcaption"):
            self.words.append(data)


def test_page_goes_from_the_whole_to_the_parts(tmp_path: Path) -> None:
    scores = [perfect(key) for key in ("N2S", "A2S", "K2C")]
    radar = radar_figure(
        ["N2S", "A2S", "K2C"], {"<ours>": {"N2S": 100.0, "K2C": math.nan}}, tmp_path / "r.png"
    )
    pictures = [
        Picture(path=radar, title="a & b", caption="of K2C", row="K2C"),
        Picture(path=radar, title="all", caption="of all rows"),
    ]
    path = write_html(tmp_path, "<ours>", scores, about=ABOUT, absent=ABSENT, pictures=pictures)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    words = page.words
    assert words[:2] == ["<ours>: 3 of 22 benchmarks", "Summary"]
    order = ["Summary", "of all rows", "Beside the paper's methods", "Row by row", "of K2C", "Not run"]
    assert [words.index(word) for word in order] == sorted(words.index(word) for word in order)
    assert words.index("of K2C") - 1 == words.index("K2C: DDHR-SK KR → DDHR-SK CN (region), 1 image")
    assert {link and link.removeprefix("#") for link in page.links} == {"N2S", "A2S", "K2C"} <= page.ids
    assert "W2D, D2W: WHU-OPT-SAR is not at /data" in text
    assert text.index("What this is") < text.index("Summary")
    assert "<ours>" not in text
    assert page.images[0]["src"] == page.images[1]["src"]
    assert str(page.images[0]["src"]).startswith("data:image/png;base64,")
    drawn = int.from_bytes(radar.read_bytes()[16:20], "big")
    assert page.images[0]["width"] == str(round(drawn * 96 / DPI))
    assert "http" not in text, "one file, nothing fetched"


def test_page_says_which_figures_are_the_papers(tmp_path: Path) -> None:
    scores = [perfect(key) for key in ("N2S", "K2C")]
    path = write_html(tmp_path, "ours", scores, about=ABOUT, absent={}, pictures=[])
    text = path.read_text(encoding="utf-8")
    assert '<td class="own">100.0</td><td>32.3</td><td>37.8</td><td>38.0</td><td>1</td><td>159</td>' in text
    assert (
        '<td class="text">mean of 2</td><td class="own">100.0</td><td>33.1</td><td>38.0</td><td>38.5' in text
    )
    for head in ("DINOv2&nbsp;†", "CrossEarth-SAR-L&nbsp;†", "Best of 15&nbsp;†", "in the paper&nbsp;†"):
        assert f"<th>{head}</th>" in text
    assert "<td class=text>SARATR-X †<br>" in text
    assert "Not run" not in text


@pytest.mark.parametrize("count", [1, 2])
def test_a_mean_needs_two_rows(tmp_path: Path, count: int) -> None:
    scores = [perfect("N2S"), perfect("S2N")][:count]
    path = write_html(tmp_path, "ours", scores, about=ABOUT, absent={}, pictures=[])
    assert ("mean of" in path.read_text(encoding="utf-8")) == (count == 2)
