"""The training stream: draws that depend on (seed, n) alone, and ranks that share a batch between them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from crossearth_sar.data.sample import Sample
from crossearth_sar.data.simulator.scenes import SimulatedScenes, SimulatorConfig
from crossearth_sar.data.stream import ShardedDraws, TrainStream
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform

LENGTH = 7


def make(seed: int = 0, length: int = LENGTH) -> TrainStream:
    scenes = SimulatedScenes(SimulatorConfig(length=length, image_size=24))
    return TrainStream(scenes, TrainTransform(AugmentConfig(crop_size=16, speckle_looks=2.0)), seed)


def epoch(stream: TrainStream, number: int) -> list[int]:
    length = len(stream.dataset)
    return [stream.index_of(number * length + position) for position in range(length)]


def same(a: Sample, b: Sample) -> bool:
    return (
        a["name"] == b["name"] and torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])
    )


def test_every_image_comes_once_per_epoch() -> None:
    stream = make()
    for number in range(4):
        assert sorted(epoch(stream, number)) == list(range(LENGTH))


def test_another_epoch_and_another_seed_are_another_order() -> None:
    orders = [epoch(make(seed, 20), number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    stream, fresh = make(), make()
    forwards = [stream[n] for n in range(3 * LENGTH)]
    for n in (20, 3, 13, 3, 0):
        assert same(fresh[n], forwards[n])
    assert same(make()[13], forwards[13])


def test_the_same_image_is_varied_anew_each_epoch_and_seed() -> None:
    stream, other = make(length=1), make(seed=1, length=1)
    first, second, elsewhere = stream[0], stream[1], other[0]
    assert first["name"] == second["name"] == elsewhere["name"]
    assert not torch.equal(first["image"], second["image"])
    assert not torch.equal(first["image"], elsewhere["image"])


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    make()[5]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_a_step_without_overlap(ranks: int) -> None:
    def draws(rank: int, of: int) -> list[list[int]]:
        return list(ShardedDraws(first_step=3, last_step=6, batch_size=8, rank=rank, ranks=of))

    whole = draws(0, 1)
    assert whole == [list(range(24, 32)), list(range(32, 40)), list(range(40, 48))]
    parts = [draws(rank, ranks) for rank in range(ranks)]
    for step, expected in enumerate(whole):
        got = [n for part in parts for n in part[step]]
        assert sorted(got) == expected
        assert {len(part[step]) for part in parts} == {8 // ranks}


def test_draws_start_in_the_middle_and_know_their_number() -> None:
    def make_draws(first: int) -> ShardedDraws:
        return ShardedDraws(first_step=first, last_step=6, batch_size=4, rank=1, ranks=2)

    assert len(make_draws(0)) == 6
    assert len(make_draws(4)) == 2 == len(list(make_draws(4)))
    assert list(make_draws(4)) == list(make_draws(0))[4:]
    assert len(make_draws(6)) == 0


def test_the_number_of_workers_does_not_matter() -> None:
    def batches(workers: int) -> list[dict[str, object]]:
        draws = ShardedDraws(first_step=1, last_step=4, batch_size=6, rank=1, ranks=2)
        return list(DataLoader(make(), batch_sampler=draws, num_workers=workers))

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert alone["name"] == shared["name"]
        for key in ("image", "mask"):
            assert torch.equal(alone[key], shared[key])  # type: ignore[arg-type]
