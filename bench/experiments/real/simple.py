"""Simple methods that a network must beat: darkness thresholds and a random forest on hand features.

Otsu thresholds look at the image alone, or at all images of the set, and at no label. The fixed threshold
and the forest learn from simulated scenes alone, those that the default training run draws. All work at 10 m
where that is said, as the model does, and their maps go back to the image's pixels by repetition.

F features, N pixels, H W pixels of the image, h w at 10 m.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bench.experiments.real.scoring import Predict
from crossearth_sar.data.domain import Domain, open_domain
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.working_scale import at_working_scale
from crossearth_sar.decibels import to_db
from crossearth_sar.engine.config import simulated_run
from crossearth_sar.evaluation.baselines import OtsuWater, multilook
from crossearth_sar.ground_scale import centre_pixels

WORKING_M = 10.0
WINDOWS = (1, 5, 9)
FINER_M = 5.0
"""Images of finer pixels than this are tried at 10 m too."""
CUTS = np.linspace(-5, 5, 201)
"""Standardised dB among which the fixed threshold is chosen."""
FEATURE_WINDOWS, DEVIATION_WINDOWS = (1, 3, 7, 15), (7, 15)
PIXELS_PER_SCENE = 400


def otsu_methods(pixel_m: float) -> dict[str, OtsuWater]:
    """Name -> method, for a set of this ground spacing."""
    grids = {"": None, " at 10 m": WORKING_M} if pixel_m < FINER_M else {"": None}
    return {
        f"Otsu {'pooled' if pooled else 'per image'}, {window} x {window}{where}": OtsuWater(
            window=window, pooled=pooled, pixel_m=metres
        )
        for where, metres in grids.items()
        for pooled in (False, True)
        for window in WINDOWS
    }


def otsu_predict(method: OtsuWater, domain: Domain) -> Predict:
    """Water (1) below the threshold, other (0) elsewhere."""
    shared = method.shared_threshold(domain)
    return lambda sample: method.water_map(sample, shared).long()


def simulated_scenes(count: int, seed: int) -> Iterator[Sample]:
    """Scenes of the default run's wide mixture of sensors, drawn with a seed of their own."""
    train = simulated_run().train
    assert train is not None
    assert train.simulated is not None
    scenes = open_domain(replace(train, simulated=replace(train.simulated, length=count, seed=seed)))
    return (scenes[i] for i in range(count))


def standardised(image_hw: Tensor) -> Tensor:
    """dB less its mean by its deviation over the image's pixels above 0, cut to +-5."""
    decibels = to_db(image_hw.float())
    lit = decibels[image_hw > 0]
    if not len(lit):
        return torch.zeros_like(decibels)
    return ((decibels - lit.mean()) / lit.std(correction=0).clamp(min=1e-3)).clamp(-5, 5)


@cache
def fixed_threshold(water: int, scenes: int = 200, seed: int = 11) -> tuple[int, float]:
    """(window, cut): of the best water IoU over simulated scenes."""
    below = {window: np.zeros((2, len(CUTS) + 1)) for window in WINDOWS}
    for sample in simulated_scenes(scenes, seed):
        known = sample["mask"] != IGNORE_INDEX
        is_water = (sample["mask"] == water)[known].numpy().astype(np.int64)
        for window in WINDOWS:
            value = standardised(multilook(sample["image"][0], window))[known].numpy()
            place = np.searchsorted(CUTS, value, side="right")  # cut i calls what has place <= i water
            for kind in (0, 1):
                below[window][kind] += np.bincount(place[is_water == kind], minlength=len(CUTS) + 1)
    best = (-1.0, 1, 0.0)
    for window, histogram in below.items():
        false, hits = histogram.cumsum(1)[:, :-1]
        score = hits / (histogram[1].sum() + false)
        best = max(best, (float(score.max()), window, float(CUTS[score.argmax()])))
    return best[1], best[2]


def fixed_predict(window: int, cut: float) -> Predict:
    """Water (1) below `cut` in the standardised dB of the multilooked image at 10 m."""

    def predict(sample: Sample) -> Tensor:
        image = at_working_scale(sample, WORKING_M)["image"][0]
        dark = standardised(multilook(image, window)) < cut
        return centre_pixels(dark.long(), tuple(sample["mask"].shape))  # type: ignore[arg-type]

    return predict


def features(image_hw: Tensor) -> Tensor:
    """(F, h, w): standardised dB of boxcar means, and standard deviations of dB about a pixel."""
    own = to_db(image_hw.float())
    lit = image_hw > 0
    mean, std = (own[lit].mean(), own[lit].std().clamp(min=1e-3)) if bool(lit.any()) else (0.0, 1.0)
    levels = [((to_db(multilook(image_hw, w)) - mean) / std).clamp(-5, 5) for w in FEATURE_WINDOWS]
    # The boxcar of powers, of an amplitude that is shifted above 0 so that none counts as unmeasured.
    shifted = levels[0].double() + 10
    spread = []
    for window in DEVIATION_WINDOWS:
        square = multilook(shifted, window).square()
        first = multilook(shifted.sqrt(), window).square()
        spread.append((square - first.square()).clamp(min=0).sqrt().float())
    return torch.stack([level.float() for level in levels] + spread)


@cache
def forest(scenes: int = 300, seed: int = 0, trees: int = 40) -> object:
    """A random forest of the seven classes, of pixels of simulated scenes."""
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for sample in simulated_scenes(scenes, seed=12 + seed):
        mask = sample["mask"].flatten().numpy()
        chosen = rng.permutation(np.flatnonzero(mask != IGNORE_INDEX))[:PIXELS_PER_SCENE]
        rows.append(features(sample["image"][0]).flatten(1)[:, chosen].T.numpy())
        labels.append(mask[chosen])
    model = RandomForestClassifier(trees, max_depth=14, min_samples_leaf=20, random_state=seed, n_jobs=1)
    return model.fit(np.concatenate(rows), np.concatenate(labels))


def forest_predict(model: object, lookup: np.ndarray) -> Predict:
    """Classes of the set's task, by `lookup` from the seven."""

    def predict(sample: Sample) -> Tensor:
        image = at_working_scale(sample, WORKING_M)["image"][0]
        found = model.predict(features(image).flatten(1).T.numpy())  # type: ignore[attr-defined]
        classes = torch.from_numpy(lookup[found].astype(np.int64)).view(image.shape)
        return centre_pixels(classes, tuple(sample["mask"].shape))  # type: ignore[arg-type]

    return predict
