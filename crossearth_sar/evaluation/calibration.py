"""Probabilities that mean what they say: a temperature fitted on held-out pixels, and how far off they are.

A model's scores become probabilities by their share of the sum: an FPN's are probabilities already,
Mask2Former's are sums over queries and need it. A temperature T then makes p^(1/T), again as shares: above 1
it takes confidence away, below 1 it adds some; classes stay what they are. T is one number, fitted by the
negative log likelihood of labelled pixels (Guo et al. 2017); a model folder keeps it in its config.json.

What this is not: a promise for other sensors. A temperature fitted on one domain is that domain's.

K classes of the model, C classes of the labels, N pixels, H W pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.model import CONFIG_FILE
from crossearth_sar.whole import NotWritten, write_text

SMALLEST_PROBABILITY = 1e-6
"""What no probability is below before its logarithm is taken."""

TEMPERATURES = (0.05, 20.0)
"""Between these one is looked for."""

BINS = 15
"""Of equal width over the confidence, as in the literature."""


def log_probabilities(scores: Tensor, dim: int = 0) -> Tensor:
    """Scores of at least 0 -> log of their share of the sum along `dim`; float32 at least.

    Where all scores are 0, classes are equally likely.
    """
    raised = scores.to(torch.promote_types(scores.dtype, torch.float32)).clamp(min=0) + SMALLEST_PROBABILITY
    return raised.log() - raised.sum(dim, keepdim=True).log()


def at_temperature(log_p: Tensor, temperature: float | None, dim: int = 0) -> Tensor:
    """Probabilities p^(1/T) as shares of their sum; None: 1."""
    return (log_p / (temperature or 1.0)).softmax(dim)


def grouped(probability_KN: Tensor, group_K: Tensor, groups: int) -> Tensor:
    """(K, …) -> (groups, …): the probabilities of the model's classes that are one class of the labels."""
    total = probability_KN.new_zeros(groups, *probability_KN.shape[1:])
    return total.index_add_(0, group_K.to(probability_KN.device), probability_KN)


def negative_log_likelihood(log_p_KN: Tensor, target_N: Tensor, group_K: Tensor, temperature: float) -> float:
    """Mean over pixels of -log of the probability of their label, in nats."""
    groups = 1 + max(int(group_K.max()), int(target_N.max()))
    probability_CN = grouped(at_temperature(log_p_KN, temperature), group_K, groups)
    chosen_N = probability_CN.gather(0, target_N[None])[0]
    return float(-chosen_N.clamp(min=SMALLEST_PROBABILITY**2).log().double().mean())


def fit_temperature(log_p_KN: Tensor, target_N: Tensor, group_K: Tensor | None = None) -> float:
    """The temperature of the smallest negative log likelihood.

    Args:
        log_p_KN: `log_probabilities` of labelled pixels that did not train the model.
        target_N: their labels, int64.
        group_K: the label that each class of the model counts as; None: its own index.

    Raises:
        InputError: there is no pixel.
    """
    classes = len(log_p_KN)
    group_K = torch.arange(classes) if group_K is None else group_K
    if target_N.numel() == 0:
        raise InputError("no labelled pixel to fit a temperature on", fix="name a domain with labels")
    low, high = map(math.log, TEMPERATURES)
    log_p_KN = log_p_KN.double()
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(log_p_KN, target_N, group_K, math.exp(log_t)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return round(math.exp(float(found.x)), 4)


@dataclass
class Reliability:
    """Counts by confidence, the largest probability of a pixel: sums, so that images can be added.

    Example: 10 pixels of confidence 0.9, 6 of them right, are off by 0.3:
        >>> bins = Reliability()
        >>> bins.update(torch.full((10,), 0.9), torch.arange(10) < 6)
        >>> round(bins.expected_calibration_error, 4)
        0.3
    """

    pixels: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    confidence: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    right: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def update(self, confidence_N: Tensor, is_right_N: Tensor) -> None:
        """Adds pixels: the probability of what they are said to be, 0 to 1, and whether they are it."""
        confidence = confidence_N.flatten().cpu().double()
        bins = (confidence * BINS).long().clamp(0, BINS - 1)
        for sums, values in (
            (self.pixels, torch.ones_like(confidence)),
            (self.confidence, confidence),
            (self.right, is_right_N.flatten().cpu().double()),
        ):
            sums.index_add_(0, bins, values)

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy over the bins, weighed by pixels; NaN without any."""
        total = float(self.pixels.sum())
        return float((self.confidence - self.right).abs().sum()) / total if total else math.nan


def expected_calibration_error(confidence_N: Tensor, is_right_N: Tensor) -> float:
    """`Reliability` of these pixels alone."""
    bins = Reliability()
    bins.update(confidence_N, is_right_N)
    return bins.expected_calibration_error


def store_temperature(folder: Path, temperature: float) -> None:
    """Puts it into the config.json of a model folder, in place of one that is there; the rest stays.

    Raises:
        InputError: nothing can be written there.
    """
    path = folder / CONFIG_FILE
    mapping = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**mapping, "temperature": temperature}, indent=2) + "\n"
    try:
        write_text(path, text)
    except NotWritten as error:
        raise InputError(
            f"the temperature {temperature:g} cannot be written into {path}",
            got=str(error),
            fix="give a copy of the model's folder that can be written to",
        ) from error
