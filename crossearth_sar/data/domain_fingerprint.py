"""Whether a domain's data are those of before: names and sizes of its files, their order, dB statistics.

For a run that is resumed: the samples that a step draws are told by their numbers alone, so that one image
more or less makes it another run that nobody notices. Where files lie may change. What this is not: a
checksum of all pixels, which would be read for it; nor of simulated scenes, which their settings say.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from crossearth_sar.data.domain import Domain, Mixture

NEAR_DB = 0.01
"""Statistics of the same files differ by less on other machines, where sums have another order."""


def fingerprint(domain: Domain) -> dict[str, Any]:
    """A mapping of plain data, for `changes`."""
    dataset = domain.dataset
    if isinstance(dataset, Mixture):
        return {"parts": {part.name: fingerprint(part) for part in dataset.parts}, "samples": len(domain)}
    found: dict[str, Any] = {"classes": [*domain.classes.names], "samples": len(domain)}
    if domain.config.simulated is not None:
        return found
    for name, values in (("db_mean", domain.db_mean), ("db_std", domain.db_std)):
        found[name] = None if values is None else [float(value) for value in values]
    return {**found, "files": _files(domain)}


def changes(before: dict[str, Any], now: dict[str, Any], where: str) -> list[str]:
    """What is different, in words; empty where nothing is."""
    if "parts" in before and "parts" in now and before["parts"].keys() == now["parts"].keys():
        pairs = ((name, before["parts"][name], part) for name, part in now["parts"].items())
        return [words for name, old, new in pairs for words in changes(old, new, f"{where}, {name}")]
    said = [
        f"{where}: {words}, {_short(before.get(key))} before and {_short(now.get(key))} now"
        for key, words in (("samples", "samples"), ("classes", "classes"))
        if before.get(key) != now.get(key)
    ]
    if not said and before.get("files") != now.get("files"):
        said.append(f"{where}: other names or sizes of files")
    said += [
        f"{where}: {key} {_short(before.get(key))} before and {_short(now.get(key))} now"
        for key in ("db_mean", "db_std")
        if not _near(before.get(key), now.get(key))
    ]
    return said


def _files(domain: Domain) -> str:
    digest, sizes = hashlib.sha256(), dict[str, int | None]()
    for index in range(len(domain)):
        images, label, window = domain.origin(index)
        for file in (*images, *([] if label is None else [label])):
            if file not in sizes:
                path = Path(file)
                sizes[file] = path.stat().st_size if path.is_file() else None
            digest.update(repr((Path(file).name, sizes[file])).encode())
        digest.update(repr((label is None, window)).encode())
    return digest.hexdigest()[:16]


def _near(before: Any, now: Any) -> bool:
    if before is None or now is None:
        return before is now
    return len(before) == len(now) and all(
        abs(a - b) < NEAR_DB or a == b for a, b in zip(before, now, strict=True)
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{item:.2f}" if isinstance(item, float) else str(item) for item in value)
    return str(value)
