"""A self-supervised run: it goes on to the last bit, is the same on ranks and parts, and says no."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from di3cl_run import MODEL, SCENES, di3cl_run
from ranks import begin, shared_pool
from safetensors.torch import load_file

from crossearth_sar import load_model
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.engine.checkpoint_files import list_checkpoints
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.export import export
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.errors import InputError
from crossearth_sar.selfsup.collapse import CollapseError


def train(config: RunConfig, resume: str | None = None, stop_after: int | None = None) -> None:
    """A run of this process, ended by a signal after step `stop_after`."""
    run = begin(config, resume)
    if stop_after is not None:
        after_step = run.objective.after_step

        def then_stop(executor: Any) -> None:
            after_step(executor)
            if run.objective.steps == stop_after:
                run._stop.received = "a test"

        run.objective.after_step = then_stop
    if run.fit():
        run.finish()
    run.close()


def losses(output: Path) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"]) for row in read_csv(output / "train.csv")]


def kept(output: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(output / "checkpoints")[-1]
    return {**load_file(newest / "model.safetensors"), **load_file(newest / "objective.safetensors")}


def test_it_goes_on_to_the_last_bit_and_leaves_a_backbone(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(di3cl_run(whole, executor="local"))
    for step in (1, 4):
        train(di3cl_run(halves, executor="local"), "auto", stop_after=step)
    train(di3cl_run(halves, executor="local"), "auto")
    assert losses(whole) == losses(halves)
    assert len(losses(whole)) == 6
    one, other = kept(whole), kept(halves)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    columns = read_csv(whole / "train.csv")[0]
    for name in ("loss_global", "top1_contour", "boxes", "without_boxes", "embedding_std", "cosine_negative"):
        assert float(columns[name]) == float(columns[name])
    found = load_model(whole / "model")
    assert found.decoder is None
    assert json.loads((whole / "model" / "config.json").read_text())["decoder"] is None
    export(list_checkpoints(whole / "checkpoints")[-1], tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(value, exported[name]) for name, value in found.state_dict().items())


RESNET = {"resnet": {"depths": [1, 1, 1, 1], "width": 4}, "crop_size": 64, "crop_stride": 64}
SPARSE = {**MODEL, "moe": {"descriptors": ["entropy", "looks"], "local_physics": True}}


@pytest.mark.parametrize(("preset", "model"), [("resnet50", RESNET), ("crossearth_sar_tiny", SPARSE)])
def test_a_resnet_and_a_sparse_vit_go_on_likewise(preset: str, model: dict[str, Any], tmp_path: Path) -> None:
    """What a ResNet keeps beside weights (its norms' statistics), and a sparse ViT (its descriptors')."""
    runs = [di3cl_run(tmp_path / name, model, preset=preset, executor="local", steps=3) for name in "ab"]
    train(runs[0])
    train(runs[1], "auto", stop_after=1)
    train(runs[1], "auto")
    one, other = (kept(Path(run.output)) for run in runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert losses(Path(runs[0].output)) == losses(Path(runs[1].output))
    balance = [float(row["loss_balance"]) for row in read_csv(Path(runs[0].output) / "train.csv")]
    found = load_model(Path(runs[0].output) / "model")
    if preset == "resnet50":
        assert not any(balance)
        seen = [value for name, value in found.named_buffers() if name.endswith("num_batches_tracked")]
        assert seen
        assert all(int(value) == 3 for value in seen)  # of the query's views alone
        return
    assert all(balance)
    assert found.standardizer is not None
    assert int(found.standardizer.batches_seen) == 3


def test_a_resumed_run_notices_other_images(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for number in range(4):
        np.save(data / f"{number}.npy", np.random.default_rng(number).rayleigh(1.0, (64, 64)))
    folder = FolderConfig(root=str(data), images="*.npy", values="amplitude")
    images = DomainConfig(name="a", folder=folder, normalize="image")
    config = replace(di3cl_run(output, executor="local", steps=1), train=images)
    train(config)
    np.save(data / "9.npy", np.ones((64, 64)))
    with pytest.raises(InputError, match=r"(?s)not those that the run began with.*changed_data=go_on"):
        begin(config, "auto")


def test_a_finished_run_survives_a_disk_that_takes_no_report(tmp_path: Path) -> None:
    """The backbone is there before words and pictures, which are lost with a warning."""
    output = tmp_path / "run"
    run = begin(di3cl_run(output, executor="local", steps=1, pictures=1))
    run.fit()
    (output / "train.csv").unlink()
    for name in ("metrics.json", "report.md", "views.png"):
        (output / name).mkdir()  # writing fails
    run.finish()
    run.close()
    assert load_model(output / "model").decoder is None


def columns_of(output: Path) -> list[dict[str, float]]:
    names = ("loss", "loss_global", "loss_contour", "loss_region", "boxes", "grad_norm")
    return [{name: float(row[name]) for name in names} for row in read_csv(output / "train.csv")]


def test_ranks_and_parts_of_a_batch_change_nothing(tmp_path: Path) -> None:
    """Without BatchNorm nothing in the method depends on how a batch is divided; under ZeRO 2 either."""
    pytest.importorskip("deepspeed")
    plain = {"selfsup.method.head_norm": "layer", "steps": 3}
    train(di3cl_run(tmp_path / "one", executor="local", **plain))
    train(di3cl_run(tmp_path / "parts", executor="local", accumulation=2, **plain))
    stage = {"parallel.zero_stage": 2, "executor": "deepspeed"}
    shared_pool(2)(train, di3cl_run(tmp_path / "two", **stage, **plain))
    one = columns_of(tmp_path / "one")
    for other in (columns_of(tmp_path / "parts"), columns_of(tmp_path / "two")):
        for ours, theirs in zip(one, other, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    ranks_of = kept(tmp_path / "two")
    for name, value in kept(tmp_path / "one").items():
        other = ranks_of[name]
        if name.startswith("queue."):  # the keys of a batch lie in rank order, and ranks take every other
            value, other = (keys[keys[:, 0].argsort()] for keys in (value, other))
        torch.testing.assert_close(value.float(), other.float(), rtol=1e-3, atol=1e-4)


def test_bf16_masters_move_the_key_network(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    shared_pool(1)(train, di3cl_run(tmp_path, executor="deepspeed", precision="bf16", steps=4))
    state = kept(tmp_path)
    assert all(value.dtype == torch.float32 for name, value in state.items() if name.startswith("key."))
    moved = [
        float((value - state[name.replace("key.", "query.", 1)]).abs().max())
        for name, value in state.items()
        if name.startswith("key.") and name.endswith("weight")
    ]
    assert max(moved) > 0, "it follows, and is not the same"


def test_collapse_ends_the_run_in_words(tmp_path: Path) -> None:
    changes = {"selfsup.method.collapse_std": 0.99, "selfsup.method.collapse_steps": 2}
    with pytest.raises(CollapseError, match="head_norm"):
        train(di3cl_run(tmp_path, executor="local", **changes))
    assert len(losses(tmp_path)) == 1, "the second step was one too many"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel.zero_stage": 3, "executor": "deepspeed"}, "zero_stage 3"),
        ({"parallel.ep_size": 2, "executor": "deepspeed"}, "ep_size 2"),
        ({"mode": "frozen", "weights": "random"}, "mode frozen"),
        ({"selfsup.method.queue_length": 18}, "queue_length=20"),
        ({"validation": {"name": "v", "simulated": SCENES}}, "no probe"),
        ({"probe.labelled": {"name": "p", "simulated": SCENES}}, "neither validation nor unseen"),
        ({"train": "null"}, "names no images"),
        ({"selfsup.method.contour_map": 9}, "contour_map 9"),
        (
            {
                "probe.labelled": {"name": "p", "simulated": {**SCENES, "seed": 8}},
                "unseen": [{"name": "u", "simulated": SCENES}],
            },
            "not even without their labels",
        ),
        (
            {
                "probe": {
                    "labelled": {"name": "p", "simulated": {**SCENES, "seed": 8}},
                    "beside": {"MoCo v2": "runs/nowhere"},
                },
                "unseen": [{"name": "u", "simulated": {**SCENES, "seed": 9}}],
            },
            "MoCo v2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = di3cl_run(tmp_path, **{"executor": "local", **changes})
    with pytest.raises(InputError, match=words):
        make_run(config, Ranks(0, 1, torch.device("cpu"))).objective.build(from_start=True)
