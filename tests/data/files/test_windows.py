"""A rectangle of a file is that part of the whole file, for every way of storing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from crossearth_sar.data.files import windows
from crossearth_sar.data.files.readers import read_bands
from crossearth_sar.data.files.windows import Window, read_image_window, read_label_window
from crossearth_sar.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 60000, (100, 130)).astype(np.uint16)
BANDS = RNG.normal(size=(3, 100, 130)).astype(np.float32)

STORED: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "one strip": (GREY, {}),
    "strips": (GREY, {"rowsperstrip": 7, "compression": "lzw"}),
    "tiles": (GREY, {"tile": (32, 48), "compression": "deflate", "predictor": True}),
    "plain tiles": (GREY, {"tile": (16, 16)}),
    "complex": (
        (GREY + 1j * GREY[::-1]).astype(np.complex64),
        {"rowsperstrip": 16, "compression": "deflate"},
    ),
    "bands first": (BANDS, {"planarconfig": "separate", "rowsperstrip": 9, "compression": "deflate"}),
    "bands first, plain": (BANDS, {"planarconfig": "separate"}),
    "bands last": (
        np.moveaxis(BANDS, 0, -1),
        {"planarconfig": "contig", "rowsperstrip": 11, "compression": "lzw"},
    ),
    "bands last, tiles": (np.moveaxis(BANDS, 0, -1), {"planarconfig": "contig", "tile": (64, 64)}),
}
RECTANGLES = [Window(0, 0, 100, 130), Window(0, 0, 1, 1), Window(99, 129, 1, 1), Window(13, 45, 40, 60)]


@pytest.mark.parametrize("how", STORED)
def test_a_window_is_part_of_the_whole(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, settings = STORED[how]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", **settings)
    whole = read_bands(path)
    for window in RECTANGLES:
        assert np.array_equal(read_image_window(path, window).values, whole[:, *window.slices])
    monkeypatch.setattr(windows, "read_stored", None)  # a part is read without decoding the whole
    assert np.array_equal(read_image_window(path, RECTANGLES[-1]).values, whole[:, 13:53, 45:105])


def test_other_formats(tmp_path: Path) -> None:
    window = Window(13, 45, 40, 60)
    np.save(tmp_path / "a.npy", GREY)
    np.save(tmp_path / "b.npy", BANDS)
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "c.png")
    paletted = Image.fromarray((GREY % 3).astype(np.uint8), mode="P")
    paletted.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    paletted.save(tmp_path / "d.png")
    for name in ("a.npy", "b.npy", "c.png", "d.png"):
        assert np.array_equal(
            read_label_window(tmp_path / name, window).values, read_bands(tmp_path / name)[:, *window.slices]
        )
    colors = read_label_window(tmp_path / "d.png", window, expand_colors=True).values
    assert np.array_equal(colors, read_bands(tmp_path / "d.png", colormap="expand")[:, *window.slices])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, rowsperstrip=10, compression="deflate", photometric="minisblack")
    with pytest.raises(InputError, match="smaller than the part"):
        read_image_window(path, Window(61, 0, 40, 60))
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[4]
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 200] = bytes(200)
    path.write_bytes(damaged)
    assert read_image_window(path, Window(0, 0, 20, 20)).values.shape == (1, 20, 20), "damage elsewhere"
    with pytest.raises(InputError, match=r"cannot read .*a\.tif"):
        read_image_window(path, Window(35, 0, 20, 20))
