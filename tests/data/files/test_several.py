"""Several files as one image: their order, what is missing in one of them, what does not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sar_files
import tifffile
from PIL import Image

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.files.names import is_image, matching, plain_name
from crossearth_sar.data.files.readers import read_image, read_shape
from crossearth_sar.data.files.windows import Window, read_image_window
from crossearth_sar.errors import InputError


def test_bands_come_in_the_order_of_the_braces(tmp_path: Path) -> None:
    vv, vh = sar_files.pair(tmp_path)
    for braces, expected in (("vv,vh", (vv, vh)), ("vh,vv", (vh, vv))):
        assert np.array_equal(read_image(tmp_path / f"a_{{{braces}}}.tif").values, expected)
    assert np.array_equal(read_image(tmp_path / "a_{vv,vh}.tif", bands=(1,)).values, vh[None])


def test_a_file_whose_own_name_has_braces_is_itself(tmp_path: Path) -> None:
    values = sar_files.amplitudes(1)
    tifffile.imwrite(tmp_path / "{1,2}.tif", values[0], photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "{1,2}.tif").values, values)


def test_what_one_file_lacks_is_its_own(tmp_path: Path) -> None:
    values = sar_files.amplitudes(2).astype(np.float32)
    values[0, :5], values[1, 10:15] = -1, -2
    values[1, 20:25] = -1  # of the other file, and here a number like any
    for name, band, nodata in zip("ab", values, ("-1", "-2"), strict=True):
        tags = [(42113, "s", 0, nodata, True)]
        tifffile.imwrite(tmp_path / f"{name}.tif", band, extratags=tags, photometric="minisblack")
    path, missing = tmp_path / "{a,b}.tif", np.zeros((60, 50), bool)
    missing[:5] = missing[10:15] = True
    assert np.array_equal(read_image(path).valid, ~missing)
    lent = read_image(path, valid="any")
    assert lent.valid.all()
    assert np.array_equal(lent.values[:, :5], values[[1, 1], :5])
    assert np.array_equal(lent.values[:, 10:15], values[[0, 0], 10:15])
    part = read_image_window(path, Window(3, 3, 9, 9), valid="any")
    assert np.array_equal(part.values, lent.values[:, 3:12, 3:12])


def test_files_that_are_no_one_image(tmp_path: Path) -> None:
    sar_files.pair(tmp_path)
    np.save(tmp_path / "a_hh.npy", np.ones((60, 51), np.float32))
    np.save(tmp_path / "a_vv.npy", np.ones((60, 50), np.float32))
    np.save(tmp_path / "a_cube.npy", np.ones((2, 60, 50), np.float32))
    for name, words in {
        "a_{vv,hh}.npy": r"differ in size.*60 x 50 and 60 x 51",
        "a_{vv,cube}.npy": r"which axis of .*a_cube\.npy",
        "a_{vv,hv}.tif": r"cannot read .*a_hv\.tif.*no such file",
        "a_{vv}.tif": r"braces that name no files of one image.*\{vv\}.*\{vv,vh\}",
    }.items():
        with pytest.raises(InputError, match=f"(?s){words}"):
            read_image(tmp_path / name)


def test_files_of_other_places_are_refused(tmp_path: Path) -> None:
    for name, x in (("a", 0.0), ("b", 500.0)):
        tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, x, 0, 0), True)]
        tifffile.imwrite(
            tmp_path / f"{name}.tif", sar_files.amplitudes(1)[0], extratags=tags, photometric="minisblack"
        )
    with pytest.raises(InputError, match="image and second file lie in different places"):
        read_image(tmp_path / "{a,b}.tif")


def test_names() -> None:
    assert plain_name(Path("x/a_{vv,vh}.tif")) == "a_vv_vh"
    assert plain_name(Path("S1A_X.SAFE")) == plain_name(Path("S1A_X.SAFE.zip")) == "S1A_X"
    assert plain_name(Path("S1A_X.zip")) == "S1A_X"
    assert plain_name(Path("a.b.tif")) == "a.b"
    with pytest.raises(InputError, match="braces beside"):
        matching("**/{a,b}.tif", lambda pattern: [pattern.replace("**", "x/y")])


CONFIG: dict[str, Any] = {"values": "amplitude", "classes": ["a", "b"], "labels": "labels/*.png"}


def folder(root: Path, **changes: Any) -> FolderScenes:
    return FolderScenes(from_mapping(FolderConfig, {"root": str(root), **CONFIG, **changes}))


def write_labels(root: Path, *names: str) -> None:
    (root / "labels").mkdir()
    for i, name in enumerate(names):
        label = np.full((60, 50), i % 2, np.uint8)
        label[:, 25:] = 1 - i % 2
        Image.fromarray(label).save(root / "labels" / f"{name}.png")


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    values = sar_files.pair(tmp_path / "s1", "a")
    sar_files.pair(tmp_path / "s1", "b")
    write_labels(tmp_path, "a", "b")
    scenes = folder(tmp_path, images="./s1/*_{vv,vh}.tif")
    assert [scenes[i]["name"] for i in range(2)] == ["a_vv_vh", "b_vv_vh"]
    assert np.array_equal(scenes[0]["image"], values)
    assert [int(scenes[i]["mask"][0, 0]) for i in range(2)] == [0, 1]
    assert [Path(file).name for file in scenes.origin(0)[0]] == ["a_vv.tif", "a_vh.tif"]
    (tmp_path / "s1" / "b_vh.tif").unlink()
    with pytest.raises(InputError, match=r"(?s)lack files that its braces name.*no s1/b_vh\.tif"):
        folder(tmp_path, images="s1/*_{vv,vh}.tif")


def test_an_index_of_pairs(tmp_path: Path) -> None:
    values = sar_files.pair(tmp_path / "s1", "a")
    write_labels(tmp_path, "a")
    (tmp_path / "index.csv").write_text('image,label\n"s1/a_{vv,vh}.tif",labels/a.png\n')
    assert np.array_equal(folder(tmp_path, index="index.csv", labels=None)[0]["image"], values)
    (tmp_path / "s1" / "a_vh.tif").unlink()
    with pytest.raises(InputError, match=r"(?s)image .*a_vh\.tif does not exist"):
        folder(tmp_path, index="index.csv", labels=None)


def test_a_folder_of_safe_products(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    values = sar_files.safe(tmp_path / "in", "S1A_1.SAFE")
    write_labels(tmp_path, "S1A_1")
    scenes = folder(tmp_path, images="in/*.SAFE")
    assert np.array_equal(scenes[0]["image"], values)
    assert scenes[0]["pixel_m"] == 10
    assert scenes[0]["name"] == "S1A_1"
    assert is_image(tmp_path / "in" / "S1A_1.SAFE")


def test_arrays_of_hdf5_by_their_names(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "in").mkdir()
    values = sar_files.nisar_gcov(tmp_path / "in", "g.h5")
    write_labels(tmp_path, "g")
    how = {"images": "in/*.h5", "values": "intensity"}
    chosen = folder(tmp_path, array_key="{HVHV,HHHH}", **how)[0]["image"]
    assert np.allclose(chosen[:, 5:], np.sqrt(values[::-1, 5:]))
    with pytest.raises(InputError, match=r"(?s)no array 'HHHV' \(did you mean 'HHHH'.*frequencyA/HHHH"):
        read_image(tmp_path / "in" / "g.h5", array_key="HHHV")


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_i_and_q_as_two_bands(dtype: str, tmp_path: Path) -> None:
    parts = np.random.default_rng(0).normal(size=(2, 60, 50)) * 40
    parts = np.round(parts).astype(dtype)
    parts[0, 30, 20] = 0  # a measurement: Q is not 0
    parts[:, :3] = 0
    parts[1, 30, 20] = 7
    for name, band in zip(("i", "q"), parts, strict=True):
        np.save(tmp_path / f"a_{name}.npy", band)
    tifffile.imwrite(tmp_path / "a.tif", parts, photometric="minisblack", planarconfig="separate")
    write_labels(tmp_path, "a")
    amplitude = np.hypot(*parts.astype(np.float64))
    for name in ("a_{i,q}.npy", "a.tif"):
        raw = read_image(tmp_path / name, complex_bands=True, nodata=0.0)
        assert raw.values.shape == (1, 60, 50)
        assert np.allclose(np.abs(raw.values[0]), amplitude)
        assert np.array_equal(raw.valid, amplitude > 0), "0 alone in I is a measurement"
        scaled = read_image(tmp_path / name, complex_bands=True, scale=0.5)
        assert np.allclose(scaled.values, raw.values * 0.5)
        assert read_shape(tmp_path / name) == (2, 60, 50)
    scenes = folder(tmp_path, images="*.tif", values="complex_bands", nodata=0)
    assert np.allclose(scenes[0]["image"][0, 3:], amplitude[3:], rtol=1e-5)
    with pytest.raises(InputError, match=r"(?s)no pairs of I and Q.*1 bands"):
        read_image(tmp_path / "a_i.npy", complex_bands=True)
