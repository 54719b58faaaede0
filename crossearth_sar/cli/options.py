"""Options that several commands share, each said once: --device, and the data of benchmarks."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from crossearth_sar.config import read_yaml
from crossearth_sar.evaluation.protocol import ProtocolConfig


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """--device: a GPU where there is one; `checked_device` tries it."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, help=f"cpu, cuda, cuda:1, …; here {found}")


def add_set_option(parser: Any) -> None:
    """--set, whose words are in `overrides`."""
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="change settings, dotted: optim.lr=1e-4",
    )


def add_data_root_option(parser: Any, holds: str = "the datasets' folders") -> None:
    """--data-root, for an argument group too."""
    parser.add_argument("--data-root", default=".", metavar="FOLDER", help=f"holds {holds}")


def add_data_file_option(parser: Any) -> None:
    """--data-file, which `data_changes` reads."""
    parser.add_argument(
        "--data-file", metavar="YAML", help="dataset: {changes to its row}; docs/BENCHMARKS.md"
    )


def add_protocol_options(parser: Any, *, seed: str = "--seed") -> None:
    """What the paper leaves open: --data-file, --splits, --normalize, and `seed`, of the splits."""
    add_data_file_option(parser)
    parser.add_argument("--splits", metavar="FOLDER", help="where splits are kept; default DATA_ROOT/splits")
    parser.add_argument(seed, type=int, default=0, help="of the splits")
    add_normalize_option(parser)


def add_normalize_option(parser: Any) -> None:
    """--normalize."""
    kinds = ("domain", "image")
    parser.add_argument(
        "--normalize", choices=kinds, default="domain", help="dB statistics of all images, or of each"
    )


def protocol_config(arguments: argparse.Namespace, *, data_root: str, seed: int) -> ProtocolConfig:
    """The protocol that `add_protocol_options` asked for."""
    return ProtocolConfig(
        data_root=data_root,
        splits=arguments.splits,
        seed=seed,
        datasets=data_changes(arguments.data_file),
        normalize=arguments.normalize,
    )


def data_changes(file: str | None) -> dict[str, Any]:
    """Dataset -> changes to its row, of --data-file; none without it."""
    return read_yaml(file) if file else {}
