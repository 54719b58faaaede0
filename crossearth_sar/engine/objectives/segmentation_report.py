"""What a finished segmentation run leaves beside its model: scores, honest baselines, pictures, a report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from crossearth_sar.data.domain import Domain
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.log import rows_left, told_if_lost
from crossearth_sar.engine.objectives.base import Finished
from crossearth_sar.engine.objectives.domains import Domains, evaluate_together
from crossearth_sar.engine.objectives.network import ParameterCounts
from crossearth_sar.evaluation.baselines import (
    best_otsu_water_scores,
    class_histogram,
    majority_class,
    majority_scores,
    otsu_water_scores,
)
from crossearth_sar.evaluation.evaluate import Evaluation, predict_sample
from crossearth_sar.evaluation.figures import curves_figure, expert_share_figure, prediction_figure
from crossearth_sar.evaluation.markdown import write_markdown
from crossearth_sar.evaluation.metrics import ConfusionMatrix, absent_words
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.provenance import provenance
from crossearth_sar.spacing import evenly_spaced
from crossearth_sar.whole import write_text

LOSS_WINDOW = 20
"""Steps at either end of a run whose mean loss is compared."""


def write_report(
    finished: Finished,
    config: RunConfig,
    domains: Domains,
    ranks: Ranks,
    counts: ParameterCounts,
    model: CrossEarthSAR,
) -> dict[str, Any]:
    """Evaluates held-out and unseen domains, writes into the run's folder, prints the table.

    Files: metrics.json, report.md, parameters.txt, predictions-*.png, curves.png, experts-*.png. A collective
    call; the mapping of metrics.json is returned, on rank 0 only filled.
    """
    output = finished.output
    finished.say("evaluating held-out and unseen images …")
    results: dict[str, Any] = {}
    is_main = ranks.is_main
    majority = majority_class(class_histogram(domains.train, max_samples=64)) if is_main else 0
    for domain in [domains.validation, *domains.unseen]:
        evaluation = evaluate_together(model, domain, ranks)
        if is_main:
            results[domain.name] = _scores(domain, evaluation, majority)
            with told_if_lost(f"pictures of {domain.name}"):
                _pictures(output, config.pictures, model, domain, evaluation.expert_share_LE.cpu())
    if not is_main:
        return {}
    train_rows, validation = (rows_left(output / name) for name in ("train.csv", "validation.csv"))
    metrics = {
        "provenance": provenance(),
        "steps": finished.step,
        "model_of_step": finished.model_of_step,
        **finished.facts,
        "classes": list(domains.classes.names),
        "majority_class": domains.classes.names[majority],
        "loss": _loss_summary([float(row["loss"]) for row in train_rows]),
        "domains": results,
    }
    report = _report(metrics, config.preset, domains.train.name)
    texts = {
        "metrics.json": json.dumps(metrics, indent=2) + "\n",
        "parameters.txt": f"{config.mode}: {counts}\n",
    }
    for name, text in texts.items():
        with told_if_lost(name):
            write_text(output / name, text)
    with told_if_lost("report.md"):
        write_markdown(output / "report.md", report)
    if train_rows:
        with told_if_lost("curves.png"):
            validated = _columns(validation) or None
            curves_figure(_columns(train_rows), output / "curves.png", "Training", validation=validated)
    print(f"\n{report}\nAll of it is in {output}/", flush=True)
    return metrics


def _scores(domain: Domain, evaluation: Evaluation, majority: int) -> dict[str, Any]:
    names = domain.classes.names
    baselines = _baselines(domain, majority)
    return {
        "images": len(domain),
        "model": evaluation.confusion.scores().to_mapping(names),
        **{name: matrix.scores().to_mapping(names) for name, matrix in baselines.items()},
    }


def _baselines(domain: Domain, majority: int) -> dict[str, ConfusionMatrix]:
    """The training domain's most frequent class everywhere; for water against one other class, Otsu."""
    found = {"majority": majority_scores(domain, majority)}
    names = domain.classes.names
    if len(names) == 2 and "water" in names:
        water = names.index("water")
        found["otsu"] = otsu_water_scores(domain, water_index=water, other_index=1 - water)
        found["otsu_best"] = best_otsu_water_scores(domain, water, 1 - water)[1]
    return found


def _pictures(output: Path, rows: int, model: CrossEarthSAR, domain: Domain, share_LE: torch.Tensor) -> None:
    rows = min(rows, len(domain))
    if rows:
        samples = [domain[i] for i in evenly_spaced(len(domain), rows)]
        predictions = [predict_sample(model, sample).cpu() for sample in samples]
        prediction_figure(
            samples,
            predictions,
            domain.classes,
            output / f"predictions-{domain.name}.png",
            f"{domain.name}: image, label, prediction",
        )
    if share_LE.numel():
        expert_share_figure(
            share_LE,
            output / f"experts-{domain.name}.png",
            f"Share of tokens per expert and layer, {domain.name}",
        )


def _loss_summary(losses: list[float]) -> dict[str, float]:
    losses = losses or [math.nan]
    window = min(LOSS_WINDOW, max(len(losses) // 2, 1))
    first, last = (sum(part) / len(part) for part in (losses[:window], losses[-window:]))
    return {"first": first, "last": last, "fall": 1 - last / first, "window": window}


def _columns(rows: list[dict[str, str]]) -> dict[str, list[float]]:
    return {key: [_number(row[key]) for row in rows] for key in rows[0]} if rows else {}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _report(metrics: dict[str, Any], preset: str, source: str) -> str:
    loss = metrics["loss"]
    best = metrics["model_of_step"]
    which = "of the last step" if best == metrics["steps"] else f"of step {best}, the best in validation"
    lines = [
        f"# {preset}, {metrics['steps']} steps on {source}",
        "",
        f"{metrics['ranks']} ranks, experts split over {metrics['ep_size']}; loss {loss['first']:.2f} -> "
        f"{loss['last']:.2f} (means of {loss['window']} steps), a fall of "
        f"{loss['fall']:.0%}. The model is that {which}.",
        "",
    ]
    for name, scores in metrics["domains"].items():
        methods = [key for key in scores if key != "images"]
        lines += [
            f"## {name}: {scores['images']} images",
            "",
            "| IoU | " + " | ".join(_METHOD_TITLE[m] for m in methods) + " |",
            "|---|" + "---:|" * len(methods),
        ]
        rows = {"mIoU": "miou", **{c: c for c in metrics["classes"]}}
        for title, key in rows.items():
            values = [scores[m]["miou"] if key == "miou" else scores[m]["iou"][key] for m in methods]
            lines.append(f"| {title} | " + " | ".join(_percent(v) for v in values) + " |")
        lines += ["", *absent_words(scores["model"])]
    lines += [
        "Domains are normalised by their own dB statistics, which uses no label. «majority» predicts "
        f"«{metrics['majority_class']}», the commonest class of the training images, everywhere."
        + (
            " «Otsu» thresholds each image's first band in dB and calls the dark side water; «best Otsu» is "
            "the best of six such, chosen with these labels: on the mean power of windows of 1, 5 or 9 "
            "pixels a side, image by image or all together."
            if any("otsu" in scores for scores in metrics["domains"].values())
            else ""
        ),
        "",
        "; ".join(f"{key} {value}" for key, value in metrics["provenance"].items()),
    ]
    return "\n".join(lines) + "\n"


_METHOD_TITLE = {"model": "model", "majority": "majority", "otsu": "Otsu", "otsu_best": "best Otsu"}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
