"""What the features of an encoder are worth: frozen k-NN and linear probes, and fine-tuning, on few labels.

    crossearth-sar probe --config my.yaml --model runs/di3cl/model
    crossearth-sar probe --config my.yaml --model runs/di3cl/model tiny --labels 2 8 64 10%
    crossearth-sar probe --config my.yaml --adapter mypackage.myencoder:build --methods linear knn finetune

--config names `train`, from which few labelled images are drawn, and `domains`, on which the probes are
scored; or it is a training run's file: then the labels are the training domain's, and what it holds out and
its unseen domains are scored. --model takes model folders and backbones without a decoder. --adapter names a
function of any other encoder: called with pretrained= and device=, it returns a callable from (B, C, H, W)
linear amplitude and (B, C) means and deviations of its dB to one or more (B, D, h, w) maps, or an Encoder.

Two floors always stand beside: the same architecture with random weights, and image statistics. Writes
README.md, probes.csv and probes.json into --output. Run the same command again to go on after a stop.
docs/BENCHMARKS.md, «Probes», says how they are computed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crossearth_sar.cli.options import add_device_option, add_set_option
from crossearth_sar.cli.own_config import own_config
from crossearth_sar.cli.parts import called
from crossearth_sar.cli.probing import add_probe_options, contenders, options_of, probe_all
from crossearth_sar.device import checked_device
from crossearth_sar.errors import InputError
from crossearth_sar.shipped import model_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="YAML|NAME", required=True, help="train and domains, or a training run's")
    add_set_option(parser)
    add("--model", metavar="FOLDER", nargs="+", default=[], help="saved models or backbones of this package")
    add("--adapter", metavar="MODULE:FUNCTION", nargs="+", default=[], help="other encoders")
    add_probe_options(parser)
    add("--data-root", metavar="FOLDER", help="in place of the config's")
    add("--output", metavar="FOLDER", help="default: probes in the config's output")
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.model and not arguments.adapter:
        raise InputError("no encoder is named", fix="give --model FOLDER … or --adapter MODULE:FUNCTION …")
    checked_device(arguments.device)
    config, options = own_config(arguments), options_of(arguments)
    output = Path(config.output).expanduser() / ("" if arguments.output else "probes")
    who = contenders(called([model_folder(m) for m in arguments.model]), arguments.adapter, options)
    _, page = probe_all(config, who, options, output)
    print(f"\n{page.read_text(encoding='utf-8')}\nAll of it is in {output}/")
    return 0
