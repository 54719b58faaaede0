"""What a finished part of a long evaluation leaves, so that the same command goes on after a stop.

A part is a JSON file of what was found and of the settings it was found with: others, and it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossearth_sar.config import require
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE
from crossearth_sar.whole import write_text


def called(folders: Sequence[Path]) -> dict[str, Path]:
    """Each model by its folder's name, of a folder «model» that above it; by its path where two agree."""
    short = [folder.resolve().parent.name if folder.name == "model" else folder.name for folder in folders]
    names = [
        name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)
    ]
    require(len(set(names)) == len(names), "--model", names, "each folder once")
    return dict(zip(names, folders, strict=True))


def file_name(model: str, domain: str) -> str:
    """`model--domain` as part of a file name; with a checksum where that had to change a letter."""
    pair = f"{model}--{domain}"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", pair).strip("-.")
    return plain if plain == pair else f"{plain}-{hashlib.sha256(pair.encode()).hexdigest()[:6]}"


def model_sha256(folder: Path) -> str:
    """Of weights and settings, the temperature left out: it is compared by itself."""
    mapping = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    mapping.pop("temperature", None)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(mapping, sort_keys=True).encode())
    return digest.hexdigest()


def read_part(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier run found with these settings; None where there is no such file, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(content, dict) and content.get("settings") == json.loads(json.dumps(settings))
    return content["found"] if same else None


def write_part(path: Path, settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    write_text(path, json.dumps({"settings": settings, "found": found}) + "\n")


def progress(indices: Sequence[int], words: str) -> Any:
    return tqdm(indices, unit="image", desc=words, leave=False, disable=not sys.stderr.isatty())
