"""What README, docs and reports point at is there, and reports have the form that their README promises."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT

from crossearth_sar import __version__
from crossearth_sar.provenance import provenance

REPORTS = ROOT / "bench" / "reports"
PAGES = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted(REPORTS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(
    r"`((?:csrc|kernels|crossearth_sar|train|bench|docs|examples|tests)/[\w./-]*(?:\.\w+|/))`"
)  # of this repository, with its folder
LARGEST = {"README.md": 12_000, "results.csv": 50_000, ".png": 120_000}
"""Bytes of a report's files."""


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]
    broken = [link for link in links if not (page.parent / link).exists()]
    assert not broken, f"{shown(page)} links to {broken}"
    if page.name != "CHANGELOG.md" and REPORTS not in page.parents:  # those tell of their own time
        gone = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
        assert not gone, f"{shown(page)} names {gone}"


def test_quoted_headings_exist() -> None:
    """«Data» beside a link to a page is a heading of that page."""
    missing = []
    for page in DOCUMENTS:
        text = " ".join(page.read_text(encoding="utf-8").split())
        for link, heading in re.findall(r"\]\(([\w./-]+\.md)\), «([^»]+)»", text):
            target = (page.parent / link).read_text(encoding="utf-8")
            if not re.search(rf"^#+ {re.escape(heading)}$", target, re.MULTILINE):
                missing.append(f"{shown(page)}: «{heading}» of {link}")
    assert not missing


def kept_files() -> list[Path]:
    """The files of bench/reports that are, or would be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "."]
    done = subprocess.run(command, cwd=REPORTS, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := REPORTS / name).exists()]


def test_a_report_is_a_page_a_table_and_small_pictures() -> None:
    folders = {path.parent for path in kept_files()} - {REPORTS}
    assert len(folders) > 8
    for folder in folders:
        page = (folder / "README.md").read_text(encoding="utf-8")
        for path in (path for path in kept_files() if path.parent == folder):
            limit = LARGEST.get(path.name, LARGEST.get(path.suffix))
            assert limit is not None, f"{shown(path)}: a report keeps README.md, results.csv and pictures"
            assert path.stat().st_size <= limit, f"{shown(path)} has {path.stat().st_size} of {limit} bytes"
            assert path.suffix != ".png" or path.name in page, f"{shown(path)} is not shown in its README.md"
        assert re.search(r"crossearth_sar \d+\.\d+\.\d+; .*commit \w+.*; date \d{4}-", page), folder
        with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) >= 1


def test_the_index_of_reports_names_each() -> None:
    index = (REPORTS / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| ([\w-]+) \|", index, re.MULTILINE)) - {"folder"}
    assert listed == {path.name for path in REPORTS.iterdir() if (path / "README.md").exists()}


def test_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *earlier = re.findall(r"^## ([\d.]+)(?: — unreleased)?$", changelog, re.MULTILINE)
    assert first == __version__
    assert provenance()["crossearth_sar"] == __version__
    numbers = [tuple(map(int, version.split("."))) for version in (first, *earlier)]
    assert numbers == sorted(numbers, reverse=True)
