"""Batch norms among ranks: the same running statistics on all, and group norms in their place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossearth_sar import batch_norm
from crossearth_sar.batch_norm import average_over_ranks, uncounted, use_group_norms


def network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 24, 1), nn.BatchNorm2d(24)))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """As if among two ranks, the other of which has 1 for every statistic; the sums asked for."""
    asked: list[Tensor] = []

    def add_ones(flat: Tensor) -> None:
        asked.append(flat.clone())
        flat += 1

    monkeypatch.setattr(batch_norm.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm.dist, "all_reduce", add_ones)
    return asked


def test_statistics_become_the_mean_of_the_ranks_in_one_call(calls: list[Tensor]) -> None:
    module = network()
    output = module(torch.randn(3, 4, 5, 5))
    before = {key: value.clone() for key, value in module.named_buffers()}
    average_over_ranks(module)
    output.sum().backward()  # the averaging comes before it
    assert [len(flat) for flat in calls] == [2 * (4 + 24)]
    for key, value in module.named_buffers():
        if key.endswith("num_batches_tracked"):
            assert int(value) == 1
        else:
            torch.testing.assert_close(value, (before[key] + 1) / 2)


def test_those_in_eval_are_left_alone(calls: list[Tensor]) -> None:
    module = network().eval()
    average_over_ranks(module)
    assert calls == []
    module[1].train()
    average_over_ranks(module)
    assert [len(flat) for flat in calls] == [2 * 24]
    assert not bool(module[0].running_mean.any())


def test_alone_nothing_is_asked() -> None:
    module = network()
    module(torch.randn(3, 4, 5, 5))
    before = module[0].running_mean.clone()
    average_over_ranks(module)
    assert torch.equal(module[0].running_mean, before)


def test_what_is_computed_again_is_not_counted() -> None:
    module, image = network(), torch.randn(3, 4, 5, 5)
    first = module(image)
    before = {key: value.clone() for key, value in module.named_buffers()}
    with uncounted(module):
        assert torch.equal(module(image), first)
    assert all(torch.equal(value, before[key]) for key, value in module.named_buffers())
    module(image)
    assert int(module[0].num_batches_tracked) == 2


def test_group_norms_of_sixteen_channels_or_what_divides() -> None:
    module = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (64, 24, 8, 3))
    use_group_norms(module)
    assert [(m.num_groups, m.num_channels) for m in module] == [(4, 64), (3, 24), (1, 8), (3, 3)]
