"""Fine-tuning on real images, every mode, in one table: in the domain trained on and across domains.

    python -m bench.experiments.finetune_real --real FOLDER [--weights runs/finetune-simulated/model]
        [--work runs/finetune-real] [--out bench/reports/finetune-real]

FOLDER holds sen1floods11, kompsat5_oslo and airsar_sanfrancisco. AIRSAR channels and the labels of its halves
are made of its coherency matrices, in WORK/data, first; each run is train/finetune.py with a recipe,
and one that is finished is not repeated. No image is written into the report.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bench.experiments.real.sets import channel_power
from bench.speed.harness import write_report

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("airsar", "water")
VARIANTS = {  # name -> settings; those with weights start from them
    "frozen": ["mode=frozen"],
    "earth_adapter": ["mode=earth_adapter"],
    "full": ["mode=full"],
    "full, no weights": ["mode=full", "weights=null"],
}
FOREST = {  # mIoU of a random forest on hand features, one seed; from the notes beside the images
    "airsar-HH-right": "32",
    "airsar-VV-right": "20",
    "airsar-HV-right": "38",
    "sentinel1-VV-other-regions": "52-69 (water pairs)",
    "kompsat5-HH": "52-69 (water pairs)",
    "airsar-HH": "52-69 (water pairs)",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--weights", default="runs/finetune-simulated/model")
    parser.add_argument("--work", type=Path, default=Path("runs/finetune-real"))
    parser.add_argument("--out", type=Path, default=Path("bench/reports/finetune-real"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", help="for every run")
    arguments = parser.parse_args()
    data = prepare(arguments.real.resolve(), arguments.work / "data")
    rows, commits = [], set()
    for recipe in arguments.recipes:
        for variant, settings in VARIANTS.items():
            for seed in arguments.seeds:
                output = arguments.work / f"{recipe}-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
                common = [f"weights={arguments.weights}", f"data_root={data}", f"seed={seed}", "pictures=0"]
                train(recipe, output, [*common, *settings, *arguments.overrides])
                rows += table_rows(recipe, variant, seed, output)
                metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
                commits.add(metrics["provenance"]["commit"])
    lines = [*notes(arguments.weights), f"The runs' own commits: {', '.join(sorted(commits))}."]
    print(write_report(arguments.out, "Fine-tuning on real images", rows, lines))


def prepare(real: Path, data: Path) -> Path:
    """WORK/data with the folder names that the recipes expect; returns it."""
    data.mkdir(parents=True, exist_ok=True)
    for name in ("sen1floods11", "kompsat5_oslo"):
        if not (data / name).exists():
            (data / name).symlink_to(real / name)
    write_airsar(real / "airsar_sanfrancisco", data / "airsar")
    return data.resolve()


def write_airsar(source: Path, target: Path) -> None:
    """Amplitudes of HH, VV and HV from the coherency matrix T3, and the labels: all, left half, right half.

    The images stay whole and the other half's labels become 255: a half's own mean and deviation would say
    how much water and town it holds, and normalising by them would shift the classes.
    """
    target.mkdir(exist_ok=True)
    with np.load(source / "t3.npz") as t3:
        powers = channel_power({key: t3[key].astype(np.float64) for key in t3.files})
    for polarization, power in powers.items():
        np.save(target / f"{polarization.upper()}.npy", np.sqrt(power.clip(min=0)).astype(np.float32))
    label = np.asarray(Image.open(source / "label_common4.png", formats=["PNG"]))
    is_left = np.arange(label.shape[1]) < label.shape[1] // 2
    for name, kept in (("all", is_left | ~is_left), ("left", is_left), ("right", ~is_left)):
        Image.fromarray(np.where(kept, label, 255).astype(np.uint8)).save(target / f"label_{name}.png")


def train(recipe: str, output: Path, settings: list[str]) -> None:
    """Runs the recipe unless its metrics are there; leaves the processor time it took in cpu_seconds.txt."""
    if (output / "metrics.json").exists():
        return
    before = cpu_seconds_of_children()
    command = [
        sys.executable,
        "train/finetune.py",
        "--config",
        f"finetune_{recipe}",
    ]
    resume = ["--resume"] if (output / "checkpoints").exists() else []
    outputs = [f"output={output.resolve()}"]
    subprocess.run([*command, "--set", *outputs, *settings, *resume], cwd=ROOT, check=True)
    if not resume:
        spent = cpu_seconds_of_children() - before
        (output / "cpu_seconds.txt").write_text(f"{spent:.0f}\n", encoding="utf-8")


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table_rows(recipe: str, variant: str, seed: int, output: Path) -> list[dict[str, object]]:
    """One row per domain of a finished run."""
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    trained = (output / "parameters.txt").read_text(encoding="utf-8").split(": ")[1].split(" of ")[0]
    time_file = output / "cpu_seconds.txt"
    rows: list[dict[str, object]] = []
    for number, (domain, scores) in enumerate(metrics["domains"].items()):
        otsu = scores.get("otsu")
        per_class = "; ".join(f"{name} {percent(iou)}" for name, iou in scores["model"]["iou"].items())
        rows.append(
            {
                "task": recipe,
                "mode": variant,
                "seed": seed,
                "domain": domain,
                "gap": "held out" if number == 0 else "unseen",
                "mIoU": percent(scores["model"]["miou"]),
                "majority": percent(scores["majority"]["miou"]),
                "Otsu": percent(otsu["miou"]) if otsu else "",
                "random forest": FOREST.get(domain, ""),
                "IoU per class": per_class,
                "trained parameters": trained,
                "steps": metrics["steps"],
                "CPU seconds": time_file.read_text(encoding="utf-8").strip() if time_file.exists() else "",
            }
        )
    return rows


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def notes(weights: str) -> list[str]:
    return [
        f"The tiny model (crossearth_sar_tiny). Weights of the backbone: {weights}, from "
        "the recipe finetune_simulated, simulated scenes alone. «no weights»: from scratch.",
        "«held out»: the training domain's other half or other regions. «unseen»: never trained on. Each "
        "domain is normalised by its own dB statistics, which uses no label; for AIRSAR's halves, those of "
        "the whole scene in that polarization.",
        "Random forest: hand features, one seed, from the notes that came with the images; which label map, "
        "split and features it had is not known in detail, so it stands beside, not against.",
        "mIoU over all classes with labels; AIRSAR's right half has 224 pixels of «bare» of 375,000.",
        "One seed, small sets: differences of a few points say nothing.",
        "CPU seconds: training and evaluation, one thread; empty where this script did not run it in one go.",
    ]


if __name__ == "__main__":
    main()
