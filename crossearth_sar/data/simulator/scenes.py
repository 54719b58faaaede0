"""Simulated SAR scenes with exact labels: the data that comes with the package, made on the fly.

What: `SimulatedScenes(SimulatorConfig(...))` is a dataset of as many labelled scenes as asked for, in any
region, polarization, band and resolution, and `gap_pair` gives a source and a target domain for each of the
eight kinds of domain gap of the CrossEarth-SAR benchmarks. So training, evaluation and examples run
without a download, and a claim about one physical cause can be tested with that cause alone.
What it is not: a substitute for measured data. Scores on it say that a model learns and adapts, not how well
it maps a real place.

A scene is drawn in four steps: ground (landcover.py), mean sigma0 with texture, radar geometry, speckle
over signal plus thermal noise (all scattering.py). The ground is drawn from (seed, index, region, size,
resolution) alone: two configs that differ in how they look at it see the same places.

H W pixels, N channels (HH, HV, VV). sigma0 and intensity are linear power.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from crossearth_sar.config import from_mapping, require
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.sample import ClassTable, Origin, Sample
from crossearth_sar.data.simulator.landcover import (
    BUILDING,
    Floats,
    Integers,
    Landcover,
    draw_landcover,
)
from crossearth_sar.data.simulator.regions import LAYOUTS
from crossearth_sar.data.simulator.scattering import (
    POINT_GAIN,
    SCATTERING,
    Band,
    Polarization,
    add_points,
    double_bounce,
    multi_look,
    multi_look_span,
    natural_variation,
    radar_geometry,
    sigma0_table,
    single_look,
    texture,
)
from crossearth_sar.errors import InputError, nearest

Region = Literal["temperate_north", "arid_south", "coastal"]
Part = Literal["amplitude", "real", "imaginary"]


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """What is simulated, and how the radar sees it."""

    length: int = 256
    """Scenes in the dataset."""
    image_size: int = 128
    """Pixels on a side."""
    seed: int = 0
    """Another seed, other places."""
    region: Region = "temperate_north"
    """Land cover, its shapes and small shifts of its backscatter."""
    polarization: Polarization = "HH"
    """One channel, or full: the mean intensity of all four."""
    band: Band = "C"
    """Carrier, from P (70 cm) to Ka (9 mm)."""
    resolution_m: float = 3.0
    """Ground pixel spacing in metres; objects keep their size in metres."""
    looks: int = 4
    """Independent looks averaged in intensity; 1 is single-look complex."""
    nesz_db: float = -28.0
    """Noise-equivalent sigma0 in dB: thermal noise added to every pixel."""
    incidence_deg: float = 38.0
    """Angle from the vertical; sets layover, shadow and the trend of sigma0."""
    texture_order: float | None = 6.0
    """Shape of the K distribution's gamma texture, small is rough; null or inf: none."""
    part: Part = "amplitude"
    """The amplitude, or |Re z| or |Im z| of a single-look complex scene: real, imaginary."""

    def __post_init__(self) -> None:
        for name, hint in (
            ("region", Region),
            ("polarization", Polarization),
            ("band", Band),
            ("part", Part),
        ):
            value = getattr(self, name)
            require(
                value in get_args(hint),
                name,
                value,
                " | ".join(get_args(hint)) + nearest(value, get_args(hint)),
            )
        for name, least in (("length", 1), ("image_size", 16), ("seed", 0), ("looks", 1)):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= least, name, value, f"a whole number from {least}")
        require(0.1 <= self.resolution_m <= 100, "resolution_m", self.resolution_m, "0.1 to 100 metres")
        require(-80 <= self.nesz_db <= 0, "nesz_db", self.nesz_db, "-80 to 0 dB")
        require(10 <= self.incidence_deg <= 70, "incidence_deg", self.incidence_deg, "10 to 70 degrees")
        order = self.texture_order
        require(order is None or order >= 0.1, "texture_order", order, "0.1 or more, or None for no texture")
        if self.part != "amplitude":
            require(self.looks == 1, "looks", self.looks, f"1: part={self.part!r} needs a complex scene")
            require(
                self.polarization != "full",
                "polarization",
                self.polarization,
                f"one channel: part={self.part!r} needs a phase, and a mean of intensities has none",
            )


@dataclass(frozen=True)
class SimulatedScene:
    """One scene in every product a processor would offer.

    slc: (H, W) complex64, single-look complex; None with more looks, and for polarization "full".
    intensity: (H, W) float32, sigma0 plus noise with speckle, linear; |slc|^2 where there is one.
    mask: (H, W) int64, index into SEVEN_CLASSES, of the ground below, also in layover and shadow: that is
        how maps drawn over optical images label them.
    """

    slc: NDArray[np.complex64] | None
    intensity: Floats
    mask: Integers

    @property
    def amplitude(self) -> Floats:
        """(H, W) float32, square root of the intensity."""
        return np.sqrt(self.intensity)

    @property
    def db(self) -> Floats:
        """(H, W) float32, 10 log10 of the intensity, dB."""
        return 10 * np.log10(np.maximum(self.intensity, np.float32(1e-12)))

    def image(self, part: Part = "amplitude") -> Floats:
        """(H, W) float32 >= 0: the amplitude, or the magnitude of the real or imaginary part.

        Raises:
            InputError: for a part of a scene that is not complex.
        """
        if part == "amplitude":
            return self.amplitude
        if self.slc is None:
            raise InputError(
                f"no {part} part: this scene is not complex", fix="simulate with looks=1 and one polarization"
            )
        return np.abs(self.slc.real if part == "real" else self.slc.imag)


class SimulatedScenes:
    """A `SegmentationDataset` of simulated scenes; `scenes[i]` depends on the config and i alone.

    Samples hold image (1, H, W) float32 linear amplitude, mask (H, W) int64 in 0..6 without ignored pixels,
    and a name. Nothing is stored: each access draws the scene anew, in about 10 ms at 128 x 128.
    """

    classes: ClassTable = SEVEN_CLASSES

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()

    def __len__(self) -> int:
        return self.config.length

    def origin(self, index: int) -> Origin:
        """Scenes of equal settings are the same, however many are drawn: see `sample.Origin`."""
        return (f"{replace(self.config, length=1)} scene {index}",), None, None

    def __getitem__(self, index: int) -> Sample:
        index = operator.index(index)
        if not 0 <= index < self.config.length:
            raise IndexError(f"scene {index} of {self.config.length}")
        scene, config = simulate(self.config, index), self.config
        return Sample(
            image=torch.from_numpy(scene.image(config.part))[None],
            mask=torch.from_numpy(scene.mask),
            name=f"{config.region}-{config.band}-{config.polarization}-{config.seed}-{index:05d}",
        )


def simulate(config: SimulatorConfig, index: int) -> SimulatedScene:
    """Scene `index` of `config`, any index from 0 (the config's length does not bound it)."""
    require(index >= 0, "index", index, "0 or more")
    ground = draw_landcover(
        np.random.default_rng((config.seed, index, 0)),
        LAYOUTS[config.region],
        size=config.image_size,
        resolution_m=config.resolution_m,
    )
    return illuminate(config, ground, np.random.default_rng((config.seed, index, 1)))


def illuminate(config: SimulatorConfig, ground: Landcover, rng: np.random.Generator) -> SimulatedScene:
    """The image that the radar of `config` takes of any `ground`, say one drawn by hand."""
    sigma0 = mean_image(config, ground, rng)
    nesz = np.float32(10 ** (config.nesz_db / 10))
    if config.polarization == "full":
        coherence = np.array([row.coherence for row in SCATTERING.values()], np.float32)[ground.labels]
        intensity = multi_look_span(rng, sigma0, coherence, float(nesz), config.looks)
        return SimulatedScene(None, intensity, ground.labels)
    if config.looks == 1:
        slc = single_look(rng, sigma0[0] + nesz)
        return SimulatedScene(slc, slc.real**2 + slc.imag**2, ground.labels)
    return SimulatedScene(None, multi_look(rng, sigma0[0] + nesz, config.looks), ground.labels)


def mean_image(config: SimulatorConfig, ground: Landcover, rng: np.random.Generator) -> Floats:
    """sigma0 before speckle and noise, in image geometry: (N, H, W), N = 3 for "full", else 1."""
    channels = {"HH": [0], "HV": [1], "VH": [1], "VV": [2], "full": [0, 1, 2]}[config.polarization]
    table = sigma0_table(band=config.band, region=config.region, incidence_deg=config.incidence_deg).T[
        channels
    ]
    sigma0 = table[:, ground.labels] * (
        natural_variation(rng, ground.labels, ground.parcel)
        * texture(rng, ground.labels, config.texture_order)
    )
    sigma0 = radar_geometry(
        sigma0,
        ground.height_m,
        ground.labels == BUILDING,
        resolution_m=config.resolution_m,
        incidence_deg=config.incidence_deg,
        wall_sigma0=table[:, BUILDING],
        corner_sigma0=double_bounce(ground.wall_angle_deg, config.resolution_m)[channels],
    )
    add_points(rng, sigma0, ground.labels, np.array(POINT_GAIN, np.float32)[channels], config.resolution_m)
    return sigma0


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
