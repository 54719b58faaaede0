"""Which array of an HDF5 file is the image: known layouts by themselves, any other by name; its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sar_files

from crossearth_sar.data.files.readers import read_image, read_pixel_m, read_place, read_shape
from crossearth_sar.data.files.windows import Window, block_rows, read_image_window
from crossearth_sar.errors import InputError

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)
I_AND_Q = RNG.integers(-90, 90, (2, 60, 50)).astype(np.int16)
COMPLEX = I_AND_Q[0] + 1j * I_AND_Q[1].astype(np.float32)
WINDOW = Window(3, 11, 40, 30)


def require_reads_as(path: Path, values: np.ndarray, array_key: str | None = None) -> None:
    raw = read_image(path, array_key=array_key)
    assert np.array_equal(raw.values, values)
    part = read_image_window(path, WINDOW, array_key=array_key)
    assert np.array_equal(part.values, values[:, *WINDOW.slices])
    assert read_shape(path, array_key=array_key) == values.shape


def test_iceye(tmp_path: Path) -> None:
    sar_files.iceye(tmp_path / "slc.h5", I_AND_Q)
    require_reads_as(tmp_path / "slc.h5", COMPLEX[None])
    with h5py.File(tmp_path / "grd.h5", "w") as file:
        file["s_amplitude"] = np.abs(I_AND_Q[0])
        file["gcps"] = np.zeros((9, 5))
    require_reads_as(tmp_path / "grd.h5", np.abs(I_AND_Q[:1]))


def test_cosmo_skymed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scs.h5", "w") as file:
        file["S01/SBI"] = np.moveaxis(I_AND_Q, 0, -1)
        file["S01/B001/azimuth"] = np.zeros((3, 4))
        file["QLK"] = np.zeros((20, 20), np.uint8)
    raw = read_image(tmp_path / "scs.h5")
    assert np.array_equal(raw.values, COMPLEX[None])
    assert np.array_equal(
        read_image_window(tmp_path / "scs.h5", WINDOW).values, COMPLEX[None, *WINDOW.slices]
    )
    with h5py.File(tmp_path / "dgm.h5", "w") as file:
        file["MBI"] = np.abs(I_AND_Q[0])
        file["QLK"] = np.zeros((20, 20), np.uint8)
    require_reads_as(tmp_path / "dgm.h5", np.abs(I_AND_Q[:1]))


@pytest.mark.parametrize("kind", ["f2", "f4", "i2"])
def test_complex_numbers_as_pairs(kind: str, tmp_path: Path) -> None:
    """NISAR's GSLC, whose numbers may be of two half floats."""
    stored = np.empty((60, 50), [("r", kind), ("i", kind)])
    stored["r"], stored["i"] = I_AND_Q
    with h5py.File(tmp_path / "gslc.h5", "w") as file:
        group = file.create_group("science/LSAR/GSLC/grids/frequencyA")
        group.create_dataset("HH", data=stored, chunks=(16, 50))
        group.create_dataset("HV", data=stored[::-1], chunks=(16, 50))
    require_reads_as(tmp_path / "gslc.h5", np.stack([COMPLEX, COMPLEX[::-1]]))
    assert block_rows(tmp_path / "gslc.h5") == 16


def test_any_other_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "one.nc", "w") as file:
        file["data/VV"] = COMPLEX.astype(np.complex64)
        file["data/x"] = np.arange(50.0)
    require_reads_as(tmp_path / "one.nc", COMPLEX[None].astype(np.complex64))
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a/x"], file["b/x"] = I_AND_Q
        file["cube"] = RNG.normal(size=(2, 60, 50))
        file["small"] = np.zeros((5, 6))
    with pytest.raises(InputError, match=r"(?s)holds 4 arrays.*a/x, b/x, cube.*array_key: '\{HHHH,HVHV\}'"):
        read_image(tmp_path / "two.h5")
    with pytest.raises(InputError, match=r"(?s)several arrays 'x'.*a/x, b/x"):
        read_image(tmp_path / "two.h5", array_key="x")
    require_reads_as(tmp_path / "two.h5", I_AND_Q, "{a/x,b/x}")
    with pytest.raises(InputError, match=r"(?s)no bands of one image.*\(5, 6\)"):
        read_image(tmp_path / "two.h5", array_key="{a/x,small}")
    cube = read_image(tmp_path / "two.h5", array_key="cube")
    part = read_image_window(tmp_path / "two.h5", WINDOW, array_key="cube")
    assert np.array_equal(part.values, cube.values[:, *WINDOW.slices])
    assert block_rows(tmp_path / "two.h5", array_key="cube") is None


def test_fill_value_scale_and_offset(tmp_path: Path) -> None:
    stored = np.abs(I_AND_Q[0])
    stored[:4] = -999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["sigma0"] = stored
        file["sigma0"].attrs.update({"_FillValue": np.int16(-999), "scale_factor": 0.5, "add_offset": [1.0]})
    raw = read_image(tmp_path / "a.h5")
    assert np.array_equal(raw.valid[:, 0], np.arange(60) >= 4)
    assert np.allclose(raw.values[0, 4:], stored[4:] * 0.5 + 1)


def test_where_it_lies(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "degrees.nc", "w") as file:
        file["sigma0"] = np.abs(I_AND_Q[0])
        file["lat"] = 60.0 - 0.001 * (np.arange(60) + 0.5)
        file["lon"] = 20.0 + 0.002 * (np.arange(50) + 0.5)
    place = read_place(tmp_path / "degrees.nc")
    assert place is not None
    assert place.system == "EPSG:4326"
    assert np.allclose(place.matrix, ((0.002, 0, 20), (0, -0.001, 60)))
    assert read_pixel_m(tmp_path / "degrees.nc") == pytest.approx(111.3, rel=0.01)  # twice the half of both
    sar_files.nisar_gcov(tmp_path, "g.h5")
    assert read_pixel_m(tmp_path / "g.h5") == sar_files.STEP
    with h5py.File(tmp_path / "g.h5", "a") as file:
        for axis in "xy":
            del file[f"science/LSAR/GCOV/grids/frequencyA/{axis}Coordinates"].attrs["units"]
    assert read_pixel_m(tmp_path / "g.h5") is None, "of what unit nobody says"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    sar_files.nisar_gcov(tmp_path, "g.h5")
    data = (tmp_path / "g.h5").read_bytes()
    (tmp_path / "g.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"(?s)cannot read .*g\.h5.*get it anew"):
        read_image(tmp_path / "g.h5")
