"""Every format and dtype there and back, and every damaged, foreign or missing file by its complaint."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from arrays import DTYPES, GREY, TWO_BANDS, assert_reads_as, of_dtype
from PIL import Image

from crossearth_sar.data.files.readers import read_bands, read_image, read_shape
from crossearth_sar.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_keeps_8_and_16_bits(tmp_path: Path, dtype: str) -> None:
    values = RNG.integers(0, np.iinfo(dtype).max, (20, 31)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert_reads_as(tmp_path / "a.png", values[None])


def test_bmp_and_colour_png(tmp_path: Path) -> None:
    colours = RNG.integers(0, 255, (20, 31, 3), dtype=np.uint8)
    for name in ("a.bmp", "a.png"):
        Image.fromarray(colours).save(tmp_path / name)
        assert_reads_as(tmp_path / name, colours.transpose(2, 0, 1))


def test_jpeg(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 31), 77, np.uint8)).save(tmp_path / "a.jpg", quality=95)
    raw = read_image(tmp_path / "a.jpg")
    assert raw.values.shape == (1, 20, 31)
    assert np.abs(raw.values.astype(int) - 77).max() <= 1
    assert read_shape(tmp_path / "a.jpg") == (1, 20, 31)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_tiff_of_every_dtype_bands_first_and_last(tmp_path: Path, dtype: str, planar: str) -> None:
    values = of_dtype(dtype)
    stored = values if planar == "separate" else values.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
    assert_reads_as(tmp_path / "a.tif", values)


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd"])
def test_tiff_compressed_and_tiled(tmp_path: Path, compression: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        TWO_BANDS,
        photometric="minisblack",
        planarconfig="separate",
        compression=compression,
        predictor=True,
        tile=(16, 16),
    )
    assert_reads_as(tmp_path / "a.tif", TWO_BANDS)


def test_tiff_pages_are_bands_and_overviews_are_not(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", TWO_BANDS, photometric="minisblack")
    assert_reads_as(tmp_path / "pages.tif", TWO_BANDS)
    with tifffile.TiffWriter(tmp_path / "overview.tif") as tiff:
        tiff.write(GREY, photometric="minisblack")
        tiff.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1)
    assert_reads_as(tmp_path / "overview.tif", GREY[None])


def test_tiff_of_complex_integers(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes the complex-integer TIFF")
    values = of_dtype("complex64")[0]
    with rasterio.open(
        tmp_path / "a.tif",
        "w",
        driver="GTiff",
        height=20,
        width=31,
        count=1,
        dtype="complex_int16",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as file:
        file.write(values, 1)
    assert_reads_as(tmp_path / "a.tif", values[None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_and_npz_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    values = of_dtype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "last.npy", np.moveaxis(values, 0, -1))
    np.save(tmp_path / "one.npy", values[0])
    np.savez_compressed(tmp_path / "a.npz", hh=values, other=GREY)
    np.savez(tmp_path / "single.npz", values)
    assert_reads_as(tmp_path / "a.npy", values)
    assert_reads_as(tmp_path / "last.npy", values)
    assert_reads_as(tmp_path / "one.npy", values[:1])
    assert_reads_as(tmp_path / "a.npz", values, array_key="hh")
    assert_reads_as(tmp_path / "single.npz", values)


def test_npz_asks_for_the_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", T11=GREY, T22=GREY)
    for read in (read_image, read_shape):
        with pytest.raises(InputError, match=r"(?s)a\.npz holds 2 arrays.*T11, T22.*array_key"):
            read(tmp_path / "a.npz")
        with pytest.raises(InputError, match=r"holds no array 'T1' \(did you mean 'T11'\?\)"):
            read(tmp_path / "a.npz", array_key="T1")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"(?s)a\.npy.*allow_pickle"):
        read_image(tmp_path / "a.npy")


def test_files_that_are_not_there_or_not_images(tmp_path: Path) -> None:
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "a.hdf").write_bytes(b"x")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.tif").write_bytes(b"")
    np.save(tmp_path / "flat.npy", np.zeros(9))
    np.save(tmp_path / "words.npy", np.full((20, 31), "word"))
    expected = {
        "none.tif": "no such file",
        "folder.tif": "a folder",
        "a.hdf": r"(?s)a\.hdf(: unknown kind.*GDAL| without rasterio.*\[geo\])",
        "text.png": r"(?s)text\.png.*get it anew",
        "empty.tif": r"(?s)empty\.tif.*0 bytes",
        "flat.npy": r"(?s)no image.*\(9,\)",
    }
    for name, message in expected.items():
        for read in (read_image, read_shape, read_bands):
            with pytest.raises(InputError, match=message):
                read(tmp_path / name)
    with pytest.raises(InputError, match=r"words\.npy holds no pixels"):
        read_image(tmp_path / "words.npy")


def test_sixteen_bit_colour_png_is_refused_not_cut(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(RNG.integers(0, 60000, (20, 31, 3)).astype(np.uint16)))
    with pytest.raises(InputError, match=r"(?s)a\.png is a colour image of 16 bits.*TIFF"):
        read_image(path)


WRITERS = {
    "a.png": lambda path: Image.fromarray(GREY).save(path),
    "a.jpg": lambda path: Image.fromarray(GREY).save(path),
    "a.bmp": lambda path: Image.fromarray(GREY).save(path),
    "plain.tif": lambda path: tifffile.imwrite(
        path, TWO_BANDS, photometric="minisblack", planarconfig="separate"
    ),
    "pages.tif": lambda path: tifffile.imwrite(path, TWO_BANDS, photometric="minisblack"),
    "lzw.tif": lambda path: tifffile.imwrite(path, GREY, compression="lzw"),
    "a.npy": lambda path: np.save(path, TWO_BANDS),
    "a.npz": lambda path: np.savez(path, TWO_BANDS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_files_are_found_by_their_headers_too(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "tifffile")
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    for length in (len(whole) * 9 // 10, len(whole) // 2, 10):
        path.write_bytes(whole[:length])
        for read in (read_image, read_shape):
            with pytest.raises(InputError, match=rf"(?s)cannot read .*{name}.*{length} bytes.*get it anew"):
                read(path)


def test_a_chain_of_pages_that_leads_out_of_the_file_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not read as an image of the bands before it, all of whose pixels are there."""
    caplog.set_level(logging.CRITICAL, "tifffile")
    path = tmp_path / "pages.tif"
    WRITERS["pages.tif"](path)
    with tifffile.TiffFile(path) as tiff:
        first, second = tiff.pages[0].offset, tiff.pages[1].offset
    content = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", content, first)
    place = first + 2 + 12 * tags
    assert struct.unpack_from("<I", content, place) == (second,)
    struct.pack_into("<I", content, place, len(content) + 10)
    path.write_bytes(content)
    for read in (read_image, read_shape):
        with pytest.raises(
            InputError, match=r"(?s)cannot read .*pages\.tif.*a further page is promised at byte"
        ):
            read(path)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_never_raise_anything_else(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "tifffile")
    path, rng = tmp_path / name, np.random.default_rng(1)
    WRITERS[name](path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    messages = []
    for _ in range(30):
        damaged = whole.copy()
        damaged[rng.integers(0, min(len(whole), 400), 4)] = rng.integers(0, 255, 4)
        path.write_bytes(damaged.tobytes())
        for read in (read_image, read_shape):
            try:
                read(path)
            except InputError as error:
                messages.append(str(error))
    assert messages
    assert all(name in message for message in messages)
