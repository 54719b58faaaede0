"""The console script `crossearth-sar`: one file a command, imported when it is asked for.

A command is a module with a docstring, its help, `add_arguments(parser)` and `run(arguments) -> exit status`.
Exit status 2 is wrong input, said in words; 1 is work that could not be done.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from crossearth_sar.cli.plugins import add_plugin_option, import_plugins
from crossearth_sar.cli.process import find_own_tools, speaks, start_logging
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.version import __version__
from crossearth_sar.whole import NotWritten

COMMANDS = {
    "info": "what is installed, which backend each part uses, and why",
    "plan": "memory per rank, and which layout of ranks fits",
    "train": "pre-train (CPT): all parameters, in one process or under DeepSpeed",
    "selfsup": "pre-train a backbone on images without labels (DI3CL)",
    "finetune": "train a head, an adapter or all of a model on labelled images",
    "evaluate": "score a model on the 22 benchmarks, or models on images of your own",
    "probe": "what features are worth: k-NN, linear and few-label probes of any encoder",
    "predict": "class maps of images and whole scenes",
    "label": "pseudo labels by optical teachers",
    "agreement": "how far the pseudo labels of several teachers agree",
    "export": "write a training checkpoint as a folder for load_model",
}
"""Name -> what it does, in the order of the help. The module is crossearth_sar.cli.NAME."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

EPILOG = """\
crossearth-sar COMMAND --help says more, and lists every setting of a command that takes --config.
No environment need be activated: .venv/bin/crossearth-sar COMMAND is enough, and so is
.venv/bin/python -m crossearth_sar COMMAND. Several ranks: .venv/bin/deepspeed train/cpt.py in a checkout.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """`crossearth-sar COMMAND …`; without a command, the help."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="crossearth-sar",
        description="Segmentation of SAR images across sensors, bands, polarizations and regions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"crossearth-sar {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    name = given[0] if given else ""
    for command, words in COMMANDS.items():
        if command != name:  # stays unimported
            subparsers.add_parser(command, help=words)
    if name not in COMMANDS:
        return _without_command(parser, name)
    module = _imported(name)
    _add_arguments(subparsers.add_parser(name, **_texts(module)), module)
    return _guarded(module, parser.parse_args(given))


def script(name: str) -> int:
    """The command `name` as a file of its own, train/cpt.py say: the same words and flags."""
    module = _imported(name)
    parser = argparse.ArgumentParser(**_texts(module))
    _add_arguments(parser, module)
    return _guarded(module, parser.parse_args())


def _without_command(parser: argparse.ArgumentParser, word: str) -> int:
    """The help, the version, or what the word was meant to be."""
    if not word:
        parser.print_help()
        return 0
    if word.startswith("-"):
        parser.parse_args([word])  # --help and --version end here, and so does an unknown option
    print(
        f"\nerror: there is no command {word!r}{nearest(word, COMMANDS)}\n"
        f"  expected: one of {', '.join(COMMANDS)}\n",
        file=sys.stderr,
    )
    return 2


def _imported(name: str) -> ModuleType:
    find_own_tools()
    return importlib.import_module(f"crossearth_sar.cli.{name}")


def _add_arguments(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    module.add_arguments(parser)
    add_plugin_option(parser)


def _guarded(module: ModuleType, parsed: argparse.Namespace) -> int:
    """Runs the command; wrong input ends in its words and status 2, a full disk in status 1."""
    start_logging()
    try:
        import_plugins(parsed.plugin)
        return int(module.run(parsed))
    except InputError as error:
        words, status = str(error), 1 if isinstance(error, NotWritten) else 2
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        words, status = f"{error.filename or 'a file'} cannot be written: {error.strerror}", 1
    if speaks():
        print(f"\nerror: {words}\n", file=sys.stderr, flush=True)
    return status


def _texts(module: ModuleType) -> dict[str, Any]:
    return {"description": module.__doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}


if __name__ == "__main__":
    sys.exit(main())
