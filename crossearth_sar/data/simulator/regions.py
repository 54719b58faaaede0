"""The regions a simulated scene can lie in: shapes, sizes and shares of what covers their ground, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RegionLayout:
    """How a region looks from above. Lengths in metres, shares as fractions of the land."""

    parcels: Literal["strips", "pivots", "cells"]
    parcel_m: tuple[float, float]
    farmland: float
    forest: float
    barren: float
    forest_m: float
    barren_m: float
    water: tuple[tuple[str, float], ...]
    road_width_m: tuple[float, float]
    road_bend_m: float
    hedge_m: float
    settled: float
    plot_m: tuple[float, float]
    plots_per_block: int
    building_fill: tuple[float, float]
    building_skew: float
    storeys: tuple[int, int]
    canopy_m: float


LAYOUTS: dict[str, RegionLayout] = {
    # Long strip fields with hedgerows, mixed woods, meandering rivers, villages of gabled houses.
    "temperate_north": RegionLayout(
        parcels="strips",
        parcel_m=(170.0, 70.0),
        farmland=0.55,
        forest=0.24,
        barren=0.13,
        forest_m=75.0,
        barren_m=55.0,
        water=(("river", 0.45), ("lake", 0.3), ("none", 0.25)),
        road_width_m=(10.0, 14.0),
        road_bend_m=28.0,
        hedge_m=7.0,
        settled=0.85,
        plot_m=(34.0, 36.0),
        plots_per_block=4,
        building_fill=(0.5, 0.72),
        building_skew=0.14,
        storeys=(1, 3),
        canopy_m=3.5,
    ),
    # Irrigated circles in open barren land, straight roads, dense rows of flat-roofed blocks.
    "arid_south": RegionLayout(
        parcels="pivots",
        parcel_m=(120.0, 120.0),
        farmland=0.5,
        forest=0.08,
        barren=0.52,
        forest_m=45.0,
        barren_m=110.0,
        water=(("river", 0.2), ("lake", 0.3), ("none", 0.5)),
        road_width_m=(12.0, 18.0),
        road_bend_m=8.0,
        hedge_m=0.0,
        settled=0.9,
        plot_m=(28.0, 30.0),
        plots_per_block=6,
        building_fill=(0.6, 0.86),
        building_skew=0.0,
        storeys=(1, 2),
        canopy_m=2.5,
    ),
    # Sea or estuary, small irregular parcels, wooded slopes, taller buildings in blocks.
    "coastal": RegionLayout(
        parcels="cells",
        parcel_m=(62.0, 62.0),
        farmland=0.5,
        forest=0.28,
        barren=0.16,
        forest_m=60.0,
        barren_m=45.0,
        water=(("coast", 0.6), ("river", 0.25), ("none", 0.15)),
        road_width_m=(11.0, 16.0),
        road_bend_m=40.0,
        hedge_m=0.0,
        settled=0.9,
        plot_m=(40.0, 34.0),
        plots_per_block=3,
        building_fill=(0.5, 0.8),
        building_skew=0.06,
        storeys=(2, 5),
        canopy_m=3.0,
    ),
}
"""The regions a simulated scene can lie in."""
