"""Expert shares: size of the picture, area of the bubbles, and what is no share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import pixels
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures import expert_share_figure
from crossearth_sar.evaluation.figures.canvas import BLUE, DPI
from crossearth_sar.evaluation.figures.shares import _MAX_RADIUS


@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (6, 3), (12, 6), (13, 4), (24, 3), (24, 6)])
def test_expert_shares_fit_a_slide(tmp_path: Path, layers: int, experts: int) -> None:
    share = torch.softmax(torch.randn(layers, experts, generator=torch.Generator().manual_seed(0)), 1)
    picture = pixels(expert_share_figure(share, tmp_path / "e.png", "Share of tokens"))
    assert 700 <= picture.shape[1] < 2500
    assert 250 < picture.shape[0] < 1300


def test_bubble_area_follows_the_share(tmp_path: Path) -> None:
    """Half the share has half the area: the diameters of the two strong bubbles stand as 1 to sqrt(2)."""
    path = expert_share_figure(torch.tensor([[0.9, 0.05, 0.05], [0.45, 0.3, 0.25]]), tmp_path / "e.png")
    strong = (pixels(path) == np.array(tuple(bytes.fromhex(BLUE[1:])))).all(-1).any(1)
    edges = np.flatnonzero(np.diff(strong.astype(int), prepend=0, append=0))
    first, second, *_ = edges[1::2] - edges[::2]  # heights of the bubbles, and of the legend's dot
    assert first == pytest.approx(2 * _MAX_RADIUS * DPI, abs=2)
    assert first / second == pytest.approx(math.sqrt(2), rel=0.04)


@pytest.mark.parametrize(
    "share",
    [
        torch.ones(3),
        torch.empty(0, 4),
        torch.ones(2, 2),
        torch.tensor([[1.5, -0.5]]),
        torch.tensor([[math.nan, 1.0]]),
        torch.tensor([[120, 80]]),
    ],
)
def test_shares_that_are_none_are_refused(tmp_path: Path, share: Tensor) -> None:
    with pytest.raises(InputError, match="share"):
        expert_share_figure(share, tmp_path / "e.png")
