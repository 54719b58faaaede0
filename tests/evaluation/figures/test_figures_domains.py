"""Experts against domains: what the bits are by theory, colours by value, sizes, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import count_of, pixels
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures import divergence_bits, expert_domain_figure
from crossearth_sar.evaluation.figures.domains import COLORS, _color_limit

LESS, MORE = (tuple(round(255 * c) for c in COLORS(tone)[:3]) for tone in (0.0, 1.0))


def drawn(domains: int, layers: int, experts: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    share_GLE = torch.softmax(0.5 * torch.randn(domains, layers, experts, generator=generator), -1)
    return {f"AIR-PolSAR-Seg-2.0 North · {i}": share for i, share in enumerate(share_GLE)}


def test_bits_are_the_jensen_shannon_divergence() -> None:
    """0 for domains alike; log2 G where no two share an expert; by hand in between."""
    alike = torch.softmax(torch.randn(1, 3, 6), -1).expand(4, 3, 6)
    assert float(divergence_bits(alike).abs().max()) < 1e-7
    for domains in (2, 3, 6):
        apart = torch.eye(6)[:domains, None].expand(domains, 2, 6)
        torch.testing.assert_close(
            divergence_bits(apart), torch.full((domains, 2), math.log2(domains), dtype=torch.float64)
        )
    # Two domains over two experts, (1/2, 1/2) and (1, 0): their mean is (3/4, 1/4).
    found = divergence_bits(torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]))
    expected = [0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25), math.log2(1 / 0.75)]
    assert found[:, 0].tolist() == pytest.approx(expected)
    # The mean over the domains is H(mean) - mean of H, which is how the divergence is defined.
    shares = torch.softmax(2 * torch.randn(5, 4, 6, dtype=torch.float64), -1)
    entropy = torch.special.entr(shares).sum(-1) / math.log(2)
    whole = torch.special.entr(shares.mean(0)).sum(-1) / math.log(2)
    torch.testing.assert_close(divergence_bits(shares).mean(0), whole - entropy.mean(0))


@pytest.mark.parametrize(
    ("domains", "layers", "experts"), [(1, 4, 6), (3, 12, 6), (22, 24, 6), (2, 1, 1), (2, 2, 40)]
)
@pytest.mark.filterwarnings("error")
def test_any_number_of_domains_and_layers_fits_a_page(
    tmp_path: Path, domains: int, layers: int, experts: int
) -> None:
    path = expert_domain_figure(drawn(domains, layers, experts), tmp_path / "new" / "d.png", "Title $x_")
    height, width, _ = pixels(path).shape
    assert 1000 < width < 2300
    assert 300 < height < 2100


def test_colours_follow_the_share(tmp_path: Path) -> None:
    """Four times an even share is at the upper end of the scale, an unused expert at the lower."""
    quarter = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    first, last = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    even = pixels(expert_domain_figure({"a": quarter, "b": quarter}, tmp_path / "even.png"))
    apart = pixels(expert_domain_figure({"a": first, "b": last}, tmp_path / "apart.png"))
    more, less = (count_of(apart, tone) - count_of(even, tone) for tone in (MORE, LESS))
    assert more > 1000
    assert less / more == pytest.approx(3, rel=0.12)  # six cells against two; less what is printed
    blue = (apart == np.array(MORE, np.uint8)).all(-1)
    rows, columns = np.nonzero(blue)
    upper = columns[rows < np.median(rows)].mean()
    assert upper < columns[rows > np.median(rows)].mean()  # expert 0 in the first line, 3 in the second


def test_the_scale_widens_only_where_it_would_cut() -> None:
    assert _color_limit(np.array([[[0.5, 0.5]]])) == 1
    assert _color_limit(np.array([[[0.25, 0.75]]])) == 1
    assert _color_limit(np.array([[[0.24, 0.76]]])) == 2
    assert _color_limit(np.array([[[1.0, 0.0]]])) == 2


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({}, "no domain"),
        ({"a": torch.full((2, 4), 0.25), "b": torch.full((3, 4), 0.25)}, r"b: \(3, 4\)"),
        ({"a": torch.full((2, 4), 0.25), "b": torch.full((2, 2), 0.5)}, "differ in shape"),
        ({"a": torch.full((4,), 0.25)}, "share of 'a' does not fit"),
        ({"a": torch.ones(1, 2)}, "share of 'a' do not sum to 1"),
        ({"a": torch.tensor([[math.nan, 1.0]])}, "no shares"),
    ],
)
def test_shares_that_cannot_stand_side_by_side(tmp_path: Path, shares: dict[str, Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        expert_domain_figure(shares, tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()
