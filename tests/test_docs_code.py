"""The Python and YAML blocks of README and docs, as printed: executed, and read as the settings they show.

Names that a block takes from its reader (a model, pixels, a loss of his own) are given to it; weights and
repositories that it would download are small ones of the same form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import document_places as places
import pytest
import torch
import yaml
from dinov2_files import official_state
from documents import Block, blocks
from micro_model import micro
from transformers import Dinov2Config, Dinov2Model

from crossearth_sar import (
    CrossEarthSAR,
    build_model,
    load_model,
    replace_ffn,
    sar_descriptors,
    save_model,
)
from crossearth_sar.cli.main import main
from crossearth_sar.cli.own_config import OwnConfig
from crossearth_sar.config import from_mapping
from crossearth_sar.data.domain import open_domain
from crossearth_sar.descriptors import RunningStandardizer
from crossearth_sar.evaluation.protocol import ProtocolConfig, open_target
from crossearth_sar.evaluation.registry import benchmark

Names = dict[str, Any]
Maker = Callable[[Path, pytest.MonkeyPatch], Names]


def ten_lines(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """runs/cpt/model is there; its windows are larger than a tiny model's own, to be quick."""
    places.model_folder(place / "runs" / "cpt" / "model", 7)
    return {}


def somebody_elses(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """A Dinov2Model of the downloaded one's form, and what the reader brings."""
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    patch.setattr(Dinov2Model, "from_pretrained", lambda name: Dinov2Model(config))
    return {
        "physics": torch.zeros(2, 3),
        "pixels": torch.rand(2, 3, 56, 56),
        "task_loss": lambda tokens: tokens.square().mean(),
    }


def described(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """A Dinov2Model and what the block imports elsewhere."""
    config = Dinov2Config(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    names = {"RunningStandardizer": RunningStandardizer, "sar_descriptors": sar_descriptors}
    return {"model": Dinov2Model(config), "replace_ffn": replace_ffn, **names}


def a_row(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """/data with DDHR-SK, and a model of the row's six classes."""
    places.benchmarks(place)
    return {"model": build_model("crossearth_sar_tiny", 6, changes=places.SMALL_MODEL).eval()}


def probed(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """The domains of the page's probe.yaml and a model."""
    places.probed_domains(place)
    config = from_mapping(OwnConfig, yaml.safe_load((place / "probe.yaml").read_text(encoding="utf-8")))
    assert config.train is not None
    return {
        "model": load_model(place / "runs" / "a" / "model"),
        "train": open_domain(config.train, str(place / "data")),
        "test": open_domain(config.domains[0], str(place / "data")),
    }


def dinov2_file(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """The official file's form at ViT-S width, of one block: the config says how many are wanted."""
    torch.save(official_state(384, 12), place / "dinov2_vits14_pretrain.pth")
    return {"build_model": build_model}


def hub(place: Path, patch: pytest.MonkeyPatch) -> Names:
    """A repository that the hub's client would download."""
    model = micro()
    save_model(model, place / "cache")
    config = str(place / "cache" / "config.json")
    patch.setattr("crossearth_sar.hub.snapshot_download", lambda *_, **__: str(place / "cache"))
    patch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *_, **__: config)
    return {"model": model, "CrossEarthSAR": CrossEarthSAR}


PYTHON: dict[str, tuple[str, Maker]] = {
    "ten lines of use": ("layer = PhysicsGuidedMoE(dim=384)", ten_lines),
    "somebody else's transformer": ("every expert starts as the FFN it replaces", somebody_elses),
    "descriptors of somebody else's model": ("def describe(model, pixel_values)", described),
    "probes in Python": ("rows = probe_table(encoders", probed),
    "a row of the benchmarks": ('row = benchmark("K2C")', a_row),
    "DINOv2's file": ('weights="dinov2_vits14_pretrain.pth"', dinov2_file),
    "sharing": ("model.save_pretrained(", hub),
}
"""Name -> (a line that only this block has, what makes its surroundings)."""


def the_block(language: str, mark: str) -> Block:
    (block,) = (b for b in blocks(language) if mark in b.text)
    return block


def test_every_python_block_is_run() -> None:
    claimed = {str(the_block("python", mark)) for mark, _ in PYTHON.values()}
    assert claimed == {str(block) for block in blocks("python")}


@pytest.mark.parametrize("name", PYTHON)
def test_a_python_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, make = PYTHON[name]
    monkeypatch.chdir(tmp_path)
    block = the_block("python", mark)
    names = make(tmp_path, monkeypatch)
    text = block.text.replace('"/data"', '"data"')
    exec(compile(text, str(block), "exec"), names)
    for called, value in names.items():
        if called in ("loss", "tokens"):
            assert bool(torch.isfinite(value).all())


def test_what_the_ten_lines_say_of_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mark, make = PYTHON["ten lines of use"]
    names = make(tmp_path, monkeypatch)
    exec(the_block("python", mark).text, names)
    assert tuple(names["physics"].shape) == (2, 3)
    assert tuple(names["classes"].shape) == (2, 512, 512)
    names["loss"].backward()


def own_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """README's run has nothing but a training domain: every other setting has a default."""
    places.own_images(place)
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", "my.yaml", "--print_config"])
    said = capsys.readouterr()
    assert not end.value.code, said.err
    settings = yaml.safe_load(said.out)
    assert settings["train"]["folder"]["label_values"] == {-1: "ignore", 0: "other", 1: "water"}
    assert settings["validation"] is None


def own_mixture(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/TRAINING.md's mixture trains, on the data it names."""
    from document_steps import LOCAL, SHORT

    places.mixture(place)
    words = ["train", "--config", "my.yaml", "--set", *SHORT.split(), LOCAL, "output=run"]
    assert main(words) == 0, capsys.readouterr().err
    assert (place / "run" / "model" / "config.json").is_file()


def changed_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/BENCHMARKS.md's changes fit their rows, and one of them is read."""
    changes = yaml.safe_load(the_block("yaml", "AIR-PolSAR-Seg-2.0:").text)
    places.benchmarks(place)
    config = ProtocolConfig(data_root="data", datasets=changes)
    sample = open_target(benchmark("K2C"), config)[0]
    assert set(sample) >= {"image", "mask"}
    assert set(changes) == {"AIR-PolSAR-Seg-2.0", "SARBuD", "DDHR-SK"}


def teacher_map(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/PSEUDO_LABELS.md's map is used by a command there; here is what it says of each class."""
    from crossearth_sar.pseudo_labels.labelling import teacher_class_map

    content = yaml.safe_load(the_block("yaml", "teacher_classes:").text)
    assert list(teacher_class_map(content["teacher_classes"], content).unmapped) == ["city"]


def own_domains(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/BENCHMARKS.md's domains are scored, on the data they name."""
    places.own_domains(place)
    words = ["evaluate", "--config", "domains.yaml", "--model", "runs/a/model", "--pictures", "0"]
    assert main(words) == 0, capsys.readouterr().err
    assert "## my-lake: 2 images" in (place / "runs" / "evaluate" / "README.md").read_text()


def own_archive(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/SELF_SUPERVISED.md's config is read by the command, and holds nothing of the default's data."""
    places.own_archive(place)
    with pytest.raises(SystemExit):
        main(["selfsup", "--config", "archive.yaml", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert [part["name"] for part in settings["train"]["mixture"]] == ["sentinel-1", "display-copies"]
    assert (settings["probe"], settings["validation"]) == (None, None)


def probed_domains(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/BENCHMARKS.md's domains are probed, on the data they name."""
    places.probed_domains(place)
    words = ["--config", "probe.yaml", "--model", "runs/a/model", "--seeds", "0", "--methods", "linear"]
    assert main(["probe", *words]) == 0, capsys.readouterr().err
    assert "## my-coast: 2 images" in (place / "runs" / "evaluate" / "probes" / "README.md").read_text()


def own_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/TRAINING.md's sweep fits the default run, and says what is default as it is."""
    from crossearth_sar.engine.config import simulated_run
    from crossearth_sar.engine.sweep.settings import SweepConfig, read_sweep

    (place / "sweep.yaml").write_text(the_block("yaml", "trials: 20").text, encoding="utf-8")
    sweep = read_sweep(place / "sweep.yaml", simulated_run())
    assert sweep == SweepConfig(vary=sweep.vary), "trials and maximize are the defaults"


YAML: dict[str, Callable[[Path, pytest.CaptureFixture[str]], None]] = {
    "name: my-sensor": own_images,
    "name: two-sources": own_mixture,
    "name: my-lake": own_domains,
    "name: archive": own_archive,
    "name: my-coast": probed_domains,
    "trials: 20": own_sweep,
    "AIR-PolSAR-Seg-2.0:": changed_rows,
    "teacher_classes:": teacher_map,
}
"""A line that only this block has -> what is done with it."""


def test_every_yaml_block_is_used() -> None:
    assert {str(the_block("yaml", mark)) for mark in YAML} == {str(block) for block in blocks("yaml")}


@pytest.mark.parametrize("mark", YAML)
def test_a_yaml_block(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    YAML[mark](tmp_path, capsys)
