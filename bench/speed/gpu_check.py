"""Everything that needs a GPU, in one command of at most nine minutes: `make gpu-check [OUT=folder]`.

Kernel tests, compute-sanitizer on small sizes, benchmarks, profile. Each step is a process of its own with a
time limit, its log beside the report; one that fails takes nothing from the others. The exit code is 1 where
a step failed that says whether results are right, or where such a check ran out of time. Without a GPU: the
interpreter's tests of the kernels and their ahead-of-time compilation, and the report says that this is all.

--pack, for places that give back few files: README.md, summary.json, a table, pictures and report.tar.gz,
renewed after every step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.speed.harness import gpu_state, markdown_table
from crossearth_sar.provenance import provenance

HAS_CUDA_HALF = "import crossearth_sar._descriptors as built; raise SystemExit(not built.has_cuda)"
ROOT = Path(__file__).resolve().parents[2]
TOTAL_S = 520.0
TOTAL_WITHOUT_GPU_S = 2400.0
CHECK, FIGURES, ADVICE = "check", "figures", "advice"
"""What a step is: a check has to pass in time; figures may run out of time but must not be wrong; advice
never fails the command."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process. limit_s: at most; reserve_s: kept for it while earlier steps run; skip: why it cannot run.

    skip_by_then: the same, asked when its turn has come, for what an earlier step may have changed.
    command: gets the folder for its report and its limit in seconds.
    """

    name: str
    kind: str
    limit_s: float
    reserve_s: float
    command: Callable[[Path, float], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""
    skip_by_then: Callable[[], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended: passed | failed | out of time | skipped."""

    step: str
    kind: str
    verdict: str
    seconds: float
    note: str

    @property
    def is_bad(self) -> bool:
        bad = {CHECK: ("failed", "out of time"), FIGURES: ("failed",), ADVICE: ()}
        return self.verdict in bad[self.kind]


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def gpu_steps() -> list[Step]:
    """What runs on a machine with a GPU, what matters most first."""
    layer = ["--tokens", "4096", "16384", "65536", "--dims", "1024", "384", "--routings", "uniform", "skewed"]
    return [
        _build_step(),
        Step(
            name="tests", kind=CHECK, limit_s=200, reserve_s=60,
            command=lambda out, _: python("-m", "pytest", "-q", "-m", "gpu", *_parallel(), *gpu_test_files()),
        ),
        _sanitizer_step("memcheck", CHECK, limit_s=90, reserve_s=30),
        Step(
            name="moe-layer", kind=FIGURES, limit_s=160, reserve_s=90,
            command=lambda out, limit: python(
                "-m", "bench.speed.bench_moe_layer", *layer, "--scopes", "layer", "--case-budget", "3",
                "--budget", f"{max(20, limit - 45):.0f}", "--out", str(out),
            ),
        ),
        Step(
            name="grouped-gemm", kind=FIGURES, limit_s=50, reserve_s=30,
            command=lambda out, _: python(
                "-m", "bench.speed.bench_grouped_gemm", "--tokens", "4096", "65536", "--dims", "384", "1024",
                "--out", str(out),
            ),
        ),
        Step(
            name="descriptors", kind=FIGURES, limit_s=50, reserve_s=25,
            command=lambda out, _: python(
                "-m", "bench.speed.bench_descriptors", "--device", "cuda", "--images", "64", "--out", str(out)
            ),
            skip_by_then=lambda: "" if has_cuda_half() else "the extension has no CUDA half",
        ),
        *(
            Step(
                name=f"profile-{dim}", kind=FIGURES, limit_s=30, reserve_s=12,
                command=lambda out, _, dim=dim: python(  # type: ignore[misc]
                    "-m", "bench.speed.profile_layer", "--dim", str(dim), "--out", str(out)
                ),
            )
            for dim in (1024, 384)
        ),
        Step(
            name="model", kind=FIGURES, limit_s=60, reserve_s=35,
            command=lambda out, _: python(
                "-m", "bench.speed.bench_model", "--preset", "l", "--budget", "20", "--out", str(out)
            ),
        ),
        Step(
            name="roofline", kind=ADVICE, limit_s=20, reserve_s=10,
            command=lambda out, _: python(
                "-m", "bench.speed.roofline", str(out.parent / "moe-layer"),
                "--out", str(out / "roofline.png"), "--contenders", "ours", "dense",
            ),
        ),
        _sanitizer_step("racecheck", ADVICE, limit_s=60, reserve_s=0),
        _sanitizer_step("initcheck", ADVICE, limit_s=60, reserve_s=0),
    ]  # fmt: skip


def cpu_steps() -> list[Step]:
    """What can be said about the kernels without a GPU."""
    return [
        Step(
            name="interpreter-tests", kind=CHECK, limit_s=1200, reserve_s=300,
            command=lambda out, _: python("-m", "pytest", "-q", *_parallel(), "tests/kernels"),
        ),
        Step(
            name="ahead-of-time", kind=CHECK, limit_s=1200, reserve_s=600,
            command=lambda out, _: python(
                "-m", "bench.compiled.kernels_ahead", "--jobs", str(os.cpu_count() or 1), "--out", str(out)
            ),
        ),
    ]  # fmt: skip


def gpu_test_files() -> list[str]:
    """Test files with a test for a GPU: the others may import what this machine lacks."""
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text(encoding="utf-8")]
    chosen = [p for p in files if p.name != "test_fused_cuda.py" or has_cuda_half()]
    return sorted(str(p.relative_to(ROOT)) for p in chosen)


def has_cuda_half() -> bool:
    """Whether the descriptors' extension, as it lies there now, has its CUDA half."""
    # Asked of a fresh process: this one keeps what it loaded before the build.
    asked = subprocess.run(python("-c", HAS_CUDA_HALF), cwd=ROOT, check=False, capture_output=True)
    return asked.returncode == 0


def _parallel() -> list[str]:
    """Compilation is most of the time, so several processes share the GPU."""
    workers = min(8, os.cpu_count() or 1)
    return ["-n", str(workers)] if importlib.util.find_spec("xdist") and workers > 1 else []


def _build_step() -> Step:
    """The descriptors' extension with its CUDA half, in place, where the one that is there lacks it."""
    reason = ""
    if has_cuda_half():
        reason = "the extension has its CUDA half already"
    elif shutil.which("nvcc") is None:
        reason = "no nvcc on PATH"
    elif importlib.util.find_spec("pybind11") is None:
        reason = "no pybind11: the descriptors' CUDA tests are left out"
    return Step(
        name="extension", kind=ADVICE, limit_s=90, reserve_s=0, environment={"CROSSEARTH_BUILD": "cuda"},
        command=lambda out, _: python("setup.py", "--quiet", "build_ext", "--inplace"), skip=reason,
    )  # fmt: skip


def _sanitizer_step(tool: str, kind: str, *, limit_s: float, reserve_s: float) -> Step:
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    return Step(
        name=f"sanitizer-{tool}", kind=kind, limit_s=limit_s, reserve_s=reserve_s,
        # Without torch's caching allocator every tensor is an allocation of its own, with bounds to check.
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        command=lambda out, _: [
            str(found), "--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only",
            *(["--report-api-errors", "no"] if tool == "memcheck" else []),
            *python("-m", "bench.speed.gpu_check", "--small-layers"),
        ],
        skip="" if found else "no compute-sanitizer on this machine",
    )  # fmt: skip


def run_small_layers() -> None:
    """Forward and backward of small layers through every kernel, against the reference backend."""
    from crossearth_sar import PhysicsGuidedMoE

    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        for tokens, top_k in ((37, 1), (300, 2)):
            torch.manual_seed(tokens)
            layers = [
                PhysicsGuidedMoE(64, 128, top_k=top_k, gate="probability", backend=backend).cuda().to(dtype)
                for backend in ("triton", "reference")
            ]
            layers[1].load_state_dict(layers[0].state_dict())
            x_BTD = torch.randn(1, tokens, 64, device="cuda", dtype=dtype)
            found = [_output_and_gradients(layer, x_BTD) for layer in layers]
            for ours, expected in zip(*found, strict=True):
                error = (ours.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9)
                assert float(error) < limit, f"{dtype}, {tokens} tokens, top-{top_k}: error {error:g}"
    print("small layers agree with the reference")


def _output_and_gradients(layer: Any, x_BTD: torch.Tensor) -> list[torch.Tensor]:
    x_BTD = x_BTD.clone().requires_grad_()
    y_BTD, _ = layer(x_BTD)
    experts = layer.experts
    leaves = [x_BTD, experts.w1, experts.b1, experts.w2, experts.b2]
    return [y_BTD, *torch.autograd.grad(y_BTD.square().sum(), leaves)]


def run_step(step: Step, limit_s: float, folder: Path) -> Outcome:
    """Runs a step's process; its output goes to folder/logs, its report to folder/<name>."""
    reason = step.skip or (step.skip_by_then() if step.skip_by_then else "")
    if reason:
        return Outcome(step=step.name, kind=step.kind, verdict="skipped", seconds=0, note=reason)
    if limit_s < 5:
        return Outcome(step=step.name, kind=step.kind, verdict="out of time", seconds=0, note="never began")
    log = folder / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    out = folder / step.name
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths), **step.environment
    }  # fmt: skip
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            step.command(out, limit_s), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            process_group=0,
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    verdict = "out of time" if code is None else "passed" if code == 0 else "failed"
    note = _last_line(log) if code in (0, None) else f"exit code {code}: {_last_line(log)}"
    seconds = time.monotonic() - started
    return Outcome(step=step.name, kind=step.kind, verdict=verdict, seconds=seconds, note=note)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    told = [line for line in lines if line and not line.startswith(("device ", "- "))]
    return re.sub(r"\x1b\[[0-9;]*m", "", told[-1])[:160] if told else ""


def write_summary(folder: Path, outcomes: list[Outcome], *, on_gpu: bool) -> str:
    """README.md and summary.json of everything so far."""
    origin = provenance() | gpu_state()
    rows = [
        {"step": o.step, "verdict": o.verdict, "seconds": f"{o.seconds:.0f}", "note": o.note}
        for o in outcomes
    ]
    lines = [f"# Check on {origin['device']}", ""]
    if not on_gpu:
        lines += ["**No GPU on this machine.** Done instead: the kernels' tests under Triton's interpreter,",
                  "and their compilation ahead of time. Nothing here says how fast anything is, or that it",
                  "runs on hardware.", ""]  # fmt: skip
    lines += [*markdown_table(rows), ""]
    results = folder / "moe-layer" / "results.json"
    if results.exists():
        targets = json.loads(results.read_text(encoding="utf-8"))["targets"]
        lines += ["## Targets of the layer", "", *markdown_table(targets), ""]
    for outcome in outcomes:
        log = folder / "logs" / f"{outcome.step}.log"
        if outcome.verdict in ("failed", "out of time") and log.exists():
            told = log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
            lines += [f"## {outcome.step}: {outcome.verdict}", "", "```", *told, "```", ""]
    lines += ["; ".join(f"{key} {value}" for key, value in origin.items()), ""]
    text = "\n".join(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    summary = {"provenance": origin, "on_gpu": on_gpu, "steps": [asdict(o) for o in outcomes]}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return text


def pack(folder: Path, out: Path) -> None:
    """The few files that matter into `out`, and all of `folder` as one archive."""
    out.mkdir(parents=True, exist_ok=True)
    picks = {
        "README.md": "README.md", "summary.json": "summary.json", "moe-layer/results.csv": "moe-layer.csv",
        "moe-layer/ratios.png": "ratios.png", "profile-1024/stages.png": "stages.png",
        "roofline/roofline.png": "roofline.png", "grouped-gemm/results.csv": "grouped-gemm.csv",
        "descriptors/results.csv": "descriptors.csv",
    }  # fmt: skip
    for source, target in picks.items():
        if (folder / source).exists():
            shutil.copyfile(folder / source, out / target)
    with tarfile.open(out / "report.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname="report")


def check(steps: list[Step], folder: Path, *, on_gpu: bool, after: Callable[[], None]) -> list[Outcome]:
    """All steps in turn within the total time, the report renewed after each."""
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + (TOTAL_S if on_gpu else TOTAL_WITHOUT_GPU_S)
    for number, step in enumerate(steps):
        reserved = sum(later.reserve_s for later in steps[number + 1 :] if not later.skip)
        limit_s = min(step.limit_s, deadline - time.monotonic() - reserved)
        outcomes.append(run_step(step, limit_s, folder))
        last = outcomes[-1]
        print(f"{last.step}: {last.verdict} in {last.seconds:.0f} s. {last.note}", flush=True)
        write_summary(folder, outcomes, on_gpu=on_gpu)
        after()
    return outcomes


def main() -> int:
    on_gpu = torch.cuda.is_available()
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if on_gpu else "none"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT / (f"bench/reports/gpu-{device}" if on_gpu else "runs/gpu-check")
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--pack", action="store_true", help="few files, see above")
    parser.add_argument("--only", nargs="+", help="these steps")
    parser.add_argument("--small-layers", action="store_true", help="only what compute-sanitizer watches")
    given = parser.parse_args()
    if given.small_layers:
        run_small_layers()
        return 0
    if not on_gpu:
        print(
            "No GPU here: interpreter tests and ahead-of-time compilation of the kernels instead.", flush=True
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a step's process ends with this one
    steps = [s for s in (gpu_steps() if on_gpu else cpu_steps()) if not given.only or s.name in given.only]
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out.resolve()  # steps run in the repository's root
        folder = Path(temporary) / "report" if given.pack else out
        after = (lambda: pack(folder, out)) if given.pack else (lambda: None)
        outcomes = check(steps, folder, on_gpu=on_gpu, after=after)
        print(write_summary(folder, outcomes, on_gpu=on_gpu))
        after()
    return 1 if any(outcome.is_bad for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
