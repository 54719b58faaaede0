"""A bounded number of damaged files for every reader: an answer or an InputError, whatever bytes are in them.

CROSSEARTH_FUZZ is how many examples each target takes; by hand, thousands. Damage is of the structure, too:
bytes set to values that counts and sizes are made of, parts taken out, put twice, or cut off.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from crossearth_sar import load_model, save_model
from crossearth_sar.config import from_mapping, read_yaml
from crossearth_sar.data.datasets.folder import FolderConfig, find_scenes
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.data.files.labels import label_table, read_label
from crossearth_sar.data.files.readers import read_image, read_shape
from crossearth_sar.data.files.windows import Window, block_rows, read_image_window
from crossearth_sar.engine.checkpoint_files import read_state
from crossearth_sar.engine.checkpoint_state import sealed
from crossearth_sar.errors import InputError

EXAMPLES = int(os.environ.get("CROSSEARTH_FUZZ", "25"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="CROSSEARTH_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
VALUES = np.random.default_rng(0).integers(1, 250, (40, 36), dtype=np.uint8)
TELLING = (b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\x01", b"\x7f\xff\xff\xff")


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What is done to the bytes of a file, by shares of its length: mostly at its head, where sizes stand."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["set", "cut", "drop", "twice", "head"]),
                st.floats(0, 1),
                st.floats(0, 1),
                st.sampled_from(TELLING) | st.binary(min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def apply(content: bytes) -> bytes:
        for kind, where, length, new in steps:
            reach = min(len(content), 400) if kind == "head" else len(content)
            at = int(where * reach)
            end = min(len(content), at + 1 + int(length * 64))
            if kind in ("set", "head"):
                content = content[:at] + new + content[at + len(new) :]
            elif kind == "cut":
                content = content[:at]
            else:
                content = content[:at] + (content[at:end] * 2 if kind == "twice" else b"") + content[end:]
        return content

    return apply


def tiff(**how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, VALUES, **how)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(VALUES).save(file, kind)
    return file.getvalue()


def array(*, packed: bool) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, a=VALUES) if packed else np.save(file, VALUES)
    return file.getvalue()


IMAGES = {
    "plain.tif": tiff(),
    "strips.tif": tiff(compression="zlib", rowsperstrip=8),
    "tiles.tif": tiff(compression="lzw", tile=(16, 16), predictor=True),
    "a.png": picture("PNG"),
    "a.jpg": picture("JPEG"),
    "a.bmp": picture("BMP"),
    "a.npy": array(packed=False),
    "a.npz": array(packed=True),
}


def survives(read: Callable[[], object]) -> None:
    """An answer or an InputError; anything else is the test's failure."""
    with suppress(InputError):
        read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IMAGES)
@fuzz
@given(change=damage())
def test_images_and_labels(
    name: str, change: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed-{name}"
    path.write_bytes(change(IMAGES[name]))
    window, table = Window(3, 5, 20, 11), label_table(("a", "b"))
    for read in (
        lambda: read_shape(path),
        lambda: read_image(path),
        lambda: block_rows(path),
        lambda: read_image_window(path, window),
        lambda: read_label(path, table),
    ):
        survives(read)


CSV = b"image,label,where\n0.png,1.png,here\n1.png,,there\n\"2.png\",0.png,'x'\n"
YAML = b"""name: a
folder:
  root: .
  values: db
  classes: [a, b]
  images: '*.png'
  label_values: {0: a, 1: b}
"""


@fuzz
@given(change=damage())
def test_index_files(change: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed-index"
    root.mkdir(exist_ok=True)
    for number in range(3):
        (root / f"{number}.png").write_bytes(IMAGES["a.png"])
    (root / "i.csv").write_bytes(change(CSV))
    config = FolderConfig(root=str(root), values="amplitude", classes=("a", "b"), index="i.csv")
    survives(lambda: find_scenes(config))


@fuzz
@given(change=damage())
def test_configs(change: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(change(YAML))
    survives(lambda: from_mapping(DomainConfig, read_yaml(path)))


@fuzz
@given(change=damage())
def test_states_of_checkpoints(
    change: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-checkpoint"
    folder.mkdir(exist_ok=True)
    content = {"step": 3, "adam_step": 3, "best": None, "run": {"a": [1, 2]}, "sha256": {"a": "0"}}
    text = sealed(content).encode()
    changed = change(text)
    (folder / "state.json").write_bytes(changed)
    try:
        state = read_state(folder)
    except InputError:
        return
    assert json.loads(json.dumps(state)) == {"format": 4, **content}, "what is taken is what was written"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from crossearth_sar import build_model

    torch.manual_seed(0)
    small = {"vit": {"dim": 24}, "decoder": {"channels": 16}}
    folder = tmp_path_factory.mktemp("fuzzed") / "model"
    save_model(build_model("crossearth_sar_tiny", 2, changes=small, sparse=False), folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@fuzz
@given(change=damage())
def test_model_folders(name: str, change: Callable[[bytes], bytes], model_folder: Path) -> None:
    whole = (model_folder / name).read_bytes()
    try:
        (model_folder / name).write_bytes(change(whole))
        survives(lambda: load_model(model_folder))
    finally:
        (model_folder / name).write_bytes(whole)
