"""README and docs as data: their fenced blocks, and the commands in them, as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))

TOOLS = ("crossearth-sar", "python", "deepspeed", "torchrun", "srun", "make", "pip", ".venv/bin/")
"""What a line of a block without a language begins with when it is a command."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences. line: of the opening one, from 1."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Command:
    """printed: in one line, without its comment. words: as a shell would hand them over, once for every
    value of the loop it stands in."""

    printed: str
    words: tuple[tuple[str, ...], ...]


def blocks(language: str | None = None) -> list[Block]:
    """The fenced blocks of all documents, of one language ("" for none) or of any."""
    found = [block for path in DOCUMENTS if path.exists() for block in _blocks_of(path)]
    return [block for block in found if language is None or block.language == language]


def commands(block: Block) -> list[Command]:
    """The commands of a block without a language, in order; none where it shows something else."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    found, loop = [], {"": [""]}
    for line in (line.strip() for line in text.splitlines()):
        opening = re.fullmatch(r"for (\w+) in ([^;]+); do", line)
        if opening:
            loop = {f"${opening[1]}": opening[2].split()}
        elif line == "done":
            loop = {"": [""]}
        elif line.startswith(TOOLS):
            words = shlex.split(line, comments=True)
            ((name, values),) = loop.items()
            turns = tuple(tuple(w.replace(name, v) if name else w for w in words) for v in values)
            found.append(Command(" ".join(line.split("  #")[0].split()), turns))
    return found


def _blocks_of(path: Path) -> Iterator[Block]:
    name, opened, lines = str(path.relative_to(ROOT)), None, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\w*)\s*", line)
        if fence and opened is None:
            opened, lines = (number, fence[1]), []
        elif fence and opened is not None:
            yield Block(name, *opened, "\n".join(lines))
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{name}: the block of line {opened} has no end"
