"""Many runs of the miniature benchmarks: a pool of processes, a line of JSON per finished run, statistics.

A run is one row under one setting and seed. Backbones are trained once per (setting, seed), heads once per
source domain. What is finished is not repeated: runs and weights are known by setting and budget, so that
another budget starts anew. Jobs are ordered by seed, so that a stopped store holds whole seeds first.

The seed is the unit of replication: rows of a seed share a backbone, and their differences are averaged
before anything is said about spread.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t
from tqdm import tqdm

from bench.experiments.miniature_model import (
    SCENE,
    Budget,
    Setting,
    effective_experts,
    fit_head,
    load_backbone,
    majority_miou,
    pretrain,
    row_tiles,
    save_backbone,
    score,
)
from crossearth_sar.evaluation.miniature import STAND_INS, StandIn, held_out_scenes, scenes_of
from crossearth_sar.provenance import provenance

RUNS_FILE = "runs.jsonl"
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pre-training of (setting, seed) where `rows` is empty, else the rows of one source domain after it."""

    setting: Setting
    seed: int
    rows: tuple[str, ...] = ()


def fingerprint(setting: Setting, budget: Budget) -> str:
    """Twelve hex digits of what a result depends on, the seed and the row aside."""
    content = json.dumps({"setting": setting.mapping(), "budget": asdict(budget)}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class RunStore:
    """Finished runs in FOLDER/runs.jsonl, and backbones in FOLDER/weights."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder, self.budget = folder, budget
        self.runs: dict[tuple[str, int, str], dict[str, Any]] = {}
        self.file = folder / RUNS_FILE
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        for line in text.split("\n")[:-1]:  # what follows the last newline was cut off by a kill
            run = json.loads(line)
            self.runs[run["setting_id"], run["seed"], run["row"]] = run

    def get(self, setting: Setting, seed: int, row: str) -> dict[str, Any] | None:
        return self.runs.get((fingerprint(setting, self.budget), seed, row))

    def add(self, runs: Iterable[dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as file:
            file.truncate(self.file.read_bytes().rfind(b"\n") + 1)
        with self.file.open("a", encoding="utf-8") as file:
            for run in runs:
                file.write(json.dumps(run) + "\n")
                self.runs[run["setting_id"], run["seed"], run["row"]] = run

    def weights(self, setting: Setting, seed: int) -> Path:
        return self.folder / "weights" / f"{fingerprint(setting, self.budget)}-{seed}.safetensors"

    def jobs(self, settings: Iterable[Setting], seeds: Sequence[int], rows: Sequence[str]) -> list[Job]:
        """What is still to be done, seed by seed, pre-training before its rows."""
        jobs = []
        for seed in seeds:
            heads: list[Job] = []
            for setting in dict.fromkeys(settings):
                missing = [row for row in rows if self.get(setting, seed, row) is None]
                by_source: dict[tuple[str, str], list[str]] = {}
                for row in missing:
                    by_source.setdefault(STAND_INS[row].source_key, []).append(row)
                heads += [Job(setting=setting, seed=seed, rows=tuple(keys)) for keys in by_source.values()]
                if missing and not self.weights(setting, seed).exists():
                    jobs.append(Job(setting=setting, seed=seed))
            jobs += sorted(heads, key=lambda job: rows.index(job.rows[0]))
        return jobs


def run_all(store: RunStore, jobs: list[Job], processes: int) -> None:
    """Runs the jobs in `processes` processes of one thread each; finished ones are in the store at once."""
    pending, running = list(jobs), dict[Future[list[dict[str, Any]]], Job]()
    bar = tqdm(
        total=sum(max(len(job.rows), 1) for job in jobs),
        unit="run",
        mininterval=1.0 if sys.stderr.isatty() else 20.0,
    )
    context = multiprocessing.get_context("spawn")  # forked OpenMP pools can hang
    origin = provenance()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        try:
            while pending or running:
                while len(running) < processes and (job := _next_ready(store, pending)) is not None:
                    pending.remove(job)
                    path = str(store.weights(job.setting, job.seed))
                    running[pool.submit(run_job, job, store.budget, path)] = job
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    results = future.result()
                    store.add(
                        {**result, "commit": origin["commit"], "date": origin["date"]} for result in results
                    )
                    bar.update(max(len(job.rows), 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bar.close()


def run_job(job: Job, budget: Budget, weights: str) -> list[dict[str, Any]]:
    """One job, in a process of its own; the finished runs, none for a pre-training."""
    path = Path(weights)
    if not job.rows:
        save_backbone(pretrain(job.setting, job.seed, budget), path)
        return []
    backbone = load_backbone(job.setting, budget, path)
    started = time.process_time()
    first = STAND_INS[job.rows[0]]
    train = row_tiles(
        scenes_of(first, "train", count=budget.row_scenes, size=SCENE), _task(first), budget.tile
    )
    seen = row_tiles(held_out_scenes(first, count=budget.test_scenes, size=SCENE), _task(first), budget.tile)
    head = fit_head(backbone, train, first.task, job.seed, budget)
    source_miou, _ = score(backbone, head, seen, first.task)
    shared = time.process_time() - started
    results = []
    for key in job.rows:
        row, started = STAND_INS[key], time.process_time()
        config = scenes_of(row, "test", count=budget.test_scenes, size=SCENE)
        test = row_tiles(config, _task(row), budget.tile)
        target_miou, share_LE = score(backbone, head, test, row.task)
        used = effective_experts(share_LE)
        results.append(
            {
                "setting_id": fingerprint(job.setting, budget),
                "setting": job.setting.mapping(),
                "seed": job.seed,
                "row": key,
                "gap": row.gap,
                "target_miou": 100 * target_miou,
                "source_miou": 100 * source_miou,
                "majority_miou": 100 * majority_miou(train, test, row.task),
                "effective_experts": None if math.isnan(used) else used,
                "largest_share": float(share_LE.max()) if share_LE.numel() else None,
                "cpu_seconds": shared / len(job.rows) + time.process_time() - started,
            }
        )
    return results


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. std: over seeds, of the sample; half_width: of Student's 95 % interval of the mean.
    Both are NaN with fewer than two seeds."""

    mean: float
    std: float
    half_width: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f}" if self.seeds > 1 else f"{self.mean:.1f}"

    @property
    def excludes_zero(self) -> bool:
        return self.seeds > 1 and abs(self.mean) > self.half_width

    def as_difference(self) -> str:
        """`+0.4 (−0.8 .. +1.6)`: mean and interval."""
        if self.seeds < 2:
            return f"{self.mean:+.2f} (no interval: {self.seeds} seed)"
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+.2f} ({low:+.2f} .. {high:+.2f})"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and interval of one value per seed; NaN where there are too few."""
    count = len(values)
    if count < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.nan, count)
    std = statistics.stdev(values)
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)
    return Estimate(statistics.fmean(values), std, half, count)


def seed_means(
    store: RunStore, setting: Setting, seeds: Sequence[int], rows: Sequence[str], field: str = "target_miou"
) -> dict[int, float]:
    """Seed -> mean of `field` over the rows; only seeds that have every one of them."""
    means = {}
    for seed in seeds:
        found = [store.get(setting, seed, row) for row in rows]
        values = [run[field] for run in found if run is not None and run[field] is not None]
        if rows and len(values) == len(rows):
            means[seed] = statistics.fmean(values)
    return means


def level(store: RunStore, setting: Setting, seeds: Sequence[int], rows: Sequence[str]) -> Estimate:
    """mIoU on the target, mean over the rows."""
    return estimate(list(seed_means(store, setting, seeds, rows).values()))


def paired(
    store: RunStore, setting: Setting, baseline: Setting, seeds: Sequence[int], rows: Sequence[str]
) -> Estimate:
    """Difference to the baseline, seed by seed, over the seeds that both have whole."""
    mine, theirs = (seed_means(store, s, seeds, rows) for s in (setting, baseline))
    return estimate([mine[seed] - theirs[seed] for seed in mine if seed in theirs])


def count_runs(
    store: RunStore, settings: Iterable[Setting], seeds: Sequence[int], rows: Sequence[str]
) -> int:
    return sum(store.get(s, seed, row) is not None for s in settings for seed in seeds for row in rows)


def verdict(what: str, difference: Estimate) -> str:
    """One sentence that claims no more than the interval allows."""
    if difference.seeds == 0:
        return f"{what}: not run."
    if difference.seeds == 1:
        return f"{what}: {difference.mean:+.2f} points in the one finished seed; its spread is not known."
    claim = (
        ("better" if difference.mean > 0 else "worse")
        if difference.excludes_zero
        else "not told apart by these seeds"
    )
    return f"{what}: {difference.as_difference()} points, {difference.seeds} seeds: {claim}."


def default_processes() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_budget(budget: Budget) -> str:
    """A sentence for the report, with the --set that asks for this budget."""
    usual = asdict(Budget())
    changes = [f"{name}={value}" for name, value in asdict(budget).items() if value != usual[name]]
    return (
        f"Backbone: ViT of {budget.depth} blocks of {budget.dim}, patch {budget.patch}; {budget.steps} steps "
        f"of {budget.batch} tiles of {budget.tile} pixels from {budget.sensors} simulated sensors, "
        f"{budget.sensor_scenes} scenes of {SCENE} pixels each. Per row: {budget.head_steps} head steps on "
        f"{budget.row_scenes} scenes of the source, scored on {budget.test_scenes} of the target. "
        + (f"Less or more than the default: --set {' '.join(changes)}." if changes else "The default budget.")
    )


def flat_runs(
    store: RunStore, settings: Mapping[str, Setting], seeds: Sequence[int], rows: Sequence[str]
) -> list[dict[str, Any]]:
    """The finished runs under their settings' names, for a report's JSON."""
    found = []
    for name, setting in settings.items():
        for seed in seeds:
            runs = (store.get(setting, seed, row) for row in rows)
            found += [{"name": name, **run} for run in runs if run is not None]
    return found


def _task(row: StandIn) -> str:
    return row.benchmark.task


def _next_ready(store: RunStore, pending: Sequence[Job]) -> Job | None:
    return next((j for j in pending if not j.rows or store.weights(j.setting, j.seed).exists()), None)


def _one_thread() -> None:
    torch.set_num_threads(1)
