"""`train --sweep`, `finetune --sweep`: the same command once a trial, in a process and folder of its own.

    vary:                                       # sweep.yaml; names as --set has them
      optim.lr: {low: 0.0001, high: 0.01, log: true}
      model.moe.top_k: {values: [1, 2]}
    trials: 20
    maximize: miou                              # or pixel_accuracy, iou_water: a column of validation.csv

A trial's process can fail, or be killed for memory, without taking the sweep along; what it says is passed on
and kept in its log.txt. The same command goes on with a sweep that was stopped: its broken-off trial resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from crossearth_sar.cli.process import RANK_VARIABLES
from crossearth_sar.config import write_yaml
from crossearth_sar.engine.checkpoint_files import list_checkpoints
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.objectives.segmentation import Segmentation
from crossearth_sar.engine.stopping import StopRequest
from crossearth_sar.engine.sweep.report import write_sweep_report
from crossearth_sar.engine.sweep.settings import SweepConfig, read_sweep, require_score, trial_config
from crossearth_sar.engine.sweep.study import Study, Trial
from crossearth_sar.errors import InputError
from crossearth_sar.folder_lock import FolderLock

FAILED_TRIALS = 3
"""In a row end a sweep: what fails so often is not the settings' fault."""
ALONE = Ranks(0, 1, torch.device("cpu"))
WRONG_INPUT = 2


def add_sweep_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep",
        metavar="YAML",
        help="search settings by many runs below output: docs/TRAINING.md, «Sweeps»",
    )


def sweep(config: RunConfig, arguments: argparse.Namespace, command: str) -> int:
    """Runs the trials that are still to run; the exit status.

    Raises:
        InputError: for a sweep, or a run of it, that cannot work: found before the first trial as far as it
            can be, else as the first one meets it.
    """
    _require_no_launcher(arguments)
    space = read_sweep(arguments.sweep, config)
    output = Path(config.output)
    if list_checkpoints(output / "checkpoints"):
        raise InputError(
            f"{output} holds a run", expected="a folder for the sweep", fix="--set output=runs/sweep"
        )
    require_score(space.maximize, Segmentation(config, ALONE).classes.names)
    with FolderLock(output, f"{command} --sweep"):
        stop = StopRequest()
        try:
            return Sweep(config, space, [command, *_plugins(arguments)], stop).run()
        finally:
            stop.restore()


class Sweep:
    """The trials, one after the other.

    Args:
        config: the run that is varied.
        space: how.
        command: name of the command that carries a run out, and its options but for the config.
        stop: raised by a signal, which goes to the trial's process too.
    """

    def __init__(self, config: RunConfig, space: SweepConfig, command: list[str], stop: StopRequest) -> None:
        self.config, self.space, self.command, self.stop = config, space, command, stop
        self.output = Path(config.output)
        self.study = Study(space, config)
        self.failed_in_a_row = 0

    def run(self) -> int:
        while self.stop.received is None and (trial := self.study.next()) is not None:
            self._say_start(trial)
            outcome = self._carried_out(trial)
            if outcome is None:
                break
            self.study.tell(outcome)
            self._say_end(outcome)
            write_sweep_report(self.output, self.space, self.study.finished())
            self.failed_in_a_row = 0 if outcome.failure is None else self.failed_in_a_row + 1
            if self.failed_in_a_row == FAILED_TRIALS:
                say(f"\nerror: {FAILED_TRIALS} trials in a row failed; the last: {outcome.failure}\n")
                return 1
        done = self.study.finished()
        if self.stop.received is not None and len(done) < self.space.trials:
            say(
                f"stopped by {self.stop.received}: {len(done)} of {self.space.trials} trials are done. "
                "The same command goes on"
            )
            return 0
        print(f"\n{write_sweep_report(self.output, self.space, done)}\nAll of it is in {self.output}/")
        return 0 if self.study.best() is not None else 1

    def _carried_out(self, trial: Trial) -> Trial | None:
        """The trial with what came of it; None where a signal ended it first."""
        folder = self.output / trial.folder
        started = time.monotonic()
        status = 0
        if not (folder / "report.md").is_file():  # else all but the word of it was done
            # Refused where it is still running, of a sweep that was killed.
            FolderLock(folder, self.command[0]).release()
            folder.mkdir(exist_ok=True)
            file = folder / "trial.yaml"
            write_yaml(trial_config(self.config, trial.values, folder), file)
            status = self._process(["--config", str(file), "--resume"], folder / "log.txt")
            if self.stop.received is not None and not (folder / "report.md").is_file():
                return None
        facts = {"seconds": time.monotonic() - started}
        if status != 0:
            words = last_words(folder / "log.txt", status)
            if status == WRONG_INPUT and not self.study.finished():
                raise InputError(f"the sweep's first trial cannot run: {words}")
            return replace(trial, failure=words, facts=facts)
        step, score = score_of(folder, self.space.maximize)
        if score != score:  # NaN: no class occurs, say
            return replace(trial, failure=f"{self.space.maximize} is not a number", facts=facts)
        return replace(trial, score=score, facts={**facts, "step": step})

    def _process(self, words: list[str], log: Path) -> int:
        """Runs the command with these words; its output goes on to stderr and into `log`."""
        command = [sys.executable, "-m", "crossearth_sar", *self.command, *words]
        environment = {"MASTER_PORT": str(free_port()), **os.environ}  # other runs here have theirs
        with log.open("ab") as kept:
            process = subprocess.Popen(command, stdout=kept, stderr=subprocess.PIPE, env=environment)
            assert process.stderr is not None
            pipe, told = process.stderr.fileno(), False
            while True:
                if self.stop.received is not None and not told:
                    told = True
                    process.send_signal(signal.SIGINT)
                if not select.select([pipe], [], [], 0.2)[0]:
                    continue
                said = os.read(pipe, 1 << 16)
                if not said:
                    break
                kept.write(said)
                kept.flush()
                sys.stderr.write(said.decode("utf-8", "replace"))
                sys.stderr.flush()
            process.stderr.close()
            return process.wait()

    def _say_start(self, trial: Trial) -> None:
        done, best = len(self.study.finished()), self.study.best()
        so_far = "" if best is None else f"; best so far {best.score:.4f}, {best.folder}"
        say(f"\n{trial.folder}, {done + 1} of {self.space.trials}: {trial.words}{so_far}")

    def _say_end(self, trial: Trial) -> None:
        found = (
            f"failed: {trial.failure}" if trial.score is None else f"{self.space.maximize} {trial.score:.4f}"
        )
        say(f"{trial.folder}: {found}; {trial.facts['seconds'] / 60:.1f} minutes")


def score_of(folder: Path, column: str) -> tuple[int, float]:
    """The step of the model that a finished run left, and its validation score."""
    step = int(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["model_of_step"])
    with (folder / "validation.csv").open(encoding="utf-8", newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if int(row["step"]) == step)
    return step, float(row[column])


def last_words(log: Path, status: int) -> str:
    """Why a run failed, in one line: its error, or the end of what it said."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line]
    starts = [index for index, line in enumerate(lines) if line.startswith("error:")]
    words = lines[starts[-1] :] if starts else lines[-1:]
    why = "; ".join(words).removeprefix("error: ")
    return why if why else f"exit status {status} without a word"


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _require_no_launcher(arguments: argparse.Namespace) -> None:
    """InputError where there are ranks already, or one checkpoint is to be resumed."""
    if any(name in os.environ for name in RANK_VARIABLES):
        raise InputError(
            "a sweep starts its trials itself, each in one process",
            got="a launcher's rank",
            fix="crossearth-sar train --sweep …, without deepspeed, torchrun or srun",
        )
    if arguments.resume not in (None, "auto"):
        raise InputError(
            "a sweep goes on by itself, and not from a checkpoint", got=f"--resume {arguments.resume}",
            fix="leave --resume out",
        )  # fmt: skip


def _plugins(arguments: argparse.Namespace) -> list[str]:
    return [word for name in arguments.plugin for word in ("--plugin", name)]
