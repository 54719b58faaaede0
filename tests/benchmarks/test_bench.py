"""Benchmarks run, agree with the reference before they compare, and say where their figures come from."""

from __future__ import annotations

import csv
import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.speed import harness  # bench/ is on the path, see pyproject.toml
from crossearth_sar.backend import extension_status

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{script}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(not extension_status()[0], reason=extension_status()[1])
def test_descriptor_benchmark(tmp_path: Path) -> None:
    text = run(
        "speed.bench_descriptors", "--images", "2", "--rounds", "2", "--no-compile", "--out", str(tmp_path)
    )
    assert "ours, fused" in text
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        names = {row["what"] for row in csv.DictReader(file)}
    assert names == {
        "numpy/scipy",
        "eager torch",
        "ours, fused",
        "torch.log1p alone",
        "copy",
        "map, eager torch",
        "map, ours fused",
        "scale-free, ours fused",
        "map, scale-free, ours fused",
    }
    origin = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["provenance"]
    assert {"device", "torch", "commit", "date"} <= set(origin)


def test_table_of_an_index(tmp_path: Path) -> None:
    speckle = np.random.default_rng(0).gamma(1, 1, (64, 64))
    np.save(tmp_path / "slc.npy", np.sqrt(speckle).astype(np.complex64))
    np.save(tmp_path / "db.npy", (10 * np.log10(speckle)).astype(np.float32))
    (tmp_path / "index.csv").write_text(
        "image,sensor,band,polarization,region,values\n"
        "slc.npy,X,C,HH,here,complex64 SLC\ndb.npy,Y,L,VV,there,dB\n",
        encoding="utf-8",
    )
    run("experiments.describe_images", "--index", str(tmp_path / "index.csv"), "--out", str(tmp_path / "out"))
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        slc, db = csv.DictReader(file)
    assert slc["ENL of intensity"] == db["ENL of intensity"]
    assert 0.8 < float(slc["ENL of intensity"]) < 1.2


def test_sensors_told_apart_by_their_looks(tmp_path: Path) -> None:
    """Two simulated sensors of one and of eight looks, at any gain: only the scale-free set is sure of it."""
    generator = np.random.default_rng(0)
    lines = ["image,dataset,sensor,band,polarization,region,values"]
    for name, looks in (("one", 1), ("eight", 8)):
        for number in range(6):
            power = generator.gamma(looks, 10.0 ** generator.uniform(-2, 2) / looks, (128, 256))
            np.save(tmp_path / f"{name}{number}.npy", power.astype(np.float32))
            lines.append(f"{name}{number}.npy,{name},X,C,HH,here,float32 intensity")
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(
        "experiments.tell_sensors_apart",
        "--index",
        str(tmp_path / "index.csv"),
        "--out",
        str(tmp_path / "out"),
    )
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        found = {(row["data"], row["of"], row["measure"]): row["value"] for row in csv.DictReader(file)}
    free = ("all data sets", "scale-free four")
    assert float(found[*free, "balanced accuracy, %"]) > 95
    assert float(found[*free, "the same with gains of 0.1 .. 10, %"]) > 95
    moved = "most a gain of 0.01 or 100 moves it"
    assert float(found["every crop", "looks", moved]) < 1e-3 < float(found["every crop", "enl", moved])


def test_no_ratio_for_what_disagrees() -> None:
    with pytest.raises(harness.DisagreementError, match="no ratio"):
        harness.require_agreement("theirs", torch.ones(3), torch.zeros(3), rtol=1e-5, atol=1e-5)


def test_a_budget_ends_the_rounds() -> None:
    timings = harness.time_interleaved({"a": lambda: time.sleep(0.01)}, rounds=1000, warm_up=0, budget_s=0.05)
    assert harness.MIN_ROUNDS <= timings["a"].rounds < 20


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        (torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]), 0.5 / math.hypot(3, 4.5)),
        (torch.tensor([1.0, math.nan]), torch.ones(2), math.inf),
        (torch.ones(3), torch.ones(2), math.inf),
        (torch.zeros(2), torch.zeros(2), 0.0),
    ],
)
def test_relative_error(got: torch.Tensor, expected: torch.Tensor, error: float) -> None:
    assert harness.relative_error(got, expected) == pytest.approx(error)


def test_contenders_take_turns() -> None:
    order: list[str] = []
    timings = harness.time_interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1
    )
    assert order == ["a", "b"] * 4
    assert all(t.p20 <= t.p50 <= t.p80 for t in timings.values())


def test_every_benchmark_is_a_module_with_words() -> None:
    """`python -m bench.ROOM.NAME --help` says what it does: its imports are there, and its docstring."""
    for path in sorted((ROOT / "bench").rglob("*.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        command = f"python -m {module.__name__}"
        if hasattr(module, "main"):
            assert command in (module.__doc__ or "") or "make " in (module.__doc__ or ""), command


def test_scene_benchmark(tmp_path: Path) -> None:
    size = ("--height", "300", "--width", "400")
    text = run("speed.bench_scene", *size, "--device", "cpu", "--out", str(tmp_path))
    assert "| 300 | 400 |" in text
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        start, scene = csv.DictReader(file)
    assert (start["windows"], scene["windows"]) == ("1", str(2 * 2))
    assert float(scene["peak MB"]) > 100


def test_loader_benchmark(tmp_path: Path) -> None:
    text = run("speed.bench_loader", "--side", "2100", "--tiles", "3", "--out", str(tmp_path))
    assert "Random crops of a large scene" in text
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = {row["what"]: float(row["tiles/s"]) for row in csv.DictReader(file)}
    assert len(rows) == 5
    assert rows["a window as a sample"] > 2 * rows["the scene decoded whole"]
