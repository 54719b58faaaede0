"""Pre-training (CPT): all parameters, on simulated scenes or on your own images.

    crossearth-sar train                                   the tiny model on simulated scenes, in one process
    deepspeed train/cpt.py                                 the same under DeepSpeed, one rank per GPU
    deepspeed --num_accelerators 2 train/cpt.py            two ranks on a CPU, experts split between them
    deepspeed train/cpt.py --config sen1floods11_water --set data_root=/data
    deepspeed train/cpt.py … --resume                      go on from the newest checkpoint
    crossearth-sar train --config my.yaml --sweep sweep.yaml
                                                           search settings by many runs
    crossearth-sar train --config cpt_l --write-deepspeed FILE --ranks 16
                                                           only write the DeepSpeed json of a run on 16 GPUs

Any setting can be changed with --set: `--set steps=200 optim.lr=1e-4 model.moe.top_k=2`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crossearth_sar.cli.config_arguments import add_config_arguments, built_config
from crossearth_sar.cli.running import add_resume_argument, carry_out
from crossearth_sar.cli.sweep import add_sweep_argument, sweep
from crossearth_sar.engine.config import DOMAINS, RunConfig, simulated_run
from crossearth_sar.engine.planning.layout import deepspeed_config, plan_layout, run_model_config
from crossearth_sar.whole import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, simulated_run())
    add_resume_argument(parser)
    add_sweep_argument(parser)
    parser.add_argument(
        "--write-deepspeed",
        metavar="FILE",
        help="write the DeepSpeed json of the run on --ranks GPUs; no run",
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="for --write-deepspeed")


def run(arguments: argparse.Namespace) -> int:
    config = built_config(simulated_run(), arguments, whole=DOMAINS)
    if arguments.write_deepspeed is not None:
        return write_deepspeed_json(config, arguments.write_deepspeed, arguments.ranks)
    if arguments.sweep is not None:
        return sweep(config, arguments, "train")
    return carry_out(config, arguments.resume, "train")


def write_deepspeed_json(config: RunConfig, file: str, ranks: int) -> int:
    """The json that a run of `config` on that many GPUs hands to DeepSpeed, after the checks of the run."""
    layout = plan_layout(config, run_model_config(config, num_classes=1), ranks=ranks, on_gpu=True)
    write_text(Path(file), json.dumps(deepspeed_config(config, layout), indent=2) + "\n")
    return 0
