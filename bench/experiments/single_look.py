"""Is single-look speckle single-look? The ENL of complex images, estimated where ground does not spoil it.

    python -m bench.experiments.single_look --index FOLDER/index.csv [--out FOLDER]

The ENL of a scene's intensity is below the number of looks, because texture counts as speckle. Two estimates
that do not choose what they want to see:

uniform ground  The linear ENL of small patches (sar_descriptor_map), of those patches alone whose four
                neighbours have nearly the same mean. Speckle is independent from patch to patch, so the
                choice says nothing about the speckle of the chosen patch; taking the patches of highest ENL
                would. What small patches and oversampling (neighbouring pixels correlate) do to the mean of
                1 / ENL is known and undone.
sub-looks       Two halves of the Doppler or range spectrum show the same ground with independent speckle.
                Their share I1 / (I1 + I2) at a pixel follows Beta(L, L), whatever the ground's power there:
                uniform for L = 1. Texture cancels at every scale but that of the resolution cell itself (a
                point that fills the cell shows in both halves, and raises L).

Where the first is below the second, the ground varies within a patch.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

from bench.speed.harness import write_report
from crossearth_sar import sar_descriptor_map
from crossearth_sar.data.files.readers import read_image

PATCH = 4
"""Pixels; the smallest patch that has descriptors, as ground is more alike in small ones."""
KEPT_SHARE = 0.1
FARTHEST_LAG = 4
HALF_OF_BAND = 0.4
"""A sub-look reaches from the band's centre to this part of the sampling frequency."""

Complex = NDArray[np.complexfloating]
Real = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class UniformGround:
    """`looks` on average over `patches` patches, and those of all patches alike."""

    looks: float
    patches: int
    looks_of_all: float


def coherence(slc_HW: Complex, rows: int, columns: int) -> float:
    """|correlation| of the speckle with itself shifted; each pixel pair counts the same, bright or dark."""
    height, width = slc_HW.shape
    left = slc_HW[: height - rows, : width - columns]
    right = slc_HW[rows:, columns:]
    power = np.abs(left) ** 2 + np.abs(right) ** 2
    seen = power > 0
    return float(abs(np.mean((2 * left * right.conj())[seen] / power[seen])))


def mean_correlation(slc_HW: Complex, patch: int) -> float:
    """Mean correlation of the intensities of two pixels of a patch: coherence^2 for Gaussian speckle."""
    total = 0.0
    for rows in range(min(patch, FARTHEST_LAG + 1)):
        for columns in range(min(patch, FARTHEST_LAG + 1)):
            if rows == columns == 0:
                continue
            pairs = 2 * (patch - rows) * (patch - columns)
            total += pairs * coherence(slc_HW, rows, columns) ** 2
            if rows and columns:  # the other diagonal
                total += pairs * coherence(slc_HW[:, ::-1], rows, columns) ** 2
    pixels = patch * patch
    return total / (pixels * (pixels - 1))


def uniform_ground(slc_HW: Complex, patch: int = PATCH, kept: float = KEPT_SHARE) -> UniformGround:
    """Looks where the neighbours say that ground is uniform.

    With n pixels a patch whose intensities correlate by r on average, the expected ratio of sample variance
    to squared mean is ((1 - r) / L) / (1 + (1 + (n - 1) r) / (n L)): solved for L.
    """
    intensity = torch.from_numpy(np.abs(slc_HW.astype(np.complex128)) ** 2)[None]
    looks = sar_descriptor_map(intensity, patch, enl_domain="linear")[0, 1].double().numpy()
    mean = torch.nn.functional.avg_pool2d(intensity, patch)[0].numpy()
    pixels = patch * patch
    neighbours = np.stack([mean[:-2, 1:-1], mean[2:, 1:-1], mean[1:-1, :-2], mean[1:-1, 2:]])
    inner = (mean[1:-1, 1:-1] > 0) & (neighbours.min(0) > 0)
    ratio = np.where(inner, neighbours.max(0), np.inf) / np.where(inner, neighbours.min(0), 1)
    chosen = inner & (ratio <= np.quantile(ratio[inner], kept))
    relative_variance = pixels / (pixels - 1) / looks[1:-1, 1:-1]
    r = mean_correlation(slc_HW, patch)

    def solved(where: NDArray[np.bool_]) -> float:
        return float((1 - r) / relative_variance[where].mean() - (1 + (pixels - 1) * r) / pixels)

    return UniformGround(looks=solved(chosen), patches=int(chosen.sum()), looks_of_all=solved(inner))


def sub_looks(slc_HW: Complex, axis: int) -> tuple[Real, Real]:
    """Intensities of the lower and the upper half of the spectrum along `axis`, of equal mean."""
    spectrum = np.fft.fft(slc_HW, axis=axis)
    power = (np.abs(spectrum) ** 2).mean(1 - axis)
    size = power.size
    frequency = np.arange(size) / size
    centre = np.angle((power * np.exp(2j * np.pi * frequency)).sum()) / (2 * np.pi)
    offset = (frequency - centre + 0.5) % 1 - 0.5
    shape = [1, 1]
    shape[axis] = size
    halves = []
    for sign in (-1, 1):
        band = (sign * offset > 1 / size) & (sign * offset < HALF_OF_BAND)
        halves.append(np.abs(np.fft.ifft(spectrum * band.reshape(shape), axis=axis)) ** 2)
    lower, upper = halves
    return lower * (upper.mean() / lower.mean()), upper


def share_of_first(first: Real, second: Real) -> Real:
    """I1 / (I1 + I2) of the pixels where there is power."""
    total = first + second
    return (first / np.where(total > 0, total, 1))[total > 0]


def looks_of_share(share: Real) -> float:
    """L of Beta(L, L), whose variance is 1 / (4 (2 L + 1))."""
    return float((1 / (4 * np.mean((share - 0.5) ** 2)) - 1) / 2)


def looks_by_sub_looks(slc_HW: Complex) -> tuple[float, float]:
    """Looks by halves of the spectrum along the rows' axis and along the columns'."""
    return (
        looks_of_share(share_of_first(*sub_looks(slc_HW, 0))),
        looks_of_share(share_of_first(*sub_looks(slc_HW, 1))),
    )


def without_empty_border(slc_HW: Complex) -> Complex:
    """The image less the rows and columns at its border that are mostly zero."""
    filled = slc_HW != 0
    rows = np.flatnonzero(filled.mean(1) > 0.5)
    columns = np.flatnonzero(filled.mean(0) > 0.5)
    return slc_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def picture(name: str, slc_HW: Complex, target: Path) -> None:
    """Histograms of the shares and correlation over distance: what the two estimates rest on."""
    figure, (shares, correlation) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    intensity = np.abs(slc_HW) ** 2
    series = {
        "sub-looks, rows": share_of_first(*sub_looks(slc_HW, 0)),
        "sub-looks, columns": share_of_first(*sub_looks(slc_HW, 1)),
        "pixels 2 apart, rows": share_of_first(intensity[:-2], intensity[2:]),
        "pixels 2 apart, columns": share_of_first(intensity[:, :-2], intensity[:, 2:]),
    }
    for label, share in series.items():
        shares.hist(share, bins=25, range=(0, 1), density=True, histtype="step", label=label)
    shares.axhline(1, color="0.6", linewidth=0.8)
    figure.suptitle(name, fontsize="medium")
    shares.set(title="I1 / (I1 + I2); a single look: flat", ylim=(0, None))
    shares.legend(fontsize="x-small")
    lags = range(1, 13)
    logs = np.log(intensity + 1e-3 * intensity.mean())
    logs = logs - logs.mean()
    for axis, label in ((0, "rows"), (1, "columns")):
        steps = [(lag, 0) if axis == 0 else (0, lag) for lag in lags]
        correlation.plot(
            lags, [coherence(slc_HW, *step) ** 2 for step in steps], "--", label=f"speckle, {label}"
        )
        kept = [
            float((logs[: logs.shape[0] - y, : logs.shape[1] - x] * logs[y:, x:]).mean() / logs.var())
            for y, x in steps
        ]
        correlation.plot(lags, kept, label=f"log intensity, {label}")
    correlation.set(title="correlation", xlabel="pixels apart", ylim=(0, None))
    correlation.legend(fontsize="x-small")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/reports/descriptors-single-look"))
    arguments = parser.parse_args()
    with arguments.index.open(encoding="utf-8", newline="") as file:
        entries = [entry for entry in csv.DictReader(file) if "complex64" in entry["values"]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, pictures = [], []
    for entry in entries:
        path = arguments.index.parent / entry["image"]
        slc = without_empty_border(read_image(path).values[0].astype(np.complex128))
        ground = uniform_ground(slc)
        by_axis = looks_by_sub_looks(slc)
        rows.append({
            "image": path.name, "sensor": entry["sensor"], "band": entry["band"],
            "all patches": f"{ground.looks_of_all:.3f}",
            "patches of uniform ground": f"{ground.looks:.3f}", "how many": ground.patches,
            "sub-looks, rows": f"{by_axis[0]:.3f}", "sub-looks, columns": f"{by_axis[1]:.3f}",
            "sub-looks, mean": f"{sum(by_axis) / 2:.3f}",
        })  # fmt: skip
        picture(path.stem, slc, arguments.out / f"{path.stem}.png")
        pictures.append(path.stem)
    notes = [
        "Number of looks of single-look complex images: physics says 1. How each estimate works is in "
        "bench.experiments.single_look; both give 1 for simulated single-look speckle (tests/descriptors).",
        f"Patches of {PATCH} x {PATCH} pixels; of uniform ground: the {KEPT_SHARE:.0%} whose four "
        "neighbours' means are most alike.",
        "A value of the patches well below that of the sub-looks means texture finer than a patch. Images "
        f"and correlations: {', '.join(f'[{name}]({name}.png)' for name in pictures)}.",
    ]
    print(write_report(arguments.out, "Looks of single-look complex images", rows, notes))


if __name__ == "__main__":
    main()
