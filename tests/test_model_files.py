"""Models built by name, written and read back: the same bits, the classes' names, and errors with words."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import in_a_child
from micro_model import amplitude, micro

from crossearth_sar import InputError, build_model, load_model, save_model
from crossearth_sar.input_contract import InputContract
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
    assert "(96,) on disk, (192,) in the model" in message


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
    assert f"{saved / CONFIG_FILE} is not a mapping" in refused(saved)


ABSURD = (math.inf, math.nan, -3, 10**20)


def numbers_in(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of the numbers in nested mappings and lists."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            if key in ((0,) if isinstance(content, list) else content):  # of a list the first
                yield from numbers_in(value, (*path, key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path


def test_absurd_sizes_are_refused_at_once(tmp_path: Path) -> None:
    model = micro()
    model.contract = InputContract(bands=1, db_mean=(1.0,), db_std=(2.0,))
    model.temperature = 1.5
    model.name_classes("abc", [[0, 0, 0]] * 3)
    save_model(model, tmp_path)
    text = (tmp_path / CONFIG_FILE).read_text(encoding="utf-8")
    paths = list(numbers_in(json.loads(text)))
    assert len(paths) > 30
    started = time.perf_counter()
    for path in paths:
        for value in ABSURD:
            content = json.loads(text)
            place = content
            for key in path[:-1]:
                place = place[key]
            if value == -3 and path[0] in ("input", "vit") and path[1] in ("db_mean", "layer_scale"):
                continue  # which may be negative
            place[path[-1]] = value
            (tmp_path / CONFIG_FILE).write_text(json.dumps(content), encoding="utf-8")
            try:
                load_model(tmp_path)
            except InputError:
                continue
            pytest.fail(f"{'.'.join(map(str, path))} = {value} is taken")
    assert time.perf_counter() - started < 60, "each in a small part of a second"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"num_classes": ' + "9" * 10_000 + "}"])
def test_a_config_without_end_is_refused(saved: Path, content: str) -> None:
    (saved / CONFIG_FILE).write_text(content)
    assert f"{saved / CONFIG_FILE} cannot be read" in refused(saved)


def test_files_of_a_model_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(micro(), tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_full_disk_leaves_the_older_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (0, 100, len(before[WEIGHTS_FILE]) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(InputError, match=r"(?s)the model cannot be written to .*make room"):
                save_model(micro(), saved)
            assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks of a process with threads
def test_a_kill_at_any_event_leaves_both_files_of_one_model(tmp_path: Path) -> None:
    """Killed before each file-system event of a save over an older model."""
    small = {"vit": {"dim": 24}, "decoder": {"channels": 16}}
    old, new = (build_model("crossearth_sar_tiny", 3, changes=small, sparse=False) for _ in range(2))
    old.name_classes("abc")
    new.name_classes("xyz")
    save_model(old, tmp_path / "old")
    found, event = [], 0
    while not found or found[-1] != "done":
        event += 1
        folder = tmp_path / str(event)
        shutil.copytree(tmp_path / "old", folder)
        killed = in_a_child(lambda: die_at_event(event, folder, new))  # noqa: B023 - run at once
        loaded = load_model(folder)
        which = new if loaded.class_names == tuple("xyz") else old
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in which.state_dict().items())
        save_model(new, folder)
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE], "litter"
        found.append("done" if killed == 0 else "new" if which is new else "old")
    assert {"old", "new"} <= set(found), "events before and after the new model holds"
    assert event > 8


def die_at_event(event: int, folder: Path, model: Any) -> None:
    seen = 0

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        here = name in ("open", "os.mkdir", "os.rename", "os.rmdir", "os.chmod")
        if here and str(folder) in str(arguments[0] if arguments else ""):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    save_model(model, folder)
