"""Running statistics: identity when fresh, exact over the first batches, float32 whatever the model is."""

from __future__ import annotations

import math

import pytest
import torch

from crossearth_sar import PhysicsGuidedMoE, RunningStandardizer, sar_descriptors
from crossearth_sar.descriptors.standardize import DESCRIPTOR_LIMIT
from crossearth_sar.errors import InputError

SENTINEL_1 = torch.tensor([3.58, 20.0, 5e-4])
CONSTANT = torch.tensor([0.0, 3.07e7, 0.0])
"""Descriptors of a crop that is 255 everywhere."""


def ordinary(batches: int, rows: int = 4, seed: int = 0) -> torch.Tensor:
    """(batches, rows, P): Sentinel-1 chips, about."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.004, 4.0, 1e-4])
    return SENTINEL_1 + spread * torch.randn(batches, rows, 3, generator=generator)


def test_fresh_in_eval_mode_is_the_identity() -> None:
    x = torch.rand(4, 3) * 1000
    assert torch.equal(RunningStandardizer(3).eval()(x), x)


def test_first_batches_give_the_statistics_of_all_their_rows() -> None:
    standardizer = RunningStandardizer(3)
    batches = [
        torch.randn(8, 3) * torch.tensor([1.0, 50.0, 1e-4]) + torch.tensor([3.0, 90.0, 2e-4]) * i
        for i in range(5)
    ]
    for batch in batches:
        standardizer(batch)
    rows = torch.cat(batches).double()
    torch.testing.assert_close(standardizer.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(
        standardizer.variance.double(), rows.var(0, correction=0), rtol=1e-4, atol=1e-14
    )
    out = standardizer.eval()(torch.cat(batches))
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_standardised_descriptors_leave_the_choice_to_the_tokens() -> None:
    """As README has it; raw ones of a bright image send all tokens to one expert."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer, standardize = PhysicsGuidedMoE(dim=64), RunningStandardizer()
    image = 200 * torch.rand(2, 1, 128, 128, generator=generator).add(0.3)
    tokens, raw = torch.randn(2, 257, 64, generator=generator), sar_descriptors(image)
    _, collapsed = layer(tokens, raw)
    _, routing = layer(tokens, standardize(raw))
    assert collapsed.expert_fraction.max() > 0.9
    assert routing.expert_fraction.max() < 0.5


def test_eval_does_not_update_and_casts_do_not_touch_the_buffers() -> None:
    standardizer = RunningStandardizer(3)
    standardizer(torch.rand(4, 3))
    before = standardizer.mean.clone()
    standardizer.eval()(torch.rand(4, 3) + 9)
    standardizer.bfloat16()
    assert standardizer.mean.dtype == torch.float32
    assert torch.equal(before, standardizer.mean)
    assert standardizer.batches_seen.dtype == torch.int64


def test_rows_that_are_no_numbers_are_left_out_and_come_out_as_nan() -> None:
    with_bad, without = RunningStandardizer(), RunningStandardizer()
    batch = ordinary(1)[0]
    for bad in (math.nan, math.inf):
        row = torch.tensor([[3.0, bad, 0.1]])
        out = with_bad(torch.cat([batch, row]))
        assert out[-1].isnan().tolist() == [False, True, False]
        assert bool(torch.isfinite(out[:-1]).all())
        without(batch)
        with_bad(row)
        with_bad(batch[:0])
        assert int(with_bad.batches_seen) == int(without.batches_seen), "a batch without a number is none"
        assert torch.equal(with_bad.mean, without.mean)
        assert torch.equal(with_bad.variance, without.variance)
    assert with_bad.eval()(torch.tensor([[3.0, math.inf, 0.1]]))[0, 1].isnan()


def test_what_comes_out_is_within_the_limit() -> None:
    standardizer = RunningStandardizer()
    for batch in ordinary(5):
        standardizer(batch)
    far = torch.stack([CONSTANT, torch.tensor([3.58, 49.0, 0.08]), torch.tensor([3.58, 215.0, 0.04])])
    assert standardizer.eval()(far).abs().max() == DESCRIPTOR_LIMIT
    near = standardizer(SENTINEL_1[None] + torch.tensor([0.004, 4.0, 1e-4]))
    assert ((near > 0.5) & (near < 1.7)).all()


@pytest.mark.parametrize("at", [15, 60])
def test_an_odd_image_moves_the_statistics_little(at: int) -> None:
    batches = ordinary(100)
    odd = batches.clone()
    odd[at, 0] = CONSTANT
    standardizer, undisturbed = RunningStandardizer(), RunningStandardizer()
    for batch, with_odd in zip(batches, odd, strict=True):
        undisturbed(batch)
        standardizer(with_odd)
    ratio = (standardizer.variance / undisturbed.variance).sqrt()
    assert ((ratio > 0.9) & (ratio < 1.2)).all(), ratio


def test_an_odd_image_in_the_first_batch_is_forgotten() -> None:
    batches = ordinary(240)
    batches[0, 0] = CONSTANT
    standardizer = RunningStandardizer(momentum=0.05)  # a fifth of the batches that 0.01 takes
    for batch in batches:
        standardizer(batch)
    spread = standardizer.eval()(ordinary(1, 200, seed=1)[0]).std(0)
    assert ((spread > 0.5) & (spread < 1.5)).all(), spread


def test_a_sensor_that_stays_becomes_the_mean() -> None:
    standardizer = RunningStandardizer()
    for batch in ordinary(20):
        standardizer(batch)
    scale = torch.tensor([1.0, 10.0, 40.0])
    for batch in ordinary(400, seed=1):
        standardizer(batch * scale)
    standardised = standardizer.eval()(ordinary(1, 200, seed=2)[0] * scale)
    assert (standardised.mean(0).abs() < 0.7).all(), standardised.mean(0)
    assert (standardised.std(0) > 0.2).all(), standardised.std(0)


def test_equal_images_do_not_hold_the_statistics_for_good() -> None:
    standardizer = RunningStandardizer()
    for _ in range(20):
        standardizer(SENTINEL_1.expand(4, 3))
    for batch in ordinary(200):
        standardizer(2 * batch)
    assert torch.allclose(standardizer.mean, 2 * SENTINEL_1, rtol=0.3), standardizer.mean


def test_statistics_that_are_no_numbers_are_refused() -> None:
    state = RunningStandardizer().state_dict()
    state["mean"] = torch.tensor([3.0, math.nan, 0.1])
    with pytest.raises(InputError, match=r"(?s)statistics mean are no numbers.*earlier checkpoint"):
        RunningStandardizer().load_state_dict(state)


class Described(torch.utils.data.Dataset[torch.Tensor]):
    """Standardises in __getitem__, as a user may who wants the worker to do it."""

    def __init__(self, standardizer: RunningStandardizer) -> None:
        self.standardizer = standardizer

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.standardizer(SENTINEL_1.expand(1, 3))


def test_statistics_are_not_gathered_in_a_worker() -> None:
    standardizer = RunningStandardizer()
    loader = torch.utils.data.DataLoader(Described(standardizer), num_workers=1)
    with pytest.raises(InputError, match=r"(?s)would stay in its copy.*worker 0.*eval\(\)"):
        next(iter(loader))
    standardizer.eval()
    assert len(list(loader)) == 2


def test_it_begins_on_no_device() -> None:
    standardizer = RunningStandardizer(device="meta").to_empty(device="cpu")
    standardizer.reset_parameters()
    for name, value in RunningStandardizer().state_dict().items():
        assert torch.equal(standardizer.state_dict()[name], value), name
