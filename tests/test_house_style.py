"""The house style that can be counted: lengths of files and functions, docstrings, names of files.

What needs judgement (names, layers of meaning, prose) is not here; who imports whom is in test_layering.py.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LIMITS: dict[str, tuple[int, int | None]] = {
    "crossearth_sar": (400, 45),
    "train": (60, 45),
    "examples": (400, 45),
    "bench": (400, 60),  # a table of steps or contenders reads best in one piece
    "kernels": (500, None),  # a kernel with its launcher is one text, and a kernel has no functions to call
    "tests": (520, None),  # a case and its numbers stay together
}
"""Room -> (lines of a file, lines of a function). A function's lines are those of its body: its signature and
docstring are what the style asks to be complete, so they do not count, and what it holds inside it does."""

NO_HOUSEHOLD_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def sources(room: str) -> list[Path]:
    found = (ROOT / room).rglob("*.py")
    # crossearth_sar/kernels is a link to kernels/, a room of its own.
    return sorted(p for p in found if "kernels" not in p.relative_to(ROOT / room).parts[:1])


EVERY_FILE = [(room, path) for room in LIMITS for path in sources(room)]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    start = (first.end_lineno or 0) + 1 if documented else first.lineno
    return (function.end_lineno or 0) - start + 1


def test_every_room_is_looked_at() -> None:
    rooms = {path.relative_to(ROOT).parts[0] for _, path in EVERY_FILE}
    assert rooms == set(LIMITS), f"no file was found in {set(LIMITS) - rooms}"
    assert len(EVERY_FILE) > 200


def test_files_are_short() -> None:
    long = {shown(path): lines_of(path) for room, path in EVERY_FILE if lines_of(path) > LIMITS[room][0]}
    assert not long, f"one purpose a file; split {long}"


def test_functions_are_short() -> None:
    long = []
    for room, path in EVERY_FILE:
        limit = LIMITS[room][1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if limit is not None and is_function and body_lines(node) > limit:
                long.append(f"{shown(path)} {node.name}: {body_lines(node)} of {limit} lines")
    assert not long, "\n".join(["functions too long:", *long])


def test_a_body_is_counted_without_signature_and_docstring() -> None:
    text = (
        'def f(\n    a: int,\n) -> int:\n    """Two\n    lines."""\n    # and one\n    b = a\n    return b\n'
    )
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 3
    (plain,) = ast.parse("def g():\n\n    return 1\n").body
    assert isinstance(plain, ast.FunctionDef)
    assert body_lines(plain) == 1


def test_every_module_says_what_it_is() -> None:
    silent = [
        shown(path)
        for _, path in EVERY_FILE
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"no module docstring: {silent}"


def test_names_of_files() -> None:
    household = [shown(path) for _, path in EVERY_FILE if path.stem in NO_HOUSEHOLD_NAMES]
    assert not household, f"a drawer for everything is a file for nothing: {household}"
    scripts = [path for room, path in EVERY_FILE if room in ("bench", "train", "examples")]
    shadows = [shown(path) for path in scripts if path.stem in sys.stdlib_module_names]
    assert not shadows, f"the folder of a script comes first on the path: {shadows}"


def test_no_error_is_swallowed_whole() -> None:
    bare = []
    for _, path in EVERY_FILE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                bare.append(f"{shown(path)}:{node.lineno}")
    assert not bare, f"except: without a type at {bare}"
