"""Bands, nodata and colour tables of what was decoded, and real images where they exist."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from arrays import GREY, TWO_BANDS, assert_reads_as, of_dtype
from PIL import Image

from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.data.files.readers import read_bands, read_image, read_shape
from crossearth_sar.errors import InputError

REAL_DATA = Path(__file__).resolve().parents[4] / "shared" / "real_data"

RNG = np.random.default_rng(0)


def write_with_nodata(path: Path, values: np.ndarray, text: str) -> None:
    tag = (42113, "s", 0, text, True)
    planar = "separate" if values.ndim == 3 else None
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planar, extratags=[tag])


def test_nodata_tag_of_gdal_is_read_in_the_files_precision(tmp_path: Path) -> None:
    lowest = "-3.4028234663852886e+38"
    values = TWO_BANDS.copy()
    values[1, 3, 4] = np.float32(lowest)
    values[0, 5, 6] = np.nan
    values[0, 7, 8] = np.inf
    write_with_nodata(tmp_path / "a.tif", values, lowest)
    valid = read_image(tmp_path / "a.tif").valid
    assert {tuple(p) for p in np.argwhere(~valid)} == {(3, 4), (5, 6), (7, 8)}
    assert read_image(tmp_path / "a.tif", bands=(0,)).valid[3, 4], "band 1 was not kept"


@pytest.mark.parametrize("text", ["0.1", "-3.40282346638529e+38"])
def test_nodata_of_fewer_digits_than_the_pixels_have(text: str, tmp_path: Path) -> None:
    """As float32 they are one number, as float64 two."""
    values = np.full((4, 4), 7, np.float32)
    values[1, 2] = np.float32(text)
    assert float(values[1, 2]) != float(text)
    write_with_nodata(tmp_path / "a.tif", values, text)
    assert np.argwhere(~read_image(tmp_path / "a.tif").valid).tolist() == [[1, 2]]


def test_nodata_argument_goes_over_the_tag(tmp_path: Path) -> None:
    values = np.full((20, 31), 5, np.uint16)
    values[0, 0], values[1, 1] = 0, 9
    write_with_nodata(tmp_path / "a.tif", values, "0")
    assert np.argwhere(~read_image(tmp_path / "a.tif").valid).tolist() == [[0, 0]]
    assert np.argwhere(~read_image(tmp_path / "a.tif", nodata=9).valid).tolist() == [[1, 1]]
    assert read_image(tmp_path / "a.tif", nodata=-9999).valid.all(), "what uint16 cannot hold matches nothing"
    write_with_nodata(tmp_path / "b.tif", values, "nan")
    assert read_image(tmp_path / "b.tif").valid.all()
    write_with_nodata(tmp_path / "c.tif", values, "none")
    with pytest.raises(InputError, match=r"(?s)c\.tif has a nodata tag that is no number.*'none'.*gdal_edit"):
        read_image(tmp_path / "c.tif")


def test_nodata_of_complex_values(tmp_path: Path) -> None:
    values = of_dtype("complex64")
    values[:, 2, 3], values[0, 4, 5] = 0, 0 + 3j
    np.save(tmp_path / "a.npy", values)
    assert np.argwhere(~read_image(tmp_path / "a.npy", nodata=0).valid).tolist() == [[2, 3]]


def test_band_axis_is_asked_for_when_it_cannot_be_told(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    np.save(tmp_path / "a.npy", values)
    for read in (read_image, read_shape):
        with pytest.raises(InputError, match=r"(?s)which axis of .*a\.npy.*\(3, 4, 5\).*band_axis: first"):
            read(tmp_path / "a.npy")
    assert_reads_as(tmp_path / "a.npy", values, band_axis="first")
    assert_reads_as(tmp_path / "a.npy", values.transpose(2, 0, 1), band_axis="last")
    np.save(tmp_path / "many.npy", np.zeros((40, 40, 40)))
    with pytest.raises(InputError, match="which axis"):
        read_image(tmp_path / "many.npy")


def test_bands_are_chosen_and_ordered(tmp_path: Path) -> None:
    values = RNG.normal(size=(3, 20, 31))
    np.save(tmp_path / "a.npy", values)
    assert_reads_as(tmp_path / "a.npy", values[[2, 0]], bands=(2, 0))
    with pytest.raises(InputError, match=r"(?s)a\.npy has no band 3.*from 0 to 2"):
        read_image(tmp_path / "a.npy", bands=(0, 3))


def test_paletted_files(tmp_path: Path) -> None:
    image = Image.fromarray((GREY % 3).astype(np.uint8), mode=None).convert("L")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, 1:3] = np.array([[255, 0, 0], [0, 0, 255]]).T * 257
    tifffile.imwrite(tmp_path / "a.tif", GREY % 3, photometric="palette", colormap=colormap)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[GREY % 3].transpose(2, 0, 1)
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        assert np.array_equal(read_bands(path), GREY[None] % 3)
        assert np.array_equal(read_bands(path, colormap="expand"), colours)
        with pytest.raises(InputError, match=r"(?s)stored with a colour table.*measurements"):
            read_image(path)


def test_a_grey_palette_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 3)
    image.putpalette([9, 9, 9, 50, 50, 50, 7, 7, 7])
    image.save(tmp_path / "a.png")
    assert_reads_as(tmp_path / "a.png", np.array([9, 50, 7], np.uint8)[GREY % 3][None])


def test_an_image_without_a_valid_pixel(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((20, 31), np.nan))
    with pytest.raises(InputError, match=r"(?s)a\.npy has no valid pixel.*620 pixels.*leave this file out"):
        read_image(tmp_path / "a.npy")


# --- real images ------------------------------------------------------------------------------------------

KINDS = {
    "dB": "db",
    "uint16 DN (intensity)": "intensity",
    "uint16 amplitude": "amplitude",
    "complex64 SLC": "complex",
    "uint8": "amplitude",
    "T11": "intensity",
}


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no folder of real SAR images beside the repository")
def test_every_real_image_reads_as_its_index_declares() -> None:
    with (REAL_DATA / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        path = REAL_DATA / row["image"]
        kind = next(kind for start, kind in KINDS.items() if row["values"].startswith(start))
        for key in ("T11", "T22", "T33") if path.suffix == ".npz" else (None,):
            raw = read_image(path, array_key=key)
            amplitude = to_amplitude(raw.values, kind, valid=raw.valid, name=path)  # type: ignore[arg-type]
            assert amplitude.shape == read_shape(path, array_key=key)
            assert len(amplitude) == (2 if row["polarization"] == "VV+VH" else 1)
            assert np.isfinite(amplitude).all()
            assert amplitude.min() >= 0 < amplitude.max()
            if row["label"]:
                assert read_bands(REAL_DATA / row["label"]).shape == (1, *amplitude.shape[1:])
            if kind == "db":
                assert -25 < 10 * np.log10((amplitude.astype(np.float64) ** 2).mean()) < 5
