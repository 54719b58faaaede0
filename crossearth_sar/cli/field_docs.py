"""What each field of a config dataclass means, read from the source of the class.

    lr: float = 3e-5
    \"\"\"Learning rate after the warm-up.\"\"\"

A string under a field is its meaning. Where there is none, the class docstring is asked for `lr: …`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
from pathlib import Path

from crossearth_sar.config_keys import field_names


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Field -> its meaning as one line of text; a field that nothing is said of is left out."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_from_class_docstring(base))
            docs.update(_under_the_fields(base))
    return {name: docs[name] for name in field_names(cls) if docs.get(name)}


def _under_the_fields(cls: type) -> dict[str, str]:
    node = _class_node(cls)
    docs: dict[str, str] = {}
    for field, after in zip(node.body, node.body[1:], strict=False) if node is not None else ():
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[field.target.id] = _one_line(text)
    return docs


def _class_node(cls: type) -> ast.ClassDef | None:
    """The class in the tree of its file; None where the source is not to be had."""
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # of a class made in an interactive session
        file = None
    if file is None or not Path(file).is_file():
        return None
    return next((node for node in _classes_of(file) if node.name == cls.__name__), None)


@functools.cache
def _classes_of(file: str) -> tuple[ast.ClassDef, ...]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _from_class_docstring(cls: type) -> dict[str, str]:
    """`name: text` or `one, other: text`, up to the next such or an empty line."""
    names = "|".join(map(re.escape, vars(cls).get("__annotations__", {})))
    if not names or not cls.__doc__:
        return {}
    label = rf"(?:(?<=[.;:]\s)|(?<=^))((?:{names})(?:, (?:{names}))*): "
    docs: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(cls.__doc__)):
        pieces = re.split(label, _one_line(paragraph))
        for said, text in zip(pieces[1::2], pieces[2::2], strict=True):
            docs.update(dict.fromkeys(said.split(", "), text.strip()))
    return docs


def _one_line(text: str) -> str:
    return " ".join(text.split())
