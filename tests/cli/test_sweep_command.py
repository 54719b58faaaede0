"""`train --sweep` as its users run it: to the end, stopped, gone on with, failing, and with wrong input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import micro_run, slow

from crossearth_sar import load_model
from crossearth_sar.cli import sweep as command
from crossearth_sar.cli.main import main
from crossearth_sar.config import read_yaml, write_yaml
from crossearth_sar.folder_lock import LOCK_FILE

pytest.importorskip("optuna")
SPACE: dict[str, Any] = {
    "vary": {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "seed": {"values": [0, 1]}},
    "trials": 3,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def words(place: Path, *, space: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """The command on a micro run, and its two files."""
    write_yaml(micro_run(place / "sweep", executor="local", **changes), place / "run.yaml")
    (place / "sweep.yaml").write_text(yaml.safe_dump({**SPACE, **(space or {})}), encoding="utf-8")
    return ["train", "--config", "run.yaml", "--sweep", "sweep.yaml"]


def rows(place: Path) -> list[dict[str, str]]:
    with (place / "sweep" / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fake(monkeypatch: pytest.MonkeyPatch, end: Any = None) -> list[str]:
    """A trial's process is a function: it leaves what a run does, scored by its rate, unless `end` of its
    number says another exit status. The names of folders that ran are returned."""
    ran: list[str] = []

    def process(self: command.Sweep, given: list[str], log: Path) -> int:
        settings, folder = read_yaml(given[given.index("--config") + 1]), log.parent
        ran.append(folder.name)
        assert settings["output"] == str(folder)
        status = end(len(ran) - 1, self) if end else 0
        if status:
            log.write_text("\nerror: out of luck\n  got: nothing\n", encoding="utf-8")
            return int(status)
        if self.stop.received is None:
            leave(folder, settings["optim"]["lr"])
        return 0

    monkeypatch.setattr(command.Sweep, "_process", process)
    return ran


def leave(folder: Path, score: float) -> None:
    """The files of a run whose kept model is of step 4, and scores so."""
    (folder / "metrics.json").write_text(json.dumps({"model_of_step": 4}), encoding="utf-8")
    (folder / "validation.csv").write_text(f"step,miou\n2,0.0\n4,{score}\n6,0.1\n", encoding="utf-8")
    (folder / "report.md").write_text("done", encoding="utf-8")


def test_a_real_sweep_to_its_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(place, space={"trials": 2, "maximize": "pixel_accuracy"}, validate_every=3)
    assert main(given) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "trial-0001, 2 of 2: optim.lr=" in said.err
    assert "resumed from" not in said.err
    best, other = rows(place)
    assert float(best["pixel_accuracy"]) >= float(other["pixel_accuracy"])
    folder = place / "sweep" / best["trial"]
    with (folder / "validation.csv").open(encoding="utf-8", newline="") as file:
        (kept,) = (row for row in csv.DictReader(file) if row["step"] == best["of step"])
    assert float(kept["pixel_accuracy"]) == float(best["pixel_accuracy"])
    config = read_yaml(folder / "config.yaml")
    assert config["optim"]["lr"] == float(best["optim.lr"])
    assert str(config["seed"]) == best["seed"]
    assert config["steps"] == 6
    assert load_model(folder / "model").config.crop_size == 64
    assert f"Best: {best['trial']}" in (place / "sweep" / "report.md").read_text(encoding="utf-8")
    assert f"Best: {best['trial']}" in said.out


@slow
def test_what_a_signal_stops_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A signal to the sweep alone: the trial's process ends its step, saves, and resumes there."""
    given = words(place, space={"trials": 1}, steps=60)
    process = subprocess.Popen(
        [sys.executable, "-m", "crossearth_sar", *given], stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    log = place / "sweep" / "trial-0000" / "train.csv"
    deadline = time.monotonic() + 200
    while not log.is_file() or len(log.read_text(encoding="utf-8").splitlines()) < 4:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "stopped by SIGTERM: 0 of 1 trials are done" in said
    assert not (place / "sweep" / "trial-0000" / "report.md").exists()
    assert main(given) == 0
    assert "trial-0000/checkpoints/step-" in capsys.readouterr().err, "it resumed"
    (row,) = rows(place)
    assert row["of step"] == "60"


def test_finished_trials_are_never_run_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, ran = words(place), fake(monkeypatch)
    assert main(given) == 0
    assert ran == ["trial-0000", "trial-0001", "trial-0002"]
    assert max(float(row["miou"]) for row in rows(place)) == float(rows(place)[0]["miou"])
    assert main(given) == 0
    assert len(ran) == 3
    assert "Best: " in capsys.readouterr().out
    assert main(words(place, space={"trials": 4})) == 0
    assert ran[3:] == ["trial-0003"]


def test_a_killed_sweep_goes_on_with_its_trial(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(number: int, sweep: command.Sweep) -> int:
        if number == 1:
            raise Killed
        return 0

    given, ran = words(place), fake(monkeypatch, die)
    with pytest.raises(Killed):
        main(given)
    settings = (place / "sweep" / "trial-0001" / "trial.yaml").read_bytes()
    leave(place / "sweep" / "trial-0001", 0.5)  # the process lived on, to its end
    ran = fake(monkeypatch)
    assert main(given) == 0
    assert ran == ["trial-0002"], "what it had done but not told is taken"
    assert (place / "sweep" / "trial-0001" / "trial.yaml").read_bytes() == settings
    assert rows(place)[0]["miou"] == "0.5"


def test_a_signal_between_trials_ends_the_sweep(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(number: int, sweep: command.Sweep) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return 0

    given, ran = words(place), fake(monkeypatch, stop)
    before = signal.getsignal(signal.SIGINT)
    assert main(given) == 0
    assert "stopped by SIGINT: 1 of 3 trials are done" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert len(rows(place)) == 1
    ran = fake(monkeypatch)
    assert main(given) == 0
    assert ran == ["trial-0001", "trial-0002"]


def test_a_trial_that_fails_is_told_and_three_in_a_row_end_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(place, space={"trials": 9})
    ran = fake(monkeypatch, lambda number, sweep: number in (1, 3, 4, 5))
    assert main(given) == 1
    assert len(ran) == 6
    assert "3 trials in a row failed; the last: out of luck; got: nothing" in capsys.readouterr().err
    assert [row["failure"] for row in rows(place)] == ["", ""] + ["out of luck; got: nothing"] * 4


def test_wrong_input_of_the_first_trial_ends_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, _ = words(place), fake(monkeypatch, lambda number, sweep: 2)
    assert main(given) == 2
    assert "the sweep's first trial cannot run: out of luck; got: nothing" in capsys.readouterr().err
    ran = fake(monkeypatch)
    assert main(given) == 0, "once it is mended, the trial is run"
    assert ran[0] == "trial-0000"


def test_what_cannot_be_swept_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = fake(monkeypatch)

    def refused(*given: str) -> str:
        assert main(list(given)) == 2
        return capsys.readouterr().err

    assert "did you mean 'iou_water'" in refused(*words(place, space={"maximize": "iou_watr"}))
    given = words(place)
    assert "not from a checkpoint" in refused(*given, "--resume", "sweep/checkpoints/step-000001")
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        assert "without deepspeed" in refused(*given)
    (place / "sweep").mkdir(exist_ok=True)
    other = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True)"
    lock = str(place / "sweep" / LOCK_FILE)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{other}; input()", lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert "is in use" in refused(*given)
    holder.communicate(b"\n")
    assert not ran
