"""Pairs of settings that differ in one kind of domain gap and in nothing else."""

from __future__ import annotations

from typing import Any

from crossearth_sar.config import from_mapping
from crossearth_sar.data.simulator.config import SimulatorConfig
from crossearth_sar.errors import InputError, nearest

GAP_KINDS: tuple[str, ...] = (
    "region",
    "polarization",
    "complex",
    "region+polarization",
    "region+platform",
    "region+band",
    "region+polarization+band",
    "region+platform+band",
)
"""The eight kinds of domain gap of the benchmarks."""

GAP_AXES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "region": ({"region": "temperate_north"}, {"region": "arid_south"}),
    "polarization": ({"polarization": "VV"}, {"polarization": "full"}),
    "complex": ({"part": "amplitude"}, {"part": "real"}),
    "platform": (
        {"resolution_m": 3.0, "looks": 4, "nesz_db": -28.0, "incidence_deg": 38.0},
        {"resolution_m": 4.5, "looks": 2, "nesz_db": -22.0, "incidence_deg": 28.0},
    ),
    "band": ({"band": "C"}, {"band": "L"}),
}
"""The fields behind each axis and their values in the source and the target domain."""


def gap_pair(kind: str, **common: Any) -> tuple[SimulatorConfig, SimulatorConfig]:
    """(source, target) configs that differ in the axes that `kind` names and in nothing else.

    `common` sets fields on both sides. Seeds are equal too, so the axes that leave the ground alone
    (polarization, complex, band) look at the same places; give the two sides different seeds, with
    `dataclasses.replace`, where that would be cheating. The complex gap is single-look unless told.

    Raises:
        InputError: for an unknown kind or field, or a field that `kind` itself sets.
    """
    if kind not in GAP_KINDS:
        raise InputError(f"no gap kind {kind!r}{nearest(kind, GAP_KINDS)}", expected=" | ".join(GAP_KINDS))
    source, target = (
        {key: value for axis in kind.split("+") for key, value in GAP_AXES[axis][side].items()}
        for side in (0, 1)
    )
    if taken := sorted(source.keys() & common.keys()):
        raise InputError(
            f"{', '.join(taken)} cannot be common to both sides of a {kind!r} gap",
            fix="leave it out, or build the two configs with SimulatorConfig",
        )
    shared = ({"looks": 1} if kind == "complex" else {}) | common
    return (from_mapping(SimulatorConfig, shared | source), from_mapping(SimulatorConfig, shared | target))
