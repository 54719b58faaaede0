"""The six datasets of the benchmarks, a row each: layout, classes, counts, class maps onto tasks.

A row is all that is known of a published dataset (`spec.DatasetSpec`). What no source states is assumed,
named in the row's `unstated`, and can be changed by the user (`published.open_spec`). The paper gives the
number of classes of each task, not the maps; where it leaves a choice, the reason stands beside the entry.
The ten pre-training sources have their rows in `pretraining.py`.
"""

from __future__ import annotations

from crossearth_sar.data.datasets.spec import DatasetSpec, DomainSpec, PaperCounts, same_names
from crossearth_sar.data.files.labels import IGNORE

_AIR_REGIONS = ("north", "south")
_AIR_FULL = ("hh", "hv", "vv")  # the model reads three bands

AIR_POLSAR_SEG_2 = DatasetSpec(
    key="AIR-PolSAR-Seg-2.0",
    folder="AIR-PolSAR-Seg-2.0",
    home="https://radars.ac.cn/en/article/doi/10.12000/JR24237",
    tree=(
        "{bj,sh,gz}/{bj,sh,gz}_{hh,hv,vh,vv}.tiff      whole scenes, int16, two bands: real, imaginary",
        "{bj,sh,gz}/modified/{bj,sh,gz}_gt_modify.tiff   RGB labels",
    ),
    images="{region}/{region}_{polarization}.*",
    labels="{region}/modified/{region}_gt_modify.*",
    regions={"north": ("bj",), "south": ("sh+gz",)},
    domains={
        "North": DomainSpec(regions=("north",), polarizations=_AIR_FULL),
        "South": DomainSpec(regions=("south",), polarizations=_AIR_FULL),
        "VV": DomainSpec(regions=_AIR_REGIONS, polarizations=("vv",)),
        "HH": DomainSpec(regions=_AIR_REGIONS, polarizations=("hh",)),
        "Full": DomainSpec(regions=_AIR_REGIONS, polarizations=_AIR_FULL),
        "Real": DomainSpec(regions=_AIR_REGIONS, polarizations=_AIR_FULL),
        "Complex(r)": DomainSpec(regions=_AIR_REGIONS, polarizations=_AIR_FULL, part="real"),
        "Complex(i)": DomainSpec(regions=_AIR_REGIONS, polarizations=_AIR_FULL, part="imaginary"),
        "AIR": DomainSpec(regions=_AIR_REGIONS, polarizations=_AIR_FULL),
    },
    classes=("water", "vegetation", "bare ground", "road", "building", "mountain"),
    palette=((0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255), (255, 255, 0), (128, 0, 128)),
    label_palette={
        "water": (0, 0, 255),
        "vegetation": (0, 255, 0),
        "bare ground": (255, 0, 0),
        "road": (0, 255, 255),
        "building": (255, 255, 0),
        "mountain": (255, 0, 255),
        "ignore": (255, 255, 255),
    },
    label_tolerance=30,
    maps={
        "air6": same_names("water", "vegetation", "bare ground", "road", "building", "mountain"),
        "air5": {
            **same_names("water", "vegetation", "bare ground", "road", "building"),
            "mountain": IGNORE,
        },
        "fusar5": {
            **same_names("building", "vegetation", "water", "road"),
            "bare ground": "other",
            "mountain": IGNORE,  # wooded or bare: neither vegetation nor other would be right
        },
        "building1": {
            **dict.fromkeys(("water", "vegetation", "bare ground", "road", "mountain"), "background"),
            "building": "building",
        },
    },
    values="complex",
    components=True,
    counts={
        "north": PaperCounts(total=750, train=600, test=150),
        "south": PaperCounts(total=792, train=633, test=159),
    },
    pixel_m=8.0,
    unstated=(
        "where the archives of the scenes are unpacked: a folder for each is assumed; colours, names and the "
        "form of the files are as two independent readers of them have it",
        "which scenes are north and south: Beijing, and Shanghai with Guangzhou (mountain: Beijing alone)",
        "how slices of 512 come out of the scenes: side by side, the last of a row and column shifted inward",
        "the unit of the split: single slices, as the paper counts them; what is tested then has neighbours "
        "that trained (split_unit: block keeps ground apart)",
        "which channels «Full», «Real» and «Complex» stand for: HH, HV and VV as three bands",
        "how a signed component is read: its magnitude |Re| or |Im|, as amplitudes are not negative",
    ),
)

DDHR_SK = DatasetSpec(
    key="DDHR-SK",
    folder="DDHR-SK",
    home="https://github.com/XD-MG/DDHRNet",
    tree=(
        "{korea,china}/256_cloud/GF3/N.jpg     SAR patches of 256 x 256",
        "{korea,china}/256_cloud/label/N.png   class indices",
    ),
    images="{region}/256_cloud/GF3/*.*",
    labels="{region}/256_cloud/label/*.*",
    regions={"korea": ("korea", "Korea"), "china": ("china", "China", "shandong", "Shandong")},
    domains={
        "KR": DomainSpec(regions=("korea",)),
        "CN": DomainSpec(regions=("china",)),
        "DDHR": DomainSpec(regions=("china",)),
    },
    classes=("building", "road", "greenery", "water", "farmland", "other"),
    palette=((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 0, 255), (255, 165, 0), (0, 0, 0)),
    label_values={
        0: "building",
        1: "road",
        2: "greenery",
        3: "water",
        4: "farmland",
        5: "other",
        255: "ignore",
    },
    maps={
        "ddhr6": same_names("building", "road", "greenery", "water", "farmland", "other"),
        "fusar5": {
            **same_names("building", "road", "water", "other"),
            "farmland": "vegetation",
            "greenery": "vegetation",
        },
    },
    bands=(0,),  # grey JPEGs are sometimes stored as three equal channels
    scene_size=(256, 256),
    upsample=True,
    counts={
        "korea": PaperCounts(total=6145, train=4916, test=1229),
        "china": PaperCounts(total=7831, train=6265, test=1566),
    },
    pixel_m=1.0,
    unstated=(
        "the index of «other», which public loaders do not have: 5 is assumed",
        "the name of the Chinese region's folder: china or shandong",
        "whether patches of 256 were enlarged to the 512 that the paper gives for every dataset: they are, "
        "bilinearly (upsample: false keeps them)",
        "what «DDHR» is in tasks across datasets: its counts (6265 for training) are those of China alone",
    ),
)

FUSAR_MAP = DatasetSpec(
    key="FUSAR-Map",
    folder="FUSAR-Map",
    home="https://shixianzheng.github.io/FUSAR-Map (linked from https://github.com/fudanxu/FUSAR-Map)",
    tree=(
        "sar_1024/JiuJiang_01_01_01_01_SAR_001.tif   uint8, 1024 x 1024",
        "lab_1024/JiuJiang_01_01_01_01_LAB_001.tif   RGB labels",
    ),
    images="sar_1024/*_SAR_*.*",
    labels="lab_1024/*_LAB_*.*",
    domains={"FUSAR": DomainSpec(regions=("all",))},
    classes=("building", "vegetation", "water", "road", "other"),
    palette=((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)),
    label_palette={
        "building": (255, 0, 0),
        "vegetation": (0, 255, 0),
        "water": (0, 0, 255),
        "road": (255, 255, 0),
        "other": (0, 0, 0),
    },
    maps={"fusar5": same_names("building", "vegetation", "water", "road", "other")},
    bands=(0,),
    scene_size=(1024, 1024),
    split_unit="scene",
    counts={"all": PaperCounts(total=2440, train=1952, test=488)},
    pixel_m=1.0,  # «about 1 m»
    unstated=(
        "the word for labels in file names: LAB is assumed where images have SAR",
        "the unit of the split: whole files of four patches, which gives the paper's counts and keeps "
        "neighbouring patches on one side",
    ),
)

OPEN_EARTH_MAP_SAR = DatasetSpec(
    key="OpenEarthMap-SAR",
    folder="OpenEarthMap-SAR",
    home="https://zenodo.org/records/14622048 (IEEE GRSS Data Fusion Contest 2025, track 1)",
    tree=(
        "train/sar_images/*.tif   uint8, one band, 1024 x 1024",
        "train/labels/*.tif       class values 0..8",
    ),
    images="train/sar_images/*.*",
    labels="train/labels/*.*",
    domains={"OpenEarthMap": DomainSpec(regions=("all",))},
    classes=(
        "background",
        "bareland",
        "rangeland",
        "developed",
        "road",
        "tree",
        "water",
        "agriculture",
        "building",
    ),
    palette=(
        (0, 0, 0),
        (128, 0, 0),
        (0, 255, 36),
        (148, 148, 148),
        (255, 255, 255),
        (34, 97, 38),
        (0, 69, 255),
        (75, 181, 73),
        (222, 31, 7),
    ),
    maps={
        "ddhr6": {
            "background": IGNORE,  # unlabelled there, not a kind of ground
            "bareland": "other",
            "rangeland": "greenery",
            "developed": "other",  # paved ground without buildings
            "road": "road",
            "tree": "greenery",
            "water": "water",
            "agriculture": "farmland",
            "building": "building",
        },
    },
    scene_size=(1024, 1024),
    counts={"all": PaperCounts(total=17332, train=13865, test=3467)},
    pixel_m=0.5,  # the source says 0.15 to 0.5 m, by region; the coarser, a radar's own, is taken
    unstated=("the unit of the split: single patches, since the paper's 13865 is no multiple of four",),
)

SARBUD = DatasetSpec(
    key="SARBuD",
    folder="SARBuD",
    home="https://doi.org/10.11834/jrs.20220296",
    tree=("images/*      256 x 256, from images.zip", "Labelimgs/*   binary, from Labelimgs.zip"),
    images="images/*.*",
    labels="Labelimgs/*.*",
    domains={"SARBuD": DomainSpec(regions=("all",))},
    classes=("background", "building"),
    palette=((0, 0, 0), (255, 255, 255)),
    label_values={0: "background", 1: "building", 255: "building"},
    maps={"building1": same_names("background", "building")},
    bands=(0,),
    scene_size=(256, 256),
    upsample=True,
    counts={"all": PaperCounts(total=25000, train=20000, test=5000)},
    pixel_m=10.0,
    unstated=(
        "the value of a building: 1 and 255 are both read as one, so 255 ignores nothing here",
        "file names: an image and its label are assumed to share theirs",
        "whether patches of 256 were enlarged to 512: they are (upsample: false keeps them)",
    ),
)

WHU_OPT_SAR = DatasetSpec(
    key="WHU-OPT-SAR",
    folder="WHU-OPT-SAR",
    home="https://github.com/AmberHen/WHU-OPT-SAR-dataset",
    tree=(
        "sar/NH49E001013.tif   5556 wide, 3704 high",
        "lbl/NH49E001013.tif   values 0, 10, … 70",
        "The division of the dataset.txt   the official list, from the repository",
    ),
    images="sar/*.*",
    labels="lbl/*.*",
    domains={"WHU-SAR": DomainSpec(regions=("all",))},
    classes=("background", "farmland", "city", "village", "water", "forest", "road", "other"),
    palette=(
        (0, 0, 0),
        (204, 102, 1),
        (255, 0, 0),
        (255, 255, 1),
        (0, 0, 255),
        (85, 167, 0),
        (93, 255, 255),
        (152, 102, 153),
    ),
    label_values={
        0: "background",
        10: "farmland",
        20: "city",
        30: "village",
        40: "water",
        50: "forest",
        60: "road",
        70: "other",
    },
    maps={
        "ddhr6": {
            "background": IGNORE,  # the margin of a scene
            "farmland": "farmland",
            "city": "building",
            "village": "building",
            "water": "water",
            "forest": "greenery",
            "road": "road",
            "other": "other",
        },
    },
    scene_size=(3704, 5556),
    split_unit="scene",
    test_list="The division of the dataset.txt",
    counts={"all": PaperCounts(total=8800, train=7040, test=1760)},
    pixel_m=5.0,
    unstated=(
        "whether the paper used the official list of images: it is used where its file lies beside sar and "
        "lbl, else 20 of 100 scenes are drawn",
        "how 88 patches of 512 come out of 5556 x 3704: 11 x 8, the last of a row and column shifted inward",
    ),
)

BENCHMARK_DATASETS = {
    spec.key: spec for spec in (AIR_POLSAR_SEG_2, DDHR_SK, FUSAR_MAP, OPEN_EARTH_MAP_SAR, SARBUD, WHU_OPT_SAR)
}
"""The six datasets of the 22 benchmarks by their names in the paper."""
