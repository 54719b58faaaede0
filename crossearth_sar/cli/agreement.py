"""Mean Agreement of several teachers' label maps.

    crossearth-sar agreement runs/pseudo-a runs/pseudo-b runs/pseudo-c runs/pseudo-d

docs/PSEUDO_LABELS.md says what is counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crossearth_sar.evaluation.agreement import mean_agreement
from crossearth_sar.whole import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="what `crossearth-sar label` wrote, or label maps")
    add("--allow-missing", action="store_true", help="compare the images that all have")
    add("--json", metavar="FILE", help="write the figures, each image's too")


def run(arguments: argparse.Namespace) -> int:
    found = mean_agreement(arguments.folders, allow_missing=arguments.allow_missing)
    print(found.to_text())
    if found.left_out:
        print(f"\n{len(found.left_out)} images are left out: not every teacher has them")
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(found.to_mapping(), indent=1) + "\n")
    return 0
