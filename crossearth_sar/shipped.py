"""Models that come with the package: weights named by a word instead of a folder.

`tiny` is crossearth_sar_tiny, pre-trained on simulated scenes alone (weights/tiny/README.md, its model card).
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def shipped_models() -> list[str]:
    """The names, in alphabetical order."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def model_folder(path: str | Path) -> Path:
    """The folder at `path`, `~` resolved; where nothing is there, that of the shipped model called so."""
    folder = Path(path).expanduser()
    if not folder.exists() and str(path) in shipped_models():
        return WEIGHTS / str(path)
    return folder
