"""Scenes row by row: the classes of `predict` to the pixel, statistics of a domain, nodata, and bad input."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.domain import DomainConfig, open_domain
from crossearth_sar.data.domain_statistics import measure_db
from crossearth_sar.data.files import on_disk
from crossearth_sar.data.files.on_disk import ImageOnDisk, open_image
from crossearth_sar.data.files.readers import RawImage, read_image
from crossearth_sar.data.files.windows import Window
from crossearth_sar.decibels import db_statistics
from crossearth_sar.evaluation import scene as module
from crossearth_sar.evaluation import scene_strips
from crossearth_sar.evaluation.evaluate import predict_sample
from crossearth_sar.evaluation.scene import Scene, measure_scenes
from crossearth_sar.evaluation.scene_strips import Sliding, percents, predict_scene, strips
from crossearth_sar.ground_scale import average_power, working_size
from crossearth_sar.spacing import window_starts

SMALL = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "patch_size": 16, "depth": 4},
    "decoder": {"channels": 32, "num_queries": 8, "pixel_layers": 1, "query_layers": 1},
    "crop_size": 64,
    "crop_stride": 40,
}


@pytest.fixture(scope="module")
def model() -> CrossEarthSAR:
    torch.manual_seed(4)  # one whose classes differ over an image
    return build_model("crossearth_sar_tiny", 3, changes=SMALL).eval()


def speckle(*shape: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    mean = np.linspace(0.1, 3, shape[-1]) * (1 + np.arange(shape[-2]) // 50 % 2)[:, None]
    return (mean * draw.rayleigh(size=shape)).astype(np.float32)


def scene_of(values: np.ndarray, kind: str = "amplitude", valid: np.ndarray | None = None) -> Scene:
    valid = np.isfinite(values).all(0) if valid is None else valid
    return Scene(RawImage(values, valid, Path("scene.npy")), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [Sliding(), Sliding(taper=False)])
@pytest.mark.parametrize("size", [(64, 64), (50, 63), (3, 110), (65, 64), (120, 110)])
def test_classes_are_those_of_predict(model: CrossEarthSAR, size: tuple[int, int], how: Sliding) -> None:
    values = speckle(2, *size)
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([8.0, 6.0])
    counts: list[int] = []
    found = predict_scene(
        model, scene_of(values), mean, std, how=how, on_batch=lambda _, count: counts.append(count)
    )
    expected_windows: list[object] = []
    expected = model.predict(
        torch.from_numpy(values)[None], mean[None], std[None], taper=how.taper,
        on_window=expected_windows.append,
    )[0]  # fmt: skip
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.numpy())
    assert sum(counts) == len(expected_windows)
    assert size[1] < 65 or max(counts) > 1, "windows run together"
    assert min(size) < 64 or len(np.unique(found)) > 1, "one class everywhere would show no mistake"


def test_nodata_is_filled_as_in_training_and_255_in_the_map(model: CrossEarthSAR, tmp_path: Path) -> None:
    values = speckle(1, 50, 60)
    values[:, :9, 7:40] = np.nan
    np.save(tmp_path / "one.npy", values[0])
    folder = FolderScenes(
        FolderConfig(root=str(tmp_path), images="*.npy", values="amplitude", classes=("a",))
    )
    mean, std = torch.tensor([20.0]), torch.tensor([5.0])
    expected = model.predict(folder[0]["image"][None], mean, std)[0].numpy()
    assert len(np.unique(expected)) > 1
    expected[~np.isfinite(values[0])] = 255
    assert np.array_equal(predict_scene(model, scene_of(values), mean, std), expected)


def test_windows_without_a_measurement_are_left_out(model: CrossEarthSAR) -> None:
    values = speckle(1, 130, 110)
    values[:, 64:, 40:] = np.nan
    values[0, 0, 0] = np.inf
    ran: list[int] = []
    empty: list[int] = []
    scene = scene_of(values)
    found = predict_scene(
        model,
        scene,
        torch.zeros(1),
        torch.ones(1),
        on_batch=lambda output, count: (empty if output is None else ran).append(count),
    )
    assert sum(ran) == 3 * 3 - 2
    assert sum(empty) == 2  # rows from 66, columns from 40 and 46 hold nothing
    assert np.array_equal(found == 255, ~scene.raw.valid)


def test_the_model_stays_in_its_mode(model: CrossEarthSAR) -> None:
    try:
        scene = scene_of(speckle(1, 64, 64))
        predict_scene(model.train(), scene, torch.zeros(1), torch.ones(1))
        assert model.training
    finally:
        model.eval()


def test_statistics_are_those_of_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks and files, of values in dB; of measured pixels alone."""
    for i, height in enumerate((33, 70)):
        np.save(tmp_path / f"s{i}.npy", 10 * np.log10(speckle(1, height, 40)[0]))
    folder = FolderScenes(FolderConfig(root=str(tmp_path), images="*.npy", values="db", classes=("a", "b")))
    monkeypatch.setattr(module, "BLOCK_PIXELS", 40 * 16)
    found = measure_scenes(Scene(read_image(p), "db") for p in sorted(tmp_path.glob("*.npy")))
    for one, other in zip(found, measure_db(folder), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    padded = np.pad(speckle(1, 70, 40), ((0, 0), (9, 0), (0, 0)), constant_values=np.nan)
    for one, other in zip(
        measure_scenes([scene_of(padded)]), measure_scenes([scene_of(speckle(1, 70, 40))]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_bad_scenes_are_refused_with_words(model: CrossEarthSAR) -> None:
    negative = speckle(1, 80, 40)
    negative[0, 70, 3] = -1
    with pytest.raises(InputError, match=r"(?s)scene\.npy, rows 0 to 79 has negative.*values: db"):
        measure_scenes([scene_of(negative)])
    with pytest.raises(InputError, match=r"(?s)number of bands.*2 in scene.npy, 1 before it"):
        measure_scenes([scene_of(speckle(1, 9, 9)), scene_of(speckle(2, 9, 9))])
    with pytest.raises(InputError, match="at least one"):
        measure_scenes([])


@pytest.mark.parametrize(
    ("own", "size"), [(10.0, (64, 70)), (3.0, (230, 200)), (2.0, (301, 47)), (25.0, (40, 33))]
)
def test_at_the_ground_spacing_of_the_model(own: float, size: tuple[int, int]) -> None:
    """The classes of predict on the scene's pixels; statistics of the averaged scene, in several blocks."""
    model, values = scaled(), speckle(1, *size)
    scene = Scene(RawImage(values, np.ones(size, bool), Path("scene.npy"), 7.0), "amplitude", own)
    image = torch.from_numpy(values)[None]
    mean, std = measure_scenes([scene], 10.0)
    small = average_power(image, working_size(size, own, 10.0))
    for one, other in zip((mean, std), db_statistics(small), strict=True):
        torch.testing.assert_close(one, other[0], rtol=1e-5, atol=0)
    found = predict_scene(model, scene, mean, std)
    assert found.shape == size
    assert np.array_equal(found, model.predict(image, mean, std, pixel_m=own)[0].numpy())
    assert len(np.unique(found)) > 1
    tagged = Scene(RawImage(values, np.ones(size, bool), Path("scene.npy"), own), "amplitude")
    assert np.array_equal(predict_scene(model, tagged, mean, std), found), (
        "the file's own, where none is given"
    )


def test_blocks_of_rows_average_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(RawImage(speckle(1, 230, 90), np.ones((230, 90), bool), Path("x")), "amplitude", 3.0)
    whole = list(scene.blocks(10.0))
    monkeypatch.setattr(module, "BLOCK_PIXELS", 1000)
    parts = list(scene.blocks(10.0))
    assert len(whole) == 1 < len(parts)
    assert torch.equal(torch.cat(parts, 1), whole[0])


def test_nodata_is_not_averaged_in(tmp_path: Path) -> None:
    """Scene and sample agree: measured pixels are averaged, then what is missing is filled."""
    values = speckle(1, 128, 120)
    values[:, :31, 9:77] = np.nan
    np.save(tmp_path / "one.npy", values[0])
    settings = FolderConfig(
        root=str(tmp_path), images="*.npy", values="amplitude", classes=("a", "b", "c"), pixel_m=5.0
    )
    domain = open_domain(DomainConfig(name="x", folder=settings), pixel_m=10.0)
    scene = Scene(read_image(tmp_path / "one.npy"), "amplitude", 5.0)
    statistics = measure_scenes([scene], 10.0)
    for one, key in zip(statistics, ("db_mean", "db_std"), strict=True):
        torch.testing.assert_close(one, domain[0][key], rtol=1e-6, atol=0)  # type: ignore[literal-required]
    expected = predict_sample(scaled(), domain[0]).numpy()
    expected[~scene.raw.valid] = 255
    assert np.array_equal(predict_scene(scaled(), scene, *statistics), expected)
    assert len(np.unique(expected)) > 2


def scaled() -> CrossEarthSAR:
    torch.manual_seed(4)
    return build_model("crossearth_sar_tiny", 3, changes={**SMALL, "pixel_m": 10.0}).eval()


@pytest.mark.parametrize("own", [None, 3.0, 25.0])
def test_a_scene_goes_on_where_it_was_stopped(own: float | None) -> None:
    """The rows from any one on are the same ones, with their percents."""
    scene = Scene(RawImage(speckle(1, 230, 150), np.ones((230, 150), bool), Path("x")), "amplitude", own)
    model, statistics = scaled(), (torch.tensor([-3.0]), torch.tensor([6.0]))
    whole = list(strips(model, scene, *statistics, scores=True))
    classes, percent = (
        np.concatenate([s.classes for s in whole]),
        np.concatenate([s.percent for s in whole], 1),
    )
    assert classes.shape == (230, 150)
    assert percent.shape == (4, 230, 150)
    assert len(np.unique(classes)) > 1
    assert np.abs(percent[:3].astype(int).sum(0) - 100).max() <= 2
    for first in (1, 77, 229):
        rest = list(strips(model, scene, *statistics, scores=True, first_row=first))
        assert rest[0].rows.start == first
        assert np.array_equal(np.concatenate([s.classes for s in rest]), classes[first:])
        assert np.array_equal(np.concatenate([s.percent for s in rest], 1), percent[:, first:])


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_percents_are_probabilities_and_their_entropy(temperature: float | None) -> None:
    scores = torch.rand(3, 40, 50) ** 3
    p = (scores + 1e-6).double().numpy() ** (1 / (temperature or 1))
    p /= p.sum(0)
    entropy = -(p * np.log(p)).sum(0) / np.log(3)
    found = percents(scores, temperature).numpy()
    np.testing.assert_allclose(found, 100 * np.concatenate([p, entropy[None]]), atol=0.51)


def test_class_changes_are_no_commoner_at_edges_of_windows() -> None:
    """The model in the box on a scene of one kind of ground: along the rows and columns where windows end."""
    model = load_model("tiny")
    model.config = replace(model.config, window_size=128, crop_stride=85)  # many edges
    draw = np.random.default_rng(3)
    texture = np.exp(0.5 * gaussian_filter(draw.normal(size=(640, 640)), 5) / 0.06)
    values = (texture * draw.rayleigh(size=(640, 640))).astype(np.float32)[None]
    scene = scene_of(values)
    mean, std = measure_scenes([scene])
    excess = {}
    for taper in (True, False):
        found = predict_scene(model, scene, mean, std, how=Sliding(taper=taper))
        starts = window_starts(640, 128, 85)
        edges = sorted({*starts[1:], *(start + 128 for start in starts[:-1])})
        for axis in (0, 1):
            changes = (np.diff(found.astype(int), axis=axis) != 0).mean(1 - axis)
            at_edges = np.isin(np.arange(1, 640), edges)
            excess[taper, axis] = changes[at_edges].mean() / changes[~at_edges].mean()
    assert max(excess[True, 0], excess[True, 1]) <= 1.3, excess
    assert min(excess[False, 0], excess[False, 1]) > 1.35, "without the taper it shows, or this tests nothing"


def test_a_scene_on_disk_gives_what_it_gives_in_memory(
    model: CrossEarthSAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = speckle(2, 300, 170)
    values[0, 20:90, :60] = -9
    tags = [(42113, "s", 0, "-9", True), (33550, "d", 3, (5.0, 5.0, 0.0), True)]
    layouts = {"tile": (64, 64), "compression": "zlib"}, {"rowsperstrip": 17, "compression": "zlib"}, {}
    for i, layout in enumerate(layouts):
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(
            path, values, extratags=tags, photometric="minisblack", planarconfig="separate", **layout
        )
    np.save(tmp_path / "3.npy", values)
    np.save(tmp_path / "4.npy", np.moveaxis(values, 0, -1))
    monkeypatch.setattr(on_disk, "BLOCK_PIXELS", 170 * 40)
    for path in sorted(tmp_path.iterdir()):
        monkeypatch.setattr(on_disk, "WHOLE_BELOW", 1 << 40)
        whole = open_image(path, nodata=-9, bands=(1, 0))
        assert isinstance(whole, RawImage)
        monkeypatch.setattr(on_disk, "WHOLE_BELOW", 1)
        stays = open_image(path, nodata=-9, bands=(1, 0))
        assert isinstance(stays, ImageOnDisk), path
        assert (stays.size, stays.pixel_m) == ((300, 170), whole.pixel_m)
        one, other = (Scene(image, "amplitude") for image in (whole, stays))
        statistics = measure_scenes([one])
        for a, b in zip(statistics, measure_scenes([other]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        assert np.array_equal(*(predict_scene(model, scene, *statistics) for scene in (one, other))), path


def test_a_scene_on_disk_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "x.tif", speckle(1, 2000, 50)[0], tile=(64, 64), compression="zlib")
    monkeypatch.setattr(on_disk, "WHOLE_BELOW", 1)
    monkeypatch.setattr(on_disk, "BLOCK_PIXELS", 1)
    image = open_image(tmp_path / "x.tif")
    assert isinstance(image, ImageOnDisk)
    read: list[int] = []
    original = on_disk.read_image_window

    def counted(path: Path, window: Window, **options: Any) -> RawImage:
        read.append(window.top)
        return original(path, window, **options)

    monkeypatch.setattr(on_disk, "read_image_window", counted)
    for top in range(0, 1901, 50):
        image.rows(slice(top, top + 100))
        assert len(image._blocks) <= 3
    assert read == list(range(0, 2000, 64)), "each part is decoded once"


def test_an_empty_scene_is_said(model: CrossEarthSAR) -> None:
    nothing = scene_of(np.full((1, 80, 80), np.nan, np.float32))
    with pytest.raises(InputError, match=r"scene\.npy has no valid pixel"):
        predict_scene(model, nothing, torch.zeros(1), torch.ones(1))


MEMORY = """
import resource, sys
import torch
from pathlib import Path
from typing import Any
from crossearth_sar import load_model
from crossearth_sar.data.files import on_disk
from crossearth_sar.evaluation import scene_strips
from crossearth_sar.evaluation.scene import Scene

on_disk.WHOLE_BELOW = on_disk.BLOCK_PIXELS = 1 << 19
# what is measured is what surrounds the network
scene_strips.window_scores = lambda f, d, windows, *a, **k: windows.expand(-1, 7, -1, -1)
peaks = []
for name in sys.argv[1:]:
    scene = Scene(on_disk.open_image(Path(name)), "amplitude")
    for strip in scene_strips.strips(load_model("tiny"), scene, torch.zeros(1), torch.ones(1), scores=True):
        pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[-1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """Scores of the larger scene alone would be 7 x 4 bytes for each of its 8 million pixels."""
    for height in (1000, 8000):
        values = np.random.default_rng(0).integers(1, 900, (height, 1000), np.uint16)
        tifffile.imwrite(tmp_path / f"{height}.tif", values, tile=(128, 128), compression="zlib")
    names = [str(tmp_path / f"{height}.tif") for height in (1000, 8000)]
    command = [sys.executable, "-c", MEMORY, names[0], *names]  # the first is read twice, to be warm
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown_mb = int(done.stdout.split()[-1])
    assert grown_mb < 16, f"{grown_mb} MB more for seven million pixels more"


def test_a_batch_that_memory_does_not_hold_is_halved(
    model: CrossEarthSAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, statistics = scene_of(speckle(1, 64, 300)), (torch.zeros(1), torch.ones(1))
    expected = predict_scene(model, scene, *statistics)
    original, sizes = scene_strips.window_scores, []

    def small(
        forward: object, decoder: object, windows: torch.Tensor, *given: object, **options: object
    ) -> object:
        sizes.append(len(windows))
        if len(windows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(forward, decoder, windows, *given, **options)

    monkeypatch.setattr(scene_strips, "window_scores", small)
    monkeypatch.setitem(scene_strips.BATCH_PIXELS, "cpu", 64 * 64 * 7)
    assert np.array_equal(predict_scene(model, scene, *statistics), expected)
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
