"""Rows of an index that are short, long, twice or name no file: one line each, never a guess."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossearth_sar.data.datasets.folder import FolderConfig, find_scenes
from crossearth_sar.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(3):
        Image.fromarray(np.full((20, 20), number, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def names(root: Path, text: str) -> list[str]:
    (root / "index.csv").write_text(text, encoding="utf-8")
    config = FolderConfig(root=str(root), values="amplitude", classes=("a", "b"), index="index.csv")
    return [scene.name for scene in find_scenes(config)]


def test_empty_lines_and_empty_labels_are_no_mistakes(root: Path) -> None:
    assert names(root, "image,label\n0.png,2.png\n\n1.png,\n") == ["0", "1"]
    assert names(root, "image,label\n0.png,2.png\n0.png,1.png\n") == ["0", "0"], "an image of two labels"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\n0.png\n", r"(?s)a row of 1 cells.*row 2: 0\.png.*2, as the header"),
        ("image,label\n0.png,1.png,2.png\n", r"(?s)a row of 3 cells.*row 2"),
        ("image,label\n0.png,1.png\n0.png,1.png\n", r"(?s)a row twice.*row 3"),
        ("image,image,label\n0.png,1.png,2.png\n", "more than one column 'image'"),
        ("", "no column 'image'"),
        ("imag,label\n0.png,1.png\n", "did you mean 'imag'"),
        ("image,label\n" + "x" * 5000 + ".png,1.png\n", r"(?s)no name of a file.*too long"),
        ("image,label\n0\0.png,1.png\n", "does not exist"),
        ('image,label\n"' + "x" * 200_000 + '",1.png\n', "is no CSV file"),
    ],
    ids=range(9),
)
def test_rows_that_are_none(root: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        names(root, text)
