"""`crossearth-sar probe` and `evaluate --probe` as their users run them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dataset_trees import save

from crossearth_sar import build_model, save_model
from crossearth_sar.cli import probing
from crossearth_sar.cli.main import main

SMALL = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 48, "patch_size": 8, "stem": (), "depth": 4},
    "crop_size": 48,
    "crop_stride": 48,
    "pixel_m": 10.0,
}
ADAPTER = """
import torch

class Blur(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 1, 4, 4))

    def forward(self, image, db_mean, db_std):
        return torch.nn.functional.conv2d(image[:, :1].log1p(), self.weight, stride=4)

def build(pretrained, device):
    net = Blur()
    if pretrained:
        torch.nn.init.ones_(net.weight)
    return net

def plain(device):
    return Blur()

def nothing(pretrained, device):
    return 7

def broken(pretrained, device):
    return lambda image, db_mean, db_std: image * float("nan")
"""


def images(root: Path, count: int) -> None:
    for i in range(count):
        rng = np.random.default_rng(i)
        is_water = np.zeros((36, 44), bool)
        is_water[rng.integers(10, 26) :] = True
        amplitude = rng.rayleigh(size=is_water.shape) * np.where(is_water, 0.2, 1.0) + 1e-3
        save(root / "images" / f"{i}.tif", amplitude.astype(np.float32))
        save(root / "labels" / f"{i}.png", is_water.astype(np.uint8))


def domain(name: str) -> dict[str, object]:
    files = {"images": "images/*.tif", "labels": "labels/*.png", "values": "amplitude", "pixel_m": 10.0}
    return {"name": name, "folder": {"root": name, "classes": ["other", "water"], **files}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two domains, a model, its backbone alone, and another package's encoder."""
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "data" / "lake", 4)
    images(tmp_path / "data" / "sea", 3)
    save(tmp_path / "data" / "sea" / "images" / "0.tif", np.full((36, 44), 0.5, np.float32))
    torch.manual_seed(1)
    model = build_model("crossearth_sar_tiny", 2, changes=SMALL, sparse=False)
    model.name_classes(("other", "water"))
    save_model(model, "runs/full/model")
    save_model(
        build_model("crossearth_sar_tiny", 2, changes={**SMALL, "decoder": None}, sparse=False),
        "runs/bare/model",
    )
    Path("others.py").write_text(ADAPTER, encoding="utf-8")
    settings = {"train": domain("lake"), "domains": [domain("sea")], "data_root": "data", "output": "out"}
    Path("my.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


def run(*arguments: str) -> int:
    return main(["probe", "--config", "my.yaml", "--device", "cpu", *arguments])


def rows() -> list[dict[str, str]]:
    with Path("out/probes/probes.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_encoders_of_every_kind_beside_both_floors(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ("--model", "runs/full/model", "runs/bare/model")
    asked = (*models, "--adapter", "others:build", "--seeds", "0", "1")
    more = ("--labels", "2", "100%", "--methods", "linear", "finetune", "--steps", "2")
    assert run(*asked, *more) == 0, capsys.readouterr().err
    names = list(dict.fromkeys(row["encoder"] for row in rows()))
    assert names == [
        "full", "bare", "others:build", "random weights of full, bare", "random weights of others:build",
        "image statistics at 10 m", "image statistics at the images' spacing",
    ]  # fmt: skip
    tuned = {row["encoder"] for row in rows() if row["method"] == "finetune"}
    assert tuned == {name for name in names if "statistics" not in name}
    assert {(row["labels"], row["images"], row["seed"]) for row in rows()} == {
        ("2", "2", "0"), ("2", "2", "1"), ("100%", "4", "0")
    }  # fmt: skip
    page = Path("out/probes/README.md").read_text()
    assert "## sea: 3 images" in page
    assert "| full above random weights of full, bare |" in page
    found = json.loads(Path("out/probes/probes.json").read_text())
    assert found["provenance"]["commit"]
    assert all(0 <= row["miou"] <= 1 for row in found["rows"])
    assert np.array(found["rows"][0]["counts"]).sum() == 2 * 3 * 36 * 44


def test_what_is_finished_is_kept_unless_it_would_differ(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    table = probing.probe_table

    def counted(encoders: dict[str, object], *arguments: object, **options: object) -> object:
        done.extend(encoders)
        if len(done) == 2:
            raise KeyboardInterrupt
        return table(encoders, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(probing, "probe_table", counted)
    asked = ("--model", "runs/bare/model", "--methods", "linear", "--seeds", "0")
    with pytest.raises(KeyboardInterrupt):
        run(*asked)
    assert run(*asked) == 0
    everything = ["bare", "random weights", "image statistics"]
    assert done == ["bare", "random weights", "random weights", "image statistics"]
    assert "bare is probed already" in capsys.readouterr().out
    assert [row["labels"] for row in rows()[:2]] == ["2", "100%"], "eight images are not there"
    before = rows()
    assert run(*asked) == 0
    assert rows() == before
    assert len(done) == 4
    assert run(*asked, "--max-images", "2") == 0
    assert done[4:] == everything


def test_evaluate_has_them_in_its_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated = ["evaluate", "--config", "my.yaml", "--device", "cpu", "--pictures", "0", "--probe"]
    assert main([*evaluated, "--model", "runs/full/model"]) == 0, capsys.readouterr().err
    page = Path("out/README.md").read_text()
    assert "## Probes" in page
    assert "[probes/](probes/README.md)" in page
    assert page.index("| model |") < page.index("| linear probe | 2 labelled images |")
    assert Path("out/probes/README.md").is_file()


def test_wrong_input_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, arguments in (
        ("no encoder is named", ()),
        ("1 to 4", ("--model", "runs/bare/model", "--labels", "8")),
        ("no number of images", ("--model", "runs/bare/model", "--labels", "few")),
        ("some of linear, knn, finetune", ("--model", "runs/bare/model", "--methods", "svm")),
        ("a function of pretrained=", ("--adapter", "others:plain")),
        ("gives no encoder", ("--adapter", "others:nothing")),
        ("not finite", ("--adapter", "others:broken", "--labels", "2")),
        ("shows what 'lake' trains on", ("--model", "runs/bare/model", "--set", f"domains=[{again()}]")),
        ("no domain gives the labels", ("--model", "runs/bare/model", "--set", "train=null")),
    ):
        assert run(*arguments) == 2, words
        assert words in capsys.readouterr().err
    assert main(["evaluate", "--benchmark", "N2S", "--model", "runs/full/model", "--probe"]) == 2
    assert "are for --config" in capsys.readouterr().err


def again() -> str:
    return json.dumps({**domain("lake"), "name": "again"})
