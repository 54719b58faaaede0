"""A wide mixture of sensors: what satellites and products differ in, drawn scene by scene.

What: `draw_sensor` gives scene i of a config with `sensors: wide` its own settings; `simulated_sensors` lists
such settings, each a dataset of its own. Ranges follow products in use: C-band images of many looks and
X- and L-band ones of few, oversampled speckle, 8-bit copies, rough seas, flat and mountainous ground.
Not here: single-look complex parts and the span of four channels, which are domain gaps to be tested on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.random import Generator

from crossearth_sar.config import require
from crossearth_sar.data.simulator.config import SimulatorConfig

MANY_LOOKS = (4.4, 6.0, 9.0, 12.0, 16.0, 25.0)
FEW_LOOKS = (1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 6.0, 9.0, 9.0)
"""Equivalent numbers of looks; a few values, so that their quantile tables are kept."""
CORRELATIONS = (0.0, 0.25, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
TEXTURE_ORDERS = (None, 8.0, 15.0, 30.0)


def draw_sensor(config: SimulatorConfig, index: int) -> SimulatorConfig:
    """The settings of scene `index` of a wide `config`: seed, resolution and index alone decide."""
    rng = np.random.default_rng((config.seed, index, 2))
    drawn = _radar(rng) | _scene(rng) | _delivery(rng)
    resolution_m = float(config.resolution_m * 2 ** rng.uniform(-1, 1))
    return replace(config, sensors="one", ground="landscape", resolution_m=resolution_m, **drawn)


def _radar(rng: Generator) -> dict[str, Any]:
    band = str(rng.choice(["C", "C", "C", "X", "X", "L", "S"]))
    polarization = str(rng.choice(["VV", "VH", "HH", "HV"], p=[0.4, 0.2, 0.3, 0.1]))
    crossed = polarization in ("VH", "HV")
    many = band == "C" and rng.random() < 0.8
    return {
        "band": band,
        "polarization": polarization,
        "looks": float(rng.choice(MANY_LOOKS if many else FEW_LOOKS)),
        "speckle_correlation": float(rng.choice(CORRELATIONS)),
        "texture_order": cast("float | None", rng.choice(np.array(TEXTURE_ORDERS, object))),
        "nesz_db": float(rng.uniform(-34, -22) - 4 * crossed),
        "incidence_deg": float(rng.uniform(22, 50)),
        "peak_db": float(rng.uniform(5, 9) if rng.random() < 0.75 else rng.uniform(9, 16)),
    }


def _scene(rng: Generator) -> dict[str, Any]:
    relief = rng.random()
    return {
        "region": str(rng.choice(["temperate_north", "arid_south", "coastal"])),
        "slope_deg": 0.0
        if relief < 0.35
        else float(rng.uniform(0.5, 4) if relief < 0.75 else rng.uniform(4, 22)),
        "land_contrast": float(rng.uniform(0.2, 1.0)),
        "sea_db": float(rng.choice([rng.uniform(-3, 2), rng.uniform(0.5, 4.5)], p=[0.55, 0.45])),
        "wind_db": float(rng.uniform(0, 2.5)) if rng.random() < 0.7 else 0.0,
        "slicks_db": float(rng.uniform(2, 9)) if rng.random() < 0.2 else 0.0,
    }


def _delivery(rng: Generator) -> dict[str, Any]:
    return {
        "gain_db": float(rng.normal(0, 4)),
        "form": str(
            rng.choice(["float", "byte_amplitude", "byte_db", "byte_display"], p=[0.6, 0.12, 0.2, 0.08])
        ),
        "nodata": float(rng.uniform(0.02, 0.5)) if rng.random() < 0.08 else 0.0,
        "surroundings": float(rng.uniform(0.2, 0.9)) if rng.random() < 0.65 else 0.0,
    }


def simulated_sensors(
    count: int = 24, seed: int = 0, pixel_m: float = 10.0, **common: Any
) -> tuple[SimulatorConfig, ...]:
    """`count` settings of the wide mixture, each of its own places; pixels of half to twice `pixel_m`.

    `common` sets length and image_size of all.
    """
    require(count >= 1, "count", count, "1 or more")
    wide = SimulatorConfig(sensors="wide", resolution_m=pixel_m, seed=seed, **common)
    return tuple(replace(draw_sensor(wide, i), seed=(seed + 1) * 100_003 + i) for i in range(count))
