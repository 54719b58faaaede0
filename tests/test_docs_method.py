"""What the code cites of docs/METHOD.md is there: every section, every equation, once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("crossearth_sar", "kernels", "csrc", "bench", "train", "examples", "tests", "docs")
SUFFIXES = (".py", ".cpp", ".cu", ".h", ".cuh", ".md", ".yaml")
METHOD = (ROOT / "docs" / "METHOD.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (\d+)\. ", METHOD, re.MULTILINE)
EQUATIONS = re.findall(r"^ {4}.*\((\d+)\)$", METHOD, re.MULTILINE)
SECTION = re.compile(r"METHOD(?:\.md)?,? sec(?:tion|\.) ?([\d.]+\d|\d)")
EQUATION = re.compile(r"\b[Ee]qs?\. ?\(?(\d+)\)?(?:\)? ?(?:-|–|to) ?\(?(\d+)\)?)?")


def cited() -> list[tuple[str, str, list[str]]]:
    """(file, "section" | "equation", the numbers) of every citation."""
    found = []
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in SUFFIXES)
    for path in sorted(files):
        text = " ".join(path.read_text(encoding="utf-8").split())  # a citation may be broken over lines
        name = str(path.relative_to(ROOT))
        found += [(name, "section", [number]) for number in SECTION.findall(text)]
        for first, last in EQUATION.findall(text):
            numbers = range(int(first), int(last or first) + 1)
            found.append((name, "equation", [str(number) for number in numbers]))
    return found


def test_numbers_are_in_order_and_there_once() -> None:
    assert [str(number) for number in range(1, len(SECTIONS) + 1)] == SECTIONS
    assert [str(number) for number in range(1, 13)] == EQUATIONS


def test_everything_cited_exists() -> None:
    citations = cited()
    known = {"section": SECTIONS, "equation": EQUATIONS}
    missing = [(file, kind, n) for file, kind, numbers in citations for n in numbers if n not in known[kind]]
    assert not missing, f"cited, but not in docs/METHOD.md: {missing}"
    files = {file for file, *_ in citations}
    assert {"crossearth_sar/descriptors/reference.py", "crossearth_sar/decoder/mask2former.py"} <= files


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("METHOD eq. (8)-(12): dropless", ("8", "12")),
        ("(METHOD eq. 1-7)", ("1", "7")),
        ("eq. (9) with one expert", ("9", "")),
    ],
)
def test_a_range_is_read_as_one(text: str, numbers: tuple[str, str]) -> None:
    assert EQUATION.findall(text) == [numbers]
    assert SECTION.findall("Settings are METHOD sec. 3. Nothing") == ["3"]
