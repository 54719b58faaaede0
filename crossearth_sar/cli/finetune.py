"""Fine-tuning: a new decoder on a frozen backbone, an Earth-Adapter on it, or all of a model.

    crossearth-sar finetune --config finetune_water --set data_root=/data weights=FOLDER
    crossearth-sar finetune --config finetune_benchmark --benchmark N2S --set data_root=/data weights=FOLDER
                                                               one of the 22 benchmarks
    crossearth-sar finetune … --set mode=earth_adapter         frozen | earth_adapter | full
    crossearth-sar finetune … --resume                         go on from the newest checkpoint
    crossearth-sar finetune … --sweep sweep.yaml               search settings by many runs
    torchrun --nproc-per-node 4 train/finetune.py …            on several GPUs

`weights` is DINOv2's official .pth, a folder of transformers, or a model folder of this package; frozen and
earth_adapter need it. Any setting can be changed with --set: `--set steps=200 optim.lr=1e-3 adapter.rank=16`.
--benchmark takes the domains of a row of `crossearth-sar evaluate --list` in place of the config's: it trains
on the train side of the row's source, validates on the test side, and scores the target at the end, as
evaluate does. {benchmark} in output stands for the row's name as part of a file name (C(r)2R is C-r-2R).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from crossearth_sar.cli.config_arguments import add_config_arguments, built_config
from crossearth_sar.cli.options import add_protocol_options, protocol_config
from crossearth_sar.cli.running import add_resume_argument, carry_out
from crossearth_sar.cli.sweep import add_sweep_argument, sweep
from crossearth_sar.engine.config import RunConfig, finetuning_settings
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.protocol import training_domains
from crossearth_sar.evaluation.registry import benchmark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, finetuning_settings())
    rows = parser.add_argument_group("benchmarks", "the same settings as evaluate's")
    rows.add_argument("--benchmark", metavar="KEY", help="a row of evaluate --list")
    add_protocol_options(rows, seed="--split-seed")
    add_resume_argument(parser)
    add_sweep_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    config = run_config(arguments)
    if arguments.sweep is not None:
        return sweep(config, arguments, "finetune")
    return carry_out(config, arguments.resume, "finetune")


def run_config(arguments: argparse.Namespace) -> RunConfig:
    if arguments.benchmark is None:
        if arguments.data_file or arguments.splits:
            raise InputError(
                "--data-file and --splits are for --benchmark", fix="name a row: --benchmark N2S"
            )
        config = built_config(finetuning_settings(), arguments)
        if config.train is None:
            raise InputError("the run names no domains", fix="add --benchmark N2S, or train and validation")
        return config
    row = benchmark(arguments.benchmark)
    # The run's data root is what domains are opened below.
    protocol = protocol_config(arguments, data_root="", seed=arguments.split_seed)
    config = built_config(finetuning_settings(), arguments, changes=training_domains(row, protocol))
    return replace(config, output=config.output.replace("{benchmark}", row.slug))
