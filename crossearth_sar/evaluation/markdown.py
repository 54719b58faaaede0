"""Reports in Markdown, where names of domains, classes, models and files stand among our own words."""

from __future__ import annotations

from pathlib import Path

from crossearth_sar.whole import write_text


def write_markdown(target: Path, text: str) -> Path:
    """Writes a report, whole or not at all; no name in it is taken for HTML by what shows it."""
    return write_text(target, text.replace("&", "&amp;").replace("<", "&lt;"))
