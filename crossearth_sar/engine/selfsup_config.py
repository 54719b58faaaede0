"""What a self-supervised run is besides a run: the method and the pairs of views, and a probe at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from crossearth_sar.config import require
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.pairs import PairConfig


@dataclass(frozen=True, kw_only=True)
class ProbeAtEnd:
    """The frozen probe of a finished run: few labels on its features, and on others beside them.

    It is scored on the run's `validation`, images held out, and on `unseen`.
    """

    labelled: DomainConfig
    """Labelled images that the probe learns from."""
    labels: tuple[int, ...] = (2, 8, 64)
    """How many of them, one table column each."""
    seeds: int = 3
    """Draws of so few images; the table has their means."""
    beside: dict[str, str] = field(default_factory=dict)
    """Further rows, name: model folder; a MoCo v2 of the same budget, say. Random features are one anyway."""

    def __post_init__(self) -> None:
        rising = list(self.labels) == sorted({*self.labels})
        require(bool(self.labels) and rising, "probe.labels", self.labels, "rising numbers of images")
        require(min(self.labels) >= 1, "probe.labels", self.labels, "1 or more")
        require(self.seeds >= 1, "probe.seeds", self.seeds, "1 or more")


@dataclass(frozen=True, kw_only=True)
class SelfSupConfig:
    """Self-supervised pre-training on pairs of views."""

    method: DI3CLConfig = field(default_factory=DI3CLConfig)
    """DI3CL; with region_weight and contour_weight 0 MoCo v2."""
    views: PairConfig = field(default_factory=PairConfig)
    """How two views of an image are drawn."""
