"""A simulated stand-in for each of the 22 benchmarks: same kind of gap, as many classes, no download.

Every domain of the paper's table becomes one simulator setting, `SENSORS`, chosen so that source and target
of a row differ in the axes of its gap and in nothing else; places are never shared between domains, nor
between the train and the test side of one. Names end in `-sim`. What this is not: a measure of the real
datasets. It lets the protocol run anywhere, and says what a model does about a gap whose cause is known.

N tiles, H W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.datasets.spec import same_names
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES, TASKS, Task, class_lookup
from crossearth_sar.data.files.labels import IGNORE
from crossearth_sar.data.sample import ClassTable
from crossearth_sar.data.simulator.scenes import GAP_AXES, SimulatorConfig, simulate
from crossearth_sar.decibels import DomainStatistics
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.evaluation.registry import BENCHMARKS, Benchmark, DomainRef

Side = Literal["train", "test"]

_NORTH, _PLATFORM_A, _PLATFORM_B = "temperate_north", *GAP_AXES["platform"]
_AIR = {"region": _NORTH, "polarization": "HH", "band": "C", **_PLATFORM_A}
_SLC = _AIR | {"looks": 1}  # parts exist in single-look images alone, and looks must not differ too
_DDHR = {"region": _NORTH, "polarization": "HH", "band": "X", **_PLATFORM_A}

SENSORS: dict[tuple[str, str], dict[str, Any]] = {
    ("AIR-PolSAR-Seg-2.0", "AIR"): _AIR,
    ("AIR-PolSAR-Seg-2.0", "North"): _AIR,
    ("AIR-PolSAR-Seg-2.0", "South"): _AIR | {"region": "arid_south"},
    ("AIR-PolSAR-Seg-2.0", "HH"): _AIR,
    ("AIR-PolSAR-Seg-2.0", "VV"): _AIR | {"polarization": "VV"},
    ("AIR-PolSAR-Seg-2.0", "Full"): _AIR | {"polarization": "full"},
    ("AIR-PolSAR-Seg-2.0", "Real"): _SLC,
    ("AIR-PolSAR-Seg-2.0", "Complex(r)"): _SLC | {"part": "real"},
    ("AIR-PolSAR-Seg-2.0", "Complex(i)"): _SLC | {"part": "imaginary"},
    ("DDHR-SK", "DDHR"): _DDHR,
    ("DDHR-SK", "CN"): _DDHR,
    ("DDHR-SK", "KR"): _DDHR | {"region": "coastal"},
    ("FUSAR-Map", "FUSAR"): _AIR | {"region": "coastal", "polarization": "VV"},
    ("OpenEarthMap-SAR", "OpenEarthMap"): _DDHR | {"region": "arid_south"} | _PLATFORM_B,
    ("SARBuD", "SARBuD"): _AIR | {"region": "arid_south", "band": "L"},
    ("WHU-OPT-SAR", "WHU-SAR"): _DDHR | {"region": "coastal", "band": "C"} | _PLATFORM_B,
}
"""(dataset, domain) of the registry -> what the simulator is told; two names may be one sensor."""


_WITH_FIELDS = ClassTable(
    names=tuple("cropland" if name == "mountain" else name for name in TASKS["air6"].classes.names),
    palette=TASKS["air6"].classes.palette,
)
_ONTO_AIR = {"barren": "bare ground", "forest": "vegetation", "background": "vegetation"}

# The simulator knows no mountains; its fields are the sixth class instead, and are left out of five.
SIMULATED_TASKS: dict[str, Task] = {
    "air6": Task(key="air6-sim", classes=_WITH_FIELDS, scored=_WITH_FIELDS.names),
    **{key: replace(TASKS[key], key=f"{key}-sim") for key in ("air5", "ddhr6", "fusar5", "building1")},
}
"""By the key of the registry's task."""

_SAME = same_names(*SEVEN_CLASSES.names)

SIMULATED_MAPS: dict[str, dict[str, str]] = {
    "air6-sim": {**_SAME, **_ONTO_AIR, "agricultural": "cropland"},
    "air5-sim": {**_SAME, **_ONTO_AIR, "agricultural": IGNORE},
    "ddhr6-sim": {
        **_SAME,
        "agricultural": "farmland",
        "forest": "greenery",
        "barren": "other",
        "background": "other",
    },
    "fusar5-sim": {
        **_SAME,
        "agricultural": "vegetation",
        "forest": "vegetation",
        "barren": "other",
        "background": "other",
    },
    "building1-sim": {**dict.fromkeys(SEVEN_CLASSES.names, "background"), "building": "building"},
}
"""Which simulated class is which of a task."""


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """One simulated row. source, target: what the simulator is told, places aside (`scenes_of` sets them)."""

    benchmark: Benchmark
    source: SimulatorConfig
    target: SimulatorConfig
    task: Task

    @property
    def key(self) -> str:
        return f"{self.benchmark.key}-sim"

    @property
    def gap(self) -> str:
        return self.benchmark.gap

    @property
    def source_key(self) -> tuple[str, str]:
        """Equal for rows that train on the same images and classes, and so may share one training."""
        return (place_name(self.benchmark.source), self.task.key)


def place_name(reference: DomainRef) -> str:
    """Which places a domain shows. DDHR-SK is China where a row names the whole of it, as in the table."""
    if (reference.dataset, reference.domain) == ("DDHR-SK", "DDHR"):
        return "DDHR-SK CN"
    return f"{reference.dataset} {reference.domain}"


def _stand_in(row: Benchmark) -> StandIn:
    source, target = (SimulatorConfig(**SENSORS[ref.dataset, ref.domain]) for ref in (row.source, row.target))
    return StandIn(benchmark=row, source=source, target=target, task=SIMULATED_TASKS[row.task])


STAND_INS: dict[str, StandIn] = {f"{key}-sim": _stand_in(row) for key, row in BENCHMARKS.items()}
"""By key, in the paper's order."""


def stand_in(key: str) -> StandIn:
    """The stand-in called `key`, with or without `-sim`.

    Raises:
        InputError: for an unknown key, naming the nearest.
    """
    full = key if key.endswith("-sim") else f"{key}-sim"
    if full not in STAND_INS:
        raise InputError(f"no stand-in {key!r}{nearest(full, STAND_INS)}", expected=", ".join(STAND_INS))
    return STAND_INS[full]


def one_per_gap() -> tuple[str, ...]:
    """The first stand-in of each of the eight kinds of gap."""
    first: dict[str, str] = {}
    for key, row in STAND_INS.items():
        first.setdefault(row.gap, key)
    return tuple(first.values())


def gap_between(source: SimulatorConfig, target: SimulatorConfig) -> str:
    """The axes in which two settings differ, joined as the registry writes them; "" where they are alike.

    Raises:
        InputError: they differ in something that belongs to no axis.
    """
    places = {"seed", "length"}
    differ = {f.name for f in fields(source) if getattr(source, f.name) != getattr(target, f.name)} - places
    axes = [axis for axis, (values, _) in GAP_AXES.items() if differ & values.keys()]
    stray = differ - {name for axis in axes for name in GAP_AXES[axis][0]}
    if stray:
        raise InputError("the two sides differ in what no gap names", got=", ".join(sorted(stray)))
    return "+".join(axes)


def scenes_of(row: StandIn, side: Side, *, count: int, size: int) -> SimulatorConfig:
    """`count` scenes of `size` pixels: the source's to train on ("train") or the target's to score ("test").

    Places follow the domain's name and the side alone, so no place is ever in both, and rows with a domain in
    common see the same ones.
    """
    config, reference = (
        (row.source, row.benchmark.source) if side == "train" else (row.target, row.benchmark.target)
    )
    return replace(config, length=count, image_size=size, seed=_place_seed(place_name(reference), side))


def held_out_scenes(row: StandIn, *, count: int, size: int) -> SimulatorConfig:
    """Scenes of the source domain that its training does not see: what the row's target is compared with."""
    return replace(
        row.source, length=count, image_size=size, seed=_place_seed(place_name(row.benchmark.source), "test")
    )


def _place_seed(name: str, side: str) -> int:
    return zlib.crc32(f"{name} {side}".encode())


def pretraining_sensors(count: int, seed: int = 0) -> list[SimulatorConfig]:
    """Random single-channel amplitude sensors over all regions and bands, each with places of its own.

    They stand for the mixture of continual pre-training. Neither the span of all channels nor a real or
    imaginary part is among them: these gaps stay unseen, while regions and bands are seen in pre-training.
    """
    require(count >= 1, "count", count, "1 or more")
    rng = np.random.default_rng((seed, 22))
    sensors = []
    for number in range(count):
        sensors.append(
            SimulatorConfig(
                seed=_place_seed(f"pretraining {seed} {number}", "train"),
                region=("temperate_north", "arid_south", "coastal")[number % 3],
                polarization=str(rng.choice(["HH", "HV", "VV"])),  # type: ignore[arg-type]
                band=str(rng.choice(["L", "S", "C", "X"])),  # type: ignore[arg-type]
                resolution_m=float(rng.uniform(2.5, 5.0)),
                looks=int(rng.choice([1, 2, 4, 8])),
                nesz_db=float(rng.uniform(-30, -20)),
                incidence_deg=float(rng.uniform(25, 48)),
                texture_order=float(rng.uniform(4, 10)),
            )
        )
    return sensors


@dataclass(frozen=True, eq=False)
class Tiles:
    """Labelled tiles in memory.

    image_NHW: float32 linear amplitude. mask_NHW: uint8, class or 255. db_mean_N, db_std_N: statistics of
    20 log10(amplitude) of each tile's domain, which need no label.
    """

    image_NHW: Tensor
    mask_NHW: Tensor
    db_mean_N: Tensor
    db_std_N: Tensor

    def __len__(self) -> int:
        return len(self.image_NHW)


def draw_tiles(config: SimulatorConfig, task: Task | None, tile: int) -> Tiles:
    """All scenes of `config`, cut into tiles of `tile` pixels; classes of `task`, or the simulator's seven.

    Raises:
        InputError: the tile does not divide the scene.
    """
    require(config.image_size % tile == 0, "tile", tile, f"a divisor of the scene's {config.image_size}")
    scenes = [simulate(config, index) for index in range(config.length)]
    image = torch.from_numpy(np.stack([scene.image(config.part) for scene in scenes]))
    mask = np.stack([scene.mask for scene in scenes]).astype(np.uint8)
    if task is not None:
        mask = class_lookup("the simulator", SEVEN_CLASSES.names, SIMULATED_MAPS[task.key], task)[mask]
    statistics = DomainStatistics()
    statistics.add(image.flatten(0, 1)[None])
    tiles = _cut(image, tile)
    mean, std = (value[0] for value in statistics.result())
    return Tiles(tiles, _cut(torch.from_numpy(mask), tile), mean.expand(len(tiles)), std.expand(len(tiles)))


def join_tiles(parts: Sequence[Tiles]) -> Tiles:
    """All tiles of all parts, in order."""
    return Tiles(
        torch.cat([p.image_NHW for p in parts]),
        torch.cat([p.mask_NHW for p in parts]),
        torch.cat([p.db_mean_N for p in parts]),
        torch.cat([p.db_std_N for p in parts]),
    )


def _cut(images_NHW: Tensor, tile: int) -> Tensor:
    count, height, width = images_NHW.shape
    split = images_NHW.reshape(count, height // tile, tile, width // tile, tile)
    return split.transpose(2, 3).reshape(-1, tile, tile)
