"""Large scenes: what training reads of them as windows is what it would read of them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from crossearth_sar.data.datasets import folder_reading, folder_scenes
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.stream import TrainStream
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform
from crossearth_sar.errors import InputError

HEIGHT, WIDTH, TILE = 320, 272, 32
SCALE_TAG = (33550, "d", 3, (5.0, 5.0, 0.0), True)
KEYS_TAG = (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), True)


def tie_point(north: float) -> tuple[int, str, int, tuple[float, ...], bool]:
    return (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, north, 0.0), True)


def write_scene(root: Path, number: int = 0, *, unmeasured: int = 0, **label: Any) -> np.ndarray:
    """A tiled image and its label; the last `unmeasured` columns of the image are NaN."""
    rng = np.random.default_rng(number)
    image = rng.gamma(4, 50, (HEIGHT, WIDTH)).astype(np.float32)
    mask = rng.integers(0, 3, (HEIGHT // 8, WIDTH // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    mask[: HEIGHT // 2, : WIDTH // 2] = 1
    if unmeasured:
        image[:, -unmeasured:] = np.nan
    tiled = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(root / f"image_{number}.tif", image, **tiled)
    if label.get("suffix") == ".png":
        Image.fromarray(mask).save(root / f"label_{number}.png")
    else:
        tifffile.imwrite(root / f"label_{number}.tif", mask, **tiled)
    return mask


def domain(root: Path, *, pixel_m: float | None = None, **folder: Any) -> Domain:
    settings: dict[str, Any] = {
        "root": str(root),
        "images": "image_*.tif",
        "labels": "label_*.tif",
        "values": "amplitude",
        "classes": ("a", "b", "c"),
        **folder,
    }
    return open_domain(DomainConfig(name="large", folder=FolderConfig(**settings)), pixel_m=pixel_m)


def drawn(data: Domain, count: int, pixel_m: float | None = None, **augment: Any) -> list[Sample]:
    settings = {"crop_size": 48, "speckle_looks": 2.0, **augment}
    stream = TrainStream(data, TrainTransform(AugmentConfig(**settings), pixel_m), seed=5)
    return [stream[n] for n in range(count)]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image counts as large."""
    monkeypatch.setattr(folder_reading, "WINDOWED_PIXELS", 4 * TILE * TILE)


@pytest.fixture
def decoded_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each tile of a TIFF that is decoded."""
    blocks: list[int] = []
    decode = tifffile.TiffPage.decode.func

    def counting(page: tifffile.TiffPage) -> Any:
        real = decode(page)

        def counted(data: Any, index: int, **more: Any) -> Any:
            blocks.append(index)
            return real(data, index, **more)

        return counted

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(counting))
    return blocks


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("model_m", [None, 7.5])
def test_crops_are_those_of_the_whole_scene(
    suffix: str, model_m: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_scene(tmp_path, number, suffix=suffix)
    settings = {"labels": f"label_*{suffix}", "pixel_m": 5.0}
    whole = drawn(domain(tmp_path, **settings), 30, model_m)
    monkeypatch.setattr(folder_reading, "WINDOWED_PIXELS", 100)
    data = domain(tmp_path, **settings)
    assert all(data.view(i) is not None for i in range(3)), "it is read in windows, which is looked at here"
    for one, other in zip(whole, drawn(data, 30, model_m), strict=True):
        assert one["name"] == other["name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["mask"], other["mask"])


def test_a_crop_decodes_no_more_than_its_blocks(
    tmp_path: Path, large: None, decoded_blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path)
    data = domain(tmp_path)
    monkeypatch.setattr(folder_scenes, "decode_scene", None)
    blocks = (HEIGHT // TILE) * -(-WIDTH // TILE)
    for scale, side in ((1.0, 48), (0.5, 96)):
        decoded_blocks.clear()
        drawn(data, 1, scale_min=scale, scale_max=scale, max_class_share=1.0)
        across = -(-side // TILE) + 1
        assert 0 < len(decoded_blocks) <= 2 * across**2 < 2 * blocks, "of the image and of the label"
    decoded_blocks.clear()
    drawn(data, 1, scale_min=1, scale_max=1, max_class_share=0.01)
    assert len(decoded_blocks) <= (10 + 1 + 1) * 9, "ten places are tried by their labels, one image is read"


def test_labels_alone_do_not_choose_what_was_not_measured(tmp_path: Path, large: None) -> None:
    """Most of the scene is NaN below labels that keep to the share: crops show what was measured."""
    write_scene(tmp_path, unmeasured=200)
    samples = drawn(domain(tmp_path), 40, scale_min=1.0, scale_max=1.0, crop_tries=40)
    assert all(bool((sample["mask"] != IGNORE_INDEX).any()) for sample in samples)


def test_tiles_of_a_large_scene_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path, unmeasured=60)
    whole = domain(tmp_path, tile=64)
    monkeypatch.setattr(folder_reading, "WINDOWED_PIXELS", 100)
    windows = domain(tmp_path, tile=64)
    monkeypatch.setattr(folder_scenes, "decode_scene", None)
    assert len(windows) == len(whole) == 5 * 5
    for i in range(len(whole)):
        one, other = whole[i], windows[i]
        assert set(one) == set(other)
        assert one["name"] == other["name"]
        for key in ("image", "mask", "db_mean", "db_std"):
            assert torch.equal(one[key], other[key]), key  # type: ignore[literal-required]


def test_a_label_that_runs_the_other_way_is_turned(tmp_path: Path, large: None) -> None:
    mask = write_scene(tmp_path)
    image = tifffile.imread(tmp_path / "image_0.tif")
    settings: dict[str, Any] = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "minisblack"}
    tags = [SCALE_TAG, tie_point(9000.0), KEYS_TAG]
    tifffile.imwrite(tmp_path / "image_0.tif", image, extratags=tags, **settings)
    south_up = (34264, "d", 16, (5.0, 0, 0, 500000.0, 0, 5.0, 0, 9000.0 - 5 * HEIGHT, *(0.0,) * 8), True)
    tifffile.imwrite(tmp_path / "label_0.tif", mask[::-1], extratags=[south_up, KEYS_TAG], **settings)
    view = domain(tmp_path).view(0)
    assert view is not None
    assert view.pixel_m == 5.0
    assert torch.equal(view.mask(slice(10, 50), slice(7, 90)), torch.from_numpy(mask[10:50, 7:90]))
    assert torch.equal(view.whole()["mask"], torch.from_numpy(mask).long())
    tags[1] = tie_point(7000.0)
    tifffile.imwrite(tmp_path / "label_0.tif", mask, extratags=tags, **settings)
    with pytest.raises(InputError, match="lie in different places"):
        FolderScenes(domain_folder(tmp_path), check=False).view(0)


def domain_folder(root: Path) -> FolderConfig:
    return FolderConfig(
        root=str(root),
        images="image_*.tif",
        labels="label_*.tif",
        values="amplitude",
        classes=("a", "b", "c"),
    )


@pytest.mark.parametrize("by", ["domain", "image"])
def test_statistics_come_from_windows(
    by: str, tmp_path: Path, decoded_blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossearth_sar.data import views

    write_scene(tmp_path, unmeasured=40)
    config = DomainConfig(name="large", folder=domain_folder(tmp_path), normalize=by)
    whole = open_domain(config)[0]
    monkeypatch.setattr(folder_reading, "WINDOWED_PIXELS", 100)
    monkeypatch.setattr(views, "MEASURED_SIDE", 32)
    scenes = FolderScenes(domain_folder(tmp_path))
    decoded_blocks.clear()
    view = Domain(config, scenes).view(0)
    assert view is not None
    sample = view.read(slice(0, 48), slice(0, 48))
    assert len(decoded_blocks) < 4 * 4 * 2 * 4 + 2 * 9, "16 windows of image and label, not the scene"
    # one sensor and ground: 16 of 90 tiles have the mean of all within a tenth of a dB
    for key in ("db_mean", "db_std"):
        assert torch.allclose(sample[key], whole[key], atol=0.1), key  # type: ignore[literal-required]
        assert not torch.equal(sample[key], whole[key]), "of windows"  # type: ignore[literal-required]


def test_a_mixture_hands_its_views_on(tmp_path: Path, large: None) -> None:
    parts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_scene(tmp_path / name)
        parts.append(DomainConfig(name=name, folder=domain_folder(tmp_path / name)))
    mixture = open_domain(DomainConfig(name="both", mixture=tuple(parts)))
    view = mixture.view(1)
    assert view is not None
    assert "db_mean" in view.read(slice(0, 8), slice(0, 8))
    assert len(drawn(mixture, 4)) == 4
