"""A run that is killed again and again: a process that has imported everything forks the runs and kills them.

    python tests/engine/kills.py FOLDER STEPS KILLS SEED RANKS

Of several ranks one is killed; the others lose their connection to it and fail. Prints what it did; exit
status 1 and the reason when a resume failed or the losses are not those of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed  # noqa: F401 - imported once for all runs
import torch
from ranks import begin, micro_run

from crossearth_sar.engine import (
    checkpoint,
    checkpoint_files,
    make_run,  # noqa: F401 - imported once for all runs
)
from crossearth_sar.engine.log import read_csv

SAVE_EVERY = 2


def main(folder: Path, steps: int, kills: int, seed: int, ranks: int) -> None:
    chance = random.Random(seed)
    often = {"steps": steps, "save_every": SAVE_EVERY, "validate_every": 5, "keep_checkpoints": 2}
    whole_run = start(micro_run(folder / "whole", **often), folder / "whole", None, ranks)
    assert wait(whole_run) == [0] * ranks, "undisturbed run"
    config = micro_run(folder / "killed", **often)
    trap_at = {0: "save", 1: "prune"}  # the first two kills; the others come from outside, at random
    for number in range(kills):
        before = progress(folder / "killed")
        children = start(config, folder / f"kill{number}", trap_at.get(number), ranks)
        if number in trap_at:
            status = wait(children)
            assert -signal.SIGKILL in status, f"the {trap_at[number]} trap did not spring: {status}"
        else:
            at_step, delay = before[0] + chance.randint(0, 4), chance.uniform(0, 0.5)
            strike(children, chance.randrange(ranks), folder / "killed", at_step, delay)
        done, saved = progress(folder / "killed")
        print(
            f"kill {number}: {trap_at.get(number, 'anywhere')}, {done} steps done, {saved} saved", flush=True
        )
        assert done - saved <= SAVE_EVERY, "more was lost than the steps since the last save"
        assert saved >= before[1], "a checkpoint was lost"
        if done == steps:
            break
    assert wait(start(config, folder / "last", None, ranks)) == [0] * ranks, said(folder / "last")
    whole, killed = (losses(folder / name) for name in ("whole", "killed"))
    assert whole == killed, f"another run: {whole} {killed}"
    assert len(whole) == steps
    left = sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir())
    assert not any(name.startswith(".writing") for name in left), left


def start(config: Any, output: Path, trap: str | None, ranks: int) -> list[int]:
    """A run in processes of its own, resumed where it was; their numbers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [start_rank(config, output, trap, (rank, ranks, port)) for rank in range(ranks)]


def start_rank(config: Any, output: Path, trap: str | None, place: tuple[int, int, int]) -> int:
    child = os.fork()
    if child:
        return child
    status, (rank, ranks, port) = 1, place
    try:
        os.environ["MASTER_PORT"] = str(port)
        if ranks > 1:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR")
            os.environ.update(zip(names, map(str, (rank, ranks, rank, ranks, "127.0.0.1")), strict=True))
        file = os.open(output.with_suffix(f".rank{rank}.txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        torch.manual_seed(0)
        if trap and rank == {"save": ranks - 1, "prune": 0}[trap]:
            set_trap(trap, ranks)
        begin(config, "auto").fit()
        status = 0
    finally:
        if status:
            import traceback

            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


def set_trap(kind: str, ranks: int) -> None:
    """The process kills itself in its second save, with the files half there; or while it removes the old.

    Of several ranks only the first saves the model; another has its part of the optimizer to write.
    """
    if kind == "save":
        calls = []
        name = "save_file"
        write = getattr(checkpoint, name)

        def half(*arguments: Any, **options: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*arguments, **options)

        setattr(checkpoint, name, half)
    else:

        def removing(path: Path, **options: Any) -> None:
            if Path(path).name.startswith(".writing-old-"):
                os.kill(os.getpid(), signal.SIGKILL)
            rmtree(path, **options)

        rmtree = shutil.rmtree
        checkpoint_files.shutil.rmtree = removing  # type: ignore[assignment]


def strike(children: list[int], victim: int, output: Path, at_step: int, delay: float) -> None:
    """Kills a rank some time after the run has done `at_step` steps, unless it ends before."""
    end = time.monotonic() + 120
    while progress(output)[0] < at_step and time.monotonic() < end:
        if os.waitid(os.P_PID, children[victim], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(children[victim], signal.SIGKILL)  # not waited for yet, so its number is still its own
    wait(children)


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def said(output: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in output.parent.glob(f"{output.name}.rank*.txt"))


def progress(output: Path) -> tuple[int, int]:
    """Steps in the log, and in the newest complete checkpoint."""
    rows = losses(output)
    saved = checkpoint_files.list_checkpoints(output / "checkpoints")
    return len(rows), int(saved[-1].name.removeprefix("step-")) if saved else 0


def losses(output: Path) -> list[tuple[str, str, str]]:
    path = output / "train.csv"
    rows = read_csv(path) if path.exists() else []
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:6]))
