"""Fine-tuning of CrossEarth-SAR on one device.

    python train/finetune.py --config finetune_water.yaml --set data_root=/data weights=FOLDER
    python train/finetune.py --config finetune_benchmark.yaml --benchmark N2S \\
        --set data_root=/data weights=FOLDER                        one of the 22 benchmarks
    python train/finetune.py … --set mode=earth_adapter             frozen | earth_adapter | full
    python train/finetune.py … --resume                             go on from the newest checkpoint

`weights` is DINOv2's official .pth, a folder of transformers, or a model folder of this package; frozen and
earth_adapter need it. Any setting can be changed with --set: `--set steps=200 optim.lr=1e-3 adapter.rank=16`.
--benchmark takes the domains of a row of `evaluate.py --list` in place of the config's: it trains on the
train side of the row's source, validates on the test side, and scores the target at the end, as evaluate.py
does. {benchmark} in output stands for the row's name as part of a file name (C(r)2R is C-r-2R).
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace

import torch

from crossearth_sar.config import from_mapping, merge, parse_overrides, read_yaml
from crossearth_sar.engine.finetune import FinetuneConfig, FineTuner
from crossearth_sar.engine.nonfinite import NonFiniteError
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.protocol import ProtocolConfig, training_domains
from crossearth_sar.evaluation.registry import benchmark


def run(arguments: argparse.Namespace) -> int:
    logging.getLogger("crossearth_sar").setLevel(logging.INFO)
    try:
        tuner = FineTuner(run_config(arguments))
        tuner.start(arguments.resume)
        print(describe(tuner), file=sys.stderr, flush=True)
        if tuner.fit():
            tuner.write_results()
    except NonFiniteError as error:
        print(f"\nerror: {error}\n  to do: lower optim.lr, or resume from a checkpoint", file=sys.stderr)
        return 1
    return 0


def run_config(arguments: argparse.Namespace) -> FinetuneConfig:
    settings, changes = read_yaml(arguments.config), parse_overrides(arguments.overrides)
    if arguments.benchmark is None:
        if not {"train", "validation"} & {*settings, *changes}:
            raise InputError(
                f"{arguments.config} names no domains", fix="add --benchmark N2S, or train and validation"
            )
        if arguments.data_file or arguments.splits:
            raise InputError(
                "--data-file and --splits are for --benchmark", fix="name a row: --benchmark N2S"
            )
        return merge(from_mapping(FinetuneConfig, settings), changes)
    row = benchmark(arguments.benchmark)
    protocol = ProtocolConfig(
        data_root="",  # FinetuneConfig's is what domains are opened below
        splits=arguments.splits,
        seed=arguments.split_seed,
        datasets=read_yaml(arguments.data_file) if arguments.data_file else {},
        normalize=arguments.normalize,
    )
    config = merge(from_mapping(FinetuneConfig, {**settings, **training_domains(row, protocol)}), changes)
    return replace(config, output=config.output.replace("{benchmark}", row.slug))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="YAML", required=True, help="a run's settings")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="change settings, dotted: optim.lr=1e-4",
    )
    rows = parser.add_argument_group("benchmarks", "the same settings as evaluate.py's")
    rows.add_argument("--benchmark", metavar="KEY", help="a row of evaluate.py --list")
    rows.add_argument("--data-file", metavar="YAML", help="dataset: {changes to its row}; docs/BENCHMARKS.md")
    rows.add_argument("--splits", metavar="FOLDER", help="where splits are kept; default DATA_ROOT/splits")
    rows.add_argument("--split-seed", type=int, default=0, help="of the splits")
    rows.add_argument("--normalize", choices=("domain", "image"), default="domain")
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or from the newest of the output folder",
    )


def describe(tuner: FineTuner) -> str:
    """What trains on what, before the first step."""
    config = tuner.config
    where = (
        torch.cuda.get_device_name()
        if tuner.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    unseen = ", ".join(f"{domain.name} ({len(domain)})" for domain in tuner.unseen) or "none"
    return "\n".join(
        [
            f"{config.preset}, mode {config.mode}: {tuner.counts}",
            f"weights {config.weights or 'none: the backbone is as initialised'}; {config.steps} steps of "
            f"{config.batch_size} images of {tuner.model_config.crop_size} pixels; {where}, torch "
            f"{torch.__version__}",
            f"train {tuner.train_domain.name} ({len(tuner.train_domain)} images), held out "
            f"{tuner.validation.name} ({len(tuner.validation)}), unseen {unseen}",
        ]
    )
