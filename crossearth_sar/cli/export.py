"""A training checkpoint as a model folder, on any machine.

    crossearth-sar export runs/cpt/checkpoints/step-000500 model/
    crossearth-sar export runs/cpt model/ --best

Needs neither DeepSpeed nor a GPU: weights on disk are whole, whatever ranks wrote them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from crossearth_sar.engine.export import export, find

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint (…/step-000200) or a run's output folder")
    parser.add_argument("out", type=Path, help="the folder to write; it must not hold a model")
    parser.add_argument("--best", action="store_true", help="of a run, the best by validation mIoU")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of the parameters on disk; buffers stay float32"
    )


def run(arguments: argparse.Namespace) -> int:
    checkpoint = find(arguments.checkpoint, best=arguments.best)
    state = export(checkpoint, arguments.out, dtype=DTYPES[arguments.dtype])
    print(f"{checkpoint}, step {state['step']}, written to {arguments.out} as {arguments.dtype}")
    return 0
