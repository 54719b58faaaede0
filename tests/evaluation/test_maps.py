"""Maps as files: read by others as they are meant, whole or absent, and going on from finished rows."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

from crossearth_sar import InputError
from crossearth_sar.cli.map_names import has_rasterio
from crossearth_sar.data.files.readers import RawImage, read_bands, read_shape
from crossearth_sar.data.sample import ClassTable
from crossearth_sar.evaluation.maps.files import is_whole, write_class_map, write_percents
from crossearth_sar.evaluation.maps.page import write_page
from crossearth_sar.evaluation.maps.quicklook import QuickLook, colored, quick_look, write_quick_look
from crossearth_sar.evaluation.maps.strip_store import StripStore
from crossearth_sar.evaluation.maps.vectors import write_polygons
from crossearth_sar.evaluation.scene import Scene
from crossearth_sar.whole import NotWritten, aside

CLASSES = ClassTable(names=("sea", "land & <b>", "ice"), palette=((0, 0, 200), (90, 60, 0), (255, 255, 255)))


def blotches(height: int, width: int) -> np.ndarray:
    """Patches of three classes, some within others, and 255 along a side."""
    y, x = np.mgrid[:height, :width]
    classes = ((np.sin(x / 9) + np.cos(y / 7)) > 0).astype(np.uint8)
    classes[(x - width // 2) ** 2 + (y - height // 2) ** 2 < 90] = 2
    classes[5:20, 20:50] = 1
    classes[10:15, 30:40] = 0  # a hole
    classes[:, :5] = 255
    return classes


def geotiff(path: Path, height: int, width: int, **place: object) -> Path:
    rasterio = pytest.importorskip("rasterio", reason="georeferenced maps")
    rpcs = place.pop("rpcs", None)
    size = {"height": height, "width": width, "count": 1, "dtype": "float32"}
    with rasterio.open(path, "w", **size, **place) as file:
        file.write(np.ones((height, width), np.float32), 1)
        if rpcs is not None:
            file.rpcs = rpcs
    return path


def utm(rasterio: object) -> dict[str, object]:
    return {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -20, 4_600_000)}  # type: ignore[attr-defined]


def test_a_geotiff_is_cloud_optimised_and_knows_its_classes(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="georeferenced maps")
    image, classes = geotiff(tmp_path / "image.tif", 1100, 1300, **utm(rasterio)), blotches(1100, 1300)
    target = write_class_map(classes, tmp_path / "map.tif", CLASSES, like=image)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "image.tif", "map.qml", "map.tif", "map.tif.aux.xml",
    ]  # fmt: skip
    with rasterio.open(target) as got:
        assert got.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert got.overviews(1) == [2, 4]
        assert (got.nodata, got.descriptions) == (255, ("class",))
        assert got.colormap(1) == {i: (*color, 255) for i, color in enumerate(CLASSES.palette)}
        assert np.array_equal(got.read(1), classes)
        assert set(np.unique(got.read(1, out_shape=(275, 325)))) <= {0, 1, 2, 255}
    assert is_whole(target, (1100, 1300))
    names = ElementTree.parse(tmp_path / "map.tif.aux.xml").findall(".//Category")
    assert [name.text for name in names] == list(CLASSES.names)
    entries = ElementTree.parse(tmp_path / "map.qml").findall(".//paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        ("0", "#0000c8", "sea"), ("1", "#5a3c00", "land & <b>"), ("2", "#ffffff", "ice"),
    ]  # fmt: skip


def test_points_and_polynomials_are_carried_over(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="georeferenced maps")
    from rasterio.control import GroundControlPoint
    from rasterio.rpc import RPC

    points = [GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100) for r, c in ((0, 0), (0, 60), (40, 0))]
    offsets = {f"{axis}_{kind}": 1.5 for axis in ("height", "lat", "long", "line", "samp") for kind in
               ("off", "scale")}  # fmt: skip
    terms = {f"{axis}_{part}_coeff": [0.5] * 20 for axis in ("line", "samp") for part in ("num", "den")}
    places = {
        "gcps": geotiff(tmp_path / "a.tif", 40, 60, gcps=points, crs="EPSG:4326"),
        "rpcs": geotiff(tmp_path / "b.tif", 40, 60, rpcs=RPC(**offsets, **terms)),
    }
    for kind, image in places.items():
        target = write_class_map(blotches(40, 60), tmp_path / f"{kind}.tif", CLASSES, like=image)
        with rasterio.open(image) as source, rasterio.open(target) as got:
            if kind == "gcps":
                assert got.gcps[1].to_epsg() == 4326
                assert [(p.row, p.col, p.x, p.y) for p in got.gcps[0]] == [
                    (p.row, p.col, p.x, p.y) for p in points
                ]
            else:
                assert got.rpcs.to_dict() == source.rpcs.to_dict()


@pytest.mark.parametrize(("image", "world"), [("x.png", "x.pgw"), ("x.jpg", "x.jgw"), ("x.png", "x.wld")])
def test_world_files_are_carried_over(image: str, world: str, tmp_path: Path) -> None:
    six = "10.0\n0.0\n0.0\n-20.0\n500005.0\n4599990.0\n"
    for name, text in ((world, six), ("x.prj", "PROJCS[]"), ("x.txt", "no world"), ("y.pgw", "another's")):
        (tmp_path / name).write_text(text)
    target = tmp_path / "maps" / "x.png"
    write_class_map(blotches(40, 60), target, CLASSES, like=tmp_path / image)
    assert target.with_suffix(".pgw").read_text() == six
    assert sorted(p.name for p in target.parent.iterdir()) == ["x.pgw", "x.png", "x.prj"]


@pytest.mark.parametrize("simplify", [None, 25.0])
def test_polygons_have_the_area_of_the_map(simplify: float | None, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="georeferenced maps")
    raw = pytest.importorskip("pyogrio.raw", reason="polygons")
    classes, other = blotches(90, 120), np.full((20, 30), 255, np.uint8)
    one = write_class_map(
        classes, tmp_path / "a.tif", CLASSES, like=geotiff(tmp_path / "i.tif", 90, 120, **utm(rasterio))
    )
    two = write_class_map(other, tmp_path / "b.png", CLASSES)
    counts = write_polygons({"sub/a": one, "b": two}, tmp_path / "m.gpkg", CLASSES, simplify=simplify)
    about, _, outlines, (numbers, names, areas) = raw.read(tmp_path / "m.gpkg", layer="sub/a")
    assert list(about["fields"]) == ["class_number", "class_name", "area_m2"]
    assert about["geometry_type"] == "Polygon"
    assert rasterio.CRS.from_string(about["crs"]).to_epsg() == 32633
    assert len(numbers) == counts["sub/a"] > 4
    for index, name in enumerate(CLASSES.names):
        assert areas[numbers == index].sum() == pytest.approx(200 * (classes == index).sum(), rel=1e-12)
        assert set(names[numbers == index]) == {name}
    corners = sum(len(outline) for outline in outlines)
    assert counts["b"] == 0
    assert len(raw.read(tmp_path / "m.gpkg", layer="b")[2]) == 0
    if simplify is not None:
        write_polygons({"a": one}, tmp_path / "exact.gpkg", CLASSES)
        exact = raw.read(tmp_path / "exact.gpkg", layer="a")[2]
        assert corners < 0.6 * sum(len(outline) for outline in exact)


def test_polygons_in_degrees_or_pixels_have_no_area_in_metres(tmp_path: Path) -> None:
    raw = pytest.importorskip("pyogrio.raw", reason="polygons")
    target = write_class_map(blotches(40, 60), tmp_path / "x.png", CLASSES)
    write_polygons({"x": target}, tmp_path / "x.gpkg", CLASSES)
    assert np.isnan(raw.read(tmp_path / "x.gpkg")[3][2]).all()


class _Page(HTMLParser):
    """Sources of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action"):
                assert value is not None
                assert value.startswith("data:image/png;base64,")
                self.images.append(b64decode(value.partition(",")[2]))
        assert tag not in ("b", "script", "link"), "names of classes are text; nothing is loaded"

    def handle_data(self, data: str) -> None:
        self.words += data


def page(tmp_path: Path) -> Path:
    classes = blotches(90, 120)
    grey = np.linspace(0, 255, 90 * 120).reshape(90, 120).astype(np.uint8)
    counts = np.bincount(classes.ravel(), minlength=256)
    write_page(QuickLook(grey, classes), tmp_path / "x.html", "<b>s & 1.tif", CLASSES, counts)
    return tmp_path / "x.html"


def test_a_page_holds_all_it_shows(tmp_path: Path) -> None:
    text = page(tmp_path).read_text(encoding="utf-8")
    found = _Page(text)
    scene, colors = (Image.open(io.BytesIO(data)) for data in found.images)
    assert scene.size == colors.size == (120, 90)
    assert colors.getpixel((1, 1)) == (*colors.getpixel((1, 1))[:3], 0), "not measured: see-through"
    assert colors.getpixel((60, 45)) == (255, 255, 255, 255)
    assert "<b>s & 1.tif" in found.words
    assert "land & <b>" in found.words
    classes = blotches(90, 120)
    for share in ((classes == 0).mean(), (classes == 255).mean()):
        assert f"{share:.1%}" in found.words
    assert "not measured" in found.words
    assert not re.search(r"https?:|url\(|@import", text)
    assert {"color-scheme: light dark", "width=device-width", "default-src 'none'"} <= {
        words
        for words in ("color-scheme: light dark", "width=device-width", "default-src 'none'")
        if words in text
    }


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if (p := shutil.which(n))), None
)


@pytest.mark.slow
@pytest.mark.skipif("CROSSEARTH_SLOW" not in os.environ, reason="slow: CROSSEARTH_SLOW=1 runs it")
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_scene_and_map_side_by_side(width: int, tmp_path: Path) -> None:
    """Left of the middle grey, right of it colours of the classes."""
    picture = tmp_path / "seen.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},800",
        "--hide-scrollbars",
    ]
    assert CHROMIUM is not None
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={picture}", page(tmp_path).as_uri()], check=True, timeout=120
    )
    seen = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    sea = (np.abs(seen - CLASSES.palette[0]).max(-1) < 3).nonzero()[1]
    assert len(sea) > 100, "the map is there"
    grey = (np.ptp(seen, axis=-1) == 0) & (seen[..., 0] > 40) & (seen[..., 0] < 200)
    assert grey[:, : sea.min()].sum() > 100, "left of it is the scene"


def test_a_quick_look_is_small_and_true(tmp_path: Path) -> None:
    values = np.full((1, 900, 600), 1.0, np.float32)
    values[:, :, 300:] = 10
    values[:, :, :6] = np.nan
    classes = np.where(values[0] > 5, 1, 0).astype(np.uint8)
    classes[:, :6] = 255
    scene = Scene(RawImage(values, np.isfinite(values[0]), Path("x")), "amplitude")
    look = quick_look(scene, classes, longest=300)
    assert look.grey.shape == look.classes.shape == (300, 200)
    assert np.array_equal(look.classes, np.repeat([[255] * 2 + [0] * 98 + [1] * 100], 300, axis=0))
    assert set(np.unique(look.grey[:, 2:100])) == {0}
    assert set(np.unique(look.grey[:, 100:])) == {255}
    with Image.open(write_quick_look(look, tmp_path / "q.png", CLASSES)) as picture:
        assert picture.size == (200 + 8 + 200, 300)
    assert tuple(colored(look, CLASSES)[5, 150]) == CLASSES.palette[1]


def test_what_is_not_whole_is_not_there(tmp_path: Path) -> None:
    classes = blotches(300, 400)
    paths = [write_class_map(classes, tmp_path / "x.png", CLASSES)]
    paths.append(write_percents(np.stack([classes] * 3), tmp_path / "x-scores.tif", ("a", "b", "c")))
    if has_rasterio():
        paths.append(write_class_map(classes, tmp_path / "x.tif", CLASSES))
    for path in paths:
        whole = path.read_bytes()
        assert is_whole(path, (300, 400)), path
        assert not is_whole(path, (400, 300)), path
        for damaged in (b"", whole[:-9], whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            assert not is_whole(path, (300, 400)), (path, len(damaged))
        path.unlink()
        assert not is_whole(path, (300, 400))


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "x.png"
    with aside(target) as part:
        part.write_text("old")

    def fail() -> None:
        with aside(target) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(NotWritten, match=r"(?s)x\.png cannot be written whole.*got: No space left"):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["x.png"]
    with aside(target) as one, aside(target) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")


def test_what_reads_back_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk, where GDAL's driver may close a file as if nothing were wrong."""
    pytest.importorskip("rasterio", reason="georeferenced maps")
    import rasterio.shutil

    original = rasterio.shutil.copy

    def cut(source: Path, target: Path, **options: object) -> None:
        original(source, target, **options)
        os.truncate(target, os.path.getsize(target) - 200)

    monkeypatch.setattr(rasterio.shutil, "copy", cut)
    draw = np.random.default_rng(0).integers(0, 3, (300, 400), np.uint8)
    with pytest.raises(NotWritten, match="cannot be written whole"):
        write_class_map(draw, tmp_path / "x.tif", CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_finished_rows_wait_for_the_rest(tmp_path: Path) -> None:
    target, shape = tmp_path / "x.tif", (2, 60, 50)
    values = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    with StripStore(target, shape, {"model": "a"}) as store:
        store.write(slice(0, 20), values[:, :20])
        with pytest.raises(InputError, match="another process is making"):
            StripStore(target, shape, {"model": "a"})
    with StripStore(target, shape, {"model": "a"}) as store:
        assert store.next_row == 20
        store.write(slice(20, 60), values[:, 20:])
        assert np.array_equal(store.array(), values)
    for other, made_of in (((2, 60, 51), {"model": "a"}), (shape, {"model": "b"})):
        with StripStore(target, other, made_of) as store:
            assert store.next_row == 0
    with StripStore(target, shape, {"model": "a"}) as store:
        store.remove()
    assert list(tmp_path.iterdir()) == []


def test_percents_without_rasterio_have_names(tmp_path: Path) -> None:
    percent = np.random.default_rng(0).integers(0, 100, (3, 90, 70), np.uint8)
    write_percents(percent, tmp_path / "x.tif", ("a < b", "c", "entropy"))
    assert np.array_equal(read_bands(tmp_path / "x.tif"), percent)
    assert read_shape(tmp_path / "x.tif") == (3, 90, 70)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        items = ElementTree.fromstring(file.pages[0].tags[42112].value)
    assert [item.text for item in items] == ["a < b", "c", "entropy"]
