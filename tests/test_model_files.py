"""Models built by name, written and read back: the same bits, the classes' names, and errors with words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_model import amplitude, micro

from crossearth_sar import InputError, build_model, load_model, save_model
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE
from crossearth_sar.pretrained import load_backbone


def test_changes_are_applied_on_top_of_the_preset() -> None:
    model = build_model("crossearth_sar_tiny", 5, changes={"moe": {"top_k": 2, "num_experts": 3}})
    assert model.config.moe is not None
    assert (model.config.moe.top_k, model.config.moe.num_experts, model.config.num_classes) == (2, 3, 5)
    assert model.backbone.blocks[3].mlp.experts.w1.shape[0] == 3
    assert model.config.vit.dim == 96


def test_unknown_preset_and_unknown_key_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'crossearth_sar_tiny'"):
        build_model("crossearth_sar_tini", 3)
    with pytest.raises(InputError, match=r"moe\.topk.*did you mean 'top_k'"):
        build_model("crossearth_sar_tiny", 3, changes={"moe": {"topk": 2}})


@pytest.mark.parametrize("sparse", [True, False])
def test_save_and_load_give_equal_bits(tmp_path: Path, sparse: bool) -> None:
    model, image = micro({"gate": "straight_through"} if sparse else None, sparse), amplitude(2, 1, 64, 64)
    model(image)  # in training mode, so that the standardizer has something to save
    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder")
    assert not loaded.training
    assert loaded.config == model.config
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert torch.equal(model.eval()(image).decoder.mask_logits, loaded(image).decoder.mask_logits)
    if sparse:
        assert int(loaded.standardizer.batches_seen) == 1


def test_classes_are_named_saved_and_read_back(tmp_path: Path) -> None:
    model, palette = micro(), [[0, 0, 255], [90, 60, 0], [255, 255, 255]]
    assert model.class_names is None
    model.name_classes(["water", "bare ground", "snow"], palette)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.class_names == ("water", "bare ground", "snow")
    assert loaded.palette == ((0, 0, 255), (90, 60, 0), (255, 255, 255))
    assert loaded.config == model.config
    load_backbone(micro(), tmp_path)
    model.name_classes(("a", "b", "c"))
    save_model(model, tmp_path)
    assert (load_model(tmp_path).class_names, load_model(tmp_path).palette) == (("a", "b", "c"), None)
    save_model(micro(), tmp_path)
    assert load_model(tmp_path).class_names is None


@pytest.mark.parametrize(
    ("names", "palette", "words"),
    [
        (["water", "land"], None, "3 different names"),
        (["water", "land", "land"], None, "3 different names"),
        (["a", "b", "c"], [[0, 0, 0]], "3 colours"),
        (["a", "b", "c"], [[0, 0, 0], [0, 0], [0, 0, 0]], "3 colours"),
        (["a", "b", "c"], [[0, 0, 0], [0, 0, 256], [0, 0, 0]], "3 colours"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path: Path, names: list[str], palette: Any, words: str) -> None:
    model = micro()
    with pytest.raises(InputError, match=words):
        model.name_classes(names, palette)
    assert model.class_names is None
    save_model(model, tmp_path)
    mapping = json.loads((tmp_path / CONFIG_FILE).read_text())
    for classes in ({"names": names, "palette": palette}, {"palette": None}, ["a", "b", "c"]):
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**mapping, "classes": classes}))
        with pytest.raises(InputError, match=r"«classes» in .*config\.json names no classes of this model"):
            load_model(tmp_path)


def test_the_backend_is_chosen_where_a_model_is_loaded(tmp_path: Path) -> None:
    save_model(micro({"backend": "reference"}), tmp_path)
    mapping = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert mapping["moe"]["backend"] == "auto"
    mapping["moe"]["backend"] = "megablocks"  # as an earlier version wrote, on a machine that has it
    (tmp_path / CONFIG_FILE).write_text(json.dumps(mapping))
    for options in ({}, {"backend": "reference"}):
        assert load_model(tmp_path, **options).predict(amplitude(1, 1, 64, 64)).shape == (1, 64, 64)
    assert load_model(tmp_path, backend="reference").config.moe.backend == "reference"
    with pytest.raises(InputError, match="unknown MoE backend"):
        load_model(tmp_path, backend="tritn")


def test_weights_given_replace_the_models_own(tmp_path: Path) -> None:
    model, other = micro(), micro()
    save_model(model, tmp_path, weights=other.state_dict())
    assert torch.equal(load_model(tmp_path).backbone.pos_embed, other.backbone.pos_embed)
    assert not torch.equal(model.backbone.pos_embed, other.backbone.pos_embed)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(micro(), tmp_path)
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "to do:" in message
    return message


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{name} is missing" in refused(saved)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no model in" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights_are_named(saved: Path, keep: int) -> None:
    weights = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(weights[:keep])
    assert f"{saved / WEIGHTS_FILE} cannot be read" in refused(saved)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_config_that_is_not_json_is_named(saved: Path, content: bytes) -> None:
    (saved / CONFIG_FILE).write_bytes(content)
    assert f"{saved / CONFIG_FILE} cannot be read" in refused(saved)


def edit_config(folder: Path, section: str, key: str, value: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config[section][key] = value
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def test_a_config_of_another_shape_is_named(saved: Path) -> None:
    edit_config(saved, "vit", "dim", 64)
    message = refused(saved)
    assert "do not fit each other" in message
    assert "backbone.cls_token" in message


@pytest.mark.parametrize(
    ("key", "value", "words"), [("dmi", 32, "did you mean 'dim'"), ("depth", 0, "vit.depth")]
)
def test_a_config_that_is_none_is_named(saved: Path, key: str, value: int, words: str) -> None:
    edit_config(saved, "vit", key, value)
    message = refused(saved)
    assert str(saved / CONFIG_FILE) in message
    assert words in message


def test_a_config_that_is_a_list_is_named(saved: Path) -> None:
    (saved / CONFIG_FILE).write_text("[]")
    assert f"{saved / CONFIG_FILE} describes no model" in refused(saved)
