"""Simulated SAR scenes with exact labels: the data that comes with the package, made on the fly.

What: `SimulatedScenes(SimulatorConfig(...))` is a dataset of as many labelled scenes as asked for, in any
region, polarization, band and resolution, and `gaps.gap_pair` gives a source and a target domain for each
of the eight kinds of domain gap of the CrossEarth-SAR benchmarks. So training, evaluation and examples run
without a download, and a claim about one physical cause can be tested with that cause alone. With
`sensors="wide"` each scene has a sensor and a landscape of its own (sensors.py): what to train on for real
images, normalised one by one (`normalize: image` of a domain).
What it is not: a substitute for measured data. Scores on it say that a model learns and adapts, not how well
it maps a real place.

A scene is drawn in five steps: ground (landcover.py or landscape.py), mean sigma0 with texture and relief,
radar geometry (scattering.py, terrain.py), impulse response and speckle over signal plus thermal noise
(speckle.py), the form it is delivered in (product.py). The ground is drawn from (seed, index, ground, region,
size, resolution) alone: two configs that differ in how they look at it see the same places.

H W pixels, N channels (HH, HV, VV). sigma0 and intensity are linear power.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from crossearth_sar.config import require
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable, Origin, Sample
from crossearth_sar.data.simulator.config import Part as Part
from crossearth_sar.data.simulator.config import Region as Region
from crossearth_sar.data.simulator.config import SimulatorConfig as SimulatorConfig
from crossearth_sar.data.simulator.gaps import GAP_AXES as GAP_AXES
from crossearth_sar.data.simulator.gaps import GAP_KINDS as GAP_KINDS
from crossearth_sar.data.simulator.gaps import gap_pair as gap_pair
from crossearth_sar.data.simulator.landcover import BUILDING, Landcover, draw_landcover
from crossearth_sar.data.simulator.landscape import draw_landscape
from crossearth_sar.data.simulator.noise import Floats, Integers
from crossearth_sar.data.simulator.product import delivered, swath
from crossearth_sar.data.simulator.regions import LAYOUTS
from crossearth_sar.data.simulator.scattering import (
    POINT_GAIN,
    SCATTERING,
    add_points,
    double_bounce,
    natural_variation,
    radar_geometry,
    sea_gain,
    sigma0_table,
    texture,
    with_land_contrast,
)
from crossearth_sar.data.simulator.sensors import draw_sensor
from crossearth_sar.data.simulator.speckle import imaged, multi_look, multi_look_span, saturated, single_look
from crossearth_sar.data.simulator.terrain import slope_gain
from crossearth_sar.decibels import db_statistics
from crossearth_sar.errors import InputError


@dataclass(frozen=True)
class SimulatedScene:
    """One scene in every product a processor would offer.

    slc: (H, W) complex64, single-look complex; None with more looks, and for polarization "full".
    intensity: (H, W) float32, sigma0 plus noise with speckle, linear; |slc|^2 where there is one.
    mask: (H, W) int64, index into SEVEN_CLASSES, of the ground below, also in layover and shadow: that is
        how maps drawn over optical images label them.
    db_mean, db_std: of the image that the scene is a part of, where its config has `surroundings`.
    """

    slc: NDArray[np.complex64] | None
    intensity: Floats
    mask: Integers
    db_mean: float | None = None
    db_std: float | None = None

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

    Samples hold image (1, H, W) float32 linear amplitude, mask (H, W) int64 in 0..6 (255 beyond a swath's
    edge), a name, and the ground spacing, of wide sensors the middle one. Nothing is stored: each access
    draws the scene anew, in about 10 ms at 128 pixels a side.
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
        config = self.config
        scene = simulate(config, index)
        one = f"{config.region}-{config.band}-{config.polarization}"
        kind = one if config.sensors == "one" else "wide"
        sample = Sample(
            image=torch.from_numpy(scene.image(config.part))[None],
            mask=torch.from_numpy(scene.mask),
            name=f"{kind}-{config.seed}-{index:05d}",
            pixel_m=config.resolution_m,
        )
        if scene.db_mean is not None and scene.db_std is not None:
            sample["db_mean"], sample["db_std"] = torch.tensor([scene.db_mean]), torch.tensor([scene.db_std])
        return sample


def simulate(config: SimulatorConfig, index: int) -> SimulatedScene:
    """Scene `index` of `config`, any index from 0 (the config's length does not bound it)."""
    require(index >= 0, "index", index, "0 or more")
    if config.sensors == "wide":
        config = draw_sensor(config, index)
    scene, around = _seen(config, index, 0), None
    if config.surroundings:
        half = replace(config, image_size=max(config.image_size // 2, 16))
        around = [_seen(half, index, place) for place in (1, 2)]
    return _product(config, scene, around, np.random.default_rng((config.seed, index, 4)))


def _seen(config: SimulatorConfig, index: int, place: int) -> SimulatedScene:
    """Before delivery: scene `index`, place 0, or ground of the same image elsewhere."""
    rng, size = np.random.default_rng((config.seed, index, 0, place)[: 3 + (place > 0)]), config.image_size
    if config.ground == "landscape":
        ground = draw_landscape(rng, config.region, size=size, resolution_m=config.resolution_m)
    else:
        ground = draw_landcover(rng, LAYOUTS[config.region], size=size, resolution_m=config.resolution_m)
    radar = np.random.default_rng((config.seed, index, 1, place)[: 3 + (place > 0)])
    return illuminate(config, ground, radar)


def illuminate(config: SimulatorConfig, ground: Landcover, rng: np.random.Generator) -> SimulatedScene:
    """The image that the radar of `config` takes of any `ground`, say one drawn by hand; before delivery."""
    sigma0 = saturated(mean_image(config, ground, rng), config.peak_db)
    sigma0 = imaged(sigma0, config.speckle_correlation)
    gain, nesz = (np.float32(10 ** (level_db / 10)) for level_db in (config.gain_db, config.nesz_db))
    if config.gain_db:
        sigma0, nesz = gain * sigma0, gain * nesz
    looks, correlation = config.looks, config.speckle_correlation
    slc = None
    if config.polarization == "full":
        coherence = np.array([row.coherence for row in SCATTERING.values()], np.float32)[ground.labels]
        intensity = multi_look_span(rng, sigma0, coherence, float(nesz), looks, correlation)
    elif looks == 1:
        slc = single_look(rng, sigma0[0] + nesz, correlation)
        intensity = slc.real**2 + slc.imag**2
    else:
        intensity = multi_look(rng, sigma0[0] + nesz, looks, correlation)
    return SimulatedScene(slc, intensity, ground.labels)


def _product(
    config: SimulatorConfig,
    scene: SimulatedScene,
    around: Sequence[SimulatedScene] | None,
    rng: np.random.Generator,
) -> SimulatedScene:
    """The scene as it is delivered: form and swath of `config`, and the statistics of the whole image."""
    whole = [scene, *(around or ())]
    if config.form != "float":
        pixels = np.concatenate([part.amplitude.ravel() for part in whole])
        forms = np.split(
            delivered(rng, pixels, config.form), np.cumsum([part.mask.size for part in whole])[:-1]
        )
        whole = [
            replace(part, slc=None, intensity=(form**2).reshape(part.mask.shape))
            for part, form in zip(whole, forms, strict=True)
        ]
    scene, *around = whole
    if around:
        mean, std = _statistics(scene, around, config.surroundings)
        scene = replace(scene, db_mean=mean, db_std=std)
    if not config.nodata:
        return scene
    measured = swath(rng, len(scene.mask), config.nodata)
    mask = np.where(measured, scene.mask, IGNORE_INDEX)
    if scene.slc is None:
        return replace(scene, intensity=fill_unmeasured(scene.intensity[None], measured)[0], mask=mask)
    slc = fill_unmeasured(scene.slc[None], measured)[0]
    return replace(scene, slc=slc, intensity=slc.real**2 + slc.imag**2, mask=mask)


def _statistics(scene: SimulatedScene, around: Sequence[SimulatedScene], share: float) -> tuple[float, float]:
    """Mean and standard deviation in dB of an image of which `share` looks like `around`."""
    (own_mean, own_std), (mean, std) = (
        map(float, db_statistics(torch.from_numpy(pixels)[None, None, None]))
        for pixels in (scene.amplitude.ravel(), np.concatenate([part.amplitude.ravel() for part in around]))
    )
    middle = (1 - share) * own_mean + share * mean
    square = (1 - share) * (own_std**2 + own_mean**2) + share * (std**2 + mean**2)
    return middle, max(square - middle**2, 1e-6) ** 0.5


def mean_image(config: SimulatorConfig, ground: Landcover, rng: np.random.Generator) -> Floats:
    """sigma0 before speckle and noise, in image geometry: (N, H, W), N = 3 for "full", else 1."""
    channels = {"HH": [0], "HV": [1], "VH": [1], "VV": [2], "full": [0, 1, 2]}[config.polarization]
    table = sigma0_table(band=config.band, region=config.region, incidence_deg=config.incidence_deg).T[
        channels
    ]
    if config.land_contrast != 1:
        table = with_land_contrast(table, config.land_contrast)
    variation = natural_variation(rng, ground.labels, ground.parcel)
    variation *= texture(rng, ground.labels, config.texture_order)
    if ground.state_db is not None:
        variation *= 10 ** (ground.state_db / 10)
    if ground.terrain is not None and config.slope_deg:
        variation *= slope_gain(
            ground.terrain, slope_deg=config.slope_deg, incidence_deg=config.incidence_deg
        )
    sigma0 = table[:, ground.labels] * variation
    if config.sea_db or config.wind_db or config.slicks_db:
        sea = {"sea_db": config.sea_db, "wind_db": config.wind_db, "slicks_db": config.slicks_db}
        sigma0 *= sea_gain(rng, ground.labels, **sea)[channels]
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
