"""The parts of a probe against loops and closed forms: draws, cells, logistic regression, neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.data.sample import Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.bootstrap import difference_interval, miou_interval, seeds_interval
from crossearth_sar.evaluation.probe.budget import Budget, rate_at
from crossearth_sar.evaluation.probe.cells import cell_labels, encode, pixel_scores
from crossearth_sar.evaluation.probe.encoder import Encoder
from crossearth_sar.evaluation.probe.floors import statistics_encoder
from crossearth_sar.evaluation.probe.knn import TEMPERATURE, fit_nearest
from crossearth_sar.evaluation.probe.linear import fit_linear
from crossearth_sar.evaluation.probe.subsets import drawn_order, image_counts


def sample(height: int, width: int, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, height, width, generator=generator) + 0.1
    mask = torch.randint(0, 3, (height, width), generator=generator)
    mask[:3, :5] = 255
    return Sample(image=image, mask=mask, name="one")


def pooled(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return F.avg_pool2d(image, 4)


def test_numbers_and_shares_of_images() -> None:
    assert image_counts([2, "10%", "100%", "1%"], 40) == {"2": 2, "10%": 4, "100%": 40, "1%": 1}
    for wrong, words in (
        ([41], "1 to 40"),
        ([0], "1 to 40"),
        (["0%"], "above 0%"),
        (["ten"], "no number"),
        ([], "each once"),
    ):
        with pytest.raises(InputError, match=words):
            image_counts(wrong, 40)


def test_small_draws_are_parts_of_large_ones_and_show_two_classes() -> None:
    """Of 30 images only every sixth has class 1: a plain draw of two would often show one class."""

    def classes_of(index: int) -> frozenset[int]:
        return frozenset({0, 1} if index % 6 == 0 else {0})

    orders = [drawn_order(30, 2, seed, classes_of) for seed in range(20)]
    for order in orders:
        assert sorted(order) == list(range(30))
        assert any(index % 6 == 0 for index in order[:2])
    assert orders[3] == drawn_order(30, 2, 3, classes_of)
    assert len({tuple(order) for order in orders}) == 20
    with pytest.raises(InputError, match="no 2 of 30 training images show two classes"):
        drawn_order(30, 2, 0, lambda _: frozenset({1}))


def test_cells_and_their_labels_are_those_of_a_loop() -> None:
    """An image of no whole cells, in tiles: each cell's mean, and the share of each class in it."""
    one = sample(30, 37)
    encoder = Encoder(maps=pooled, multiple=4, window=16, stride=12)
    windows = encode("pool", encoder, one, tiles=True)
    assert [(w.rows.start, w.columns.start) for w in windows] == [
        (top, left) for top in (0, 14) for left in (0, 16, 21)
    ]
    image = F.pad(one["image"], (0, 3, 0, 2), mode="replicate")
    for window in windows:
        shares = cell_labels(window, one["mask"], 3)
        assert shares.shape == (16, 3)
        for cell, (y, x) in enumerate(np.ndindex(4, 4)):
            top, left = window.rows.start + 4 * y, window.columns.start + 4 * x
            assert float(window.cells_Dhw[0, y, x]) == pytest.approx(
                float(image[0, top : top + 4, left : left + 4].mean()), abs=1e-6
            )
            labels = one["mask"][top : min(top + 4, 30), left : min(left + 4, 37)]
            for label in range(3):
                assert float(shares[cell, label]) == pytest.approx(int((labels == label).sum()) / 16)


def test_scores_of_cells_come_back_to_their_pixels() -> None:
    """A cell's feature is its place: linear in it, so that interpolation must give each pixel's own place."""
    height, width = 44, 52
    ramp = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    one = Sample(image=ramp + 1, mask=torch.zeros(height, width, dtype=torch.int64), name="ramp")
    windows = encode("pool", Encoder(maps=pooled, multiple=4, window=24, stride=16), one)
    assert len(windows) > 1
    found = pixel_scores(windows, (height, width), lambda cells: cells)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert found.shape == (2, height, width)
    # At a window's edge interpolation ends flat, up to a cell and a half off, where a window weighs little.
    assert float((found[inner] - (ramp + 1)[inner]).abs().max()) < 1.0
    assert float((found[inner] - (ramp + 1)[inner]).abs().mean()) < 0.15
    whole = pixel_scores(encode("pool", Encoder(maps=pooled, multiple=4), one), (height, width), lambda c: c)
    torch.testing.assert_close(whole[inner], (ramp + 1)[inner], atol=1e-3, rtol=0)


def test_several_maps_stand_beside_each_other_on_the_finest_grid() -> None:
    def two(image: Tensor, mean: Tensor, std: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image, 8), F.avg_pool2d(image, 4)]

    (window,) = encode("two", Encoder(maps=two, multiple=8), sample(24, 32))
    assert window.cells_Dhw.shape == (2, 6, 8)
    torch.testing.assert_close(window.cells_Dhw[1], F.avg_pool2d(sample(24, 32)["image"], 4)[0])


def test_encoders_that_give_no_maps_are_refused() -> None:
    for maps, words in (
        (lambda image, mean, std: image.mean((2, 3)), r"gives no feature maps[\s\S]*\(1, 1\)"),
        (lambda image, mean, std: [], "gives no feature maps"),
        (lambda image, mean, std: (image - image).log().mul(0), "not finite on 'one'"),
    ):
        with pytest.raises(InputError, match=words):
            encode("odd", Encoder(maps=maps), sample(16, 16))
    with pytest.raises(InputError, match="a multiple of 8"):
        Encoder(maps=pooled, multiple=8, window=12)


def test_the_linear_probe_is_at_the_minimum_of_its_loss() -> None:
    """The gradient of the stated loss, written out in float64, is 0 there."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator) * torch.tensor([1, 100, 1e-3, 1, 1, 1]) + 5
    features[:, 5] = 7.0
    shares = torch.rand(400, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    shares[:50] *= 0.2
    shares += torch.stack([features[:, 0] > 5, features[:, 1] > 100, features[:, 2] > 5], 1)
    probe = fit_linear(features, shares, l2=0.05)
    inputs = ((features - features.mean(0)) / features.std(0, correction=0)).double()
    inputs[:, 5] = 0
    logits = inputs @ probe.weight_KD.double().T + probe.bias_K.double()
    target = (shares / shares.sum()).double()
    residual = logits.softmax(1) * target.sum(1, keepdim=True) - target
    gradient = residual.T @ inputs + 0.05 * probe.weight_KD.double()
    assert float(gradient.abs().max()) < 5e-5
    assert float(residual.sum(0).abs().max()) < 5e-5
    assert float(probe.weight_KD[:, 5].abs().max()) == 0
    torch.testing.assert_close(probe.scores(features), logits.float(), atol=1e-3, rtol=1e-3)


def test_neighbours_vote_as_in_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, shares = torch.randn(60, 5, generator=generator), torch.rand(60, 3, generator=generator)
    asked = torch.randn(7, 5, generator=generator)
    found = fit_nearest(bank, shares).scores(asked)
    mean, std = bank.mean(0), bank.std(0, correction=0)
    for row, one in zip(found, asked, strict=True):
        cosines = [float(F.cosine_similarity((one - mean) / std, (b - mean) / std, dim=0)) for b in bank]
        nearest = sorted(range(60), key=lambda i: -cosines[i])[:20]
        weights = np.array([np.exp(cosines[i] / TEMPERATURE) for i in nearest])
        votes = np.array([(shares[i] / shares[i].sum()).numpy() for i in nearest])
        np.testing.assert_allclose(row, weights @ votes / weights.sum(), rtol=1e-4)


def test_image_statistics_are_finite_and_know_the_cell() -> None:
    image = torch.full((1, 2, 32, 48), 0.1)
    image[..., 16:, :] = 1.0
    image[..., :8, :8] = 0.0
    encoder = statistics_encoder()
    (found,) = encoder.maps(image, torch.tensor([[-10.0, -10.0]]), torch.tensor([[5.0, 5.0]]))
    assert found.shape == (1, 4 * 2 + 4, 4, 6)
    assert bool(torch.isfinite(found).all())
    assert float(found[0, 0, 1, 3]) == pytest.approx(-2.0, abs=1e-4)
    assert float(found[0, 0, 3, 3]) == pytest.approx(2.0, abs=1e-4)
    assert float(found[0, 2, 1, 3]) == pytest.approx(0.0), "constant within the cell"


def test_intervals_over_seeds_are_paired() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.integers(0, 50, (2, 3, 12, 2, 2))
    alone = miou_interval(first[0])
    assert seeds_interval(first[:1]) == alone
    assert seeds_interval(first[:1], other[:1]) == difference_interval(first[0], other[0])
    same = seeds_interval(first, first[::-1])
    assert same is not None
    assert abs(same.low) < 1e-12
    assert abs(same.high) < 1e-12
    assert seeds_interval(first[:, :1]) is None


def test_a_budget_counts_steps_or_the_seconds_within_them() -> None:
    budget = Budget(steps=4)
    shares = []
    while budget.share < 1:
        shares.append(budget.share)
        with budget.step():
            pass
    assert shares == [0, 0.25, 0.5, 0.75]
    budget, beside = Budget(seconds=0.05), 0.0
    while budget.share < 1:
        with budget.step():
            sum(range(20_000))
        beside += sum(range(20_000)) * 0.0
    assert budget.spent >= 0.05
    assert budget.done > 1
    with pytest.raises(InputError, match="steps or seconds"):
        Budget()
    assert rate_at(0.0, 1.0) == pytest.approx(0.02)
    assert rate_at(0.05, 1.0) == 1.0
    assert rate_at(1.0, 1.0) == 0.0
