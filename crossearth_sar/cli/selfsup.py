"""Self-supervised pre-training (DI3CL): a backbone from images without labels, simulated or your own.

    crossearth-sar selfsup                                 the dense tiny backbone on three simulated sensors
    deepspeed train/di3cl.py                               the same under DeepSpeed, one rank per GPU
    crossearth-sar selfsup --config di3cl_corpus --set data_root=FOLDER
    crossearth-sar selfsup … --resume                      go on from the newest checkpoint

It leaves a backbone without a decoder, which `train` and `finetune` take: `--set weights=runs/di3cl/model`.
Labels are never read but for the probe at the end, which tries the features on few of them. Any setting can
be changed with --set: `--set selfsup.method.temperature=0.1 selfsup.views.flip_y=0`. With
`selfsup.method.contour_weight=0 selfsup.method.region_weight=0` it is MoCo v2.
"""

from __future__ import annotations

import argparse

from crossearth_sar.cli.config_arguments import add_config_arguments, built_config
from crossearth_sar.cli.running import add_resume_argument, carry_out
from crossearth_sar.engine.config import DOMAINS, selfsup_run
from crossearth_sar.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, selfsup_run())
    add_resume_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    config = built_config(selfsup_run(), arguments, whole=DOMAINS)
    if config.selfsup is None:
        raise InputError(
            "selfsup is null: that is a run with labels", fix="leave it out, or use crossearth-sar train"
        )
    return carry_out(config, arguments.resume, "selfsup")
