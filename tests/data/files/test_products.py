"""Files of sensors and of other software give the numbers that were written, whole and in windows."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sar_files
import tifffile

from crossearth_sar.data.files import on_disk, raster
from crossearth_sar.data.files.names import image_path, members
from crossearth_sar.data.files.on_disk import ImageOnDisk, open_image
from crossearth_sar.data.files.readers import RawImage, read_image, read_pixel_m, read_place, read_shape
from crossearth_sar.data.files.windows import Window, block_rows, read_image_window
from crossearth_sar.errors import InputError

WINDOW = Window(3, 11, 40, 30)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of sarkit, about importlib
    pytest.mark.filterwarnings("ignore:.*SCHEMASV"),  # the SICD written here has only what is read
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
]
SAFE = "S1A_IW_GRDH_1SDV_20260101T000000.SAFE"


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


def require_reads_as(path: Path, values: np.ndarray, **how: str) -> RawImage:
    """Whole, in a window and row by row from disk it is `values`, measured where they are finite."""
    raw = read_image(path, **how)
    assert read_shape(path, array_key=how.get("array_key")) == values.shape
    assert np.array_equal(raw.values, values, equal_nan=True)
    assert np.array_equal(raw.valid, np.isfinite(values).all(0))
    part = read_image_window(path, WINDOW, **how)
    assert np.array_equal(part.values, values[:, *WINDOW.slices], equal_nan=True)
    assert np.array_equal(part.valid, raw.valid[WINDOW.slices])
    assert read_pixel_m(path, array_key=how.get("array_key")) == raw.pixel_m == part.pixel_m
    return raw


@pytest.fixture
def on_disk_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "WHOLE_BELOW", 1)
    monkeypatch.setattr(on_disk, "BLOCK_PIXELS", 1)


CASES: dict[str, tuple[tuple[str, ...], Callable[[Path], np.ndarray], str, float | None]] = {
    "vrt": (("rasterio",), sar_files.vrt, "scene.vrt", sar_files.STEP),
    "envi": (("rasterio",), sar_files.envi_c3, "C3/{C11,C22,C33}.bin", None),
    "safe": (("rasterio",), sar_files.safe, SAFE, 10.0),
    "nisar": (("h5py",), sar_files.nisar_gcov, "NISAR_L2_GCOV.h5", sar_files.STEP),
    "sicd": (("sarkit",), sar_files.sicd, "scene.ntf", 4.0),  # 2 m over the sine of 30 degrees, 4 m
    "pair": ((), sar_files.pair, "a_{vv,vh}.tif", None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("on_disk_at_once")
def test_what_was_written_is_read(case: str, tmp_path: Path) -> None:
    packages, write, name, metres = CASES[case]
    needs(*packages)
    values = write(tmp_path)
    raw = require_reads_as(tmp_path / name, values)
    assert raw.pixel_m == pytest.approx(metres)
    scene = open_image(tmp_path / name)
    assert isinstance(scene, ImageOnDisk), "windows are read, not the whole"
    rows = [scene.rows(slice(top, min(top + 7, 60))) for top in range(0, 60, 7)]
    assert np.array_equal(np.concatenate([values for values, _ in rows], 1), values, equal_nan=True)


def test_a_zipped_safe_folder(tmp_path: Path) -> None:
    needs("rasterio")
    values = sar_files.safe(tmp_path)
    path = sar_files.zipped(tmp_path / SAFE)
    assert require_reads_as(path, values).pixel_m == 10
    assert [file.name.split("-")[3] for file in members(path)] == ["vv", "vh"]


def test_slant_range_becomes_ground_range(tmp_path: Path) -> None:
    needs("rasterio")
    sar_files.safe(tmp_path)
    for file in (tmp_path / SAFE / "annotation").glob("*.xml"):
        file.write_text(file.read_text().replace("Ground Range", "Slant Range").replace(">39.1<", ">30.0<"))
    assert read_pixel_m(tmp_path / SAFE) == pytest.approx((20 * 10) ** 0.5)


def test_swaths_are_not_one_image(tmp_path: Path) -> None:
    needs("rasterio")
    sar_files.safe(tmp_path)
    folder = tmp_path / SAFE / "measurement"
    one = next(folder.glob("*-vv-*"))
    one.rename(folder / one.name.replace("-iw-", "-iw1-"))
    with pytest.raises(InputError, match=r"(?s)SAFE is not read as one image.*iw, iw1.*Deburst"):
        read_image(tmp_path / SAFE)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"(?s)no measurement file.*unpack"):
        read_image(tmp_path / SAFE)


def test_places_of_files(tmp_path: Path) -> None:
    needs("rasterio", "h5py")
    sar_files.vrt(tmp_path)
    sar_files.nisar_gcov(tmp_path)
    tagged = read_place(tmp_path / "scene-part.tif")
    assert tagged is not None
    assert read_place(tmp_path / "scene.vrt") == tagged, "of rasterio and of our own reading of the tags"
    found = read_place(tmp_path / "NISAR_L2_GCOV.h5")
    assert found is not None
    assert found.system == tagged.system
    assert np.allclose(found.matrix, tagged.matrix)


def vrt_of_bands(*bands: str) -> str:
    """Of a.img: for each band what else its element holds."""
    elements = (
        f'<VRTRasterBand dataType="UInt16" band="{i}">{more}<SimpleSource><SourceFilename relativeToVRT="1">'
        f"a.img</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i, more in enumerate(bands, 1)
    )
    return f'<VRTDataset rasterXSize="50" rasterYSize="60">{"".join(elements)}</VRTDataset>'


@pytest.fixture
def two_bands(tmp_path: Path) -> np.ndarray:
    """Of a.img, each with a number of its own where nothing is."""
    rasterio = pytest.importorskip("rasterio")
    values = sar_files.amplitudes(2) + np.uint16(100)
    values[0, :4], values[1, 8:12] = 7, 9
    size = {"count": 2, "height": 60, "width": 50}
    with rasterio.open(tmp_path / "a.img", "w", driver="HFA", dtype="uint16", **size) as file:
        file.write(values)
    return values


def test_scale_offset_and_nodata_of_each_band(tmp_path: Path, two_bands: np.ndarray) -> None:
    more = "<NoDataValue>{}</NoDataValue><Scale>0.5</Scale><Offset>{}</Offset>"
    (tmp_path / "a.vrt").write_text(vrt_of_bands(more.format(7, 1), more.format(9, 2)))
    raw = read_image(tmp_path / "a.vrt")
    assert np.array_equal(raw.values, two_bands * 0.5 + np.array([1, 2])[:, None, None])
    assert np.array_equal(raw.valid, (two_bands[0] != 7) & (two_bands[1] != 9))
    one = read_image(tmp_path / "a.vrt", bands=(1,))
    assert np.array_equal(one.valid, two_bands[1] != 9)
    given = read_image(tmp_path / "a.vrt", bands=(0,), scale=2.0, offset=0.0)
    assert np.array_equal(given.values[0], two_bands[0] * 2.0)


def test_a_pixel_is_measured_where_any_band_is(tmp_path: Path, two_bands: np.ndarray) -> None:
    (tmp_path / "a.vrt").write_text(
        vrt_of_bands("<NoDataValue>7</NoDataValue>", "<NoDataValue>9</NoDataValue>")
    )
    raw = read_image(tmp_path / "a.vrt", valid="any")
    assert raw.valid.all()
    assert np.array_equal(raw.values[0], np.where(two_bands[0] == 7, two_bands[1], two_bands[0]))
    assert np.array_equal(raw.values[1], np.where(two_bands[1] == 9, two_bands[0], two_bands[1]))
    part = read_image_window(tmp_path / "a.vrt", WINDOW, valid="any")
    assert np.array_equal(part.values, raw.values[:, *WINDOW.slices])


def test_alpha_of_gdal_is_no_band(tmp_path: Path, two_bands: np.ndarray) -> None:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "a.img", "r+") as file:
        file.write(np.where(np.arange(50) < 20, 0, 65535)[None].repeat(60, 0).astype(np.uint16), 2)
    (tmp_path / "a.vrt").write_text(vrt_of_bands("", "<ColorInterp>Alpha</ColorInterp>"))
    raw = read_image(tmp_path / "a.vrt")
    assert read_shape(tmp_path / "a.vrt") == raw.values.shape == (1, 60, 50)
    assert np.array_equal(raw.values[0], two_bands[0])
    assert np.array_equal(raw.valid, np.broadcast_to(np.arange(50) >= 20, (60, 50)))


def test_a_file_of_several_images(tmp_path: Path) -> None:
    """NetCDF of the older kind, which GDAL reads."""
    needs("rasterio")
    from scipy.io import netcdf_file

    values = sar_files.amplitudes(2).astype(np.float32)
    for name, has_coordinates in (("b.nc", False), ("a.nc", True)):
        with netcdf_file(tmp_path / name, "w") as file:
            for axis, start, step, count in (("lat", 41.5, -1e-4, 60), ("lon", 14.9, 1e-4, 50)):
                file.createDimension(axis, count)
                if has_coordinates:
                    coordinates = file.createVariable(axis, "f8", (axis,))
                    coordinates[:] = start + step * (np.arange(count) + 0.5)
            for polarization, band in zip(("vv", "vh"), values, strict=True):
                file.createVariable(polarization, "f4", ("lat", "lon"))[:] = band
        require_reads_as(tmp_path / name, values[1:], array_key="vh")
    with pytest.raises(InputError, match=r"(?s)holds 2 images.*vv, vh.*array_key"):
        read_image(tmp_path / "a.nc")
    with pytest.raises(InputError, match=r"(?s)no image 'vx' \(did you mean 'v.'\?\).*vv, vh"):
        read_image(tmp_path / "a.nc", array_key="vx")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that gives parts of files, and counts what it gave."""

    given = 0

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else len(data)]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        type(self).given += len(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{found.server_port}"
        found.shutdown()


def test_files_that_are_elsewhere(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("rasterio")
    for key, value in {
        "AWS_S3_ENDPOINT": server, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    values = np.random.default_rng(0).integers(1, 60000, (1500, 1000), dtype=np.uint16)
    (tmp_path / "bucket").mkdir()
    tifffile.imwrite(tmp_path / "bucket" / "a.tif", values, tile=(64, 64), photometric="minisblack")
    for address in (f"http://{server}/bucket/a.tif", "s3://bucket/a.tif"):
        path = image_path(address)
        Ranges.given = 0
        part = read_image_window(path, WINDOW)
        assert np.array_equal(part.values[0], values[WINDOW.slices]), address
        assert Ranges.given < values.nbytes / 2, "the window, not the file"
    assert block_rows(image_path(f"http://{server}/bucket/a.tif")) == 64
    with pytest.raises(InputError, match=r"(?s)cannot read /vsicurl/.*none\.tif.*correct the address"):
        read_image(image_path(f"http://{server}/bucket/none.tif"))
    with pytest.raises(InputError, match=r"(?s)ftp://.*https://, s3://"):
        image_path("ftp://a/b.tif")


def test_files_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("rasterio")
    monkeypatch.chdir(tmp_path)
    values = sar_files.pair(tmp_path / "in")
    sar_files.zipped(tmp_path / "in")
    for name in (f"/vsizip/{tmp_path}/in.zip/in/a_vv.tif", "/vsizip/in.zip/in/a_vv.tif"):
        assert np.array_equal(read_image(image_path(name)).values[0], values[0])


@pytest.mark.parametrize(("name", "extra"), [("a.vrt", "geo"), ("a.h5", "hdf"), ("a.ntf", "sicd")])
def test_a_missing_package_is_named_with_its_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"a.vrt": b"<VRTDataset/>", "a.h5": b"\x89HDF\r\n\x1a\n", "a.ntf": b"NITF urn:SICD:1.4.0"}
    (tmp_path / name).write_bytes(content[name])
    monkeypatch.setattr(raster.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"(?s)not installed.*crossearth-sar\[{extra}\]"):
        read_image(tmp_path / name)


def test_a_raw_file_without_its_header_says_so(tmp_path: Path) -> None:
    needs("rasterio")
    sar_files.envi_c3(tmp_path)
    (tmp_path / "C3" / "C22.bin.hdr").unlink()
    with pytest.raises(InputError, match=r"(?s)C22\.bin.*C22\.bin\.hdr: fetch it"):
        read_image(tmp_path / "C3/{C11,C22}.bin")


def test_a_raw_file_that_is_cut_short(tmp_path: Path) -> None:
    needs("rasterio")
    sar_files.envi_c3(tmp_path)
    data = (tmp_path / "C3" / "C11.bin").read_bytes()
    (tmp_path / "C3" / "C11.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"(?s)C11\.bin: it is cut short.*6000 bytes.*12000"):
        read_image(tmp_path / "C3" / "C11.bin")


@pytest.mark.parametrize("pixel_type", ["RE16I_IM16I"])
def test_a_sicd_of_integers(pixel_type: str, tmp_path: Path) -> None:
    needs("sarkit")
    values = sar_files.sicd(tmp_path, pixel_type)
    raw = require_reads_as(tmp_path / "scene.ntf", values)
    assert raw.values.dtype == np.complex64
