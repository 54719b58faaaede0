"""Every command on a disk that is full, or killed, at each of its writes: how it ends, and what is left.

    python tests/faults.py full-disk [COMMAND …]      a bounded file size, below each size that it writes
    python tests/faults.py kills [COMMAND …]          kill -9 before each file-system event in its folder

Prints a table, a line a trial that is not as promised, and ends with status 1 where there is one. Promised:
no traceback; status 0 only with whole files; nothing left over that the same command does not remove; and
the same command goes on to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from forks import start
from PIL import Image
from small_commands import COMMANDS, carry_out, lay_out

from crossearth_sar import load_model
from crossearth_sar.data.files.readers import read_bands
from crossearth_sar.engine.checkpoint_files import check_intact, list_checkpoints, read_state

TRAINS = ("train", "finetune", "selfsup")
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
LEFT_OVER = (".writing", ".model-writ", ".seen-by-all")


@dataclass(frozen=True)
class Trial:
    """status: of the process, negative for a signal. words: on stderr. wrong: what is not as promised."""

    command: str
    fault: str
    status: int
    words: str
    wrong: tuple[str, ...]


def begin(command: str, place: Path, output: Path, fault: Callable[[], None]) -> tuple[int, str]:
    """The exit status of `command` in a child that the fault befalls, and what it said on stderr."""
    reading, writing = os.pipe()

    def work() -> None:
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)  # a test's file would be bounded too
        os.chdir(place)
        sys.path.append(str(place))
        torch.manual_seed(0)
        fault()
        resumed = ["--resume"] * (command in TRAINS and output.exists())
        sys.exit(carry_out(command, place, output, *resumed))

    child = start(work)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
        words = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


def no_fault() -> None:
    """Nothing happens."""


def small_files(size: int) -> Callable[[], None]:
    """As on a full disk: no file grows beyond `size` bytes; EFBIG says so."""

    def fault() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return fault


def killed_at(event: int, output: Path, count: Path) -> Callable[[], None]:
    """A kill -9 before the file-system event of that number in `output`; how many there are goes to `count`.

    An open for reading does not count. safetensors writes without Python's knowing: a file that it writes is
    made before, which is an event, and flushed after it, which is one.
    """

    def fault() -> None:
        seen = [0]
        flush = os.fsync

        def happens() -> None:
            seen[0] += 1
            count.write_text(str(seen[0]))
            if seen[0] == event:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(name: str, arguments: tuple[Any, ...]) -> None:
            if name not in EVENTS or not str(arguments[0]).startswith(f"{output}"):
                return
            if name != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                happens()

        def flushed(descriptor: int) -> None:
            happens()
            flush(descriptor)

        os.fsync = flushed
        sys.addaudithook(audit)

    return fault


def damage(command: str, output: Path) -> list[str]:
    """Files that are there and not whole."""
    found = []
    for path in sorted(output.rglob("*")):
        if path.is_dir() or any(part.startswith(LEFT_OVER) for part in path.relative_to(output).parts):
            continue
        try:
            if path.suffix in (".json", ".rows.json"):
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".tif":
                read_bands(path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the file is not whole
            found.append(f"{path.relative_to(output)}: {type(error).__name__}")
    models = {
        path.parent
        for path in output.rglob("model.safetensors")
        if path.parent.name in ("model", output.name)
    }
    for folder in models - {path for path in models if any(p.startswith(LEFT_OVER) for p in path.parts)}:
        if command != "selfsup":
            load_model(folder)
    for checkpoint in list_checkpoints(output / "checkpoints"):
        state = read_state(checkpoint)
        for name in state["sha256"]:
            check_intact(checkpoint, name, state)
    return found


def left_over(output: Path) -> list[str]:
    return [str(p.relative_to(output)) for p in output.rglob("*") if p.name.startswith(LEFT_OVER)]


def trial(command: str, place: Path, fault: str, make: Callable[[Path], Callable[[], None]]) -> Trial:
    """One fault, what it left, and the same command once more without it."""
    folder = Path(tempfile.mkdtemp(dir=place))
    output, wrong = folder / "out", list[str]()
    status, said = begin(command, place, output, make(output))
    killed = status == -signal.SIGKILL
    wrong += ["a traceback"] * ("Traceback" in said)
    wrong += [f"status {status}"] * (status not in (0, 1, 2, -signal.SIGKILL))
    wrong += ["failed without a word"] * (status in (1, 2) and "rror" not in said and "no map" not in said)
    if output.exists():
        wrong += damage(command, output)
        wrong += [f"left over: {name}" for name in left_over(output)] * (not killed)
    before = len(list_checkpoints(output / "checkpoints"))
    if command == "export" and (output / "config.json").exists():
        return Trial(command, fault, status, said, tuple(wrong))  # it refuses a folder with a model
    done = status == 0 and command in TRAINS
    again, words = (0, "") if done else begin(command, place, output, no_fault)
    wrong += [f"then status {again}: {words[-300:]}"] * (again != 0)
    wrong += [f"then {name}" for name in damage(command, output)]
    wrong += [f"then left over: {name}" for name in left_over(output)]
    wrong += ["a checkpoint is lost"] * (before > len(list_checkpoints(output / "checkpoints")))
    return Trial(command, fault, status, said, tuple(wrong))


def sizes_of(command: str, place: Path) -> list[int]:
    """One byte below each size of file that the command writes, and nothing at all."""
    output = Path(tempfile.mkdtemp(dir=place)) / "out"
    status, words = begin(command, place, output, no_fault)
    assert status == 0, words
    sizes = {path.stat().st_size for path in output.rglob("*") if path.is_file()}
    return sorted({0} | {size - 1 for size in sizes if size > 1})


def events_of(command: str, place: Path) -> int:
    """How many file-system events there are in its folder."""
    output = Path(tempfile.mkdtemp(dir=place)) / "out"
    count = output.with_name("count")
    status, words = begin(command, place, output, killed_at(0, output, count))
    assert status == 0, words
    return int(count.read_text())


def full_disk(command: str, place: Path, size: int) -> Trial:
    return trial(command, place, f"{size} bytes a file", lambda output: small_files(size))


def kill(command: str, place: Path, event: int) -> Trial:
    def make(output: Path) -> Callable[[], None]:
        return killed_at(event, output, output.with_name("count"))

    return trial(command, place, f"killed at event {event}", make)


def main(kind: str, commands: list[str], every: int) -> int:
    place, bad = Path(tempfile.mkdtemp(prefix="faults-")), 0
    lay_out(place)
    print("| command | trials | ends with | not as promised |\n|---|---:|---|---|", flush=True)
    for command in commands or COMMANDS:
        if kind == "kills":
            trials = [kill(command, place, n) for n in range(1, events_of(command, place) + 1, every)]
        else:
            trials = [full_disk(command, place, size) for size in sizes_of(command, place)[::every]]
        ends = Counter(one.status for one in trials)
        wrong = [one for one in trials if one.wrong]
        shown = ", ".join(f"{count} × status {status}" for status, count in sorted(ends.items()))
        print(f"| {command} | {len(trials)} | {shown} | {len(wrong)} |", flush=True)
        for one in wrong:
            print(f"  {one.fault}, status {one.status}: {'; '.join(one.wrong)}", file=sys.stderr, flush=True)
        bad += len(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("full-disk", "kills"))
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th trial")
    given = parser.parse_args()
    sys.exit(main(given.kind, given.commands, given.every))
