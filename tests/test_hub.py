"""save_pretrained and from_pretrained: the package's own folder format, a model card, and no network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model, save_model

CHANGES: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64},
    "decoder": {"num_queries": 8, "pixel_layers": 1, "query_layers": 1, "num_points": 64},
    "crop_size": 64,
    "crop_stride": 40,
}


@pytest.fixture
def model() -> CrossEarthSAR:
    return build_model("crossearth_sar_tiny", 3, changes=CHANGES).eval()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_round_trip_and_one_format(model: CrossEarthSAR, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "theirs", model_card_kwargs={"scores": "held out: mIoU 12.3"})
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}
    save_model(model, tmp_path / "ours")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    image = torch.rand(1, 1, 64, 64)
    expected = model.predict(image)
    for loaded in (
        CrossEarthSAR.from_pretrained(tmp_path / "theirs"),
        CrossEarthSAR.from_pretrained(str(tmp_path / "ours"), device="cpu"),
        load_model(tmp_path / "theirs"),
    ):
        assert not loaded.training
        assert loaded.config == model.config
        assert torch.equal(loaded.predict(image), expected)


def test_the_card_says_what_the_model_is(model: CrossEarthSAR, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, model_card_kwargs={"scores": "held out: mIoU 12.3"})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "crossearth-sar"
    assert card.data.license == "apache-2.0"
    assert "into 3 classes" in card.text
    assert "4 blocks of width 32, 6 experts per block, 1 active" in card.text
    assert "held out: mIoU 12.3" in card.text
    assert "Fill in: sensors" in card.text, "what nobody said is asked for"
    assert "{{" not in card.text
    assert "fill in the names" in card.text
    model.name_classes(["water", "snow", "ice"])
    model.save_pretrained(tmp_path / "named")
    card = ModelCard.load(tmp_path / "named" / "README.md")
    assert "0. water\n1. snow\n2. ice" in card.text


def test_a_missing_folder_is_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # away from runs/ of whoever ran make cpt
    for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "runs/cpt/model", "./model", "model"):
        with pytest.raises(InputError, match="no model folder"):
            CrossEarthSAR.from_pretrained(name)


def test_a_mistyped_relative_path_is_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"(?s)no model folder runs/modle.*runs holds model/"):
        CrossEarthSAR.from_pretrained("runs/modle")


def test_what_the_hub_does_not_have_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("nothing cached, no connection")

    monkeypatch.setattr("crossearth_sar.hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"(?s)someone/nothing cannot be had.*nothing cached, no connection"):
        CrossEarthSAR.from_pretrained("someone/nothing", local_files_only=True)


def test_a_repository_id_goes_to_the_hub_client(
    model: CrossEarthSAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "cache")
    asked: list[tuple[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(tmp_path / "cache")

    monkeypatch.setattr("crossearth_sar.hub.snapshot_download", download)
    config = str(tmp_path / "cache" / "config.json")
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *a, **k: config)
    loaded = CrossEarthSAR.from_pretrained("someone/a-model", revision="v2", local_files_only=True)
    assert loaded.config == model.config
    ((repository, options),) = asked
    assert repository == "someone/a-model"
    assert options["revision"] == "v2"
    assert options["local_files_only"] is True
    assert options["allow_patterns"] == ["config.json", "model.safetensors"]
