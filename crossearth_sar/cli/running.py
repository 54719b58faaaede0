"""A training run as a command: ranks that start, check, train and end together, whatever happens to one."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar, cast

import torch

from crossearth_sar.engine.checkpoint import SaveError
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks, first_error, start_ranks, wait_for_all
from crossearth_sar.engine.executors.choose import executor_name
from crossearth_sar.engine.failures import Reason, explain, meet_peers, remove_old_words
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.engine.nonfinite import NonFiniteError
from crossearth_sar.engine.orphans import end_with_launcher
from crossearth_sar.engine.resume import go_on_words
from crossearth_sar.engine.run import Run
from crossearth_sar.errors import InputError
from crossearth_sar.selfsup.collapse import CollapseError

T = TypeVar("T")


def add_resume_argument(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes besides its settings."""
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or from the newest of the output folder",
    )
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the launcher's


def carry_out(config: RunConfig, resume: str | None, command: str) -> int:
    """Trains to the end, or to a signal; the exit status. command: whose folder `config.output` is."""
    ranks = start_ranks(config.parallel.timeout_minutes, deepspeed=executor_name(config) == "deepspeed")
    quiet_libraries(main_rank=ranks.is_main)
    end_with_launcher()
    output = Path(config.output)
    started: list[Run] = []
    if ranks.is_main:
        remove_old_words(output, command)
    peers = meet_peers()
    try:
        run = build_together(lambda: make_run(config, ranks), ranks)
        started.append(run)
        build_together(lambda: run.start(resume, command), ranks)
        run.say(describe(run))
        run.executor.leave_record(output)
        if run.fit():
            run.finish()
    except (NonFiniteError, SaveError, CollapseError) as error:  # the same on all ranks
        run.say(f"\nerror: {error}\n")
        return 1
    except Exception as error:  # whatever it is, this rank shall not leave the others waiting
        if ranks.size == 1:
            raise
        step = started[0].step if started else 0
        end_at_once(explain(error, output, ranks.rank, peers, step), error, config)
    finally:
        for run in started:
            run.close()
    return 0


def end_at_once(reason: Reason, error: Exception, config: RunConfig) -> NoReturn:
    """Prints why and leaves without the farewells that other ranks would have to answer."""
    if reason.own:
        logging.getLogger("crossearth_sar").error("", exc_info=error)
    print(f"\nerror: {reason.words}\n  to do: {go_on_words(config)}\n", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def build_together(build: Callable[[], T], ranks: Ranks) -> T:
    """`build()`, or an end of all ranks with the words of the first that found a fault."""
    error, result = None, None
    try:
        result = build()
    except InputError as caught:
        error = caught
    message = first_error(error)
    if message is None:
        return cast(T, result)
    if ranks.size == 1:
        assert error is not None
        raise error
    if ranks.is_main:
        print(f"\nerror: {message}\n", file=sys.stderr, flush=True)
    wait_for_all()  # the launcher ends the others with the first that goes: not before the words are out
    sys.stdout.flush()
    os._exit(2)  # taking down an interpreter beside gloo's threads now and then aborts it


def describe(run: Run) -> str:
    """Who computes what, before the first step."""
    ranks = run.ranks
    where = (
        torch.cuda.get_device_name()
        if ranks.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads each"
    )
    lines = [
        *run.objective.describe(run.executor.module),
        f"ranks: {ranks.size} ({where}); {run.executor.words()}, torch {torch.__version__}",
    ]
    if ranks.size == 1 and run.executor.name == "deepspeed":
        script = "cpt" if run.config.selfsup is None else "di3cl"
        lines.append(f"one rank: for more, run deepspeed --num_accelerators N train/{script}.py")
    return "\n".join(lines)


def quiet_libraries(*, main_rank: bool) -> None:
    logging.getLogger("crossearth_sar").setLevel(logging.INFO if main_rank else logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    if not main_rank:
        warnings.simplefilter("ignore")
