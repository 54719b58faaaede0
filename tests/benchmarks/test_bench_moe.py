"""The MoE layer's benchmarks: every file runs, routing is what it says, and what is wrong gets no ratio."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.speed import (
    bench_grouped_gemm,  # bench/ is on the path, see pyproject.toml
    bench_model,
    bench_moe_layer,
    gpu_check,
    profile_layer,
    roofline,
)
from bench.speed.moe_peers import build_contenders
from bench.speed.moe_problem import NUM_EXPERTS, SHARES, Contender, Problem, make_problem
from bench.speed.moe_targets import judge
from crossearth_sar.backend import extension_status

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def call_main(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    return module.main()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def layer_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a process of its own: DeepSpeed's layer starts a process group."""
    folder = tmp_path_factory.mktemp("layer")
    options = "--tokens 96 --dims 32 --routings skewed one-expert --rounds 3 --no-compile --gate probability"
    subprocess.run(
        [sys.executable, "-m", "bench.speed.bench_moe_layer", *options.split(), "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # a module's fixture runs before that of one test
        check=True,
        capture_output=True,
    )
    return folder


def test_layer_benchmark_times_what_agrees(layer_report: Path) -> None:
    rows = rows_of(layer_report)
    timed = [row for row in rows if row["ms p50"]]
    everywhere = {"ours, reference", "ours, grouped_mm", "dense, eager", "loop, splits known", "mask loop",
                  "loop, host sync", "sorted loop on stacks", "F.grouped_mm"}  # fmt: skip
    ours = "ours, cpu" if extension_status().instruction_sets else "ours, reference"
    everywhere |= {ours}
    for scope in ("layer", "experts"):
        for routing in ("skewed", "one-expert"):
            for direction in ("forward", "forward+backward"):
                case = [
                    r for r in timed if (r["scope"], r["routing"], r["pass"]) == (scope, routing, direction)
                ]
                peers = everywhere | ({"DeepSpeed MoE"} if scope == "layer" else set())
                assert {row["contender"] for row in case} == peers
    assert all(float(row["relative error"]) < 1e-5 for row in timed)
    assert {row["its time / ours"] for row in timed if row["contender"] == ours} == {"1.000"}
    for row in timed:
        assert float(row["ms p20"]) <= float(row["ms p50"]) <= float(row["ms p80"])


def test_layer_report_says_who_is_missing_and_why(layer_report: Path) -> None:
    missing = {row["contender"]: row["note"] for row in rows_of(layer_report) if not row["ms p50"]}
    assert "megablocks" in missing["MegaBlocks"]
    assert "scattermoe" in missing["ScatterMoE"]
    assert "sonicmoe" in missing["SonicMoE"]
    assert "liger_kernel" in missing["Liger fused MoE"]
    assert all(missing.values())
    text = (layer_report / "README.md").read_text(encoding="utf-8")
    assert "## Targets" in text
    assert "not measured" in text
    assert is_png(layer_report / "ratios.png")
    results = json.loads((layer_report / "results.json").read_text(encoding="utf-8"))
    assert results["ceilings"]["gemm_tflops"] > 0
    assert "commit" in results["provenance"]


def test_roofline(layer_report: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    picture = tmp_path / "roofline.png"
    call_main(roofline, monkeypatch, layer_report, "--contenders", "ours", "--out", picture)
    assert is_png(picture)
    with pytest.raises(ValueError, match="no row to draw"):
        roofline.read_points(layer_report, ["nobody"])


@pytest.mark.parametrize("routing", list(SHARES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", ["normalized", "probability"])
def test_routing_is_prescribed(routing: str, dtype: torch.dtype, gate: str) -> None:
    problem = make_problem(997, 48, routing, device=CPU, dtype=dtype, gate=gate)
    logits_TE = problem.x_TD.float() @ problem.router_ED.float().T
    assert torch.equal(logits_TE.argmax(1), problem.expert_T)
    assert sum(problem.splits) == 997
    assert all(abs(n / 997 - s) < 2e-3 for n, s in zip(problem.splits, SHARES[routing], strict=True))
    chosen = logits_TE.softmax(1).amax(1)
    assert bool((chosen == 1).all()) if gate == "normalized" else 0.3 < float(chosen.mean()) < 0.9


def test_flop_and_bytes() -> None:
    problem = make_problem(64, 32, "uniform", device=CPU, dtype=torch.float32)
    assert problem.flop == 16 * 64 * 32**2
    weights = 2 * NUM_EXPERTS * 32 * 128
    assert problem.bytes_moved(backward=False) == 4 * (2 * 64 * 32 + 2 * 64 * 128 + weights)


@pytest.fixture
def small() -> Problem:
    return make_problem(64, 32, "skewed", device=CPU, dtype=torch.float32)


def reasons(problem: Problem, contender: Contender) -> str:
    _, _, refused = bench_moe_layer._agreeing(problem, "layer", [contender])
    return refused.get(contender.name, "")


def right_one(problem: Problem) -> Contender:
    (contender,) = build_contenders(problem, "layer", compiled=False, only=["loop, splits known"])
    assert isinstance(contender, Contender)
    return contender


def test_a_wrong_output_gets_no_ratio(small: Problem) -> None:
    right = right_one(small)
    assert reasons(small, right) == ""

    def one_row_wrong(x_TD: Tensor) -> Tensor:
        y_TD = right.forward(x_TD)
        return torch.cat([y_TD[1:2], y_TD[1:]])

    wrong = Contender("wrong", one_row_wrong, right.parameters)
    assert "wrong: y differs" in reasons(small, wrong)


def test_a_wrong_gradient_gets_no_ratio(small: Problem) -> None:
    right = right_one(small)

    def halved(x_TD: Tensor) -> Tensor:
        y_TD = right.forward(x_TD)
        return y_TD.detach() + (y_TD - y_TD.detach()) / 2

    assert "gradient of" in reasons(small, Contender("halved", halved, right.parameters))


def test_our_own_failure_is_told(small: Problem) -> None:
    row = {"contender": "ours, triton", "note": "RuntimeError: out of resources"}
    assert bench_moe_layer.is_own_failure(row)
    assert not bench_moe_layer.is_own_failure({"contender": "F.grouped_mm", "note": "RuntimeError: no"})
    assert not bench_moe_layer.is_own_failure({"contender": "ours, triton", "note": "no CUDA device"})


def layer_row(contender: str, tokens: int, ms: float, ratio: float, *, routing: str = "uniform") -> dict:
    return {
        "scope": "layer", "launch": "eager", "pass": "forward", "C": 384, "T": tokens, "routing": routing,
        "contender": contender, "ms p50": f"{ms}", "its time / ours": f"{ratio}", "TFLOP/s": "1",
    }  # fmt: skip


def test_targets_take_the_worst_size() -> None:
    rows = [layer_row("dense, eager", 4096, 5, 1.30), layer_row("dense, eager", 8192, 9, 1.10)]
    table = {row["target"]: row for row in judge(rows, on_gpu=False, ours="reference")}
    row = table["against dense, eager, forward, C = 384, T >= 4096"]
    assert (row["layer, eager"], row["verdict"]) == ("1.1", "missed")
    assert table["against dense, eager, forward, C = 384, T = 1024"]["verdict"] == "not measured"


def test_target_of_skewed_routing() -> None:
    rows = [
        layer_row("ours, triton", 16384, 1.0, 1),
        layer_row("ours, triton", 16384, 1.04, 1, routing="skewed"),
    ]
    table = {row["target"]: row for row in judge(rows, on_gpu=True, ours="triton")}
    row = table["speed under skewed routing / uniform, forward, C = 384, T >= 16384"]
    assert (row["layer, eager"], row["verdict"]) == ("0.962", "reached")


def test_grouped_gemm_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--tokens", 96, "--dims", 32, "--routings", "skewed", "--rounds", 2, "--out", tmp_path]
    assert call_main(bench_grouped_gemm, monkeypatch, *arguments) == 0
    rows = rows_of(tmp_path)
    assert {row["kernel"] for row in rows} == set(bench_grouped_gemm.LAUNCHERS)
    timed = {row["contender"] for row in rows if row["ms p50"]}
    assert timed == {"ours, torch reference", "per expert, product only", "F.grouped_mm, product only"}
    assert all(float(row["error"]) < 2e-5 for row in rows if row["ms p50"])


def test_model_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--preset", "tiny", "--image", 32, "--rounds", 2, "--backends", "reference"]
    call_main(bench_model, monkeypatch, *arguments, "--out", tmp_path)
    rows = rows_of(tmp_path)
    assert [row["pass"] for row in rows[::2]] == ["forward", "forward+backward", "training step"]
    assert {row["model"] for row in rows} == {"dense", "MoE, reference"}
    assert all(float(row["images/s"]) > 0 for row in rows)
    assert is_png(tmp_path / "ratios.png")


def test_profile_names_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--tokens", 250, "--dim", 48, "--backend", "reference", "--runs", 2, "--out", tmp_path]
    call_main(profile_layer, monkeypatch, *arguments)
    stages = {(row["pass"], row["stage"]) for row in rows_of(tmp_path)}
    forward = {("forward", s) for s in ("router", "sort", "GEMM 1", "GEMM 2", "activation")}
    backward = {("backward", s) for s in ("dgrad 1 (dx)", "dgrad 2 (dy W2)", "wgrad", "activation")}
    assert forward | backward <= stages
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]
    assert is_png(tmp_path / "stages.png")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("grouped_up_kernel", "GEMM 1 + activation"),
        ("grouped_down_kernel", "GEMM 2 + scatter"),
        ("grouped_down_dgrad_kernel", "dgrad 2 + activation"),
        ("grouped_up_dgrad_kernel", "dgrad 1 (dx)"),
        ("grouped_wgrad_kernel", "wgrad"),
        ("_count_by_expert", "sort"),
        ("_router_probability", "router"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "product"),
    ],
)
def test_stage_of_a_gpu_kernel(name: str, stage: str) -> None:
    assert profile_layer.stage_of(name, [], "forward", (32, 128)) == stage


def step(name: str, kind: str, program: str, *, limit_s: float = 20, skip: str = "") -> gpu_check.Step:
    return gpu_check.Step(
        name=name, kind=kind, limit_s=limit_s, reserve_s=0, skip=skip,
        command=lambda out, limit: [sys.executable, "-c", program],
    )  # fmt: skip


def test_gpu_check_loses_nothing_to_a_failure(tmp_path: Path) -> None:
    steps = [
        step("fails", gpu_check.CHECK, "print('two rows differ'); raise SystemExit(3)"),
        step(
            "hangs", gpu_check.FIGURES, "import time; print('begun', flush=True); time.sleep(60)", limit_s=5
        ),
        step("works", gpu_check.CHECK, "print('all well')"),
        step("cannot", gpu_check.CHECK, "", skip="no such tool"),
    ]
    work, out = tmp_path / "work", tmp_path / "out"
    outcomes = gpu_check.check(steps, work, on_gpu=True, after=lambda: gpu_check.pack(work, out))
    assert [o.verdict for o in outcomes] == ["failed", "out of time", "passed", "skipped"]
    assert outcomes[1].seconds < 15
    assert [o.is_bad for o in outcomes] == [True, False, False, False]
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "two rows differ" in text
    assert "no such tool" in text
    assert {p.name for p in out.iterdir()} == {"README.md", "summary.json", "report.tar.gz"}


def test_a_check_out_of_time_is_bad() -> None:
    late = {"verdict": "out of time", "seconds": 1.0, "note": ""}
    never = gpu_check.run_step(step("tests", gpu_check.CHECK, ""), 0.0, Path("unused"))
    assert never.is_bad
    assert gpu_check.Outcome(step="tests", kind=gpu_check.CHECK, **late).is_bad
    assert not gpu_check.Outcome(step="racecheck", kind=gpu_check.ADVICE, **late).is_bad


def test_gpu_check_fits_into_its_time() -> None:
    steps = gpu_check.gpu_steps()
    assert sum(s.reserve_s for s in steps) < gpu_check.TOTAL_S <= 540
    assert {"tests", "moe-layer", "grouped-gemm", "model", "roofline"} <= {s.name for s in steps}


@pytest.mark.parametrize("built", [True, False])
def test_gpu_check_asks_anew_for_what_a_step_has_built(built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "HAS_CUDA_HALF", f"raise SystemExit({not built})")
    files = gpu_check.gpu_test_files()
    assert ("tests/descriptors/test_fused_cuda.py" in files) == built
    assert "tests/kernels/test_grouped_forward.py" in files
    (build,) = (s for s in gpu_check.gpu_steps() if s.name == "extension")
    assert (build.skip == "the extension has its CUDA half already") == built
    (descriptors,) = (s for s in gpu_check.gpu_steps() if s.name == "descriptors")
    outcome = gpu_check.run_step(descriptors, 0.0, Path("unused"))
    assert outcome.verdict == ("out of time" if built else "skipped")


def test_gpu_check_takes_an_interpreter_as_it_is() -> None:
    command = ["make", "-n", "gpu-check", "GPU_PYTHON=some-python", "OUT=/there", "PACK=1"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "some-python -m bench.speed.gpu_check" in told
    assert '--out "/there" --pack' in told
    assert "venv" not in told
