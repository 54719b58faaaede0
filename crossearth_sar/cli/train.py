"""Continued pre-training of CrossEarth-SAR.

    deepspeed train/cpt.py                        the tiny model on simulated scenes, one rank per GPU
    deepspeed --num_accelerators 2 train/cpt.py   two ranks on a CPU, experts split between them
    deepspeed train/cpt.py --config crossearth_sar/cli/recipes/sen1floods11_water.yaml --set data_root=/data
    deepspeed train/cpt.py … --resume auto                 go on from the newest checkpoint
    python train/cpt.py --config … --write-deepspeed FILE --ranks 16
                                                  only write the DeepSpeed json of a run on 16 GPUs

Any setting can be changed with --set: `--set steps=200 optim.lr=1e-4 model.moe.top_k=2`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist

from crossearth_sar.config import from_mapping, merge, parse_overrides, read_yaml
from crossearth_sar.engine.checkpoint import SaveError
from crossearth_sar.engine.config import RunConfig, simulated_run
from crossearth_sar.engine.distributed import first_error, start_ranks
from crossearth_sar.engine.failures import explain, meet_peers, remove_old_words
from crossearth_sar.engine.loop import Trainer
from crossearth_sar.engine.nonfinite import NonFiniteError
from crossearth_sar.engine.output_folder import claim
from crossearth_sar.engine.planning.layout import deepspeed_config, plan_layout, run_model_config
from crossearth_sar.engine.results import write_results
from crossearth_sar.engine.resume import go_on_words
from crossearth_sar.engine.throughput import forward_flop
from crossearth_sar.errors import InputError

try:
    import deepspeed
except ImportError as error:
    sys.exit(f"error: training needs DeepSpeed ({error}): pip install 'crossearth-sar[train]'")

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--write-deepspeed",
        metavar="FILE",
        help="write the DeepSpeed json of the run on --ranks GPUs; no run",
    )
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="for --write-deepspeed")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the launcher's


def run_config(arguments: argparse.Namespace) -> RunConfig:
    changes = parse_overrides(arguments.overrides)
    if arguments.config is None:
        return merge(simulated_run(), changes)
    return merge(from_mapping(RunConfig, read_yaml(arguments.config)), changes)


def run(arguments: argparse.Namespace) -> int:
    config = run_config(arguments)
    if arguments.write_deepspeed is not None:
        return write_deepspeed_json(config, arguments.write_deepspeed, arguments.ranks)
    return train(config, arguments.resume)


def train(config: RunConfig, resume: str | None) -> int:
    ranks = start_ranks(config.parallel.timeout_minutes)
    quiet_libraries(main_rank=ranks.is_main)
    output = Path(config.output)
    started: list[Trainer] = []
    if ranks.is_main:
        remove_old_words(output)
    peers = meet_peers()
    try:
        trainer = build_together(lambda: Trainer(config, ranks))
        started.append(trainer)
        build_together(lambda: claim(output, ranks))
        build_together(lambda: trainer.start(resume))
        if ranks.is_main:
            print(describe(trainer, deepspeed.__version__), file=sys.stderr, flush=True)
            write_deepspeed_file(trainer)
        if trainer.fit():
            write_results(trainer)
    except (NonFiniteError, SaveError) as error:  # the same on all ranks
        trainer.say(f"\nerror: {error}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, this rank shall not leave the others waiting
        step = started[0].step if started else 0
        end_at_once(explain(error, output, ranks.rank, peers, step), error, config)
    return 0


def end_at_once(words: str, error: Exception, config: RunConfig) -> NoReturn:
    """Prints why and leaves without the farewells that other ranks would have to answer."""
    if " lost its peers at step " not in words:
        logging.getLogger("crossearth_sar").error("", exc_info=error)
    print(f"\nerror: {words}\n  to do: {go_on_words(config)}\n", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def write_deepspeed_json(config: RunConfig, file: str, ranks: int) -> int:
    """The json that a run of `config` on that many GPUs hands to DeepSpeed, after the checks of the run."""
    layout = plan_layout(config, run_model_config(config, num_classes=1), ranks=ranks, on_gpu=True)
    Path(file).write_text(json.dumps(deepspeed_config(config, layout), indent=2) + "\n", encoding="utf-8")
    return 0


def write_deepspeed_file(trainer: Trainer) -> None:
    """Beside the run, for the record: what DeepSpeed was given."""
    text = json.dumps(deepspeed_config(trainer.config, trainer.layout), indent=2)
    (trainer.output / "deepspeed.json").write_text(text + "\n", encoding="utf-8")


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
    dist.barrier()  # the launcher ends the others with the first that goes: not before the words are out
    sys.stdout.flush()
    os._exit(2)  # taking down an interpreter beside gloo's threads now and then aborts it


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
        f"ranks: {ranks.size} ({where}); experts split over {trainer.ep_size}; {_memory_words(trainer)}; "
        f"DeepSpeed {deepspeed_version}, torch {torch.__version__}",
        f"weights {config.weights or 'none: the backbone is as initialised'}",
        f"one forward pass of one image: {forward_flop(trainer.model_config) / 1e9:.1f} GFLOP",
        f"train {trainer.train_domain.name} ({len(trainer.train_domain)} images), held out "
        f"{trainer.validation.name} ({len(trainer.validation)}), unseen "
        + (", ".join(f"{d.name} ({len(d)})" for d in trainer.unseen) or "none"),
    ]
    if ranks.size == 1:
        lines.append("one rank: for more, run deepspeed --num_accelerators N train/cpt.py")
    return "\n".join(lines)


def _memory_words(trainer: Trainer) -> str:
    parallel = trainer.config.parallel
    words = [f"ZeRO stage {parallel.zero_stage}", "bf16" if trainer.layout.use_bf16 else "fp32"]
    if parallel.offload_optimizer != "none":
        words.append(f"optimizer on {parallel.offload_optimizer}")
    if parallel.offload_parameters != "none":
        words.append(f"parameters on {parallel.offload_parameters}")
    if parallel.activation_checkpointing:
        words.append("activation checkpointing")
    return ", ".join(words)


def quiet_libraries(*, main_rank: bool) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("crossearth_sar").setLevel(logging.INFO if main_rank else logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    if not main_rank:
        warnings.simplefilter("ignore")
