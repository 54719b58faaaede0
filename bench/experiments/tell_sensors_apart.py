"""What descriptors tell of real images: by which of them can a linear classifier name a crop's data set?

    python -m bench.experiments.tell_sensors_apart --index CORPUS/index.csv REAL/index.csv [--out FOLDER]

Indices as in describe_images, with the column dataset. A class is a data set; images are held out whole, and
all polarizations of a scene together. Crops of 128 pixels, multinomial logistic regression, balanced accuracy
over three folds; then again with every held-out image multiplied by a gain of its own, as other calibrations
do.

N crops, F features, K classes.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.experiments.describe_images import kind_of
from bench.speed.harness import markdown_table, write_report
from crossearth_sar import sar_descriptors, scale_free_descriptors
from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.data.files.readers import read_image
from crossearth_sar.descriptors import PAPER_DESCRIPTORS, SCALE_FREE_DESCRIPTORS

SIDE = 128
FOLDS = 3
MOST_IMAGES, MOST_CROPS = 40, 8
GAINS = (0.01, 100.0)
LEVEL = ("log mean", "log std")
FEATURES = (*PAPER_DESCRIPTORS, *SCALE_FREE_DESCRIPTORS, *LEVEL)
SETS = {
    "the paper's three": PAPER_DESCRIPTORS,
    "scale-free four": SCALE_FREE_DESCRIPTORS,
    "both": (*PAPER_DESCRIPTORS, *SCALE_FREE_DESCRIPTORS),
    "mean and std of ln amplitude": LEVEL,
    "all": FEATURES,
}
GAOFEN = {"unlabelled_gf3": "gaofen3", "gf3_gaofen2020": "gaofen3"}
ONE_SCENE = ("airsar_flevoland",)


@dataclass(frozen=True)
class Scene:
    """One image: its data set, what keeps it together with others, and its crops (N, 128, 128), amplitude."""

    dataset: str
    group: str
    crops: Tensor
    is_display: bool


def scenes(indices: Iterable[Path]) -> list[Scene]:
    """Of every image that fits a crop, once: what both indices hold is taken from the first."""
    found, seen = [], set()
    for index in indices:
        with index.open(encoding="utf-8", newline="") as file:
            entries = list(csv.DictReader(file))
        by_dataset = defaultdict(list)
        for entry in entries:
            by_dataset[entry["dataset"]].append(entry)
        for dataset, members in by_dataset.items():
            for entry in members[:: max(1, len(members) // MOST_IMAGES)][:MOST_IMAGES]:
                path = index.parent / entry["image"]
                name = GAOFEN.get(dataset, dataset)
                crops = (
                    None if (name, path.name) in seen or path.suffix == ".npz" else read_crops(path, entry)
                )
                if crops is None:
                    continue
                seen.add((name, path.name))
                group = path.stem.split("_")[0] if dataset in GAOFEN else path.name
                group = "the scene" if dataset in ONE_SCENE else group
                found.append(Scene(name, f"{dataset} {group}", crops, is_display(entry["values"])))
    return found


def is_display(values: str) -> bool:
    """Eight bits, mostly stretched: read as amplitude, which they are not."""
    return "8-bit" in values or "uint8" in values


def read_crops(path: Path, entry: dict[str, str]) -> Tensor | None:
    """Of the first band, evenly spread, without those that are half empty; None where no crop fits."""
    raw = read_image(path)
    kind = "amplitude" if is_display(entry["values"]) else kind_of(entry["values"])
    image = torch.from_numpy(to_amplitude(raw.values, kind, valid=raw.valid, name=str(path)))[0]
    if min(image.shape) < SIDE:
        return None
    tiles = image.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).flatten(0, 1)
    tiles = tiles[(tiles > 0).float().mean((1, 2)) > 0.5]
    return tiles[:: max(1, len(tiles) // MOST_CROPS)][:MOST_CROPS] if len(tiles) else None


def features_of(crops: Tensor) -> Tensor:
    """(N, F) float64, in the order of FEATURES."""
    logs = torch.where(crops > 0, crops.double(), torch.nan).log()
    mean = logs.nanmean((1, 2))
    std = (logs - mean[:, None, None]).square().nanmean((1, 2)).sqrt()
    parts = (sar_descriptors(crops), scale_free_descriptors(crops), torch.stack([mean, std], 1))
    return torch.cat([part.double() for part in parts], dim=1)


def balanced_accuracy(
    train: tuple[Tensor, Tensor], held_out: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """(K, 2) hits and crops of each class for each held-out set, by logistic regression on `train`."""
    values_NF, label_N = train
    mean, std = values_NF.mean(0), values_NF.std(0) + 1e-9
    classes = int(label_N.max()) + 1
    weight = torch.zeros(values_NF.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    share_K = 1 / torch.bincount(label_N, minlength=classes).clamp(min=1).double()

    def logits(values: Tensor) -> Tensor:
        scaled = ((values - mean) / std).clamp(-5, 5)
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1) @ weight

    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(values_NF), label_N, weight=share_K)
        loss = loss + 1e-3 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = []
    for values, label in held_out:
        hit = logits(values).detach().argmax(1) == label
        found.append(
            torch.stack([torch.bincount(label[which], minlength=classes) for which in (hit, hit | True)])
        )
    return found


def accuracies(chosen: Sequence[Scene], generator: torch.Generator) -> list[dict[str, object]]:
    """A row per set of features."""
    names = sorted({scene.dataset for scene in chosen})
    fold_of: dict[str, int] = {}
    for name in names:  # neighbours in the list stay together: some of them show the same place
        groups = sorted({scene.group for scene in chosen if scene.dataset == name})
        fold_of |= {group: position * FOLDS // len(groups) for position, group in enumerate(groups)}
    label = torch.tensor([names.index(scene.dataset) for scene in chosen for _ in scene.crops])
    fold = torch.tensor([fold_of[scene.group] for scene in chosen for _ in scene.crops])
    plain = torch.cat([features_of(scene.crops) for scene in chosen])
    gains = (10 ** (torch.rand(len(chosen), generator=generator) * 2 - 1)).tolist()
    gained = torch.cat([features_of(scene.crops * gain) for scene, gain in zip(chosen, gains, strict=True)])
    rows = []
    for what, wanted in SETS.items():
        columns = [FEATURES.index(name) for name in wanted]
        totals = [torch.zeros(2, len(names)) for _ in range(2)]
        for held in range(FOLDS):
            out = fold == held
            found = balanced_accuracy(
                (plain[~out][:, columns], label[~out]),
                [(values[out][:, columns], label[out]) for values in (plain, gained)],
            )
            totals = [total + counts for total, counts in zip(totals, found, strict=True)]
        scores = [100 * (total[0] / total[1]).mean() for total in totals]
        rows.append({
            "features": what, "balanced accuracy, %": f"{float(scores[0]):.1f}",
            "the same with gains of 0.1 .. 10, %": f"{float(scores[1]):.1f}",
        })  # fmt: skip
    return rows


def ranges(chosen: Sequence[Scene]) -> list[dict[str, object]]:
    """A row per descriptor: percentiles over all crops, and by how much a gain moves it, in such spreads."""
    crops = torch.cat([scene.crops for scene in chosen])
    plain = features_of(crops)
    low, middle, high = torch.quantile(plain, torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64), dim=0)
    moved = torch.stack([(features_of(crops * gain) - plain).abs().amax(0) for gain in GAINS]).amax(0)
    return [
        {
            "descriptor": name, "1 %": f"{float(low[i]):.4g}", "median": f"{float(middle[i]):.4g}",
            "99 %": f"{float(high[i]):.4g}", "most a gain of 0.01 or 100 moves it": f"{float(moved[i]):.2g}",
        }
        for i, name in enumerate(FEATURES)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/reports/descriptors-real-crops"))
    arguments = parser.parse_args()
    everything = scenes(arguments.index)
    groups: dict[str, set[str]] = defaultdict(set)
    for scene in everything:
        groups[scene.dataset].add(scene.group)
    large = [scene for scene in everything if len(groups[scene.dataset]) >= FOLDS]
    body, rows = [], []
    choices = {"all data sets": large, "without 8-bit displays": [s for s in large if not s.is_display]}
    for title, chosen in choices.items():
        names = sorted({scene.dataset for scene in chosen})
        if len(names) < 2:
            continue
        crops = sum(len(scene.crops) for scene in chosen)
        table = accuracies(chosen, torch.Generator().manual_seed(0))
        chance = f"{len(names)} classes, chance {100 / len(names):.1f} %, {len(chosen)} images, {crops} crops"
        body += [f"**{title}** ({', '.join(names)}; {chance})", "", *markdown_table(table), ""]
        for row in table:
            what, *values = row.items()
            rows += [{"data": title, "of": what[1], "measure": key, "value": value} for key, value in values]
    table = ranges(everything)
    body += ["**Every crop of every image**", "", *markdown_table(table)]
    for row in table:
        what, *values = row.items()
        rows += [
            {"data": "every crop", "of": what[1], "measure": key, "value": value} for key, value in values
        ]
    notes = [
        f"Crops of {SIDE} pixels, at most {MOST_CROPS} an image, {MOST_IMAGES} images a data set and index; "
        f"{FOLDS} folds of whole images (whole scenes for Gaofen-3), neighbours in the list together. Data "
        f"sets of fewer than {FOLDS} such groups are in the last table only.",
        "Eight-bit displays are read as amplitude, which they are not: with them a classifier may tell "
        "formats apart, hence the second table.",
        f"Entropies in nats, at most ln 36 = {math.log(36):.3f} and ln 8 = {math.log(8):.3f}; looks is the "
        "logarithm of their number.",
        "`python -m bench.experiments.tell_sensors_apart --index CORPUS/index.csv REAL/index.csv`",
    ]
    print(write_report(arguments.out, "What descriptors tell of real crops", rows, notes, body=body))


if __name__ == "__main__":
    main()
