"""The weights that come with the package, from a finished run: crossearth_sar/weights/NAME.

    make weights                                                   # trains, then this
    python -m bench.experiments.ship_weights --run runs/pretrain-tiny [--name tiny]

Parameters are kept in half precision, which takes half the space, and buffers, the statistics of descriptors,
as they are; `load_model` makes float32 of both. Scores on a held-out simulated domain must hardly change by
that, which is looked at. The model card beside them is written from the reports.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from crossearth_sar.data.domain import Domain, open_domain
from crossearth_sar.engine.config import simulated_run
from crossearth_sar.evaluation.evaluate import evaluate
from crossearth_sar.model import WEIGHTS_FILE, CrossEarthSAR, load_model, save_model
from crossearth_sar.shipped import WEIGHTS

MOST_BYTES = 10_000_000
MOST_LOST = 0.002
"""Of mIoU, by half precision."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain-tiny"), help="a finished run")
    parser.add_argument("--name", default="tiny")
    arguments = parser.parse_args()
    print(ship(arguments.run / "model", WEIGHTS / arguments.name))


def ship(source: Path, target: Path, samples: int = 64) -> str:
    """Writes the model of folder `source` into `target`; what it found, in a line.

    Raises:
        SystemExit: the file would be larger than 10 MB, or half precision costs more than 0.2 points of mIoU.
    """
    model = load_model(source)
    save_model(model, target, weights=in_half(model))
    held_out = simulated_run().validation
    assert held_out is not None
    domain = open_domain(held_out, "", model.config.pixel_m)
    before, after = (miou(m, domain, samples) for m in (model, load_model(target)))
    size = (target / WEIGHTS_FILE).stat().st_size
    words = (
        f"{target}: {size / 1e6:.1f} MB; mIoU on {held_out.name} {before:.4f}, in half precision {after:.4f}"
    )
    if size > MOST_BYTES or before - after > MOST_LOST:
        raise SystemExit(f"not to be shipped: {words}")
    return words


def in_half(model: CrossEarthSAR) -> dict[str, Tensor]:
    """The state, parameters in float16."""
    parameters = {name for name, _ in model.named_parameters()}
    return {
        name: value.to(torch.float16) if name in parameters else value
        for name, value in model.state_dict().items()
    }


def miou(model: CrossEarthSAR, domain: Domain, samples: int) -> float:
    return evaluate(model, domain, range(min(samples, len(domain)))).confusion.scores().miou


if __name__ == "__main__":
    main()
