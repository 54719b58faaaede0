"""Baselines: counting against a slow count, Otsu against brute force and a mixture whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from crossearth_sar.data.datasets.tasks import class_table
from crossearth_sar.data.sample import ClassTable, Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.baselines import (
    OtsuWater,
    best_otsu_water_scores,
    class_histogram,
    majority_class,
    majority_scores,
    multilook,
    otsu_threshold_db,
    otsu_water_scores,
)


class ListedSamples:
    """A dataset of given samples that remembers which were read."""

    def __init__(self, samples: Sequence[Sample], classes: ClassTable) -> None:
        self.samples, self.classes, self.read = samples, classes, list[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return self.samples[index]


def sample(mask: Tensor, amplitude: Tensor | None = None, name: str = "x") -> Sample:
    image = torch.ones(1, *mask.shape) if amplitude is None else amplitude.reshape(-1, *mask.shape)
    return Sample(image=image.float(), mask=mask, name=name)


def masks_dataset(*masks: list[list[int]], classes: int = 3) -> ListedSamples:
    table = class_table(tuple(f"c{i}" for i in range(classes)))
    return ListedSamples([sample(torch.tensor(mask)) for mask in masks], table)


def speckled_scene(seed: int, size: int = 128, contrast_db: float = 14.0) -> Sample:
    """A dark lake in brighter land: 9-look amplitude speckle, some nodata; class 0 land, 1 water."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    water = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 4) ** 2
    looks = -torch.rand(9, size, size, generator=generator).clamp_min(1e-9).log()
    amplitude = 0.3 * looks.mean(0).sqrt() * torch.where(water, 10 ** (-contrast_db / 20), 1.0)
    mask = water.long()
    amplitude[:8], mask[:8] = 0.0, 255
    return sample(mask, amplitude, f"scene {seed}")


def otsu_by_brute_force(values: np.ndarray) -> tuple[float, float]:
    """The first and last best edge of the 255 inner ones, each scored from the values themselves."""
    ordered = np.sort(values)
    skipped = int(0.005 * (len(ordered) - 1))
    low, high = ordered[skipped], ordered[len(ordered) - 1 - skipped]
    centres = np.clip(np.floor((values - low) / ((high - low) / 256)), 0, 255)
    scores = []
    for split in range(255):
        below, above = centres[centres <= split], centres[centres > split]
        if len(below) == 0 or len(above) == 0:
            scores.append(0.0)
            continue
        within = len(below) * below.var() + len(above) * above.var()
        scores.append(len(values) * centres.var() - within)
    best = np.flatnonzero(np.isclose(scores, max(scores), rtol=1e-12, atol=0))
    return tuple(low + (best[[0, -1]] + 1) * (high - low) / 256)


def test_histogram_and_majority() -> None:
    dataset = masks_dataset([[0, 1, 1], [2, 255, 1]], [[255, 255, 255], [0, 0, 255]])
    counts = class_histogram(dataset)
    assert counts.tolist() == [3, 3, 1]
    assert counts.dtype == torch.int64
    assert majority_class(counts) == 0  # the lower of two equals
    assert majority_class(torch.tensor([0, 2, 5])) == 2
    with pytest.raises(InputError, match="no majority class"):
        majority_class(class_histogram(masks_dataset([[255]])))


def test_max_samples_are_spread_over_the_dataset() -> None:
    dataset = masks_dataset(*([[[i % 3]] for i in range(10)]))
    class_histogram(dataset, max_samples=4)
    assert dataset.read == [0, 2, 5, 7]
    dataset.read.clear()
    assert int(class_histogram(dataset, max_samples=99).sum()) == 10
    assert dataset.read == list(range(10))
    with pytest.raises(InputError, match="max_samples"):
        class_histogram(dataset, max_samples=0)


def test_a_mask_value_that_is_no_class_names_the_image() -> None:
    dataset = masks_dataset([[0, 3]])
    with pytest.raises(InputError, match=r"mask of 'x'.*\n.*\[3\]"):
        class_histogram(dataset)


def test_majority_scores_are_the_share_of_the_class() -> None:
    dataset = masks_dataset([[0, 1, 1, 255]], [[2, 1, 1, 1]])
    matrix = majority_scores(dataset, 1)
    scores = matrix.scores()
    assert matrix.counts.tolist() == [[0, 1, 0], [0, 5, 0], [0, 1, 0]]
    assert scores.pixel_accuracy == pytest.approx(5 / 7)
    assert scores.iou.tolist() == pytest.approx([0, 5 / 7, 0])
    assert scores.miou == pytest.approx(5 / 21)
    with pytest.raises(InputError, match="class_index"):
        majority_scores(dataset, 3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", ["mixture", "one mode", "skewed", "few values"])
def test_otsu_is_the_brute_force_optimum(seed: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "mixture": np.concatenate([rng.normal(-20, 1.5, 600), rng.normal(-8, 2.5, 1400)]),
        "one mode": rng.normal(-10, 3, 2001),
        "skewed": 20 * np.log10(rng.rayleigh(0.2, 1500)),
        "few values": rng.choice([-20.0, -18.0, -9.0, -3.0], 300),
    }[shape]
    first, last = otsu_by_brute_force(values)
    assert otsu_threshold_db(torch.from_numpy(values)) == pytest.approx((first + last) / 2, abs=1e-6)


def test_otsu_of_a_known_mixture_is_near_the_midpoint() -> None:
    """Two equal Gaussians of equal spread: by symmetry the optimum is half way between their means."""
    generator = torch.Generator().manual_seed(0)
    modes = [mean + 1.5 * torch.randn(50_000, generator=generator) for mean in (-21.0, -9.0)]
    assert otsu_threshold_db(torch.cat(modes)) == pytest.approx(-15.0, abs=0.25)


def test_otsu_ties_take_the_middle_of_the_valley() -> None:
    values = torch.tensor([-20.0] * 30 + [-10.0] * 70)
    assert otsu_threshold_db(values) == pytest.approx(-15.0, abs=0.05)
    assert otsu_threshold_db(-values) == pytest.approx(15.0, abs=0.05)


def test_otsu_on_the_edge_cases() -> None:
    assert otsu_threshold_db(torch.tensor([-7.0])) == -7.0
    assert otsu_threshold_db(torch.full((100,), -7.0)) == -7.0
    lone = torch.tensor([-7.0] * 999 + [30.0])  # percentiles coincide: the full range is taken
    assert -7.0 < otsu_threshold_db(lone) < 30.0
    mixture = torch.cat([torch.linspace(-22, -18, 500), torch.linspace(-10, -6, 500)])
    outlier = torch.cat([mixture, torch.tensor([900.0, 900.0])])  # must not swallow the range
    assert otsu_threshold_db(outlier) == pytest.approx(otsu_threshold_db(mixture), abs=0.2)


@pytest.mark.parametrize(
    "values",
    [
        torch.empty(0),
        torch.zeros(2, 2),
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([0.0, -math.inf]),
        torch.tensor([0.0, math.nan]),
    ],
)
def test_otsu_refuses_what_has_no_threshold(values: Tensor) -> None:
    with pytest.raises(InputError, match="values_db"):
        otsu_threshold_db(values)


def test_otsu_finds_the_lake() -> None:
    dataset = ListedSamples([speckled_scene(seed) for seed in range(3)], class_table(("land", "water")))
    scores = otsu_water_scores(dataset, water_index=1, other_index=0).scores()
    assert float(scores.iou[1]) > 0.95
    assert scores.pixels == 3 * 120 * 128
    flat = ListedSamples([speckled_scene(0, contrast_db=0.0)], dataset.classes)
    assert float(otsu_water_scores(flat, 1, 0).scores().iou[1]) < 0.4  # no contrast, no skill


def test_otsu_is_the_same_at_any_gain_and_does_not_look_at_labels() -> None:
    scene = speckled_scene(5)
    louder = Sample(image=scene["image"] * 40, mask=scene["mask"], name="louder")
    table = class_table(("land", "water"))
    one, two = (otsu_water_scores(ListedSamples([s], table), 1, 0).counts for s in (scene, louder))
    assert int((one - two).abs().sum()) <= 4  # pixels on a bin edge may move with the rounding
    flipped = Sample(
        image=scene["image"], name="flipped", mask=torch.where(scene["mask"] == 255, 255, 1 - scene["mask"])
    )
    assert torch.equal(otsu_water_scores(ListedSamples([flipped], table), 1, 0).counts, one.flip(0))


def test_otsu_in_a_task_with_more_classes_another_band_and_dark_pixels() -> None:
    mask = torch.tensor([[0, 0, 2, 2], [1, 1, 2, 255]])
    quiet = torch.tensor([[1.0, 1.1, 0.1, 0.11], [1.2, 1.0, 0.0, 0.0]])
    two_bands = sample(mask, torch.stack([torch.ones_like(quiet), quiet]))
    dataset = ListedSamples([two_bands], class_table(("field", "town", "water")))
    matrix = otsu_water_scores(dataset, water_index=2, other_index=0, band=1)
    assert matrix.counts.tolist() == [[2, 0, 0], [2, 0, 0], [0, 0, 3]]  # amplitude 0 is water where labelled
    assert otsu_water_scores(dataset, 2, 0, band=1, num_classes=5).counts.shape == (5, 5)
    black = ListedSamples([sample(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2))], dataset.classes)
    assert int(otsu_water_scores(black, 2, 0).counts[0, 0]) == 4


def test_otsu_water_scores_refuses_indices_the_dataset_lacks() -> None:
    dataset = ListedSamples([speckled_scene(0)], class_table(("land", "water")))
    for arguments, says in (
        ((2, 0), "water_index"),
        ((1, -1), "other_index"),
        ((1, 1), "same"),
        ((1, 0, 1), "no band 1"),
    ):
        with pytest.raises(InputError, match=says):
            otsu_water_scores(dataset, *arguments)


def slow_multilook(amplitude: np.ndarray, window: int) -> np.ndarray:
    """The root of the mean power of the measured pixels about each, one by one."""
    half, out = window // 2, np.zeros_like(amplitude)
    for y, x in np.ndindex(amplitude.shape):
        part = amplitude[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
        lit = part[part > 0]
        out[y, x] = np.sqrt((lit**2).mean()) if len(lit) else 0
    return out


@pytest.mark.parametrize("window", [1, 3, 5, 9])
@pytest.mark.parametrize("shape", [(13, 7), (3, 20), (1, 1)])
def test_multilook_is_the_mean_power_of_measured_pixels(shape: tuple[int, int], window: int) -> None:
    rng = np.random.default_rng(window)
    amplitude = rng.rayleigh(size=shape)
    amplitude[rng.random(shape) < 0.3] = 0
    amplitude[:, : shape[1] // 2] *= rng.random() < 0.5  # a half without a measurement, or none
    got = multilook(torch.from_numpy(amplitude), window)
    expected = slow_multilook(amplitude, window) if window > 1 else amplitude
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


def test_multilook_refuses_an_even_window() -> None:
    for window in (0, 2, -1):
        with pytest.raises(InputError, match="odd"):
            multilook(torch.ones(4, 4), window)
        with pytest.raises(InputError, match="odd"):
            OtsuWater(window=window)


def test_a_pooled_threshold_is_that_of_all_images_together() -> None:
    """One image is land alone: its own threshold calls half of it water, the set's calls none of it so."""
    generator = torch.Generator().manual_seed(0)
    noise = 10 ** (torch.randn(2, 64, 64, generator=generator) / 20)
    halves = torch.ones(64, 64)
    halves[:32] = 0.05
    lake, land = noise[0] * halves, noise[1]
    samples = [sample((halves < 1).long(), lake), sample(torch.zeros(64, 64, dtype=torch.int64), land)]
    dataset = ListedSamples(samples, class_table(("other", "water")))
    pooled = OtsuWater(pooled=True)
    shared = pooled.shared_threshold(dataset)
    assert shared is not None
    assert shared == pytest.approx(
        otsu_threshold_db(20 * torch.cat([lake.flatten(), land.flatten()]).log10()), abs=1e-3
    )
    assert OtsuWater().shared_threshold(dataset) is None
    own, together = (
        otsu_water_scores(dataset, 1, 0, method=method).scores().iou[1] for method in (None, pooled)
    )
    assert own < 0.6 < 0.99 < together
    method, matrix = best_otsu_water_scores(dataset, 1, 0)
    assert method.pooled
    assert float(matrix.scores().iou[1]) >= float(together)


def test_multilooking_helps_single_look_images() -> None:
    scene = speckled_scene(3, contrast_db=8.0)
    generator = torch.Generator().manual_seed(1)
    scene["image"] = scene["image"] * -torch.rand(scene["image"].shape, generator=generator).log()
    dataset = ListedSamples([scene], class_table(("land", "water")))
    plain, smooth = (
        float(otsu_water_scores(dataset, 1, 0, method=OtsuWater(window=w)).scores().iou[1]) for w in (1, 9)
    )
    assert smooth > plain + 0.2


def test_otsu_works_at_a_coarser_spacing_and_answers_on_the_images_own_pixels() -> None:
    fine = torch.ones(40, 60)
    fine[:, :20] = 0.1
    coarse = sample(torch.zeros(40, 60, dtype=torch.int64), fine)
    coarse["pixel_m"] = 1.0
    found = OtsuWater(pixel_m=10.0).water_map(coarse)
    assert torch.equal(found, fine < 0.5)
    dark = sample(torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4))
    assert not OtsuWater(pooled=True, window=5).water_map(dark).any()
    everywhere_dark = ListedSamples([dark], class_table(("land", "water")))
    assert OtsuWater(pooled=True).shared_threshold(everywhere_dark) is None
