"""Opening an image starts no program, and a small file cannot claim the machine's memory."""

from __future__ import annotations

import io
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from arrays import GREY
from PIL import Image

from crossearth_sar.data.files import bounds
from crossearth_sar.data.files.readers import read_image, read_label_parts, read_shape
from crossearth_sar.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_postscript_by_the_name_of_a_picture_is_refused_unopened(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_program(*arguments: object, **how: object) -> None:
        raise AssertionError(f"a program is started: {arguments}")

    monkeypatch.setattr(subprocess, "check_call", no_program)
    monkeypatch.setattr(subprocess, "Popen", no_program)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(EPS)
    for read in (read_shape, read_image, read_label_parts):
        with pytest.raises(InputError, match="cannot identify image file"):
            read(path)


def test_every_picture_is_opened_with_the_formats_that_are_meant() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in ("crossearth_sar", "bench", "train", "examples")
        for path in (ROOT / room).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "Image.open(" in line and "formats=" not in line
    ]
    assert not bare, f"without formats= pillow hands PostScript to Ghostscript: {bare}"


def png(side: int) -> bytes:
    """All zeros, as small as a PNG gets."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def npz(side: int) -> bytes:
    """A header that promises side x side bytes, without them."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (side, side)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    return file.getvalue()


def one_strip(side: int) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((side, side), np.uint8), compression="zstd", rowsperstrip=side)
    return file.getvalue()


@pytest.mark.parametrize(("make", "suffix"), [(png, ".png"), (npz, ".npz"), (one_strip, ".tif")])
def test_pixels_out_of_proportion_to_the_file_are_refused_with_the_setting(
    make: Callable[[int], bytes], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "FREE_BYTES", 1 << 20)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make(4000))
    assert bounds.EXPANSION * path.stat().st_size < 16_000_000, "the file is small enough for this test"
    words = rf"(?s)16\.0 MB of pixels in {path.stat().st_size} bytes.*1100 times.*{bounds.VARIABLE}"
    with pytest.raises(InputError, match=words):
        read_image(path)
    monkeypatch.setenv(bounds.VARIABLE, "1e9")
    if suffix == ".npz":  # whose pixels are not there
        with pytest.raises(InputError, match="damaged or cut short"):
            read_image(path)
    else:
        assert read_image(path).values.shape == (1, 4000, 4000)


def test_the_bound_is_a_number_above_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "a.png")
    for text in ("many", "-1", "nan", "0"):
        monkeypatch.setenv(bounds.VARIABLE, text)
        with pytest.raises(InputError, match=rf"(?s){bounds.VARIABLE}.*{text}"):
            read_image(tmp_path / "a.png")


def test_what_is_larger_than_the_machines_memory_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", GREY)
    monkeypatch.setattr(bounds, "memory_bytes", lambda: GREY.nbytes - 1)
    assert read_shape(tmp_path / "a.npy")[1:] == GREY.shape
    with pytest.raises(InputError, match=r"(?s)more than the memory of this machine"):
        read_image(tmp_path / "a.npy")


def test_hdf5_without_its_chunks_and_a_vrt_of_nothing(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("rasterio")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (1 << 20, 1 << 20), np.uint8, chunks=(64, 64))
    side = 1 << 21
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><VRTRasterBand dataType="Byte" band="1"/>'
        "</VRTDataset>"
    )
    for name in ("a.h5", "a.vrt"):
        with pytest.raises(InputError, match=r"a small file and much memory|memory of this machine"):
            read_image(tmp_path / name)
