"""The console script `crossearth-sar`: one file a command, imported when it is asked for.

A command is a module with a docstring, its help, `add_arguments(parser)` and `run(arguments) -> exit status`.
Exit status 2 is wrong input, said in words; 1 is work that could not be done.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from crossearth_sar.errors import InputError

COMMANDS = {
    "info": "what is installed, which backend each part uses, and why",
    "plan": "memory per rank, and which layout of ranks fits",
    "train": "pre-train: CPT under DeepSpeed",
    "finetune": "train a head, an adapter or all of a model on labelled images",
    "evaluate": "score a model on the 22 benchmarks, beside the paper's figures",
    "predict": "class maps of images and whole scenes",
    "label": "pseudo labels by optical teachers, and how far teachers agree",
    "export": "write a training checkpoint as a folder for load_model",
}
"""Name -> what it does, in the order of the help. The module is crossearth_sar.cli.NAME."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`crossearth-sar COMMAND …`; without a command, the help."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="crossearth-sar",
        description="Segmentation of SAR images across sensors, bands, polarizations and regions.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules: dict[str, ModuleType] = {}
    for name, words in COMMANDS.items():
        if given[:1] == [name]:  # the others stay unimported
            modules[name] = importlib.import_module(f"crossearth_sar.cli.{name}")
            modules[name].add_arguments(subparsers.add_parser(name, **_texts(modules[name])))
        else:
            subparsers.add_parser(name, help=words)
    if not given:
        parser.print_help()
        return 0
    parsed = parser.parse_args(given)
    return guarded(modules[parsed.command], parsed)


def script(name: str) -> int:
    """The command `name` as a file of its own, train/cpt.py say: the same words and flags."""
    module = importlib.import_module(f"crossearth_sar.cli.{name}")
    parser = argparse.ArgumentParser(**_texts(module))
    module.add_arguments(parser)
    return guarded(module, parser.parse_args())


def guarded(module: ModuleType, parsed: argparse.Namespace) -> int:
    """Runs the command; wrong input ends in its words and status 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return int(module.run(parsed))
    except InputError as error:
        # Before ranks have met, each finds the same fault.
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
        return 2


def _texts(module: ModuleType) -> dict[str, Any]:
    return {"description": module.__doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}


if __name__ == "__main__":
    sys.exit(main())
