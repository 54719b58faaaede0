"""dB statistics: every way to them gives the same numbers for the same pixels, dark ones included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from crossearth_sar.data.domain import Domain, DomainConfig
from crossearth_sar.data.domain_statistics import measure_db
from crossearth_sar.data.files.readers import RawImage
from crossearth_sar.data.sample import ClassTable, Sample
from crossearth_sar.data.simulator.scenes import SimulatedScene, SimulatorConfig
from crossearth_sar.decibels import DomainStatistics, db_statistics, to_db
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation import miniature
from crossearth_sar.evaluation import scene as scene_module
from crossearth_sar.evaluation.scene import Scene, measure_scenes


class Listed:
    """Images of a list as a dataset."""

    classes = ClassTable(names=("a",), palette=((0, 0, 0),))

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        return Sample(image=image, mask=torch.zeros(image.shape[1:]).long(), name=str(index))

    def origin(self, index: int) -> tuple[tuple[str, ...], None, None]:
        return (str(index),), None, None


@pytest.fixture
def images() -> list[Tensor]:
    """Four of one size, one band, with dark pixels: scattered ones, and an edge of one image."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 32, 32, generator=generator) * 10.0 ** (i - 2) + 1e-3 for i in range(4)]
    images[0][0, ::5, ::3] = 0
    images[2][0, :, :9] = 0
    return images


def by_hand(images: list[Tensor]) -> tuple[float, float]:
    values = np.concatenate([image.double().numpy().ravel() for image in images])
    decibels = 20 * np.log10(values[values > 0])
    return float(decibels.mean()), float(decibels.std())


def simulated(images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    def scene(_: SimulatorConfig, index: int) -> SimulatedScene:
        amplitude = images[index][0].numpy()
        return SimulatedScene(None, amplitude**2, np.zeros(amplitude.shape, np.int64))

    monkeypatch.setattr(miniature, "simulate", scene)
    tiles = miniature.draw_tiles(SimulatorConfig(length=len(images), image_size=32), None, 16)
    return tiles.db_mean_N[:1], tiles.db_std_N[:1]


def test_all_ways_give_the_same_numbers(images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_module, "BLOCK_PIXELS", 32 * 7)  # blocks of seven rows: parts of a scene
    scenes = [
        Scene(RawImage(i.numpy(), np.ones((32, 32), bool), Path(f"{n}.npy")), "amplitude")
        for n, i in enumerate(images)
    ]
    domain = Domain(DomainConfig(name="x", simulated=SimulatorConfig()), Listed(images))
    ways = {
        "a dataset": measure_db(Listed(images)),
        "a domain": (domain[0]["db_mean"], domain[0]["db_std"]),
        "scenes, by rows": measure_scenes(scenes),
        "simulated tiles": simulated(images, monkeypatch),
        "one image in the model": tuple(s[0] for s in db_statistics(torch.cat(images, 1)[None])),
    }
    mean, std = by_hand(images)
    for way, found in ways.items():
        assert float(found[0]) == pytest.approx(mean, rel=1e-6), way
        assert float(found[1]) == pytest.approx(std, rel=1e-6), way
    dark = sum(int((image == 0).sum()) for image in images)
    assert dark > 300, "without dark pixels this would show nothing"


def test_an_image_alone_is_normalised_by_what_the_model_would_take(images: list[Tensor]) -> None:
    config = DomainConfig(name="x", simulated=SimulatorConfig(), normalize="image")
    sample = Domain(config, Listed(images))[2]
    mean, std = db_statistics(images[2][None])
    torch.testing.assert_close(sample["db_mean"], mean[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(sample["db_std"], std[0], rtol=1e-6, atol=0)


def test_many_small_parts_are_as_one() -> None:
    """Of unlike sizes, in a narrow distribution far from 0 dB, where a careless sum of squares cancels."""
    generator = torch.Generator().manual_seed(1)
    parts = [1e8 * (1 + 1e-2 * torch.rand(2, 3, n % 7 + 1, generator=generator)) for n in range(500)]
    statistics = DomainStatistics()
    for part in parts:
        statistics.add(part)
    decibels = to_db(torch.cat(parts, 2)).double().flatten(1)
    expected = decibels.mean(1).float(), decibels.std(1, correction=0).float()
    torch.testing.assert_close(statistics.result(), expected, rtol=1e-6, atol=0)


def test_what_has_no_statistics() -> None:
    statistics = DomainStatistics()
    with pytest.raises(InputError, match="at least one"):
        statistics.result()
    statistics.add(torch.zeros(2, 4, 4))
    mean, std = statistics.result()
    assert mean.tolist() == [0, 0]
    assert std.tolist() == pytest.approx([1e-3, 1e-3])
    with pytest.raises(InputError, match=r"number of bands[\s\S]*1 in b.tif, 2 before it"):
        statistics.add(torch.ones(1, 4, 4), "b.tif")
