"""A numpy masked array is an image of which some is not measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from micro_model import micro

from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.errors import InputError

RNG = np.random.default_rng(0)


def image() -> np.ma.MaskedArray:
    values = RNG.rayleigh(size=(2, 1, 64, 80)).astype(np.float32)
    mask = np.zeros(values.shape, bool)
    mask[0, :, :20] = True
    return np.ma.array(values, mask=mask)


@pytest.mark.parametrize("under", [np.nan, -9999.0, 0.0, 1e6])
def test_what_is_under_the_mask_does_not_count(under: float) -> None:
    model, given = micro(), image()
    expected = model.predict(given)
    given.data[given.mask] = under
    found = model.predict(given)
    assert torch.equal(found, expected)
    assert (found[0, :20] == 255).all()
    assert (found[0, 20:] != 255).all()
    assert (found[1] != 255).all()
    seen = ~given.mask[0, 0]
    by_hand = fill_unmeasured(given.data[0], seen)[None]
    assert torch.equal(found[0, 20:], model.predict(by_hand)[0, 20:])


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    model, given = micro(), image()
    values = given.data
    assert torch.equal(model.predict(np.ma.array(values)), model.predict(values))


def test_an_image_that_is_all_masked_is_refused() -> None:
    given = image()
    given[0] = np.ma.masked
    with pytest.raises(InputError, match="no measured pixel"):
        micro().predict(given)


def test_a_pixel_masked_in_one_band_is_not_measured() -> None:
    values = RNG.rayleigh(size=(1, 2, 64, 64)).astype(np.float32)
    given = np.ma.array(values, mask=np.zeros(values.shape, bool))
    given[0, 1, 3, 4] = np.ma.masked
    found = micro().predict(given)
    assert found[0, 3, 4] == 255
    assert int((found == 255).sum()) == 1
