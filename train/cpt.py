"""Continued pre-training of CrossEarth-SAR.

    deepspeed train/cpt.py                        the tiny model on simulated scenes, one rank per GPU
    deepspeed --num_accelerators 2 train/cpt.py   two ranks on a CPU, experts split between them
    deepspeed train/cpt.py --config train/recipes/sen1floods11_water.yaml --set data_root=/data
    deepspeed train/cpt.py … --resume                      go on from the newest checkpoint

Any setting can be changed with --set: `--set steps=200 optim.lr=1e-4 model.moe.top_k=2`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from crossearth_sar.config import from_mapping, merge, parse_overrides, read_yaml
from crossearth_sar.engine.config import RunConfig, simulated_run
from crossearth_sar.engine.distributed import first_error, start_ranks
from crossearth_sar.engine.loop import Trainer
from crossearth_sar.engine.results import write_results
from crossearth_sar.errors import InputError

try:
    import deepspeed
except ImportError as error:
    sys.exit(f"error: training needs DeepSpeed ({error}): pip install 'crossearth-sar[train]'")

T = TypeVar("T")


def main() -> int:
    arguments = parse_arguments()
    try:
        config = run_config(arguments)
        return run(config, arguments.resume)
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":  # before ranks have met, each finds the same fault
            print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
        return 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="YAML", help="a run's settings; without it, the simulated run")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="change settings, dotted: optim.lr=1e-4",
    )
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or from the newest of the output folder",
    )
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the launcher's
    return parser.parse_args()


def run_config(arguments: argparse.Namespace) -> RunConfig:
    changes = parse_overrides(arguments.overrides)
    if arguments.config is None:
        return merge(simulated_run(), changes)
    return merge(from_mapping(RunConfig, read_yaml(arguments.config)), changes)


def run(config: RunConfig, resume: str | None) -> int:
    ranks = start_ranks()
    quiet_libraries(main_rank=ranks.is_main)
    trainer = build_together(lambda: Trainer(config, ranks))
    build_together(lambda: trainer.start(resume))
    if ranks.is_main:
        print(describe(trainer, deepspeed.__version__), file=sys.stderr, flush=True)
    if trainer.fit():
        write_results(trainer)
    return 0


def build_together(build: Callable[[], T]) -> T:
    """`build()`, or an end of all ranks with the words of the first that found a fault."""
    error, result = None, None
    try:
        result = build()
    except InputError as caught:
        error = caught
    message = first_error(error)
    if message is None:
        return cast(T, result)
    if dist.get_rank() == 0:
        print(f"\nerror: {message}\n", file=sys.stderr, flush=True)
    raise SystemExit(2)


def describe(trainer: Trainer, deepspeed_version: str) -> str:
    """Who computes what, before the first step."""
    ranks, config = trainer.ranks, trainer.config
    parameters = sum(p.numel() for p in trainer.replica.parameters())
    where = (
        f"{torch.cuda.get_device_name()}"
        if ranks.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads each"
    )
    lines = [
        f"{config.preset}: {parameters / 1e6:.1f}M parameters, {len(trainer.classes)} classes; "
        f"{config.steps} steps of {config.batch_size} images of {trainer.model_config.crop_size} pixels",
        f"ranks: {ranks.size} ({where}); experts split over {trainer.ep_size}; "
        f"ZeRO stage {config.parallel.zero_stage}; DeepSpeed {deepspeed_version}, torch {torch.__version__}",
        f"train {trainer.train_domain.name} ({len(trainer.train_domain)} images), held out "
        f"{trainer.validation.name} ({len(trainer.validation)}), unseen "
        + (", ".join(f"{d.name} ({len(d)})" for d in trainer.unseen) or "none"),
    ]
    if ranks.size == 1:
        lines.append("one rank: for more, run deepspeed --num_accelerators N train/cpt.py")
    return "\n".join(lines)


def quiet_libraries(*, main_rank: bool) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("crossearth_sar").setLevel(logging.INFO if main_rank else logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    if not main_rank:
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
