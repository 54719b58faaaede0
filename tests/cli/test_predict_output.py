"""`crossearth-sar predict` on the way out: stops, full disks, shared lists, damaged maps, pages, polygons."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile

from crossearth_sar import InputError
from crossearth_sar.cli import map_making, progress
from crossearth_sar.cli.main import main
from crossearth_sar.cli.map_names import has_rasterio
from crossearth_sar.cli.progress import Progress
from crossearth_sar.cli.shards import Shard, device_of_rank, shard_of
from crossearth_sar.data.files.readers import read_bands
from crossearth_sar.folder_lock import LOCK_FILE


@pytest.fixture
def place(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and four scenes, three of them TIFF."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "model").symlink_to(saved)
    (tmp_path / "data").mkdir()
    for i in range(4):
        draw = np.random.default_rng(i).rayleigh(size=(200, 90))
        values = (draw * np.linspace(20, 90, 90) * (1 + np.arange(200) // 30 % 2)[:, None]).astype(np.float32)
        if i:
            tifffile.imwrite(f"data/{i}.tif", values, photometric="minisblack")
        else:
            np.save("data/0.npy", values)
    return tmp_path


def run(*arguments: str, images: str = "data/*.*", output: str = "maps") -> int:
    given = ["--model", "model", "--images", images, "--values", "amplitude", "--device", "cpu"]
    return main(["predict", *given, "--output", output, *arguments])


def files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir() if path.name != LOCK_FILE)


def test_a_stopped_scene_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends in a line; the next time finished rows are not computed again, and the map is the same."""
    assert run("--scores", images="data/0.npy", output="whole") == 0
    original, asked = map_making.strips, []

    def stopped(*given: object, **options: object) -> Iterator[object]:
        for i, strip in enumerate(original(*given, **options)):
            if i == 2:
                raise KeyboardInterrupt
            yield strip

    monkeypatch.setattr(map_making, "strips", stopped)
    assert run("--scores", images="data/0.npy") == 130
    said = capsys.readouterr().err
    assert said.strip().endswith("stopped: the same command goes on")
    assert "Traceback" not in said
    assert files("maps") == [".0.png.rows", ".0.png.rows.json", "prediction.json"]

    def watched(*given: object, **options: object) -> Iterator[object]:
        asked.append(options["first_row"])
        return original(*given, **options)

    monkeypatch.setattr(map_making, "strips", watched)
    assert run("--scores", images="data/0.npy") == 0
    assert asked == [80], "two rows of windows, 40 apart, were finished"
    assert "maps/0.png: goes on at row 80 of 200" in capsys.readouterr().out
    assert files("maps") == ["0-scores.tif", "0.png", "prediction.json"]
    for name in ("0-scores.tif", "0.png"):
        assert np.array_equal(read_bands(f"maps/{name}"), read_bands(f"whole/{name}"))


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk does, to this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10_000, 200 * 90 + 100])
def test_a_full_disk_leaves_no_map(size: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first size stops the rows, the second the GeoTIFF that is made of them."""
    if not has_rasterio():
        pytest.skip("a PNG is smaller than its rows")
    with files_no_larger_than(size):
        assert run(images="data/1.tif") == 1
    said = capsys.readouterr()
    assert "cannot be written" in said.err
    assert "make room on the disk" in said.err
    assert "0 of 1 maps" in said.out
    assert files("maps") == [".1.tif.rows", ".1.tif.rows.json", "prediction.json"]
    assert run(images="data/1.tif") == 0
    assert "goes on at row" in capsys.readouterr().out
    assert run(images="data/1.tif", output="other") == 0
    assert np.array_equal(read_bands("maps/1.tif"), read_bands("other/1.tif"))
    assert not [name for name in files("maps") if name.startswith(".")]


def test_a_damaged_map_is_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    maps = sorted(path for path in Path("maps").iterdir() if path.suffix in (".png", ".tif"))
    assert len(maps) == 4
    whole = [path.read_bytes() for path in maps]
    maps[0].write_bytes(b"")
    maps[1].write_bytes(whole[1][:-20])
    capsys.readouterr()
    assert run() == 0
    assert "2 of 4 maps are there already" in capsys.readouterr().out
    assert [path.read_bytes() for path in maps] == whole


def test_parts_share_a_list_and_one_record(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--shard", "2/3") == 0
    assert "part 2 of 3: 1 of 1 maps in maps" in capsys.readouterr().out
    record = Path("maps/prediction.json").read_bytes()
    stems = {name.split(".")[0] for name in files("maps") if name.endswith((".png", ".tif"))}
    assert stems == {"1"}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run() == 0
    assert "part 1 of 3: 2 of 2 maps in maps" in capsys.readouterr().out
    assert run("--shard", "1/2") == 2
    assert "leave --shard out" in capsys.readouterr().err
    assert run("--vector", "x.gpkg") == 2
    assert "in one process afterwards" in capsys.readouterr().err or not has_rasterio()
    monkeypatch.setenv("RANK", "2")
    assert run() == 0
    monkeypatch.delenv("RANK")
    capsys.readouterr()
    assert run() == 0
    assert "4 of 4 maps are there already" in capsys.readouterr().out
    assert Path("maps/prediction.json").read_bytes() == record
    assert run(output="alone") == 0
    alone = json.loads(Path("alone/prediction.json").read_text())
    assert alone["db_mean"] == json.loads(record)["db_mean"], "statistics are of all images, not of a part"
    for image in ("0.png", *(f"{i}.{'tif' if has_rasterio() else 'png'}" for i in (1, 2, 3))):
        assert np.array_equal(read_bands(f"maps/{image}"), read_bands(f"alone/{image}"))


def test_what_part_a_process_takes() -> None:
    assert shard_of(None, {}) == Shard(1, 1)
    assert shard_of("2/8", {}) == Shard(2, 8)
    assert shard_of(None, {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "x"}) == Shard(3, 4, in_group=True)
    parts = [Shard(i, 3).of(list("abcdefgh")) for i in (1, 2, 3)]
    assert sorted(item for part in parts for item in part) == list("abcdefgh")
    for wrong in ("0/2", "3/2", "1", "1/0", "a/b", "-1/2"):
        with pytest.raises(InputError, match="--shard names no part"):
            shard_of(wrong, {})
    assert device_of_rank("cpu", {"LOCAL_RANK": "1"}) == "cpu"
    assert device_of_rank("cuda", {}) == "cuda"


@pytest.mark.slow
@pytest.mark.skipif("CROSSEARTH_SLOW" not in os.environ, reason="slow: CROSSEARTH_SLOW=1 runs it")
def test_ranks_of_torchrun_wait_for_the_last(place: Path) -> None:
    """An image that cannot be used ends its rank with an error, after the others' work."""
    np.save("data/0.npy", np.full((100, 100), np.nan, np.float32))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"),
        *("-m", "crossearth_sar", "predict", "--model", "model", "--images", "data/*.*"),
        *("--values", "amplitude", "--device", "cpu", "--output", "maps"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "has no valid pixel" in done.stderr
    assert {name.split(".")[0] for name in files("maps") if name.endswith((".tif", ".png"))} == {
        "1",
        "2",
        "3",
    }


def test_pages_are_made_of_maps_that_are_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(images="data/0.npy") == 0
    made = Path("maps/0.png").stat().st_mtime_ns
    capsys.readouterr()
    assert run("--page", images="data/0.npy") == 0
    assert Path("maps/0.png").stat().st_mtime_ns == made
    assert files("maps") == ["0-quicklook.png", "0.html", "0.png", "prediction.json"]
    later = Path("maps/0.html").read_bytes()
    assert run("--page", images="data/0.npy", output="at-once") == 0
    assert Path("at-once/0.html").read_bytes() == later
    assert b"0.npy" in later


def test_polygons_of_all_maps(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = pytest.importorskip("pyogrio.raw", reason="polygons")
    assert run("--vector", "all.gpkg") == 0
    said = capsys.readouterr().out
    import pyogrio

    layers = {str(name) for name, _ in pyogrio.list_layers("all.gpkg")}
    assert layers == {"0", "1", "2", "3"}
    patches = sum(len(raw.read("all.gpkg", layer=layer)[2]) for layer in layers)
    assert f"all.gpkg: {patches} patches of 4 maps" in said
    assert run("--vector", "all.gpkg", "--simplify", "1.5") == 0, "finished maps are left alone"
    for wrong, words in (
        (("--vector", "all.shp"), "is no GeoPackage"),
        (("--simplify", "2"), "2 without --vector"),
        (("--vector", "x.gpkg", "--simplify", "-1"), "above 0"),
    ):
        assert run(*wrong) == 2
        assert words in capsys.readouterr().err


def test_blending_is_of_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no-taper", images="data/0.npy") == 0
    assert json.loads(Path("maps/prediction.json").read_text())["taper"] is False
    assert run(images="data/0.npy") == 2
    assert "got: taper True" in capsys.readouterr().err


def test_bfloat16_says_nearly_the_same(place: Path) -> None:
    assert run(images="data/0.npy") == 0
    assert run("--precision", "bfloat16", images="data/0.npy", output="half") == 0
    one, other = (read_bands(f"{folder}/0.png") for folder in ("maps", "half"))
    assert 0.9 < (one == other).mean() < 1, "rounding shows, and no more"


def test_a_line_a_minute_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 30.0, 61.0, 90.0, 122.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("a.tif", 40, "window") as watched:
        for _ in range(4):
            watched.add(5)
    assert capsys.readouterr().err.splitlines() == [
        "a.tif: 10 of 40 windows, about 3 min left",
        "a.tif: 20 of 40 windows, about 2 min left",
    ]
