"""Radar backscatter: mean sigma0 by class, band and polarization, texture and geometry.

What: the physical half of the simulator, as functions of arrays. One table holds the mean sigma0 of each
land-cover class at C band; rules carry it to other bands (roughness against wavelength), incidences and
regions. `texture` is the gamma texture of the K distribution, `radar_geometry` moves echoes of what stands
above ground (layover) and removes those of what lies behind it (shadow). Speckle is speckle.py.
Not here: an electromagnetic solver. The table follows trends of published backscatter statistics and
surface models to a few dB; it is no measurement of any one sensor.

H W pixels, N channels (HH, HV, VV), C classes. sigma0 without a suffix is linear power.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.random import Generator
from scipy.special import gammaincinv, ndtr

from crossearth_sar.data.simulator.landcover import AGRICULTURAL, WATER
from crossearth_sar.data.simulator.noise import Booleans, Floats, Integers, smooth_noise
from crossearth_sar.data.simulator.water import slicks

Band = Literal["P", "L", "S", "C", "X", "Ka"]
Polarization = Literal["HH", "HV", "VH", "VV", "full"]

FREQUENCY_GHZ: dict[Band, float] = {"P": 0.435, "L": 1.27, "S": 3.2, "C": 5.4, "X": 9.65, "Ka": 35.0}
"""Centre frequency of each band."""

REFERENCE_INCIDENCE_DEG = 38.0
"""Incidence angle at which the table holds."""

_ROUGHNESS_EXPONENT = 0.6
"""Tempers the surface rule: natural surfaces are rough on every scale, so they fade slower than one scale."""


@dataclass(frozen=True, kw_only=True)
class ClassScattering:
    """How one class scatters: sigma0 at C band and 38 degrees, and what the rules need.

    hh_db, hv_db, vv_db: mean sigma0, dB; VH equals HV by reciprocity.
    roughness_m: rms height of a surface scatterer; None where volume or double bounce dominates.
    db_per_octave: for those, the trend of (HH, HV, VV) with frequency.
    incidence_power: sigma0 goes with (cos incidence) ** this.
    texture: shape of its K texture over the configured order; None: no texture.
    undulation_db: slow variation over the scene, standard deviation (moisture, wind, canopy).
    coherence: |correlation| of HH and VV.
    points: bright point scatterers: how many per hectare, and their mean radar cross-section in m^2.
    """

    hh_db: float
    hv_db: float
    vv_db: float
    roughness_m: float | None = None
    db_per_octave: tuple[float, float, float] = (0.0, 0.0, 0.0)
    incidence_power: float
    texture: float | None
    undulation_db: float
    coherence: float
    points: tuple[float, float]


SCATTERING: dict[str, ClassScattering] = {
    # Double bounce and direct returns: co-polarized, band-insensitive, spiky.
    "building": ClassScattering(
        hh_db=-5.5,
        hv_db=-13.5,
        vv_db=-6.5,
        db_per_octave=(-0.2, 0.0, 0.1),
        incidence_power=0.5,
        texture=0.4,
        undulation_db=0.5,
        coherence=0.6,
        points=(20.0, 40.0),
    ),
    # Asphalt: smooth at C band, specular away from the sensor.
    "road": ClassScattering(
        hh_db=-19.0,
        hv_db=-28.5,
        vv_db=-18.0,
        roughness_m=0.003,
        incidence_power=5.0,
        texture=3.0,
        undulation_db=0.4,
        coherence=0.85,
        points=(1.5, 8.0),
    ),
    # Bragg scattering off ripples: darkest, VV over HH, very little cross-polarized.
    "water": ClassScattering(
        hh_db=-23.5,
        hv_db=-33.0,
        vv_db=-20.5,
        roughness_m=0.0025,
        incidence_power=6.0,
        texture=None,
        undulation_db=0.8,
        coherence=0.95,
        points=(0.04, 200.0),
    ),
    # Bare soil, sand, gravel: rough surface, weak cross-polarization.
    "barren": ClassScattering(
        hh_db=-16.0,
        hv_db=-26.5,
        vv_db=-15.0,
        roughness_m=0.009,
        incidence_power=3.0,
        texture=1.5,
        undulation_db=1.2,
        coherence=0.85,
        points=(0.2, 20.0),
    ),
    # Volume of branches: strong HV; at L and P trunks and ground add a double bounce in HH.
    "forest": ClassScattering(
        hh_db=-7.5,
        hv_db=-13.0,
        vv_db=-8.0,
        db_per_octave=(-0.5, -0.1, 0.1),
        incidence_power=1.0,
        texture=1.0,
        undulation_db=0.6,
        coherence=0.3,
        points=(0.1, 40.0),
    ),
    # Crops over tilled soil: between surface and volume, differing by parcel.
    "agricultural": ClassScattering(
        hh_db=-11.0,
        hv_db=-18.5,
        vv_db=-10.5,
        roughness_m=0.018,
        incidence_power=1.5,
        texture=2.5,
        undulation_db=0.3,
        coherence=0.55,
        points=(0.2, 40.0),
    ),
    # Grass, gardens, yards, scrub.
    "background": ClassScattering(
        hh_db=-13.5,
        hv_db=-21.5,
        vv_db=-13.0,
        roughness_m=0.012,
        incidence_power=2.0,
        texture=1.0,
        undulation_db=0.8,
        coherence=0.65,
        points=(1.0, 25.0),
    ),
}
"""Rows in the order of SEVEN_CLASSES."""

REGION_OFFSET_DB: dict[str, tuple[float, ...]] = {
    #                   building road  water barren forest agri  background
    "temperate_north": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "arid_south": (1.0, 1.0, -0.5, -2.0, -2.0, 0.8, -1.5),  # dry soil, sparse canopy, irrigated crops
    "coastal": (0.5, -0.5, 2.5, 1.5, 0.5, -1.0, 1.0),  # wind on the water, moist ground, paddies
}
"""What a region adds to the table, dB per class."""

DOUBLE_BOUNCE_DB = (9.0, -6.0, 6.0)
"""sigma0 at 3 m pixels of the line where wall meets ground, walls square to range, (HH, HV, VV)."""

POINT_GAIN = (1.0, 0.125, 0.8)
"""Share of a point's cross-section seen in (HH, HV, VV)."""

_POINT_SPREAD = 0.8
"""Standard deviation of the log of the cross-section."""

PARCEL_SPREAD_DB = 1.7
"""Standard deviation of agricultural parcels about their class mean: crops and their growth."""


def sigma0_table(
    *, band: Band, region: str = "temperate_north", incidence_deg: float = REFERENCE_INCIDENCE_DEG
) -> Floats:
    """Mean linear sigma0, (C, N): the seven classes in HH, HV, VV.

    Surfaces follow (ks)^2 / (1 + (ks)^2) to the power 0.6, with k = 2 pi / wavelength and s the rms height:
    a surface smooth against the wavelength mirrors the wave away, a rough one saturates. Others follow a
    trend in dB per octave.
    """
    cos_ratio = np.cos(np.radians(incidence_deg)) / np.cos(np.radians(REFERENCE_INCIDENCE_DEG))
    octaves = np.log2(FREQUENCY_GHZ[band] / FREQUENCY_GHZ["C"])
    rows = []
    for row, offset_db in zip(SCATTERING.values(), REGION_OFFSET_DB[region], strict=True):
        level_db = np.array([row.hh_db, row.hv_db, row.vv_db]) + offset_db
        if row.roughness_m is None:
            level_db += octaves * np.array(row.db_per_octave)
        else:
            level_db += 10 * np.log10(_roughness(row.roughness_m, band) / _roughness(row.roughness_m, "C"))
        rows.append(10 ** (level_db / 10) * cos_ratio**row.incidence_power)
    return np.array(rows, np.float32)


def _roughness(rms_height_m: float, band: Band) -> float:
    ks = 2 * np.pi * FREQUENCY_GHZ[band] / 0.299792458 * rms_height_m
    return float((ks**2 / (1 + ks**2)) ** _ROUGHNESS_EXPONENT)


def mean_sigma0_db(
    *,
    polarization: Polarization,
    band: Band,
    region: str = "temperate_north",
    incidence_deg: float = REFERENCE_INCIDENCE_DEG,
) -> Floats:
    """Mean sigma0 of the seven classes in dB, (C,), before points, geometry and noise are added.

    "full" is the mean power of the four channels: (HH + HV + VH + VV) / 4 = span / 4.
    """
    hh, hv, vv = sigma0_table(band=band, region=region, incidence_deg=incidence_deg).T
    power = {"HH": hh, "HV": hv, "VH": hv, "VV": vv, "full": (hh + 2 * hv + vv) / 4}[polarization]
    return (10 * np.log10(power)).astype(np.float32)


def natural_variation(rng: Generator, labels: Integers, parcel: Integers) -> Floats:
    """(H, W) factor of mean 1 on sigma0: one level per agricultural parcel, slow undulation elsewhere."""
    spread_db = np.array([row.undulation_db for row in SCATTERING.values()], np.float32)[labels]
    value = smooth_noise(rng, len(labels), 24.0, octaves=2) * spread_db
    crops_db = (rng.standard_normal(int(parcel.max()) + 1) * PARCEL_SPREAD_DB).astype(np.float32)
    farmed = labels == AGRICULTURAL
    value[farmed] += crops_db[parcel[farmed]]
    variance = spread_db**2 + np.where(farmed, np.float32(PARCEL_SPREAD_DB**2), np.float32(0))
    nepers = np.float32(np.log(10) / 10)
    return np.exp(nepers * value - nepers**2 * variance / 2)  # minus half the variance: log-normal mean 1


def texture(rng: Generator, labels: Integers, order: float | None) -> Floats:
    """(H, W) gamma texture of mean 1 and variance 1/nu, nu = `order` times the class's `texture` factor.

    Times gamma speckle this is K-distributed intensity, of normalised variance
    (1 + 1/L)(1 + 1/nu) - 1. Neighbouring pixels are correlated (a Gaussian field of cubic splines on a
    2-pixel lattice, mapped to the gamma law by its quantiles); classes meet in one field. Where the class
    has no texture, or `order` is None or inf, it is 1.
    """
    if order is None or np.isinf(order):
        return np.ones(labels.shape, np.float32)
    field = smooth_noise(rng, len(labels), 2.0)
    table = _gamma_quantiles(order)
    position = np.clip(
        (field + _FIELD_REACH) * ((table.shape[1] - 1) / (2 * _FIELD_REACH)), 0, table.shape[1] - 1.001
    )
    left = position.astype(np.int64)
    flat = labels * table.shape[1] + left
    low, high = table.ravel()[flat], table.ravel()[flat + 1]
    return low + (position - left).astype(np.float32) * (high - low)


_FIELD_REACH = 5.0
"""Standard deviations of the Gaussian field that the quantile tables span."""


@lru_cache(maxsize=32)
def _gamma_quantiles(order: float) -> Floats:
    """(C, 2048): gamma quantiles of mean 1 for each class, over -5..5 standard deviations of a Gaussian."""
    grid = ndtr(np.linspace(-_FIELD_REACH, _FIELD_REACH, 2048))
    rows = [
        np.ones_like(grid)
        if row.texture is None
        else gammaincinv(order * row.texture, grid) / (order * row.texture)
        for row in SCATTERING.values()
    ]
    return np.array(rows, np.float32)


def double_bounce(wall_angle_deg: float, resolution_m: float) -> Floats:
    """sigma0 (N,) of the pixels at the foot of a wall turned by 0..45 degrees from facing the sensor.

    A dihedral mirrors away from the sensor once turned, so the co-polarized return falls off (to a floor of
    odds and ends, 11 dB lower); the turned dihedral depolarizes, so HV gains. The echo comes from a line:
    the coarser the pixel, the more it is thinned.
    """
    level = 10 ** (np.array(DOUBLE_BOUNCE_DB) / 10) * (3.0 / resolution_m)
    facing = 0.08 + 0.92 * np.exp(-((wall_angle_deg / 18.0) ** 2))
    turned = np.sin(2 * np.radians(wall_angle_deg)) ** 2
    return (level * [facing, 1 + 1.5 * turned, facing]).astype(np.float32)


def radar_geometry(
    sigma0: Floats,
    height_m: Floats,
    walls: Booleans,
    *,
    resolution_m: float,
    incidence_deg: float,
    wall_sigma0: Floats,
    corner_sigma0: Floats,
) -> Floats:
    """Layover and shadow: sigma0 (N, H, W) on the ground -> (N, H, W) in the ground-range image.

    The sensor is beyond column 0 and a plane wave falls in at `incidence_deg` from the vertical. With
    cot = 1 / tan(incidence): a point h above ground is imaged h * cot nearer to the sensor; a point is dark
    if a point d nearer to the sensor stands more than d * cot higher, so a building of height h throws a
    shadow of h * tan(incidence). Echoes falling on one pixel add. Where `walls` (H, W) is set and the height
    steps up towards larger range, the wall's own echo `wall_sigma0` (N,) lies between its foot and its top's
    image, and its corner with the ground gives `corner_sigma0` (N,) at its foot. Beyond the scene the ground
    is taken to continue as at its edge.
    """
    top = float(height_m.max())
    if top == 0:
        return sigma0
    cot = 1 / np.tan(np.radians(incidence_deg))
    n, rows, columns = sigma0.shape
    left, right = int(np.ceil(top / cot / resolution_m)) + 1, int(np.ceil(top * cot / resolution_m)) + 1
    pads = ((0, 0), (left, right))
    z, wall = np.pad(height_m, pads, "edge"), np.pad(walls, pads, "edge")
    width = z.shape[1]
    ray = z + (np.arange(width) * (resolution_m * cot)).astype(np.float32)
    horizon = np.maximum.accumulate(ray[:, :-1], axis=1) + 0.5 * resolution_m * cot  # at pixels' far edges
    visible = np.ones_like(wall)
    visible[:, 1:] = ray[:, 1:] >= horizon
    shift = np.rint(z * (cot / resolution_m)).astype(np.int64)
    target = np.maximum(np.arange(width) - shift, 0) + (np.arange(rows) * width)[:, None]
    image = np.empty((n, rows * width), np.float32)
    for channel in range(n):
        echo = np.pad(sigma0[channel], pads, "edge") * visible
        image[channel] = np.bincount(target.ravel(), echo.ravel(), rows * width)
    _add_walls(image, z, wall, visible, shift, wall_sigma0, corner_sigma0)
    return image.reshape(n, rows, width)[:, :, left : left + columns]


def _add_walls(
    image: Floats,
    z: Floats,
    wall: Booleans,
    visible: Booleans,
    shift: Integers,
    wall_sigma0: Floats,
    corner_sigma0: Floats,
) -> None:
    """Adds to image (N, H * W) the echoes of walls facing the sensor and of their feet, in place."""
    row, column = np.nonzero((z[:, 1:] - z[:, :-1] > 1.0) & wall[:, 1:] & visible[:, 1:])
    column += 1
    foot = row * z.shape[1] + column
    reach = np.minimum(shift[row, column], column)
    low = shift[row, column - 1]
    for step in range(1, int(reach.max(initial=0)) + 1):
        at = foot[(step <= reach) & (step > low)] - step
        image[:, at] += wall_sigma0[:, None]
    image[:, foot - np.minimum(low, column)] += corner_sigma0[:, None]


def add_points(rng: Generator, sigma0: Floats, labels: Integers, gain: Floats, resolution_m: float) -> None:
    """Adds bright points to sigma0 (N, H, W) in place: roof fittings, vehicles, ships, masts.

    Density and mean cross-section are the class's `points`; single cross-sections are log-normal about it,
    times `gain` (N,) for each channel. The impulse response is a cross of 5 pixels with 60 % in the middle.
    """
    count, section_m2 = np.array([row.points for row in SCATTERING.values()], np.float32).T
    chance = (count * np.float32(1e-4 * resolution_m**2))[labels]
    row, column = np.nonzero(rng.random(labels.shape, dtype=np.float32) < chance)
    spread = np.exp(_POINT_SPREAD * rng.standard_normal(len(row)) - _POINT_SPREAD**2 / 2)
    spread *= np.maximum(chance[row, column], 1)  # pixels so coarse that each holds several
    power = (section_m2[labels[row, column]] * spread / resolution_m**2).astype(np.float32)
    rows, columns = labels.shape
    for down, right, share in ((0, 0, 0.6), (0, 1, 0.1), (1, 0, 0.1), (0, -1, 0.1), (-1, 0, 0.1)):
        r, c = np.clip(row + down, 0, rows - 1), np.clip(column + right, 0, columns - 1)
        for channel, part in zip(sigma0, share * gain, strict=True):
            np.add.at(channel, (r, c), part * power)


def with_land_contrast(table: Floats, contrast: float) -> Floats:
    """The table (N, C) whose classes, but water, keep `contrast` of their dB about the mean of land cover."""
    land = np.arange(table.shape[1]) != WATER
    log = np.log(table[:, land])
    middle = log @ LAND_WEIGHTS
    changed = table.copy()
    changed[:, land] = np.exp(middle[:, None] + np.float32(contrast) * (log - middle[:, None]))
    return changed


LAND_WEIGHTS = np.array([0.05, 0.0, 0.2, 0.25, 0.25, 0.25], np.float32)
"""How much of land, about, is building, road, barren, forest, agricultural and background."""

SEA_SHARE = np.array([1.0, 0.5, 1.0], np.float32)
"""Of a sea state's dB, what (HH, HV, VV) see: ripples hardly depolarize."""


def sea_gain(
    rng: Generator, labels: Integers, *, sea_db: float, wind_db: float, slicks_db: float = 0.0
) -> Floats:
    """(N, H, W) factor on sigma0 of water: `sea_db` everywhere, wind patches of `wind_db` rms, and slicks.

    A rougher sea is brighter. Patches are as wide as a part of the scene or the whole of it. Slicks, of oil
    or of calm, are filaments along the level lines of a stretched field, `slicks_db` darker.
    """
    size, water = len(labels), labels == WATER
    if not water.any():
        return np.ones((len(SEA_SHARE), 1, 1), np.float32)
    value_db = np.full(labels.shape, sea_db, np.float32)
    value_db += np.float32(wind_db) * smooth_noise(rng, size, size * rng.uniform(0.15, 0.9), 3)
    if slicks_db:
        value_db -= np.float32(slicks_db) * slicks(rng, size)
    gain = np.ones((len(SEA_SHARE), *labels.shape), np.float32)
    gain[:, water] = np.power(np.float32(10), SEA_SHARE[:, None] * value_db[water] / 10)
    return gain
