"""Fine-tuning: what trains and what does not, cached features, stop and resume, the command line."""

from __future__ import annotations

import csv
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from crossearth_sar import InputError, build_model, load_model, save_model
from crossearth_sar.config import merge, to_mapping
from crossearth_sar.engine.checkpoint_files import list_checkpoints
from crossearth_sar.engine.config import RunConfig, finetuning_settings
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.export import export
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.engine.nonfinite import NonFiniteError
from crossearth_sar.engine.objectives.base import Losses, split_into_parts
from crossearth_sar.engine.run import Run
from crossearth_sar.evaluation.protocol import ProtocolConfig, training_domains
from crossearth_sar.evaluation.registry import benchmark

ROOT = Path(__file__).resolve().parents[2]
MODEL: dict[str, Any] = {
    "crop_size": 64,
    "crop_stride": 48,
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "stem": ()},
    "decoder": {
        "kind": "mask2former",
        "class_weight": 2.0,
        "dice_weight": 5.0,
        "num_heads": 4,
        "channels": 32,
        "num_queries": 8,
        "pixel_layers": 1,
        "pixel_ffn_dim": 32,
        "query_layers": 1,
        "query_ffn_dim": 32,
        "num_points": 64,
    },
}
ADAPTER = {"rank": 4, "fft_layers": [0, 1]}


def settings(output: Path, **changes: Any) -> RunConfig:
    config = merge(
        finetuning_settings(),
        {
            "output": str(output),
            "preset": "crossearth_sar_tiny",
            "weights": "random",
            "model": MODEL,
            "adapter": ADAPTER,
            "train": {"name": "source", "simulated": {"length": 8, "image_size": 72, "looks": 4}},
            "validation": {"name": "held-out", "simulated": {"length": 2, "image_size": 64, "seed": 9}},
            "augment": {"crop_size": 64},
            "optim": {"lr": 1e-3, "warmup_steps": 2},
            "steps": 4,
            "batch_size": 2,
            "pictures": 1,
        },
    )
    return merge(config, changes)


def opened(config: RunConfig) -> Run:
    return make_run(config, Ranks(0, 1, torch.device("cpu")))


def tuner(output: Path, resume: str | None = None, **changes: Any) -> Run:
    """A run that has begun; the one before gives its folder back."""
    while _begun:
        _begun.pop().close()
    built = opened(settings(output, **changes))
    _begun.append(built)
    built.start(resume)
    return built


_begun: list[Run] = []


def losses(output: Path) -> list[float]:
    with (output / "train.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def snapshot(run: Run) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in run.executor.module.state_dict().items()}


def changed(run: Run, before: dict[str, Tensor]) -> set[str]:
    return {
        key for key, value in run.executor.module.state_dict().items() if not torch.equal(value, before[key])
    }


# --- what trains ------------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_frozen(tmp_path: Path) -> None:
    """Weights, descriptor statistics and mode stay; backward holds no tensor of the backbone's work."""
    run = tuner(tmp_path, mode="frozen")
    batch = next(iter(run._batches()))
    before, outputs = snapshot(run), []
    for block in run.executor.module.backbone.blocks:
        block.register_forward_hook(lambda *a: outputs.append((a[0].training, a[2][0].requires_grad)))
    run.executor.module.standardizer.register_forward_hook(lambda *a: outputs.append((a[0].training, False)))
    saved = saved_shapes(run, batch)
    assert outputs == [(False, False)] * 5, "eval mode, no graph"
    tokens = (2, 1 + 64)  # batch, CLS and patches: a shape that only the backbone's tensors have
    assert not [shape for shape in saved if shape[:2] == tokens], "no activation of the backbone is kept"
    assert run.fit()
    moved = changed(run, before)
    assert moved
    assert all(key.startswith("decoder.") for key in moved)
    assert all(p.grad is None for p in run.executor.module.backbone.parameters())
    assert run.objective.counts.trained == run.objective.counts.decoder


def saved_shapes(run: Run, batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of all tensors that autograd keeps for the backward pass of one step."""
    shapes: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    run.objective.train_mode(run.executor.module)
    (part,) = run.objective.prepare(split_into_parts(batch, 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run._losses(0, part)
    return shapes


def test_earth_adapter_trains_adapters_and_decoder(tmp_path: Path) -> None:
    run = tuner(tmp_path, mode="earth_adapter")
    assert [s for s in saved_shapes(run, next(iter(run._batches()))) if s[:2] == (2, 65)], (
        "the check above can fail"
    )
    before = snapshot(run)
    assert run.fit()
    moved = changed(run, before)
    assert any(key.startswith("backbone.adapter.") for key in moved)
    assert all(key.startswith(("decoder.", "backbone.adapter.")) for key in moved)
    assert run.objective.counts.trained == run.objective.counts.decoder + run.objective.counts.adapter
    assert f"adapter {run.objective.counts.adapter:,}" in str(run.objective.counts)
    assert losses(tmp_path)[0] == pytest.approx(losses_without_balance(tmp_path)[0], rel=1e-6)


def losses_without_balance(output: Path) -> list[float]:
    with (output / "train.csv").open(encoding="utf-8") as file:
        return [
            sum(float(row[f"loss_{k}"]) for k in ("class", "mask", "dice")) for row in csv.DictReader(file)
        ]


def test_full_trains_everything_and_its_statistics(tmp_path: Path) -> None:
    run = tuner(tmp_path, mode="full")
    before = snapshot(run)
    assert run.fit()
    moved = changed(run, before)
    assert {"standardizer.mean", "backbone.cls_token", "backbone.blocks.0.mlp.experts.w1"} <= moved
    assert losses(tmp_path)[0] > losses_without_balance(tmp_path)[0], "the balance loss counts"


def test_weights_of_another_model_start_the_backbone(tmp_path: Path) -> None:
    source = build_model("crossearth_sar_tiny", 3, changes=MODEL)
    save_model(source, tmp_path / "source")
    run = tuner(tmp_path / "run", weights=str(tmp_path / "source"))
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(run.executor.module.backbone.state_dict()[key], value), key


# --- cached features --------------------------------------------------------------------------------------


def test_cached_features_train_as_fresh_ones_do(tmp_path: Path) -> None:
    """Eight images seen one and a half times; each goes through the backbone once."""
    fresh = tuner(tmp_path / "fresh", augment=None, steps=6)
    assert fresh.fit()
    cached = tuner(tmp_path / "cached", augment=None, steps=6, cache_features=True)
    passes: list[int] = []
    cached.executor.module.backbone.patch_embed.register_forward_hook(lambda *a: passes.append(len(a[1][0])))
    cached._validate = lambda: None  # type: ignore[method-assign]
    assert cached.fit()
    assert sum(passes) == 8
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "fresh"), rel=1e-4)


@pytest.mark.parametrize("changes", [{"mode": "full", "augment": None}, {"mode": "frozen"}])
def test_caching_where_features_change_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)same at every step.*augment=null"):
        settings(tmp_path, cache_features=True, **changes)


def test_a_cache_that_is_too_large_is_refused(tmp_path: Path) -> None:
    run = tuner(tmp_path, augment=None, cache_features=True, cache_limit_gb=1e-4)
    with pytest.raises(InputError, match="cache_limit_gb"):
        run.fit()


# --- stop and resume, files -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_a_resumed_run_repeats_an_uninterrupted_one(mode: str, tmp_path: Path) -> None:
    whole = tuner(tmp_path / "whole", mode=mode, save_every=2)
    assert whole.fit()
    output = tmp_path / "stopped"
    first = tuner(output, mode=mode, save_every=2)
    stop_after(first, step=3)
    assert not first.fit()
    resumed = tuner(output, "auto", mode=mode, save_every=2)
    assert resumed.step == 3
    assert resumed.fit()
    assert losses(output) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    for key, value in whole.executor.module.state_dict().items():
        torch.testing.assert_close(resumed.executor.module.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def stop_after(run: Run, step: int) -> None:
    """Sends this process SIGTERM, which the loop turns into a save, in the given step (counted from 1)."""
    original = run._train_step

    def stepped(batch: dict[str, Any]) -> dict[str, float]:
        if run.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch)

    run._train_step = stepped  # type: ignore[method-assign]


def test_checkpoints_hold_what_trains_and_know_the_rest(tmp_path: Path) -> None:
    run = tuner(tmp_path / "run", steps=2, save_every=1)
    assert run.fit()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    whole = sum(p.numel() * 4 for p in run.executor.module.parameters())
    assert (checkpoint / "trained.safetensors").stat().st_size < whole / 2
    with pytest.raises(InputError, match="--resume"):
        tuner(tmp_path / "run", steps=2)
    with pytest.raises(InputError, match="other frozen weights"):
        tuner(tmp_path / "run", "auto", steps=2, seed=1)
    content = (checkpoint / "trained.safetensors").read_bytes()
    (checkpoint / "trained.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        tuner(tmp_path / "run", "auto", steps=2)


def test_a_nan_ends_the_run_and_the_layer_is_named(tmp_path: Path) -> None:
    run = tuner(tmp_path)
    with torch.no_grad():
        run.executor.module.decoder.head.class_predictor.bias.fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"step 0: loss nan.*first in decoder\.head\.class_predictor.*its bias"
    ):
        run.fit()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_is_never_stepped_nor_saved(where: str, tmp_path: Path) -> None:
    """The model's output is finite here; the loss, or its gradient alone, is not."""
    run = tuner(tmp_path, save_every=1)
    before, original = snapshot(run), run.objective.losses

    def poisoned(*arguments: Any) -> Losses:
        losses = original(*arguments)
        if where == "loss":
            nan = losses.total * float("nan")
            return Losses(nan, {**losses.values, "loss": nan})
        if losses.total.requires_grad:
            losses.total.register_hook(lambda gradient: gradient * float("nan"))
        return losses

    run.objective.losses = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"step 0: loss .*, gradient norm nan"):
        run.fit()
    assert not changed(run, before)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_the_best_model_is_what_is_left(tmp_path: Path) -> None:
    """Not the last: a score that fell after step 2 leaves the weights of step 2."""
    run = tuner(tmp_path, steps=4, validate_every=2, save_every=4)
    scores = iter([0.7, 0.6])
    score = run.objective.score
    run.objective.score = lambda model: {**score(model), "miou": next(scores)}  # type: ignore[method-assign]
    assert run.fit()
    run.finish()
    (best, last) = list_checkpoints(tmp_path / "checkpoints")
    assert (best.name, last.name) == ("step-000002", "step-000004")
    for checkpoint in (best, last):
        export(checkpoint, tmp_path / checkpoint.name)
    folders = (tmp_path / "model", tmp_path / best.name, tmp_path / last.name)
    left, of_best, of_last = (load_model(folder).state_dict() for folder in folders)
    assert all(torch.equal(value, of_best[key]) for key, value in left.items())
    assert not all(torch.equal(value, of_last[key]) for key, value in left.items())
    assert "of step 2, the best in validation" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["frozen", "earth_adapter", "full"])
def test_any_checkpoint_is_exported(mode: str, tmp_path: Path) -> None:
    source = build_model("crossearth_sar_tiny", 3, changes=MODEL)
    save_model(source, tmp_path / "source")
    run = tuner(tmp_path / "run", mode=mode, steps=2, weights=str(tmp_path / "source"))
    assert run.fit()
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    export(checkpoint, tmp_path / "out")
    exported = load_model(tmp_path / "out")
    assert exported.class_names == tuple(run.objective.classes.names)
    for key, value in run.executor.module.state_dict().items():
        assert torch.equal(exported.state_dict()[key], value), key
    if mode != "full":  # the frozen part comes from where the run took it
        save_model(build_model("crossearth_sar_tiny", 3, changes=MODEL), tmp_path / "source")
        with pytest.raises(InputError, match="other frozen weights than those at"):
            export(checkpoint, tmp_path / "again")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    tuner(tmp_path)
    with pytest.raises(InputError, match="is in use"):
        opened(settings(tmp_path)).start()


# --- as users run it --------------------------------------------------------------------------------------


SCRIPT = ROOT / "train" / "finetune.py"


def script(config: Path, *arguments: str) -> int:
    """The script's exit status, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), "--config", str(config), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with an adapter, interrupted by SIGINT after the first and resumed, through the script."""
    folder = tmp_path_factory.mktemp("finetune")
    config = to_mapping(settings(folder / "run", mode="earth_adapter", steps=6))
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--config", str(folder / "run.yaml")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 200
    log = folder / "run" / "train.csv"
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= 2):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert "parameters train" in stderr
    assert "mode earth_adapter" in stderr
    assert script(folder / "run.yaml", "--resume") == 0
    return folder / "run"


def test_the_script_stops_resumes_and_reports(finished: Path) -> None:
    assert len(losses(finished)) == 6
    names = {path.name for path in finished.iterdir()}
    assert {
        "metrics.json", "report.md", "train.csv", "validation.csv", "config.yaml", "curves.png", "model",
        "predictions-held-out.png", "experts-held-out.png", "parameters.txt",
    } <= names  # fmt: skip
    assert "parameters train" in (finished / "parameters.txt").read_text(encoding="utf-8")
    model = load_model(finished / "model")
    assert model.config.adapter is not None
    assert model.predict(torch.rand(1, 1, 100, 70)).shape == (1, 100, 70)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "nowhere.pth"}, "no weights at nowhere.pth"),
        ({"weights": None}, "mode 'frozen' freezes the backbone[^$]*weights=random"),
        ({"weights": None, "mode": "earth_adapter"}, "mode 'earth_adapter' freezes the backbone"),
        ({"model": {"num_classes": 3}}, "model.num_classes is not set by hand"),
        ({"augment": {"crop_size": 32}}, "--set augment.crop_size=64"),
        ({"adapter": {"fft_layers": [9]}, "mode": "earth_adapter"}, "fft_layers"),
    ],
)
def test_wrong_settings_end_before_training(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        tuner(tmp_path, **changes)


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "crossearth_sar" / "cli" / "recipes").glob("finetune_*.yaml")),
    ids=lambda p: p.stem,
)
def test_recipes_are_configs(path: Path) -> None:
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "finetune_benchmark":  # the command line names the row
        settings |= training_domains(benchmark("N2S"), ProtocolConfig(data_root=""))
    config = merge(finetuning_settings(), settings)
    assert config.output.startswith("runs/")


def test_an_error_of_the_script_is_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(to_mapping(settings(tmp_path / "run"))), encoding="utf-8")
    assert script(config, "--set", "modee=full") == 2
    assert "error: unknown config key 'modee' (did you mean 'mode'?)" in capsys.readouterr().err
