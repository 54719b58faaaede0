"""train/cpt.py as its users run it: to the end, stopped, killed, resumed, and with wrong input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crossearth_sar import load_model

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("deepspeed")

MICRO = [
    "model={crop_size: 64, crop_stride: 48, vit: {dim: 32, num_heads: 2, image_size: 64}, "
    "decoder: {channels: 32, num_queries: 8, pixel_layers: 1, pixel_ffn_dim: 32, query_layers: 1, "
    "query_ffn_dim: 32, num_points: 64}}",
    "augment.crop_size=64",
    "train.simulated={length: 16, image_size: 72, looks: 4}",
    "validation.simulated={length: 3, image_size: 64, seed: 9}",
    "unseen=[{name: unseen, simulated: {length: 3, image_size: 64, region: arid_south, band: X, looks: 2}}]",
    "batch_size=4",
    "optim.warmup_steps=2",
    "pictures=2",
]


def command(output: Path, *settings: str, ranks: int = 2, extra: tuple[str, ...] = ()) -> list[str]:
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(free_port())]
    arguments = ["--set", *MICRO, f"output={output}", *settings, *extra]
    return [*launcher, "--num_accelerators", str(ranks), str(ROOT / "train" / "cpt.py"), *arguments]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*arguments: str, timeout: int = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
        env=child_environment(),
    )


def run_ranks(*settings: str, ranks: int = 2) -> tuple[list[int], str]:
    """The command on ranks without a launcher, which takes longer to come up than these runs need: exit
    statuses, and what all wrote to stderr."""
    meeting = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    meeting["MASTER_PORT"] = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train" / "cpt.py"), "--set", *MICRO, *settings],
            env={**child_environment(), **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [process.communicate(timeout=400)[1] for process in started]
    return [process.returncode for process in started], "".join(said)


def child_environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def losses(output: Path) -> dict[int, tuple[float, float]]:
    """step -> (loss, learning rate)."""
    if not (output / "train.csv").exists():
        return {}
    with (output / "train.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("lr")]
    return {int(row["step"]): (float(row["loss"]), float(row["lr"])) for row in rows}


def start_and_signal(arguments: list[str], output: Path, at_step: int, number: int) -> None:
    """Starts a run in a session of its own and sends the whole session a signal once `at_step` is logged."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=child_environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 400
    while at_step not in losses(output):
        assert process.poll() is None, "the run ended before it was to be stopped"
        assert time.monotonic() < deadline, "the run did not come to the step to be stopped at"
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.wait(timeout=120)
    deadline = time.monotonic() + 60
    while session_alive(process.pid):
        assert time.monotonic() < deadline, "ranks outlived the signal"
        time.sleep(0.1)


def session_alive(session: int) -> bool:
    listing = subprocess.run(
        ["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True, check=False
    )
    return any(not line.strip().startswith("Z") for line in listing.stdout.splitlines())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps on two ranks, experts split, in one go."""
    output = tmp_path_factory.mktemp("cpt") / "whole"
    done = run(*command(output, "steps=12", "save_every=3", "validate_every=4"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "experts split over 2" in done.stderr
    return output


def test_a_run_ends_with_numbers_and_pictures(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert {
        "metrics.json", "report.md", "train.csv", "validation.csv", "config.yaml", "curves.png", "model",
        "predictions-sensors-heldout.png", "predictions-unseen.png", "experts-sensors-heldout.png",
        "tensorboard",
    } <= names  # fmt: skip
    metrics = json.loads((uninterrupted / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["ep_size"] == 2
    assert metrics["steps"] == 12
    for domain in ("sensors-heldout", "unseen"):
        assert 0 <= metrics["domains"][domain]["model"]["miou"] <= 1
        assert set(metrics["domains"][domain]["model"]["iou"]) == set(metrics["classes"])
        assert metrics["domains"][domain]["majority"]["miou"] > 0
    assert sorted(losses(uninterrupted)) == list(range(12))
    model = load_model(uninterrupted / "model")
    assert model.predict(torch.rand(1, 1, 100, 70)).shape == (1, 100, 70)


@pytest.mark.parametrize(
    ("number", "save_every", "workers"),
    [(signal.SIGINT, 100, 2), (signal.SIGKILL, 3, 0)],
    ids=["ctrl-c", "kill-9"],
)
def test_stopped_and_resumed_repeats_the_uninterrupted_run(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals, save_every: int, workers: int
) -> None:
    """Ctrl-C saves the step it stops after (nothing else would have); a kill leaves the last save."""
    output = tmp_path / "stopped"
    settings = ("steps=12", f"save_every={save_every}", "validate_every=4", f"workers={workers}")
    start_and_signal(command(output, *settings), output, at_step=4, number=number)
    saved = sorted(path.name for path in (output / "checkpoints").glob("step-*"))
    assert saved, "a checkpoint was there to go on from"
    statuses, said = run_ranks(f"output={output}", *settings, "--resume", "auto")
    assert statuses == [0, 0], said[-3000:]
    assert f"{int(saved[-1].removeprefix('step-'))} of 12 steps are done" in said
    whole, resumed = losses(uninterrupted), losses(output)
    assert sorted(resumed) == sorted(whole)
    for step, (loss, rate) in whole.items():
        assert resumed[step] == pytest.approx((loss, rate), rel=1e-5), f"step {step}"


def rank_processes(session: int) -> dict[int, int]:
    """rank -> process number, of a launched run."""
    found = {}
    listing = subprocess.run(
        ["ps", "-s", str(session), "-o", "pid="], capture_output=True, text=True, check=False
    )
    for pid in map(int, listing.stdout.split()):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        ranks = [v for v in variables if v.startswith(b"RANK=")]
        if ranks and b"cpt.py" in command_line and b"launch" not in command_line:
            found.setdefault(int(ranks[0].removeprefix(b"RANK=")), pid)
    return found


def test_a_rank_that_dies_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = command(output, "steps=4000", "save_every=2", "validate_every=4000")
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=child_environment(), start_new_session=True, stdout=said, stderr=said
        )
    deadline = time.monotonic() + 400
    while 3 not in losses(output):
        assert process.poll() is None, (tmp_path / "said.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim = rank_processes(process.pid)[1]
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - started < 60
    while session_alive(process.pid):
        assert time.monotonic() - started < 60, "a rank outlived the job"
        time.sleep(0.1)
    words = (tmp_path / "said.txt").read_text()
    assert f"rank 1 (process {victim} on" in words
    assert "is gone without a word" in words
    assert "--resume auto goes on from step-" in words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("optim.learning=1",), ["unknown config key 'optim.learning'", "lr"]),
        (("batch_size=5",), ["batch_size 5 for 2 ranks", "--set batch_size=4"]),
        (
            (
                "train.simulated=null",
                "train.folder={root: nowhere, values: db, classes: [a, b], images: '*.tif'}",
            ),
            ["nowhere"],
        ),
    ],
    ids=["unknown-key", "batch-size", "missing-folder"],
)
def test_wrong_input_ends_early_with_one_screen(
    tmp_path: Path, settings: tuple[str, ...], words: list[str]
) -> None:
    statuses, said = run_ranks(f"output={tmp_path / 'run'}", "steps=2", *settings)
    assert statuses == [2, 2]
    message = said[said.index("error:") :]
    assert said.count("\nerror:") == 1, "one rank speaks"
    assert "Traceback" not in said
    for word in words:
        assert word in message


def test_an_existing_run_is_not_overwritten(uninterrupted: Path) -> None:
    before = (uninterrupted / "train.csv").read_bytes()
    statuses, said = run_ranks(f"output={uninterrupted}", "steps=12")
    assert statuses == [2, 2]
    assert "--resume" in said
    assert (uninterrupted / "train.csv").read_bytes() == before
