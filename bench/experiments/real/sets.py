"""Real images with labels that can be trusted, as folders that the package's own reader opens.

`prepare` writes WORK/data, a folder a set: amplitudes as .npy (NaN where nothing was measured), label maps as
.png (255 ignored) and index.csv with image, label and pixel_m. The images come from REAL/corpus and
REAL/real_data, two folders with an index.csv each; none of them may be redistributed, so WORK lies in runs/.
`SETS` says of each set what it is and how far it lies from Sentinel-1, C band, VV, 10 m.

H W pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.data.files.readers import read_image
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError

LEAST_LAND = 0.002
"""Oil-spill images with less land than this have nothing but water in them."""
AIRSAR_M = 9.0
"""Geometric mean of AIRSAR's pixels, about 6.6 m by 12 m in L band."""


class Picture(NamedTuple):
    """amplitude: (H, W) float32, NaN where nothing was measured; label: (H, W) uint8."""

    name: str
    amplitude: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class RealTask:
    """classes: of the labels; seven: one of SEVEN_CLASSES -> the class here that it counts as."""

    classes: tuple[str, ...]
    seven: dict[str, str]


_COVER = {"water": "water", "building": "building", "road": "building", "barren": "bare"}
TASKS = {
    "water": RealTask(
        ("other", "water"), {name: "water" if name == "water" else "other" for name in SEVEN_CLASSES.names}
    ),
    "cover4": RealTask(
        ("water", "building", "vegetation", "bare"),
        {**_COVER, **dict.fromkeys(("forest", "agricultural", "background"), "vegetation")},
    ),
    "cover5": RealTask(
        ("water", "building", "forest", "low vegetation", "bare"),
        {**_COVER, "forest": "forest", **dict.fromkeys(("agricultural", "background"), "low vegetation")},
    ),
}


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """A row of the benchmark.

    gap: what differs from Sentinel-1 C VV at 10 m as a float product: region, polarization, band, platform,
    looks, form. read: REAL -> its pictures. is_source: trained on, never scored.
    """

    name: str
    sensor: str
    gap: tuple[str, ...]
    pixel_m: float
    read: Callable[[Path], Iterator[Picture]]
    origin: str
    task: str = "water"
    is_source: bool = False

    def domain(self, data: Path) -> DomainConfig:
        """The set in WORK/data as the package opens it; each image is normalised by itself."""
        folder = FolderConfig(
            root=str(data / self.name),
            values="amplitude",
            classes=TASKS[self.task].classes,
            index="index.csv",
            pixel_m_column="pixel_m",
        )
        return DomainConfig(name=self.name, folder=folder, normalize="image")


def class_lookup(names: Sequence[str], task: RealTask) -> np.ndarray | None:
    """(256,) uint8: a model's class -> the task's; None where the model lacks a counterpart of some class.

    Names of the task stand for themselves, those of SEVEN_CLASSES for what the task says; of a model that
    knows water, all else is «other».
    """
    table = np.full(256, IGNORE_INDEX, np.uint8)
    is_water = "other" in task.classes and "water" in names
    for index, name in enumerate(names):
        found = name if name in task.classes else task.seven.get(name, "other" if is_water else None)
        if found is None:
            return None
        table[index] = task.classes.index(found)
    return table if set(table[: len(names)]) == set(range(len(task.classes))) else None


def has_images(real: Path) -> bool:
    """Whether `real` has corpus or real_data."""
    return any((real / part / "index.csv").is_file() for part in ("corpus", "real_data"))


def prepare(real: Path, work: Path, sets: Sequence[RealSet] | None = None) -> list[RealSet]:
    """Writes the sets whose sources lie below `real` into work/data; returns those.

    A set that is there already is left as it is: remove its folder to have it made anew.

    Raises:
        InputError: `real` has neither corpus nor real_data.
    """
    if not has_images(real):
        raise InputError(
            f"no real images below {real}",
            got="neither corpus/index.csv nor real_data/index.csv",
            expected="a folder with corpus/ and real_data/",
            fix="make bench-real REAL=FOLDER; docs/BENCHMARKS.md, «Real images», says what they are",
        )
    ready = []
    for row in SETS if sets is None else sets:
        folder = work / "data" / row.name
        try:
            if not (folder / "index.csv").is_file():
                write_set(folder, row, real)
        except FileNotFoundError as missing:
            print(f"{row.name} is left out: {missing.filename} is missing", flush=True)
            continue
        ready.append(row)
    return ready


def write_set(folder: Path, row: RealSet, real: Path) -> None:
    """The pictures of a set, and at the end the index that says it is whole."""
    rows = []
    for picture in row.read(real):
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        image, label = f"images/{picture.name}.npy", f"labels/{picture.name}.png"
        np.save(folder / image, picture.amplitude.astype(np.float32))
        Image.fromarray(picture.label.astype(np.uint8)).save(folder / label)
        rows.append({"image": image, "label": label, "pixel_m": row.pixel_m})
    if not rows:
        raise FileNotFoundError(2, "nothing there", f"every picture of {row.name}")
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_amplitude(path: Path, values: str, band: int = 0) -> np.ndarray:
    """(H, W) float32 of one band, NaN where nothing was measured. 8-bit dB is DN / 8 - 28."""
    raw = read_image(present(path), bands=(band,))
    if values == "byte_db":
        amplitude = to_amplitude(raw.values.astype(np.float32) / 8 - 28, "db", valid=raw.valid, name=path)
    else:
        amplitude = to_amplitude(raw.values, values, valid=raw.valid, name=path)  # type: ignore[arg-type]
    return np.where(raw.valid, amplitude[0], np.nan)


def read_map(path: Path, classes: dict[int, int]) -> np.ndarray:
    """(H, W) uint8 of a label file: raw value -> class; every value that is not named is ignored."""
    raw = read_image(present(path)).values[0]
    label = np.full(raw.shape, IGNORE_INDEX, np.uint8)
    for value, index in classes.items():
        label[raw == value] = index
    return label


def present(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: it is not, and `prepare` leaves its set out.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return path


def index_rows(folder: Path, dataset: str) -> list[dict[str, str]]:
    """Rows of a dataset in the index.csv of corpus or real_data."""
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["dataset"] == dataset]


def sen1floods11(band: int) -> Callable[[Path], Iterator[Picture]]:
    """The five chips whose hand labels were found good: 0 VV, 1 VH."""

    def read(real: Path) -> Iterator[Picture]:
        for part, images, labels, names in (
            ("corpus", "images", "labels", ("USA_905409", "Mekong_333434")),
            ("real_data", "S1", "Labels", ("Spain_7370579", "Somalia_699062", "Ghana_53713")),
        ):
            folder = real / part / "sen1floods11"
            for name in names:
                amplitude = read_amplitude(folder / images / f"{name}_S1Hand.tif", "db", band)
                label = read_map(folder / labels / f"{name}_LabelHand.tif", {0: 0, 1: 1})
                yield Picture(name, amplitude, label)

    return read


def ombria(side: str) -> Callable[[Path], Iterator[Picture]]:
    """Flood extents where water that is dark at both dates is ignored; te or tr, the authors' split."""

    def read(real: Path) -> Iterator[Picture]:
        for row in index_rows(real / "corpus", "ombria"):
            name = Path(row["image"]).stem
            if row["trust"] == "yes" and name.startswith(side):
                label = real / "corpus" / row["label"].replace("/labels/", "/labels_ign/")
                amplitude = read_amplitude(real / "corpus" / row["image"], "byte_db")
                yield Picture(name, amplitude, read_map(label, {0: 0, 1: 1}))

    return read


def oil_spill(real: Path) -> Iterator[Picture]:
    """Coasts: sea, slicks and look-alikes are water, ships ignored."""
    for row in index_rows(real / "corpus", "oilspill_s1"):
        label = read_map(real / "corpus" / row["label"], {0: 1, 1: 1, 2: 1, 4: 0})
        if (label == 0).mean() > LEAST_LAND:
            path = real / "corpus" / row["image"]
            yield Picture(path.stem, read_amplitude(path, "byte_db"), label)


def kompsat5(real: Path) -> Iterator[Picture]:
    for row in index_rows(real / "real_data", "kompsat5_oslo"):
        path = real / "real_data" / row["image"]
        label = read_map(real / "real_data" / row["label"], {0: 0, 1: 1})
        yield Picture(path.stem, read_amplitude(path, "intensity"), label)


def san_francisco(polarization: str, classes: dict[int, int]) -> Callable[[Path], Iterator[Picture]]:
    """One channel of AIRSAR's coherency matrix, see `channel_power`."""

    def read(real: Path) -> Iterator[Picture]:
        folder = real / "real_data" / "airsar_sanfrancisco"
        with np.load(folder / "t3.npz") as t3:
            power = channel_power({key: t3[key].astype(np.float64) for key in t3.files})[polarization]
        label = read_map(folder / "label_common4.png", classes)
        yield Picture(f"sanfrancisco_{polarization}", np.sqrt(power.clip(min=0)), label)

    return read


def channel_power(t3: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """|HH|^2 = (T11 + T22 + 2 Re T12) / 2, |VV|^2 = (T11 + T22 - 2 Re T12) / 2, |HV|^2 = T33 / 2."""
    real_t12 = t3["rho12_re"] * np.sqrt(t3["T11"] * t3["T22"])
    half = (t3["T11"] + t3["T22"]) / 2
    return {"hh": half + real_t12, "vv": half - real_t12, "hv": t3["T33"] / 2}


def flevoland(polarization: str) -> Callable[[Path], Iterator[Picture]]:
    def read(real: Path) -> Iterator[Picture]:
        folder = real / "corpus" / "airsar_flevoland"
        amplitude = read_amplitude(folder / f"images/west_{polarization.upper()}.tif", "intensity")
        label = read_map(folder / "labels_common5/west.png", {0: 0, 1: 1, 2: 2, 3: 3, 4: 4})
        yield Picture(f"flevoland_{polarization}", amplitude, label)

    return read


def terramind(band: int, classes: dict[int, int]) -> Callable[[Path], Iterator[Picture]]:
    """Terrain-corrected Sentinel-1 with a land-cover map made of Sentinel-2; 0 VV, 1 VH."""

    def read(real: Path) -> Iterator[Picture]:
        for row in index_rows(real / "real_data", "terramind_s1rtc"):
            path = real / "real_data" / row["image"]
            label = read_map(real / "real_data" / row["label"], classes)
            if (label != IGNORE_INDEX).any():  # one is snow alone
                yield Picture(path.stem, read_amplitude(path, "db", band), label)

    return read


LULC_WATER = {1: 1, **dict.fromkeys((2, 4, 5, 6, 7, 9), 0)}
"""Land use 0 nothing, 1 water 2 trees 3 flooded vegetation 4 crops 5 built 6 bare 7 snow 8 clouds 9 range:
0, 3 and 8 are ignored."""
LULC_COVER = {1: 0, 5: 1, 2: 2, 4: 3, 9: 3, 6: 4}
WATER_OF_FOUR = {0: 1, 1: 0, 2: 0, 3: 0}
_FLOODS, _OMBRIA = "hardikkamboj/sen1floods11-segmentation", "geodrak/OMBRIA"
_OIL = "atlan-antillia/TensorFlow-FlexUNet-Image-Segmentation-Oil-Spill"
_S1, _AIR = "Sentinel-1 C", "AIRSAR L"
_AIR_GAP = ("region", "band", "platform", "looks")


def _san_francisco(polarization: str, task: str) -> RealSet:
    crossed = () if polarization == "vv" else ("polarization",)
    is_water = task == "water"
    return RealSet(
        name=f"sf-{polarization}{'' if is_water else '-cover'}",
        sensor=f"{_AIR} {polarization.upper()}, speckle-filtered",
        gap=(*_AIR_GAP, *crossed),
        pixel_m=AIRSAR_M,
        read=san_francisco(polarization, WATER_OF_FOUR if is_water else {0: 0, 1: 1, 2: 2, 3: 3}),
        origin="AIRSAR San Francisco",
        task=task,
    )


def _flevoland(polarization: str) -> RealSet:
    crossed = () if polarization == "vv" else ("polarization",)
    return RealSet(
        name=f"flevo-{polarization}-cover", sensor=f"{_AIR} {polarization.upper()}, speckle-filtered",
        gap=(*_AIR_GAP, *crossed), pixel_m=9.2, read=flevoland(polarization),
        origin="wrccrwx/titecls1kde6mc", task="cover5",
    )  # fmt: skip


def _sentinel(name: str, gap: tuple[str, ...], read: Callable, origin: str, **more: object) -> RealSet:
    sensor = f"{_S1} {name.split('-')[1].upper() if name[:2] in ('s1', 'tm') else 'VV, 8 bits'}"
    return RealSet(name=name, sensor=sensor, gap=gap, pixel_m=10.0, read=read, origin=origin, **more)  # type: ignore[arg-type]


SETS: tuple[RealSet, ...] = (
    _sentinel("s1-vv", ("region",), sen1floods11(0), _FLOODS),
    _sentinel("s1-vh", ("region", "polarization"), sen1floods11(1), _FLOODS),
    _sentinel("ombria-te", ("region", "form"), ombria("te"), _OMBRIA),
    _sentinel("ombria-tr", ("region", "form"), ombria("tr"), _OMBRIA, is_source=True),
    _sentinel("oil-s1", ("region", "form"), oil_spill, _OIL),
    RealSet(
        name="kompsat5", sensor="KOMPSAT-5 X HH", gap=("region", "band", "polarization", "platform", "looks"),
        pixel_m=1.1, read=kompsat5, origin="kompsat5_oslo, not stated",
    ),
    *(_san_francisco(polarization, "water") for polarization in ("hh", "vv", "hv")),
    _sentinel("tm-vv", ("region", "form"), terramind(0, LULC_WATER), "TerraMind S1RTC"),
    _sentinel("tm-vh", ("region", "form", "polarization"), terramind(1, LULC_WATER), "TerraMind S1RTC"),
    *(_san_francisco(polarization, "cover4") for polarization in ("hh", "vv", "hv")),
    _sentinel("tm-vv-cover", ("region", "form"), terramind(0, LULC_COVER), "TerraMind S1RTC", task="cover5"),
    _sentinel(
        "tm-vh-cover", ("region", "form", "polarization"), terramind(1, LULC_COVER), "TerraMind S1RTC",
        task="cover5",
    ),
    *(_flevoland(polarization) for polarization in ("hh", "vv", "hv")),
)  # fmt: skip
