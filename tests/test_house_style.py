"""Files and functions stay small: 400 lines a file, 45 a function without docstring; kernels may be more."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES = 400, 45
LONGER_FUNCTIONS = {
    "crossearth_sar/evaluation/figures/predictions.py": 50,  # one drawing, call after call
    "crossearth_sar/evaluation/figures/radar.py": 55,
    "bench/speed/gpu_check.py": 55,  # the table of its steps
}
"""Where a function would not be clearer in two, and how long it may be there."""


def sources() -> list[str]:
    folders = ("crossearth_sar", "bench", "train", "examples")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in files if "kernels" not in path.parts)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    first, total = function.body[0], (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return total
    return total - ((first.end_lineno or 0) - first.lineno + 1)


@pytest.mark.parametrize("name", sources())
def test_files_and_functions_are_small(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    count = len(text.splitlines())
    assert count <= FILE_LINES, f"{name} has {count} lines: split it where its purpose divides"
    allowed = LONGER_FUNCTIONS.get(name, FUNCTION_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of(node) <= allowed, (
                f"{name}: {node.name} has {lines_of(node)} lines without docstring"
            )


def test_exceptions_are_of_files_that_are_there() -> None:
    assert set(LONGER_FUNCTIONS) <= set(sources())
