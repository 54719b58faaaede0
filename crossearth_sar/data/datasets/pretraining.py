"""The ten sources of the pre-training set CrossEarth-SAR-200K: one row each, as in `benchmarks.py`.

Six have no labels of their own: a teacher's label maps, in the seven classes, lie in a folder beside them
(`official.OfficialDataset`, `pseudo_labels`). Facts of the paper's table are kept with each row, and a test
holds them against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crossearth_sar.data.datasets.benchmarks import DDHR_SK
from crossearth_sar.data.datasets.spec import DatasetSpec, DomainSpec, LabelKind, same_names
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES

_ALL = {"all": DomainSpec(regions=("all",))}
_SAR_FOLDER = "file names and folders: a folder sar of image files is assumed"


@dataclass(frozen=True, kw_only=True)
class PretrainingSource:
    """A row of the paper's table of sources; resolution in metres, sets joined by '+' as printed there."""

    spec: DatasetSpec
    resolution_m: str
    bands: str
    polarizations: str
    platform: str

    @property
    def labels_are(self) -> LabelKind:
        return self.spec.labels_are


def _unlabelled(
    key: str,
    home: str,
    images: str,
    tree: tuple[str, ...],
    unstated: tuple[str, ...] = (),
    *,
    pixel_m: float,
    upsample: bool = False,
) -> DatasetSpec:
    return DatasetSpec(
        key=key,
        folder=key,
        home=home,
        tree=tree,
        images=images,
        labels=None,
        domains=_ALL,
        classes=SEVEN_CLASSES.names,
        palette=SEVEN_CLASSES.palette,
        bands=(0,),
        pixel_m=pixel_m,
        upsample=upsample,
        labels_are="pseudo",
        unstated=(*unstated, "the teacher's labels: they were not published"),
    )


def _labelled(
    key: str, home: str, images: str, labels: str, tree: tuple[str, ...], **more: object
) -> DatasetSpec:
    settings: dict[str, Any] = {"domains": _ALL, "bands": (0,), **more}
    return DatasetSpec(key=key, folder=key, home=home, tree=tree, images=images, labels=labels, **settings)


PRETRAINING_SOURCES = {
    source.spec.key: source
    for source in (
        PretrainingSource(
            spec=_unlabelled(
                "QXS-SAROPT",
                "https://github.com/yaoxu008/QXS-SAROPT",
                "sar_256_oc_0.2/*.*",
                ("sar_256_oc_0.2/N.png   256 x 256, 20,000 files", "opt_256_oc_0.2/N.png   its optical twin"),
                upsample=True,
                pixel_m=1.0,
            ),
            resolution_m="1",
            bands="C",
            polarizations="VV",
            platform="Gaofen-3",
        ),
        PretrainingSource(
            spec=_unlabelled(
                "WHU-SEN-City",
                "https://github.com/whu-csl/WHU-SEN-City",
                "*/sar/*.*",
                ("CITY/sar/*   34 cities", "CITY/opt/*"),
                ("file names and folders: one folder per city with sar and opt is assumed",),
                upsample=True,
                pixel_m=10.0,  # of Sentinel-1's ground range product; 20-22 m is its resolution
            ),
            resolution_m="20-22",
            bands="C",
            polarizations="VV+VH",
            platform="Sentinel-1",
        ),
        PretrainingSource(
            spec=_unlabelled(
                "SEN12",
                "https://mediatum.ub.tum.de/1436631",
                "ROIs*/s1_*/*.*",
                (
                    "ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p30.png   256 x 256, 282,384 pairs",
                    "ROIs1158_spring/s2_0/ROIs1158_spring_s2_0_p30.png",
                ),
                ("which of the 282,384 pairs the paper used: all are opened",),
                upsample=True,
                pixel_m=10.0,
            ),
            resolution_m="10",
            bands="C",
            polarizations="VV+VH",
            platform="Sentinel-1",
        ),
        PretrainingSource(
            spec=_unlabelled(
                "OSdataset",
                "https://sites.google.com/view/yumingxiang (CC BY-NC)",
                "512/*/sar*.*",
                ("512/{train,val,test}/sarN.png   uint8, 2,673 pairs", "512/{train,val,test}/optN.png"),
                ("which of the two versions the paper used: 512 x 512 is assumed",),
                pixel_m=1.0,
            ),
            resolution_m="1",
            bands="C",
            polarizations="VV",
            platform="Gaofen-3",
        ),
        PretrainingSource(
            spec=_unlabelled(
                "SARptical",
                "«?»: see the SARptical paper of Y. Wang and X. X. Zhu",
                "sar/*.*",
                ("sar/*   more than 10,000 pairs", "opt/*"),
                (_SAR_FOLDER,),
                upsample=True,
                pixel_m=1.0,
            ),
            resolution_m="1",
            bands="X",
            polarizations="VV+HH",
            platform="TerraSAR-X",
        ),
        PretrainingSource(
            spec=_unlabelled(
                "CrossEarth-OPT-SAR",
                "private, not published by its owners",
                "sar/*.*",
                ("sar/*   37,000 pairs", "opt/*"),
                (_SAR_FOLDER,),
                pixel_m=1.0,  # 0.5 to 3 m by mode
            ),
            resolution_m="0.5-3",
            bands="X",
            polarizations="HH",
            platform="HT-1",
        ),
        PretrainingSource(
            spec=_labelled(
                "DDHR-X",
                "https://github.com/XD-MG/DDHRNet",
                "256_cloud/GF3/*.*",
                "256_cloud/label/*.*",
                ("256_cloud/GF3/N.jpg", "256_cloud/label/N.png"),
                classes=DDHR_SK.classes,
                palette=DDHR_SK.palette,
                label_values=DDHR_SK.label_values,
                maps={
                    "seven": {
                        **same_names("building", "road", "water"),
                        "greenery": "forest",
                        "farmland": "agricultural",
                        "other": "background",
                    },
                },
                upsample=True,
                unstated=("everything of its layout: that of DDHR-SK is assumed",),
                pixel_m=1.0,
            ),
            resolution_m="1",
            bands="C",
            polarizations="VV",
            platform="Gaofen-3",
        ),
        PretrainingSource(
            spec=_labelled(
                "MPOLSAR-1.0",
                "«?»: no public address was found",
                "images/*.*",
                "labels/*.*",
                ("images/*", "labels/*   indices of the seven classes"),
                classes=SEVEN_CLASSES.names,
                palette=SEVEN_CLASSES.palette,
                maps={"seven": same_names(*SEVEN_CLASSES.names)},
                unstated=("its layout, classes and encodings: indices of the seven classes are assumed",),
                pixel_m=1.0,  # 0.5 to 1 m by band
            ),
            resolution_m="0.5-1",
            bands="P+L+S+C+X",
            polarizations="HH+HV+VH+VV",
            platform="Airborne",
        ),
        PretrainingSource(
            spec=_labelled(
                "AIR-MDSAR-Map",
                "https://radars.ac.cn (data sets of the Journal of Radars)",
                "images/*.*",
                "labels/*.*",
                ("images/*   P, L, S, C and Ka band, cut while reading", "labels/*   RGB"),
                classes=(
                    "water",
                    "bare soil",
                    "road",
                    "industry",
                    "resident",
                    "vegetation",
                    "woodland",
                    "paddy",
                    "planting",
                    "human-built",
                ),
                label_palette={
                    "water": (0, 0, 255),
                    "bare soil": (139, 0, 0),
                    "road": (83, 134, 139),
                    "industry": (255, 0, 0),
                    "resident": (205, 173, 0),
                    "vegetation": (0, 255, 0),
                    "woodland": (0, 139, 0),
                    "paddy": (0, 139, 139),
                    "planting": (139, 105, 20),
                    "human-built": (189, 183, 107),
                    "ignore": (0, 0, 0),
                },
                maps={
                    "seven": {
                        "water": "water",
                        "bare soil": "barren",
                        "road": "road",
                        "industry": "building",
                        "resident": "building",
                        "vegetation": "forest",
                        "woodland": "forest",
                        "paddy": "agricultural",
                        "planting": "agricultural",
                        "human-built": "building",
                    },
                },
                unstated=(
                    "file names and folders: images and labels of the same names are assumed",
                    "whether black marks unlabelled pixels: it does here",
                ),
                pixel_m=1.0,  # 0.2 to 1 m by band
            ),
            resolution_m="0.2-1",
            bands="P+L+S+C",
            polarizations="HH+HV+VH+VV",
            platform="Airborne",
        ),
        PretrainingSource(
            spec=_labelled(
                "AIR-PolSAR-Seg-1.0",
                "https://github.com/AICyberTeam/AIR-PolSAR-Seg",
                "train_set/*_{polarization}.*",
                "train_set/*_gt.*",
                (
                    "train_set/AIR-PolarSAR-Seg-N_{HH,HV,VH,VV}.tiff   uint16, 512 x 512, 500 places",
                    "train_set/AIR-PolarSAR-Seg-N_gt.png               RGB",
                ),
                domains={
                    "all": DomainSpec(regions=("all",), polarizations=("HH", "HV", "VV")),
                    **{p: DomainSpec(regions=("all",), polarizations=(p,)) for p in ("HH", "HV", "VH", "VV")},
                },
                classes=(
                    "industrial area",
                    "natural area",
                    "land use area",
                    "water area",
                    "housing area",
                    "other",
                ),
                label_palette={
                    "industrial area": (0, 0, 255),
                    "natural area": (0, 255, 0),
                    "land use area": (255, 0, 0),
                    "water area": (0, 255, 255),
                    "housing area": (255, 255, 0),
                    "other": (255, 255, 255),
                    "ignore": (0, 0, 0),
                },
                maps={
                    "seven": {
                        "industrial area": "building",
                        "natural area": "forest",
                        "land use area": "agricultural",
                        "water area": "water",
                        "housing area": "building",
                        "other": "background",
                    },
                },
                unstated=("which class «land use» is of the seven: agricultural is assumed",),
                pixel_m=8.0,
            ),
            resolution_m="8",
            bands="C",
            polarizations="HH+HV+VH+VV",
            platform="Gaofen-3",
        ),
    )
}
"""By their names in the paper."""

PRETRAINING_IMAGES = 203_240
VALIDATION_IMAGES = 4_000
"""The paper's size of the whole set, and of its validation part, which has real labels."""
