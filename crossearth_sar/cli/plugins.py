"""--plugin MODULE: a user's own module, imported before the command runs.

What the module registers, a dataset or an expert type, is then known to the command like our own.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from crossearth_sar.cli.process import look_in_working_folder
from crossearth_sar.errors import InputError


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """--plugin, which every command has and `import_plugins` obeys."""
    parser.add_argument(
        "--plugin",
        metavar="MODULE",
        action="append",
        default=[],
        help="import your module first: datasets, expert types that it registers are known then",
    )


def import_plugins(modules: Sequence[str]) -> None:
    """Imports them in order, from the folder the command was typed in too.

    Raises:
        InputError: there is no such module. What goes wrong inside one is its own traceback.
    """
    if modules:
        look_in_working_folder()
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and lacks another
            raise InputError(
                f"no module {error.name!r} for --plugin",
                got=name,
                expected="a module's dotted name, without .py",
                fix="run from its folder, or put that on PYTHONPATH",
            ) from error
