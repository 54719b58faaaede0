"""One domain split into what trains and what validates: folders by share and seed, and every other source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import save, speckle, stripes

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets.folder import FolderConfig, find_scenes
from crossearth_sar.data.domain import (
    DomainConfig,
    held_out_of,
    open_domain,
    require_held_out,
)
from crossearth_sar.errors import InputError

FOLDER: dict[str, Any] = {
    "root": "set",
    "images": "sar/*.png",
    "labels": "labels/*.png",
    "values": "amplitude",
    "classes": ["a", "b", "c", "d"],
}


def write(root: Path, names: list[str]) -> None:
    for name in names:
        save(root / "set" / "sar" / f"{name}.png", speckle((48, 40), len(name)))
        save(root / "set" / "labels" / f"{name}.png", stripes(48, 40, 4))


def side(root: Path, part: str, **changes: Any) -> set[str]:
    folder = from_mapping(FolderConfig, {**FOLDER, "root": str(root / "set"), "part": part, **changes})
    return {scene.name for scene in find_scenes(folder)}


def test_two_sides_make_the_whole_and_share_nothing(tmp_path: Path) -> None:
    names = [f"scene{i:03d}" for i in range(200)]
    for name in names:  # files that nobody reads here
        for folder in ("sar", "labels"):
            path = tmp_path / "set" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    train, test = side(tmp_path, "train"), side(tmp_path, "test")
    assert train | test == side(tmp_path, "all") == set(names)
    assert not train & test
    assert 25 <= len(test) <= 55, "a fifth, on average"
    assert test != side(tmp_path, "test", split_seed=1)
    assert test < side(tmp_path, "test", test_share=0.5), "a larger share only adds"
    few = side(tmp_path, "test", names=["scene00"])
    assert few == {name for name in test if "scene00" in name}, "what else is chosen does not matter"
    (tmp_path / "set" / "sar" / "another.png").touch()
    (tmp_path / "set" / "labels" / "another.png").touch()
    assert side(tmp_path, "test") - {"another"} == test, "a new file moves no other"


def test_the_draw_is_pinned(tmp_path: Path) -> None:
    """A later version has to split as before, or scores stop being comparable."""
    write(tmp_path, [f"s{i}" for i in range(8)])
    assert side(tmp_path, "test") == {"s4", "s7"}
    assert side(tmp_path, "test", test_share=0.4, split_seed=7) == {"s4"}


@pytest.mark.parametrize("share", [1e-9, 0.2, 1 - 1e-9])
def test_each_side_has_an_image(tmp_path: Path, share: float) -> None:
    write(tmp_path, ["x", "y"])
    train, test = side(tmp_path, "train", test_share=share), side(tmp_path, "test", test_share=share)
    assert len(train) == len(test) == 1
    assert train | test == {"x", "y"}
    with pytest.raises(InputError, match=r"(?s)one image cannot be split.*x\.png alone"):
        side(tmp_path, "test", names=["x"])
    assert side(tmp_path, "all", names=["x"]) == {"x"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"test_share": 0}, "between 0 and 1"), ({"test_share": 1}, "between"), ({"part": "val"}, "'train'")],
)
def test_splits_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_mapping(FolderConfig, {**FOLDER, **changes})


def test_tiles_and_labels_of_an_image_stay_together(tmp_path: Path) -> None:
    write(tmp_path, list("abcdef"))
    lines = [f"sar/{name}.png,labels/{other}.png" for name in "abcdef" for other in "ab"]
    (tmp_path / "set" / "index.csv").write_text("\n".join(["image,label", *lines, ""]))
    index = {"index": "index.csv", "images": None, "labels": None, "tile": 32}
    config = from_mapping(DomainConfig, {"name": "x", "folder": {**FOLDER, **index, "test_share": 0.4}})
    train, held_out = (open_domain(part, str(tmp_path)) for part in held_out_of(config))
    images = [{domain.origin(i)[0] for i in range(len(domain))} for domain in (train, held_out)]
    assert len(images[0]) + len(images[1]) == 6
    assert not images[0] & images[1]
    assert (len(train) + len(held_out)) == 6 * 2 * 4


def configs(root: Path) -> dict[str, DomainConfig]:
    write(root, list("abcdefgh"))
    for i in range(10):
        place = root / "SARBuD"
        save(place / "images" / f"{i}.png", speckle((64, 64), i))
        save(place / "Labelimgs" / f"{i}.png", stripes(64, 64, 2))
    official = {"dataset": "SARBuD", "domain": "SARBuD"}
    official["changes"] = {"scene_size": None, "upsample": False}  # type: ignore[assignment]
    simulated = {"length": 80, "image_size": 24, "seed": 3}
    parts = [{"name": name, "folder": {**FOLDER, "names": list(name)}} for name in ("abcd", "efgh")]
    mappings: list[dict[str, Any]] = [
        {"name": "folder", "folder": FOLDER},
        {"name": "part", "folder": {**FOLDER, "part": "train", "split_seed": 4}},
        {"name": "official", "official": official},
        {"name": "simulated", "simulated": simulated, "max_samples": 70},
        {"name": "mixture", "mixture": parts},
    ]
    return {mapping["name"]: from_mapping(DomainConfig, mapping) for mapping in mappings}


@pytest.mark.parametrize("name", ["folder", "part", "official", "simulated", "mixture"])
def test_every_source_can_be_held_out_of(tmp_path: Path, name: str) -> None:
    config = configs(tmp_path)[name]
    train_config, held_out_config = held_out_of(config)
    assert (train_config.name, held_out_config.name) == (name, f"{name}-held-out")
    train, held_out = (open_domain(part, str(tmp_path)) for part in (train_config, held_out_config))
    require_held_out(train, [held_out])
    assert len(train) > 0
    assert 0 < len(held_out) <= 64
    whole = {"folder": 8, "official": 10, "mixture": 8}
    if name in whole:
        assert len(train) + len(held_out) == whole[name] == len(open_domain(config, str(tmp_path)))
    assert train.classes.names == held_out.classes.names
    assert np.isfinite(held_out[0]["db_mean"].numpy()).all()


def test_a_test_side_has_nothing_left(tmp_path: Path) -> None:
    every = configs(tmp_path)
    folder, official = every["folder"].folder, every["official"].official
    assert folder is not None
    assert official is not None
    for config in (
        DomainConfig(name="x", folder=replace(folder, part="test")),
        DomainConfig(name="x", official=replace(official, part="test")),
        DomainConfig(name="m", mixture=(DomainConfig(name="x", folder=replace(folder, part="test")),)),
    ):
        with pytest.raises(InputError, match=r"'x' is a test side: nothing of it is left"):
            held_out_of(config)
