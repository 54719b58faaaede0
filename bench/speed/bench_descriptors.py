"""The descriptors' speed: numpy/scipy, eager torch, torch.compile, ours; log1p alone and a copy as limits.

Beside it the map of every patch's descriptors, eager torch and ours, and the scale-free set: image and map.

python -m bench.speed.bench_descriptors [--out bench/reports/descriptors-cpu] [--threads 2] [--device cuda]
pytest bench/speed/bench_descriptors.py --benchmark-only        one contender each under pytest-benchmark
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from bench.speed.harness import require_agreement, time_interleaved, write_report
from crossearth_sar import (
    sar_descriptor_map,
    sar_descriptors,
    scale_free_descriptor_map,
    scale_free_descriptors,
)
from crossearth_sar.descriptors.local import reference_descriptor_map
from crossearth_sar.descriptors.reference import reference_descriptors
from crossearth_sar.descriptors.scale_free import reference_scale_free

SIZE = 512
PATCH = 16
LIMITS = ("torch.log1p alone", "copy")


def speckled_images(count: int, size: int = SIZE) -> Tensor:
    """(count, size, size) float32 of four looks: random data, as every real image is."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.gamma(4, 0.25, (count, size, size)).astype(np.float32))


def by_scipy(image_BHW: Tensor) -> Tensor:
    """The definition in numpy and scipy, float32, image by image."""
    rows = []
    for image in image_BHW.numpy():
        x = np.log1p(np.abs(image))
        theta = np.arctan2(ndimage.sobel(x, 0, mode="nearest"), ndimage.sobel(x, 1, mode="nearest"))
        index = np.floor((theta + np.pi) * (36 / (2 * np.pi))).astype(np.int64) % 36
        share = np.bincount(index.ravel(), minlength=36) / index.size
        share = share[share > 0]
        height, width = (side // 16 * 16 for side in x.shape)
        blocks = x[:height, :width].reshape(height // 16, 16, width // 16, 16).mean((1, 3), dtype=np.float64)
        mean = x.mean(dtype=np.float64)
        rows.append(
            [-(share * np.log(share)).sum(), mean**2 / (x.var(dtype=np.float64) + 1e-6), blocks.var()]
        )
    return torch.tensor(rows, dtype=torch.float32)


def contenders(image_BHW: Tensor, *, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Everything that is timed, under the name it has in the table."""
    buffer = torch.empty_like(image_BHW)
    calls: dict[str, Callable[[], Any]] = {
        "eager torch": lambda: reference_descriptors(image_BHW),
        "ours, fused": lambda: sar_descriptors(image_BHW, backend="fused"),
        "torch.log1p alone": lambda: torch.log1p(image_BHW, out=buffer),
        "copy": lambda: buffer.copy_(image_BHW),
    }
    if image_BHW.device.type == "cpu":  # neither numpy nor our map have a form for a GPU
        calls["numpy/scipy"] = lambda: by_scipy(image_BHW)
        calls["map, eager torch"] = lambda: reference_descriptor_map(image_BHW, PATCH)
        calls["map, ours fused"] = lambda: sar_descriptor_map(image_BHW, PATCH, backend="fused")
        calls["scale-free, ours fused"] = lambda: scale_free_descriptors(image_BHW, backend="fused")
        calls["map, scale-free, ours fused"] = lambda: scale_free_descriptor_map(
            image_BHW, PATCH, backend="fused"
        )
    if compiled:
        inductor = torch.compile(reference_descriptors)
        calls["torch.compile"] = lambda: inductor(image_BHW)
    return calls


def require_all_agree(calls: dict[str, Callable[[], Any]], image_BHW: Tensor) -> None:
    """Everything against the double-precision reference."""
    double = image_BHW.double()
    whole, patches = reference_descriptors(double), reference_descriptor_map(double, PATCH)
    free = reference_scale_free(double, PATCH) if any("scale-free" in name for name in calls) else None
    for name, call in calls.items():
        if free is not None and "scale-free" in name:
            require_agreement(name, call(), free[name.startswith("map")], rtol=1e-4, atol=1e-4)
        elif name.startswith("map"):
            # A pixel of a patch's 256 that rounding moves over an edge shows: entropy apart.
            got = call()
            require_agreement(name, got[:, 0], patches[:, 0], rtol=0, atol=0.03)
            require_agreement(name, got[:, 1:], patches[:, 1:], rtol=1e-4, atol=1e-6)
        elif name not in LIMITS:
            require_agreement(name, call(), whole, rtol=1e-4, atol=1e-4)


def measure(
    counts: list[int], threads: int, *, rounds: int, compiled: bool, device: str = "cpu"
) -> list[dict[str, object]]:
    """A row per contender and number of images."""
    torch.set_num_threads(threads)
    rows: list[dict[str, object]] = []
    for count in counts:
        images = speckled_images(count).to(device)
        calls = contenders(images, compiled=compiled)
        require_all_agree(calls, images)
        timings = time_interleaved(calls, rounds=rounds, device=images.device)
        gigabytes = images.numel() * 4 / 1e9
        for name, timing in timings.items():
            ours = timings["map, ours fused" if name.startswith("map") else "ours, fused"].p50
            rows.append({
                "images": count, "threads": threads, "what": name,
                "ms per image p50": f"{timing.p50 / count * 1e3:.3f}",
                "p20 .. p80": f"{timing.p20 / count * 1e3:.3f} .. {timing.p80 / count * 1e3:.3f}",
                "images/s": f"{count / timing.p50:.0f}",
                "GB/s read": f"{gigabytes / timing.p50:.2f}",
                "its time / ours": f"{timing.p50 / ours:.2f}",
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench/reports/descriptors-cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--images", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    rows = measure(
        arguments.images,
        arguments.threads,
        rounds=arguments.rounds,
        compiled=not arguments.no_compile,
        device=arguments.device,
    )
    notes = [
        f"{SIZE} x {SIZE} float32, interleaved in one run, medians of {arguments.rounds} rounds.",
        "Outputs agreed with the double-precision reference before any ratio.",
        "Ours includes the check for NaN and inf pixels. A copy reads and writes: it moves twice its GB/s.",
        f"Rows of the map ({PATCH} x {PATCH} patches) are set against our map, others against our row; the "
        "scale-free set against ours of the paper's, though it is another set.",
    ]
    title = f"SAR descriptors on a {'CPU' if arguments.device == 'cpu' else 'GPU'}"
    print(write_report(arguments.out, title, rows, notes))


@pytest.mark.parametrize(
    "name",
    [
        "numpy/scipy",
        "eager torch",
        "ours, fused",
        "map, ours fused",
        "scale-free, ours fused",
        "torch.log1p alone",
        "copy",
    ],
)
def test_descriptors(name: str, benchmark: Any) -> None:
    benchmark(contenders(speckled_images(16), compiled=False)[name])


if __name__ == "__main__":
    main()
