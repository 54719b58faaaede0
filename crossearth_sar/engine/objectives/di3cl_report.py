"""What a finished self-supervised run leaves beside its backbone: losses, the probe's table, pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.data.stream import TrainStream
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.log import rows_left, told_if_lost
from crossearth_sar.engine.objectives.base import Finished, on_device
from crossearth_sar.engine.objectives.di3cl_probe import ProbeDomains, probe_lines, probe_rows
from crossearth_sar.evaluation.figures.curves import curves_figure
from crossearth_sar.evaluation.figures.features import Panel, enlarged, heat, panels_figure, principal_colors
from crossearth_sar.evaluation.figures.predictions import gray_db
from crossearth_sar.evaluation.markdown import write_markdown
from crossearth_sar.provenance import provenance
from crossearth_sar.selfsup.di3cl import DI3CL
from crossearth_sar.selfsup.pairs import Pair, join_pairs
from crossearth_sar.selfsup.regions import region_means
from crossearth_sar.whole import write_text

LOSS_WINDOW = 20
"""Steps at either end of a run whose means are compared."""

LOGGED = (
    "loss", "loss_global", "loss_contour", "loss_region", "top1_global", "top1_contour", "boxes",
    "without_boxes", "embedding_std", "cosine_positive", "cosine_negative", "cosine_boxes",
    "boxes_std", "edges_explained",
)  # fmt: skip
"""Columns of train.csv that the report shows, where the run has them."""


def write_report(
    finished: Finished,
    config: RunConfig,
    probe: ProbeDomains | None,
    ranks: Ranks,
    model: DI3CL,
    pairs: TrainStream[Pair],
) -> dict[str, Any]:
    """Probes the features and writes into the run's folder, on rank 0 alone; the mapping of metrics.json.

    Files: metrics.json, report.md, curves.png, views.png, likeness.png, patches.png.
    """
    if not ranks.is_main:
        return {}
    output = finished.output
    rows = rows_left(output / "train.csv")
    metrics: dict[str, Any] = {
        "provenance": provenance(),
        "steps": finished.step,
        **finished.facts,
        "log": {name: _ends([row[name] for row in rows]) for name in LOGGED if rows and name in rows[0]},
    }
    if probe is not None:
        finished.say("probing the features with few labels …")
        found = probe_rows(probe, model.encoder, config.seed)
        metrics["probe"] = [row.to_mapping() for row in found]
    lines = _lines(metrics, config, probe_lines(found) if probe is not None else [])
    with told_if_lost("metrics.json"):
        write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    with told_if_lost("report.md"):
        write_markdown(output / "report.md", lines)
    with told_if_lost("pictures"):
        _draw(output, config, model, rows, pairs)
    print(f"\n{lines}\nAll of it is in {output}/", flush=True)
    return metrics


def _draw(
    output: Path, config: RunConfig, model: DI3CL, rows: list[dict[str, str]], pairs: TrainStream[Pair]
) -> None:
    if rows:
        names = ("step", "loss", "lr", "grad_norm")
        columns = {name: [float(row[name] or math.nan) for row in rows] for name in names}
        curves_figure(columns, output / "curves.png", "Self-supervised training")
    if config.pictures:
        draw_pictures(output, model, [pairs[draw] for draw in range(config.pictures)])


@torch.no_grad()
def draw_pictures(output: Path, model: DI3CL, pairs: list[Pair]) -> None:
    """views.png: both views of each pair with their boxes. likeness.png: how like a box each cell of the
    other view is. patches.png: the first principal components of the patches' features."""
    device = next(model.parameters()).device
    batch = on_device(join_pairs(pairs) | {"name": torch.zeros(len(pairs))}, device)
    maps = [
        model.query.encoder(batch[f"{side}_image"], batch[f"{side}_mean"], batch[f"{side}_std"])
        .deep.float()
        .cpu()
        for side in ("query", "key")
    ]
    seen = [[_gray(pair[f"{side}_image"]) for pair in pairs] for side in ("query", "key")]  # type: ignore[literal-required]
    boxes = [[pair[f"{side}_boxes"][pair["valid"]].tolist() for pair in pairs] for side in ("query", "key")]  # type: ignore[literal-required]
    rows = [
        [Panel(one, own), Panel(other, theirs)] for one, other, own, theirs in zip(*seen, *boxes, strict=True)
    ]
    panels_figure(rows, ("query", "key"), output / "views.png", "Two views and their boxes")
    size = seen[0][0].shape[0]
    like = [
        [
            Panel(seen[0][i], boxes[0][i][:1]),
            Panel(
                enlarged(heat(_likeness(maps[0][i], maps[1][i], boxes[0][i][0], size)), size), boxes[1][i][:1]
            ),
            Panel(seen[1][i], boxes[1][i][:1]),
        ]
        for i in range(len(pairs))
        if boxes[0][i]
    ]
    if like:
        headings = ("box in the query", "cosine of cells to it", "its place in the key")
        panels_figure(like, headings, output / "likeness.png", "Where the other view is like a box")
    colors = [enlarged(pixels, size) for pixels in principal_colors(maps[0])]
    panels = [[Panel(one), Panel(color)] for one, color in zip(seen[0], colors, strict=True)]
    panels_figure(panels, ("view", "three components"), output / "patches.png", "Features of patches")


def _likeness(query_Dhw: Tensor, key_Dhw: Tensor, box: list[float], size: int) -> Tensor:
    """(h, w) cosines of the key's cells to the mean of the query's inside the box."""
    mean_D = region_means(query_Dhw[None], torch.tensor([[box]]), size)[0, 0]
    return F.cosine_similarity(key_Dhw, mean_D[:, None, None], dim=0)


def _gray(image_CHW: Tensor) -> Any:
    return gray_db(image_CHW[0], torch.zeros(image_CHW.shape[1:]))


def _ends(values: list[str]) -> dict[str, float]:
    numbers = [float(value) for value in values]
    window = min(LOSS_WINDOW, max(len(numbers) // 2, 1))
    first, last = (sum(part) / len(part) for part in (numbers[:window], numbers[-window:]))
    return {"first": first, "last": last}


def _lines(metrics: dict[str, Any], config: RunConfig, table: list[str]) -> str:
    source = config.train.name if config.train else ""
    assert config.selfsup is not None
    method = config.selfsup.method
    length = min(LOSS_WINDOW, max(metrics["steps"] // 2, 1))
    weights = f"{method.global_weight:g}, {method.contour_weight:g}, {method.region_weight:g}"
    lines = [
        f"# DI3CL, {config.preset}, {metrics['steps']} steps of {config.batch_size} pairs on {source}",
        "",
        f"{metrics['ranks']} ranks. Weights of the global, contour and region loss: {weights}. "
        "No label was used.",
        "",
        f"| column of train.csv | first {length} steps | last {length} |",
        "|---|---:|---:|",
        *(f"| {name} | {ends['first']:.3f} | {ends['last']:.3f} |" for name, ends in metrics["log"].items()),
        "",
        *table,
    ]
    if table:
        lines += [
            "The backbone is frozen; a linear classifier of its patches learns from so many labelled images, "
            "drawn anew for each seed. In brackets what 95 of 100 sets of test images of this size "
            "would give, for these draws.",
            "",
        ]
    lines.append("; ".join(f"{key} {value}" for key, value in metrics["provenance"].items()))
    return "\n".join(lines) + "\n"
