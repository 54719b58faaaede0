"""Running statistics: identity when fresh, exact over the first batches, float32 whatever the model is."""

from __future__ import annotations

import torch

from crossearth_sar.descriptors import RunningStandardizer


def test_fresh_in_eval_mode_is_the_identity() -> None:
    x = torch.rand(4, 3) * 1000
    assert torch.equal(RunningStandardizer(3).eval()(x), x)


def test_first_batches_give_the_statistics_of_all_their_rows() -> None:
    standardizer = RunningStandardizer(3)
    batches = [
        torch.randn(8, 3) * torch.tensor([1.0, 500.0, 1e-4]) + torch.tensor([3.0, 900.0, 2e-4]) * i
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


def test_eval_does_not_update_and_casts_do_not_touch_the_buffers() -> None:
    standardizer = RunningStandardizer(3)
    standardizer(torch.rand(4, 3))
    before = standardizer.mean.clone()
    standardizer.eval()(torch.rand(4, 3) + 9)
    standardizer.bfloat16()
    assert standardizer.mean.dtype == torch.float32
    assert torch.equal(before, standardizer.mean)
    assert standardizer.batches_seen.dtype == torch.int64
