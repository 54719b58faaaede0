"""What is done with each command that README and docs print: the table of test_docs_commands.py."""

# ruff: noqa: E501 - a command stands here as it is printed, so that it can be searched for

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import document_places as places

MODEL = (
    "preset=crossearth_sar_tiny model.crop_size=128 model.crop_stride=128 model.vit.dim=32 "
    "model.vit.num_heads=2 model.vit.stem=[] model.vit.patch_size=32 model.vit.image_size=128 model.decoder.channels=32 "
    "model.decoder.num_queries=6 model.decoder.pixel_layers=1 model.decoder.pixel_ffn_dim=32 "
    "model.decoder.query_layers=1 model.decoder.query_ffn_dim=32 model.decoder.num_points=64"
)
SHORT = f"{MODEL} augment.crop_size=128 steps=1 batch_size=1 workers=0 pictures=0 validation_samples=1"
SIMULATED = "train.simulated.length=3 validation.simulated.length=2 unseen=[]"
LOCAL = "executor=local"
PAIRS = f"{SHORT} {LOCAL} batch_size=2"
PROBED = (
    "probe.labels=[2] probe.seeds=1 probe.labelled.simulated.length=2 validation.simulated.length=2 unseen=[]"
)


@dataclass(frozen=True)
class Step:
    """How a printed command is run.

    make: what it reads. add: words appended. replace: placeholder -> what is there. leaves: paths that are
    there afterwards. ends: its exit status. is_slow: with CROSSEARTH_SLOW=1 only.
    """

    make: Callable[[Path], None] | None = None
    add: str = ""
    replace: dict[str, str] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    is_slow: bool = False


@dataclass(frozen=True)
class Built:
    """A command for a launcher that is not here: its words after train/NAME.py are those of `command`, and
    are taken to a whole config."""

    command: str


@dataclass(frozen=True)
class Left:
    """A command that no test runs, and why."""

    why: str


TRAIN_DATA = {"/data": "data", "FOLDER": "data", "BACKBONE": "backbone"}
N2S = Step(
    places.benchmarks,
    f"--set {SHORT} optim.warmup_steps=0",
    TRAIN_DATA,
    ("runs/finetune-N2S/model/config.json",),
)
WATER = Step(places.water, f"--set {SHORT}", TRAIN_DATA, ("runs/finetune-water/model/config.json",))
MY_SENSOR = Step(
    places.own_images, f"--set {SHORT} {LOCAL} output=runs/mine", leaves=("runs/mine/model/config.json",)
)
TARGET = {"/data": "one"}
SCORED = ("runs/evaluate/results.csv", "runs/evaluate/report.html")
CI = Left("a target of make, which CI or a person runs whole")
REAL = Left("images that are not here; tests/benchmarks/test_bench_real.py runs it on others")

TABLE: dict[str, Step | Built | Left] = {
    # README.md
    "make cpt": CI,
    "make test": CI,
    "make bench": CI,
    "make bench-real": REAL,
    "crossearth-sar train --config my.yaml": MY_SENSOR,
    "crossearth-sar train --config my.yaml --resume": MY_SENSOR,
    "deepspeed --num_accelerators 2 train/cpt.py --config my.yaml --set optim.lr=1e-4 model.moe.top_k=2 output=runs/k2": Step(
        places.own_images, f"--set {SHORT} batch_size=2", leaves=("runs/k2/model/config.json",), is_slow=True
    ),
    "crossearth-sar train --config my.yaml --sweep sweep.yaml": Step(
        places.sweep, f"--set {SHORT} {LOCAL} output=runs/sweep",
        leaves=("runs/sweep/report.md", "runs/sweep/trial-0000/model/config.json"),
    ),
    "crossearth-sar finetune --config my.yaml --set weights=BACKBONE": Step(
        places.own_images, f"--set {SHORT}", TRAIN_DATA, ("runs/finetune/model/config.json",)
    ),
    "crossearth-sar predict --model runs/cpt/model --images 'scenes/*.tif' --values db --output maps": Step(
        places.scenes, leaves=("maps/prediction.json", "maps/0.*", "maps/1.*")
    ),
    "crossearth-sar info": Step(),
    "crossearth-sar plan --preset l --gpus 16 --memory 80GB": Step(),
    "crossearth-sar export runs/cpt/checkpoints/step-000500 model/": Step(
        replace={"step-000500": "step-000001"}, leaves=("model/model.safetensors",)
    ),
    "crossearth-sar finetune --config finetune_benchmark --benchmark N2S --set data_root=/data weights=BACKBONE": N2S,
    "crossearth-sar evaluate --all --model 'runs/finetune-{benchmark}/model' --data-root /data": Step(
        places.one_target, "--max-images 1 --pictures 1", TARGET, SCORED
    ),
    "crossearth-sar evaluate --config my.yaml --model runs/cpt/model runs/finetune/model": Step(
        places.two_models, "--pictures 1 --output runs/side-by-side", leaves=("runs/side-by-side/README.md",)
    ),
    "crossearth-sar probe --config my.yaml --model runs/cpt/model": Step(
        places.two_models, "--device cpu --seeds 0 --output runs/probed", leaves=("runs/probed/probes.csv",)
    ),
    "crossearth-sar label --teacher FOLDER --dataset SEN12 --data-root /data --output /data/pseudo/SEN12": Step(
        places.teachers, replace={"FOLDER": "seven", "/data": "data"},
        leaves=("data/pseudo/SEN12/labels/ROIs1_a/s1_3/ROIs1_a_s1_3_p1.png",),
    ),
    # CONTRIBUTING.md
    "make venv": CI,
    ".venv/bin/python -m pytest -q tests/moe": Left("the tests of a room: all of them run with make test"),
    # docs/BENCHMARKS.md
    "crossearth-sar evaluate --list": Step(),
    "crossearth-sar evaluate --data-root /data --benchmark N2S --model runs/finetune-N2S/model": Step(
        places.benchmarks, "--max-images 1 --pictures 1", TRAIN_DATA, SCORED
    ),
    "crossearth-sar evaluate --data-root /data --all --model 'runs/finetune-{benchmark}/model'": Step(
        places.one_target, "--max-images 1 --pictures 1", TARGET, SCORED
    ),
    "crossearth-sar evaluate --data-root /data --all --adapter mypackage.mymodel:build --name mymodel": Step(
        places.one_target, "--max-images 1 --pictures 1", TARGET, SCORED
    ),
    "crossearth-sar evaluate --config domains.yaml --model runs/a/model runs/b/model": Step(
        places.own_domains, "--pictures 1", leaves=("runs/evaluate/README.md", "runs/evaluate/metrics.json")
    ),
    "crossearth-sar evaluate --config domains.yaml --model runs/a/model --as other=building,road --calibrate my-lake": Step(
        places.own_domains, "--pictures 1", leaves=("runs/evaluate/classes.csv",)
    ),
    "crossearth-sar evaluate --published": Step(),
    **{
        f"crossearth-sar probe --config probe.yaml {more}": Step(
            places.probed_domains, "--device cpu --seeds 0 --steps 1", leaves=("runs/evaluate/probes/README.md",)
        )
        for more in (
            "--model runs/a/model", "--model runs/a/model --labels 2 8 10% --methods linear knn finetune",
            "--adapter mypackage.myencoder:build",
        )
    },
    "crossearth-sar evaluate --config probe.yaml --model runs/a/model --probe": Step(
        places.probed_domains, "--as other=building,road --pictures 0", leaves=("runs/evaluate/probes/README.md",)
    ),
    'make bench-real ARGS="--model runs/cpt/model"': REAL,
    'make bench-real ARGS="--in-domain --seeds 0 1 2 --no-simple"': REAL,
    'make bench-real ARGS="--sources wide old --seeds 0 1 2 --curves --no-simple"': REAL,
    'make bench-real ARGS="--few-labels --no-simple"': REAL,
    "crossearth-sar predict --images scene.tif": Step(places.scenes, leaves=("maps/prediction.json",)),
    # docs/DATA.md
    **{
        f"crossearth-sar predict --images {images} {more}": Step(
            places.products, "--device cpu", leaves=(f"{more.split()[-1]}/{left}",)
        )
        for images, more, left in (
            ("'rtc/*_{VV,VH}.tif'", "--values intensity --output maps-rtc", "a_VV_VH.tif"),
            ("'C3/{C11,C22,C33}.bin'", "--values intensity --output maps-c3", "C11_C22_C33.tif"),
            ("S1A_IW_GRDH.SAFE", "--values amplitude --nodata 0 --output maps-s1", "S1A_IW_GRDH.tif"),
            ("gf3.tiff", "--values complex_bands --pixel-m 8 --output maps-gf3", "gf3.tif"),
            ("iceye.h5", "--values complex --pixel-m 2 --output maps-iceye", "iceye.tif"),
            ("capella.tif", "--values complex --pixel-m 1 --output maps-capella", "capella.tif"),
            ("umbra.nitf", "--values complex --output maps-umbra", "umbra.tif"),
            ("alos2.tif", "--values amplitude --nodata 0 --output maps-alos2", "alos2.tif"),
            ("NISAR_L2_GCOV.h5", "--values intensity --output maps-nisar", "NISAR_L2_GCOV.tif"),
        )
    },
    # docs/FINETUNING.md
    "crossearth-sar finetune --config finetune_water --set data_root=FOLDER weights=BACKBONE": WATER,
    "crossearth-sar finetune --config finetune_benchmark --benchmark N2S --set data_root=FOLDER weights=BACKBONE": Step(
        places.benchmarks, f"--set {SHORT}", {**TRAIN_DATA, "FOLDER": "data"}, ("runs/finetune-N2S/model/config.json",)
    ),
    "crossearth-sar finetune --config finetune_water --resume --set data_root=FOLDER weights=BACKBONE": WATER,
    "crossearth-sar finetune --config finetune_water --set data_root=FOLDER weights=BACKBONE mode=earth_adapter "
    "output=runs/ea": Step(places.water, f"--set {SHORT}", TRAIN_DATA, ("runs/ea/model/config.json",)),
    "torchrun --nproc-per-node 4 train/finetune.py --config finetune_water --set data_root=FOLDER "
    "weights=BACKBONE": Built("finetune"),
    "crossearth-sar finetune --config finetune_benchmark --benchmark $row --set data_root=/data weights=BACKBONE": Step(
        places.benchmarks, f"--set {SHORT}", TRAIN_DATA
    ),
    "crossearth-sar evaluate --data-root /data --benchmark N2S S2N K2C --model 'runs/finetune-{benchmark}/model'": Step(
        places.benchmarks, "--max-images 1 --pictures 0", TRAIN_DATA, (*SCORED, "runs/evaluate/radar.png")
    ),
    # docs/PREDICTION.md
    "crossearth-sar predict --model runs/finetune/model --images 'scenes/*/s1_*.tif' --values db --output maps": Step(
        places.scenes, leaves=("maps/2026/s1_1.*",)
    ),
    "crossearth-sar predict --model runs/finetune/model --images scene.npy --values complex --output maps": Step(
        places.scenes, replace={"maps": "others"}, leaves=("others/scene.png",)
    ),
    "crossearth-sar predict --images 'scenes/*.tif' --scores --page --vector maps.gpkg": Step(
        places.scenes, "--output beside", leaves=("maps.gpkg", "beside/0.html", "beside/1-scores.tif")
    ),
    "crossearth-sar predict --images 'scenes/*.tif' --output maps --shard 2/4": Step(
        places.scenes, replace={"maps": "parts"}, leaves=("parts/1.*",)
    ),
    "torchrun --nproc-per-node 4 train/predict.py --images 'scenes/*.tif' --output maps": Left(
        "four processes; tests/cli/test_predict_output.py runs two"
    ),
    # docs/PSEUDO_LABELS.md
    "crossearth-sar label --teacher FOLDER --map map.yaml --dataset SEN12 --data-root /data --output "
    "/data/pseudo/SEN12 --threshold 0.5 --confidence": Step(
        places.teachers, replace={"FOLDER": "three", "/data": "data"}, leaves=("data/pseudo/SEN12/manifest.json",)
    ),
    "crossearth-sar label --teacher FOLDER --data-root pairs --sar 'sar/*.*' --optical 'opt/*.*' --output "
    "runs/pseudo": Step(
        places.teachers, replace={"FOLDER": "seven"}, leaves=("runs/pseudo/labels/sar/1.png",)
    ),
    "crossearth-sar agreement runs/pseudo-a runs/pseudo-b runs/pseudo-c runs/pseudo-d --json found.json": Step(
        places.label_maps, leaves=("found.json",)
    ),
    "crossearth-sar label --teacher FOLDER --data-root ../shared/real_data/s1s2_pairs --sar 'sar/*.*' --optical "
    "'opt/*.*' --output OUTPUT --threshold P --confidence": Step(
        places.teachers, replace={"FOLDER": "seven", "../shared/real_data/s1s2_pairs": "pairs", "P": "0.2"},
        leaves=("OUTPUT/confidence/sar/1.png",),
    ),
    # docs/SELF_SUPERVISED.md
    "crossearth-sar selfsup": Step(
        add=f"--set {PAIRS} {PROBED}", leaves=("runs/di3cl/report.md", "runs/di3cl/model/config.json")
    ),
    "crossearth-sar selfsup --config archive.yaml": Step(
        places.archive_and_labels, f"--set {PAIRS}", leaves=("runs/archive/model/config.json",)
    ),
    "crossearth-sar finetune --config my.yaml --set weights=runs/di3cl/model model.moe=null": Step(
        add=f"--set {SHORT}", leaves=("runs/finetune/model/config.json",)
    ),
    "crossearth-sar export runs/di3cl backbone/": Step(
        replace={"backbone": "exported"}, leaves=("exported/model.safetensors",)
    ),
    "deepspeed --num_gpus 8 train/di3cl.py --config di3cl_vit_s --set data_root=/data/archive": Built("selfsup"),
    "deepspeed --num_gpus 8 train/cpt.py --config cpt_s --set data_root=/data/cpt weights=runs/di3cl-vit-s/model "
    "expert_noise=0.01": Built("train"),
    "crossearth-sar plan --preset s --selfsup --crop 224 --gpus 8 --memory 24GB --images 32": Step(),
    "crossearth-sar selfsup --set output=runs/moco selfsup.method.contour_weight=0 selfsup.method.region_weight=0 "
    "probe=null validation=null unseen=[]": Step(add=f"--set {PAIRS}", leaves=("runs/moco/model/config.json",)),
    "crossearth-sar selfsup --set output=runs/di3cl-beside 'probe.beside={MoCo v2: runs/moco/model}'": Step(
        add=f"--set {PAIRS} {PROBED}", leaves=("runs/di3cl-beside/metrics.json",)
    ),
    # docs/TRAINING.md
    "crossearth-sar train": Step(
        add=f"--set {SHORT} {SIMULATED} {LOCAL}", leaves=("runs/cpt/report.md", "runs/cpt/model/config.json")
    ),
    "crossearth-sar train --print_config": Step(),
    "crossearth-sar finetune --config my.yaml --sweep sweep.yaml --set weights=BACKBONE": Step(
        places.sweep, f"--set {SHORT} output=runs/sweep-heads", TRAIN_DATA, ("runs/sweep-heads/trials.csv",)
    ),
    "deepspeed --num_accelerators 2 train/cpt.py": Step(
        add=f"--set {SHORT} {SIMULATED} batch_size=2 output=runs/two", leaves=("runs/two/report.md",), is_slow=True
    ),
    "deepspeed --num_gpus 8 train/cpt.py --config cpt_s --set data_root=/data/cpt "
    "weights=dinov2_vits14_pretrain.pth": Built("train"),
    "deepspeed --num_gpus 8 train/cpt.py --config cpt_s --resume --set data_root=/data/cpt": Built("train"),
    "deepspeed --hostfile hostfile --master_addr node1 --master_port 29500 train/cpt.py --config cpt_l --set "
    "data_root=/shared/data/cpt output=/shared/runs/cpt-l weights=/shared/dinov2_vitl14_pretrain.pth --resume "
    "auto": Built("train"),
    "srun --ntasks-per-node 8 --gpu-bind=none python train/cpt.py --config cpt_l --resume auto --set "
    "data_root=/shared/data/cpt": Built("train"),
    "crossearth-sar train --config cpt_l --write-deepspeed train/cpt_l.json --ranks 16": Step(
        make=lambda place: (place / "train").mkdir(exist_ok=True), leaves=("train/cpt_l.json",)
    ),
    "crossearth-sar export runs/cpt-l OUT": Step(
        replace={"runs/cpt-l": "runs/cpt"}, leaves=("OUT/model.safetensors",)
    ),
    "crossearth-sar export runs/cpt-l/checkpoints/step-002000 OUT --dtype bf16": Step(
        replace={"runs/cpt-l": "runs/cpt", "step-002000": "step-000001", "OUT": "OUT2"},
        leaves=("OUT2/model.safetensors",),
    ),
}  # fmt: skip
"""Printed command -> what is done with it. What no document prints must not be here, nor anything else there."""
