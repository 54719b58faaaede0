"""Alpha, masks, empty tiles, scale and offset: what of a file is a measurement, whole and in windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from crossearth_sar.data.files.labels import label_table, read_label
from crossearth_sar.data.files.readers import read_image, read_shape
from crossearth_sar.data.files.windows import Window, read_image_window
from crossearth_sar.errors import InputError

RNG = np.random.default_rng(0)
DN = RNG.integers(1, 60000, (70, 90)).astype(np.uint16)
SEEN = np.ones((70, 90), bool)
SEEN[:20], SEEN[:, 75:] = False, False
WINDOW = Window(10, 60, 40, 25)


def assert_masked(path: Path, expected: np.ndarray, seen: np.ndarray = SEEN) -> None:
    """One band, valid where `seen`: the whole file, its header and a window of it agree."""
    raw = read_image(path)
    assert raw.values.shape == (1, *expected.shape)
    assert read_shape(path) == (1, *expected.shape)
    assert np.array_equal(raw.valid, seen)
    assert np.array_equal(raw.values[0][seen], expected[seen])
    part = read_image_window(path, WINDOW)
    assert np.array_equal(part.valid, seen[WINDOW.slices])
    assert np.array_equal(part.values[0][part.valid], expected[WINDOW.slices][part.valid])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "deflate", "tile": (32, 32)},
        {"planarconfig": "separate", "rowsperstrip": 9, "compression": "lzw"},
    ],
)
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_an_alpha_sample_of_a_tiff_is_no_band(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    bands = np.stack([DN, np.where(SEEN, 65535, 0).astype(np.uint16)])
    bands = bands if how.get("planarconfig") == "separate" else np.moveaxis(bands, 0, -1)
    settings = {"planarconfig": "contig", **how}
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", extrasamples=[kind], **settings)
    assert_masked(tmp_path / "a.tif", DN)


def test_two_bands_without_an_alpha_stay_two(tmp_path: Path) -> None:
    bands = np.stack([DN, np.where(SEEN, DN, 0)], -1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        bands,
        photometric="minisblack",
        extrasamples=["unspecified"],
        planarconfig="contig",
    )
    raw = read_image(tmp_path / "a.tif")
    assert raw.values.shape == (2, 70, 90)
    assert raw.valid.all()


def test_a_band_that_only_bears_the_tag_is_refused(tmp_path: Path) -> None:
    bands = np.stack([DN, DN, DN, DN[::-1]], -1)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="rgb", extrasamples=["unassalpha"])
    for read in (read_image, lambda path: read_image_window(path, WINDOW)):
        with pytest.raises(InputError, match=r"(?s)band 3 of .*tagged alpha, but.*-colorinterp_4 undefined"):
            read(tmp_path / "a.tif")
    feathered = np.where(SEEN, 65535, 0)
    feathered[20, :75] = 30000
    bands[..., 3] = feathered
    tifffile.imwrite(tmp_path / "b.tif", bands, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "b.tif").valid, SEEN)


def test_alpha_of_a_png_is_no_band(tmp_path: Path) -> None:
    grey, alpha = (DN % 256).astype(np.uint8), np.where(SEEN, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    assert_masked(tmp_path / "la.png", grey)
    Image.fromarray(np.dstack([grey, grey, grey, alpha]), "RGBA").save(tmp_path / "rgba.png")
    raw = read_image(tmp_path / "rgba.png")
    assert raw.values.shape == read_shape(tmp_path / "rgba.png") == (3, 70, 90)
    assert np.array_equal(raw.valid, SEEN)
    Image.fromarray(np.where(SEEN, np.maximum(grey, 1), 0).astype(np.uint8)).save(
        tmp_path / "l.png", transparency=0
    )
    assert np.array_equal(read_image(tmp_path / "l.png").valid, SEEN)


def write_with_mask(path: Path, mask: np.ndarray, image: np.ndarray = DN) -> None:
    """As GDAL does: the mask of the image, an overview, and the mask of that, which hides all of it."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, photometric="minisblack", tile=(32, 32), compression="deflate", metadata=None)
        for values, kind in ((mask, 2), (image[::2, ::2], 1), (np.zeros_like(mask[::2, ::2]), 3)):
            tiff.write(
                values, photometric="minisblack", subfiletype=kind, compression="deflate", metadata=None
            )
    for page, kind in ((1, 4), (3, 5)):  # tifffile itself writes masks of bits only
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages[page].tags["NewSubfileType"].overwrite(kind)


def test_a_mask_in_the_file_says_what_is_there(tmp_path: Path) -> None:
    write_with_mask(tmp_path / "bits.tif", SEEN)
    assert_masked(tmp_path / "bits.tif", DN)
    grey = (DN % 256).astype(np.uint8)
    write_with_mask(tmp_path / "bytes.tif", np.where(SEEN, 255, 0).astype(np.uint8), grey)
    assert_masked(tmp_path / "bytes.tif", grey)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy"])
def test_a_mask_beside_the_file_says_what_is_there(name: str, tmp_path: Path) -> None:
    grey = (DN % 256).astype(np.uint8)
    write: dict[str, Callable[[Path], object]] = {
        "a.tif": lambda path: tifffile.imwrite(path, grey),
        "a.png": lambda path: Image.fromarray(grey).save(path),
        "a.npy": lambda path: np.save(path, grey),
    }
    write[name](tmp_path / name)
    mask = tmp_path / f"{name}.msk"
    tifffile.imwrite(mask, np.where(SEEN, 255, 0).astype(np.uint8), photometric="minisblack")
    if name != "a.npy":
        assert_masked(tmp_path / name, grey)
    assert np.array_equal(read_image(tmp_path / name).valid, SEEN)
    tifffile.imwrite(mask, np.zeros((5, 5), np.uint8), photometric="minisblack")
    with pytest.raises(InputError, match=r"mask .*\.msk has another size"):
        read_image(tmp_path / name)


def test_what_gdal_writes(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    how = {"driver": "GTiff", "height": 70, "width": 90, "dtype": "uint16"}
    for inside in (True, False):
        path = tmp_path / f"mask-{inside}.tif"
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside),
            rasterio.open(path, "w", count=1, **how) as file,
        ):
            file.write(DN, 1)
            file.write_mask(SEEN)
        assert_masked(path, DN)
    with rasterio.open(tmp_path / "alpha.tif", "w", count=2, alpha="YES", **how) as file:
        file.write(DN, 1)
        file.write(np.where(SEEN, 65535, 0).astype(np.uint16), 2)
    assert_masked(tmp_path / "alpha.tif", DN)


@pytest.mark.parametrize("nodata", [-9999.0, -3.4028234663852886e38, None])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_empty_tiles_are_not_measured(nodata: float | None, interleave: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "sparse.tif"
    how = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", "SPARSE_OK": "TRUE"}
    decibels = RNG.normal(-12, 3, (2, 32, 32)).astype(np.float32)
    size = {"height": 128, "width": 160, "dtype": "float32", "interleave": interleave}
    with rasterio.open(path, "w", driver="GTiff", count=2, nodata=nodata, **size, **how) as file:
        file.write(decibels, window=rasterio.windows.Window(64, 32, 32, 32))
    raw = read_image(path)
    expected = np.zeros((128, 160), bool)
    expected[32:64, 64:96] = True
    assert np.array_equal(raw.valid, expected)
    assert np.array_equal(raw.values[:, 32:64, 64:96], decibels)
    window = Window(20, 50, 50, 60)
    part = read_image_window(path, window)
    assert np.array_equal(part.valid, expected[window.slices])
    assert np.array_equal(part.values[:, part.valid], raw.values[:, *window.slices][:, part.valid])
    nowhere = read_image_window(path, Window(100, 100, 20, 20))
    assert not nowhere.valid.any()


def test_an_almost_empty_file_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path, side = tmp_path / "sparse.tif", 17_408
    how = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "SPARSE_OK": "TRUE"}
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=side, width=side, dtype="uint8", nodata=0, **how
    ) as file:
        file.write(np.full((1, 512, 512), 7, np.uint8), window=rasterio.windows.Window(512, 512, 512, 512))
    assert side * side > max(1 << 28, 4096 * path.stat().st_size), "the bound for what a file may promise"
    assert read_shape(path) == (1, side, side)
    assert read_image_window(path, Window(400, 400, 200, 200)).valid.sum() == 88 * 88


def gdal_metadata(*items: tuple[str, int, float]) -> list[tuple[int, str, int, str, bool]]:
    lines = "".join(f'<Item name="X" sample="{band}" role="{role}">{v}</Item>' for role, band, v in items)
    text = f"<GDALMetadata>{lines}</GDALMetadata>"
    return [(42112, "s", 0, text, True)]


def test_scale_and_offset_of_the_file_are_applied_band_by_band(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    stored = RNG.integers(-4000, -100, (70, 90, 2)).astype(np.int16)
    stored[3, 4] = -32768
    tags = gdal_metadata(("scale", 0, 0.01), ("scale", 1, 0.5), ("offset", 1, -40))
    tags.append((42113, "s", 0, "-32768", True))
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig", extratags=tags)
    raw = read_image(path)
    expected = np.stack([stored[..., 0] * 0.01, stored[..., 1] * 0.5 - 40])
    assert raw.values.dtype == np.float32
    np.testing.assert_allclose(raw.values, expected, rtol=1e-6)
    assert np.argwhere(~raw.valid).tolist() == [[3, 4]], "nodata is of the stored numbers"
    np.testing.assert_allclose(read_image(path, bands=(1,)).values, expected[1:], rtol=1e-6)
    np.testing.assert_allclose(read_image_window(path, WINDOW).values, expected[:, *WINDOW.slices], rtol=1e-6)
    given = read_image(path, scale=0.1, offset=3)
    np.testing.assert_allclose(given.values, np.moveaxis(stored, -1, 0) * 0.1 + 3, rtol=1e-5)


def test_pngs_beyond_pillows_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # in place of 89 million
    Image.fromarray((DN % 256).astype(np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").values.shape == read_shape(tmp_path / "a.png") == (1, 70, 90)
    assert Image.MAX_IMAGE_PIXELS == 1000, "others' limit stays"


def test_an_axis_of_one_at_the_end_is_not_guessed(tmp_path: Path) -> None:
    column = RNG.normal(size=(2, 300, 1)).astype(np.float32)
    np.save(tmp_path / "a.npy", column)
    with pytest.raises(InputError, match=r"(?s)which axis.*\(2, 300, 1\).*band_axis: first"):
        read_image(tmp_path / "a.npy")
    assert read_image(tmp_path / "a.npy", band_axis="first").values.shape == (2, 300, 1)


def test_transparent_labels_are_ignored(tmp_path: Path) -> None:
    water = DN % 2 == 1
    colors = np.zeros((70, 90, 4), np.uint8)
    colors[water, 2], colors[..., 3] = 255, np.where(SEEN, 255, 0)
    Image.fromarray(colors).save(tmp_path / "rgba.png")
    table = label_table(("land", "water"), palette={"land": (0, 0, 0), "water": (0, 0, 255)})
    expected = np.where(SEEN, water, 255)
    assert np.array_equal(read_label(tmp_path / "rgba.png", table), expected)
    Image.fromarray(np.dstack([water.astype(np.uint8), colors[..., 3]]), "LA").save(tmp_path / "la.png")
    assert np.array_equal(read_label(tmp_path / "la.png", label_table(("land", "water"))), expected)
    write_with_mask(tmp_path / "mask.tif", SEEN, water.astype(np.uint8))
    assert np.array_equal(read_label(tmp_path / "mask.tif", label_table(("land", "water"))), expected)


def test_how_a_colour_table_is_drawn_takes_no_label_away(tmp_path: Path) -> None:
    water = (DN % 2).astype(np.uint8)
    paletted = Image.fromarray(water)
    paletted.putpalette([0, 0, 0, 0, 0, 255])
    paletted.save(tmp_path / "p.png", transparency=0)
    assert np.array_equal(read_label(tmp_path / "p.png", label_table(("land", "water"))), water)


def test_a_labels_nodata_value_is_ignored_unless_it_is_a_class(tmp_path: Path) -> None:
    water = (DN % 2).astype(np.int16)
    for nodata, expected in ((-9999, np.where(SEEN, water, 255)), (0, water)):
        stored = np.where(SEEN, water, -9999) if nodata else water
        tags = [(42113, "s", 0, str(nodata), True)]
        tifffile.imwrite(tmp_path / "a.tif", stored.astype(np.int16), extratags=tags)
        assert np.array_equal(read_label(tmp_path / "a.tif", label_table(("land", "water"))), expected)
