"""A resumed run notices data and descriptors that are not those it began with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crossearth_sar.config import merge
from crossearth_sar.engine.config import RunConfig, finetuning_settings
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.errors import InputError

SIDE = 32
MODEL: dict[str, Any] = {
    "crop_size": SIDE,
    "crop_stride": SIDE,
    "vit": {"dim": 16, "num_heads": 1, "image_size": SIDE, "stem": ()},
    "decoder": {"channels": 16},
}


def write(path: Path, seed: int, scale: float = 40.0) -> None:
    random = np.random.default_rng(seed)
    Image.fromarray(random.rayleigh(scale, (SIDE, SIDE)).clip(1, 255).astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for number in range(4):
        write(root / f"images/{number}.png", number)
        mask = (np.indices((SIDE, SIDE))[0] < 9 + number).astype(np.uint8)
        Image.fromarray(mask).save(root / f"labels/{number}.png")
    return root


def config_of(output: Path, data: Path, **changes: Any) -> RunConfig:
    folder = {
        "root": str(data), "images": "images/*.png", "labels": "labels/*.png", "values": "amplitude",
        "classes": ["land", "water"],
    }  # fmt: skip
    parts = [{"name": "a", "folder": {**folder, "part": part, "split_seed": 1}} for part in ("train", "test")]
    base = merge(
        finetuning_settings(),
        {
            "output": str(output), "mode": "full", "weights": "random", "model": MODEL, "steps": 1,
            "batch_size": 2, "pictures": 0, "augment": {"crop_size": SIDE},
            "train": parts[0], "validation": {**parts[1], "name": "b"},
        },
    )  # fmt: skip
    return merge(base, changes)


@pytest.fixture
def saved(tmp_path: Path, data: Path) -> Iterator[Callable[..., None]]:
    """A run with a checkpoint; call it with settings to resume it."""
    output, opened = tmp_path / "run", []

    def start(resume: str | None = None, **changes: Any) -> None:
        config = config_of(output, changes.pop("data", data), **changes)
        run = make_run(config, Ranks(0, 1, torch.device("cpu")))
        opened.append(run)
        try:
            run.start(resume)
            if resume is None:
                run.fit()
        finally:
            run.close()

    start()
    yield start
    for run in opened:
        run.close()


def images_of(data: Path) -> list[Path]:
    return sorted((data / "images").iterdir())


def a_file_more(data: Path) -> None:
    write(data / "images/9.png", 9)
    Image.fromarray(np.eye(SIDE, dtype=np.uint8)).save(data / "labels/9.png")


def another_name(data: Path) -> None:
    for room in ("images", "labels"):
        (data / room / "0.png").rename(data / room / "8.png")


def another_level(data: Path) -> None:
    for number, path in enumerate(images_of(data)):
        write(path, number, 80.0)


def another_label(data: Path) -> None:
    for path in (data / "labels").iterdir():
        random = np.random.default_rng(3)
        Image.fromarray(random.integers(0, 2, (SIDE, SIDE)).astype(np.uint8)).save(path)


@pytest.mark.parametrize("change", [a_file_more, another_name, another_level, another_label])
def test_changed_data_are_an_error_with_the_setting_that_allows_them(
    change: Callable[[Path], None],
    saved: Callable[..., None],
    data: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved("auto")
    change(data)
    with pytest.raises(InputError, match=r"(?s)not those that the run began with.*changed_data=go_on"):
        saved("auto")
    caplog.clear()
    saved("auto", changed_data="go_on")
    assert "not those that the run began with" in caplog.text


def test_data_may_lie_elsewhere(saved: Callable[..., None], data: Path, tmp_path: Path) -> None:
    saved("auto", data=data.rename(tmp_path / "moved"))


def test_descriptors_in_another_order_are_refused(saved: Callable[..., None]) -> None:
    other = {"moe": {"descriptors": ["enl", "entropy", "roughness"]}}
    with pytest.raises(InputError, match=r"(?s)computes something else.*moe\.descriptors"):
        saved("auto", model=other)
