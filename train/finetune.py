"""Fine-tuning of CrossEarth-SAR on one device.

    python train/finetune.py --config train/recipes/finetune_water.yaml --set data_root=/data weights=FOLDER
    python train/finetune.py … --set mode=earth_adapter             frozen | earth_adapter | full
    python train/finetune.py … --resume                             go on from the newest checkpoint

`weights` is DINOv2's official .pth, a folder of transformers, or a model folder of this package. Any setting
can be changed with --set: `--set steps=200 optim.lr=1e-3 adapter.rank=16`.
"""

from __future__ import annotations

import argparse
import logging
import sys

import torch

from crossearth_sar.config import from_mapping, merge, parse_overrides, read_yaml
from crossearth_sar.engine.finetune import FinetuneConfig, FineTuner
from crossearth_sar.engine.nonfinite import NonFiniteError
from crossearth_sar.errors import InputError


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("crossearth_sar").setLevel(logging.INFO)
    try:
        config = from_mapping(FinetuneConfig, read_yaml(arguments.config))
        tuner = FineTuner(merge(config, parse_overrides(arguments.overrides)))
        tuner.start(arguments.resume)
        print(describe(tuner), file=sys.stderr, flush=True)
        if tuner.fit():
            tuner.write_results()
    except InputError as error:
        print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
        return 2
    except NonFiniteError as error:
        print(f"\nerror: {error}\n  to do: lower optim.lr, or resume from a checkpoint", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="YAML", required=True, help="a run's settings")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="change settings, dotted: optim.lr=1e-4",
    )
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or from the newest of the output folder",
    )
    return parser.parse_args()


def describe(tuner: FineTuner) -> str:
    """What trains on what, before the first step."""
    config = tuner.config
    where = (
        torch.cuda.get_device_name()
        if tuner.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    unseen = ", ".join(f"{domain.name} ({len(domain)})" for domain in tuner.unseen) or "none"
    return "\n".join(
        [
            f"{config.preset}, mode {config.mode}: {tuner.counts}",
            f"weights {config.weights or 'none: the backbone is as initialised'}; {config.steps} steps of "
            f"{config.batch_size} images of {tuner.model_config.crop_size} pixels; {where}, torch "
            f"{torch.__version__}",
            f"train {tuner.train_domain.name} ({len(tuner.train_domain)} images), held out "
            f"{tuner.validation.name} ({len(tuner.validation)}), unseen {unseen}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
