"""Every format and dtype there and back, every complaint by its words, and real images where they exist."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from crossearth_sar.data.readers import read_bands, read_image, read_shape, to_amplitude
from crossearth_sar.errors import InputError

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "real_data"

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (20, 31), dtype=np.uint8)
TWO_BANDS = RNG.normal(size=(2, 20, 31)).astype(np.float32)

DTYPES = ["uint8", "uint16", "int16", "int32", "float16", "float32", "float64", "complex64", "complex128"]


def of_dtype(dtype: str) -> np.ndarray:
    values = RNG.integers(1, 200, (2, 20, 31))
    return (values + 1j * values[::-1] if dtype.startswith("complex") else values).astype(dtype)


def assert_reads_as(path: Path, expected: np.ndarray, **how: object) -> None:
    raw = read_image(path, **how)  # type: ignore[arg-type]
    assert raw.values.dtype == expected.dtype
    assert raw.values.shape == expected.shape
    assert np.array_equal(raw.values, expected, equal_nan=expected.dtype.kind in "fc")
    assert raw.path == path
    assert raw.valid.shape == expected.shape[1:]
    if "bands" not in how:
        how.pop("nodata", None)
        assert read_shape(path, **how) == expected.shape  # type: ignore[arg-type]


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
        "a.hdf": r"(?s)unknown kind.*'\.hdf'.*\.tif",
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


def test_an_image_without_a_valid_pixel(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((20, 31), np.nan))
    with pytest.raises(InputError, match=r"(?s)a\.npy has no valid pixel.*620 pixels.*leave this file out"):
        read_image(tmp_path / "a.npy")


# --- to_amplitude -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_amplitude_of_every_dtype(dtype: str) -> None:
    values = of_dtype(dtype)
    wide = values.astype(np.complex128)
    if np.iscomplexobj(values):
        expected = {"complex": np.abs(wide)}
    else:
        expected = {
            "amplitude": wide.real,
            "intensity": np.sqrt(wide.real),
            "db": 10 ** (np.minimum(wide.real, 140) / 20),
        }
    for kind, wanted in expected.items():
        given = np.minimum(values, values.dtype.type(140)) if kind == "db" else values
        amplitude = to_amplitude(given, kind)  # type: ignore[arg-type]
        assert amplitude.dtype == np.float32
        np.testing.assert_allclose(amplitude, wanted, rtol=2e-6)


def test_decibels_are_of_power() -> None:
    amplitude = to_amplitude(np.array([[[-20.0, 0.0, 6.0206]]]), "db")
    np.testing.assert_allclose(amplitude, [[[0.1, 1.0, 2.0]]], rtol=1e-6)


def test_invalid_pixels_become_zero_in_all_bands() -> None:
    values = np.full((2, 2, 3), -10.0)
    values[0, 0, 0], values[1, 1, 2] = np.nan, -9999
    valid = np.isfinite(values).all(0) & (values != -9999).all(0)
    amplitude = to_amplitude(values, "db", valid=valid)
    assert (amplitude[:, 0, 0] == 0).all()
    assert (amplitude[:, 1, 2] == 0).all()
    assert np.count_nonzero(amplitude) == 8
    assert to_amplitude(np.array([[[np.nan, 1.0]]]), "amplitude").tolist() == [[[0.0, 1.0]]]


def test_complex_and_its_declaration_go_together() -> None:
    values = np.ones((1, 2, 2), np.complex64)
    for kind in ("amplitude", "intensity", "db"):
        with pytest.raises(InputError, match=rf"(?s)scene\.tif is complex .*{kind}.*declare values: complex"):
            to_amplitude(values, kind, name="scene.tif")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"(?s)is real but .*'complex'.*declare values: amplitude"):
        to_amplitude(values.real, "complex")


def test_negative_amplitudes_name_file_count_and_remedy() -> None:
    decibels = RNG.normal(-12, 4, (1, 20, 31))
    with pytest.raises(InputError, match=r"(?s)a\.tif has negative values.*of 620 values.*values: db"):
        to_amplitude(decibels, "amplitude", name="a.tif")
    filled = np.abs(decibels)
    filled[0, :2] = -9999
    with pytest.raises(InputError, match=r"(?s)62 of 620.*set nodata: -9999"):
        to_amplitude(filled, "intensity")
    noisy = np.abs(decibels)
    noisy[0, 0, :3] = -0.1, -0.2, -0.3
    with pytest.raises(InputError, match=r"(?s)3 of 620 values, from -0.3 to -0.1.*noise subtraction"):
        to_amplitude(noisy, "intensity")


def test_decibels_that_are_none() -> None:
    with pytest.raises(InputError, match=r"(?s)no decibels.*declare values: intensity"):
        to_amplitude(RNG.uniform(0, 4000, (1, 20, 31)), "db")
    filled = np.full((1, 4, 4), -10.0)
    filled[0, 0, 0] = -9999
    with pytest.raises(InputError, match=r"(?s)1 of 16.*set nodata: -9999"):
        to_amplitude(filled, "db")


def test_what_float32_cannot_hold() -> None:
    with pytest.raises(InputError, match=r"(?s)float32 cannot hold.*1e\+300"):
        to_amplitude(np.full((1, 2, 2), 1e300), "amplitude")


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
