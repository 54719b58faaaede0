"""`python -m crossearth_sar export`: what it writes is the checkpoint's model, and needs no DeepSpeed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crossearth_sar.cli.main import main
from crossearth_sar.model import build_model, load_model, save_model

MICRO = {
    "vit": {"dim": 32, "num_heads": 2, "depth": 4},
    "decoder": {"channels": 32, "num_heads": 2, "pixel_layers": 1, "query_layers": 1},
}


def write_checkpoint(folder: Path, step: int, best: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """The files of a checkpoint that export reads, as engine/checkpoint.py lays them out."""
    torch.manual_seed(seed)
    path = folder / "checkpoints" / f"step-{step:06d}"
    save_model(build_model("crossearth_sar_tiny", 3, changes=MICRO), path)
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
    state = {"format": 2, "step": step, "adam_step": step, "best": best, "sha256": sums, "run": {}}
    (path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def test_a_checkpoint_becomes_a_model(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 7)
    assert run(checkpoint, tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json"}
    image = torch.rand(1, 1, 40, 56)
    before, after = load_model(checkpoint).predict(image), load_model(tmp_path / "out").predict(image)
    assert torch.equal(before, after)


def test_a_run_gives_its_newest_or_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = write_checkpoint(tmp_path / "run", 3, seed=1)
    newest = write_checkpoint(tmp_path / "run", 5, best={"step": 3, "miou": 0.5}, seed=2)
    assert run(tmp_path / "run", tmp_path / "newest") == 0
    assert run(tmp_path / "run", tmp_path / "best", "--best") == 0
    for out, source in (("newest", newest), ("best", older)):
        written, original = (load_file(p / "model.safetensors") for p in (tmp_path / out, source))
        assert all(torch.equal(written[name], value) for name, value in original.items())
    assert "step 3" in capsys.readouterr().out


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 1)
    assert run(checkpoint, tmp_path / "out", "--dtype", "bf16") == 0
    whole, half = (p / "model.safetensors" for p in (checkpoint, tmp_path / "out"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    weights, exact = load_file(half), load_file(whole)
    assert weights["backbone.blocks.0.mlp.experts.w1"].dtype == torch.bfloat16
    assert weights["standardizer.mean"].dtype == torch.float32
    for name, value in exact.items():
        torch.testing.assert_close(weights[name].to(value.dtype), value, rtol=2**-8, atol=1e-30)
    assert load_model(tmp_path / "out").predict(torch.rand(1, 1, 64, 64)).shape == (1, 64, 64)


def test_wrong_input_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_checkpoint(tmp_path / "run", 2)
    damaged = write_checkpoint(tmp_path / "run", 4)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    assert run(tmp_path / "run", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"{damaged} is damaged" in said
    assert good.name in said
    assert run(tmp_path / "nothing", tmp_path / "out") == 2
    assert "no checkpoint in" in capsys.readouterr().err
    assert run(tmp_path / "run", tmp_path / "out", "--best") == 2
    assert "no validated checkpoint" in capsys.readouterr().err
    assert run(good, good) == 2
    assert "holds a model already" in capsys.readouterr().err


def test_neither_deepspeed_nor_the_planner_is_imported(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 1)
    program = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "sys.modules['crossearth_sar.engine.planning.planner'] = None\n"
        "from crossearth_sar.cli.main import main\n"
        f"sys.exit(main(['export', {str(checkpoint)!r}, {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "out").config.num_classes == 3
