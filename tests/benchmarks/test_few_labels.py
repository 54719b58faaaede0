"""Few labelled images: which are drawn, where the shipped weights start, what the table says of the runs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from real_tree import write_real

from bench.experiments.real import bench_real, few_labels, train_equal  # bench/ is on the path
from bench.experiments.real.scoring import drawn_scores
from bench.experiments.real.sets import SETS
from bench.experiments.real.shipped_start import counterparts, started_from_shipped
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.domain import open_domain
from crossearth_sar.errors import InputError
from crossearth_sar.model import load_model

WATER = ("other", "water")
ROWS = {row.name: row for row in SETS}


def test_the_seed_draws_the_images_and_small_draws_are_parts_of_large_ones() -> None:
    small, large = (train_equal.drawn(309, count, 3) for count in (2, 64))
    assert large[:2] == small
    assert len(set(large)) == 64
    assert large != train_equal.drawn(309, 64, 4)
    for count in (0, 310):
        with pytest.raises(InputError, match="cannot be drawn"):
            train_equal.drawn(309, count, 0)


def test_the_stream_shows_the_drawn_images_alone(tmp_path: Path) -> None:
    bench = bench_real.Bench(
        tmp_path, bench_real.prepare(write_real(tmp_path / "real"), tmp_path, [ROWS["ombria-tr"]])
    )
    source = train_equal.open_source("ombria-tr", bench.sets, bench.data, images=1)
    domain = open_domain(source.domain, "", source.pixel_m)
    assert len(domain) == 2
    stream = train_equal.stream_of(domain, source, seed=0)
    (index,) = train_equal.drawn(2, 1, 0)
    assert {stream[draw]["name"] for draw in range(8)} == {domain[index]["name"]}


def test_the_shipped_head_becomes_one_of_the_target() -> None:
    assert counterparts(SEVEN_CLASSES.names, WATER) == [[0, 1, 3, 4, 5, 6], [2]]
    with pytest.raises(InputError, match="no head for these classes"):
        counterparts(SEVEN_CLASSES.names, ("ship", "sea"))
    with pytest.raises(InputError, match="another ground spacing"):
        started_from_shipped(WATER, 3.0)
    shipped, model = load_model("tiny"), started_from_shipped(WATER, 10.0).eval()
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.01
    with torch.no_grad():
        seven = shipped(image).decoder.logits[0]  # type: ignore[union-attr]
        other, water = model(image).decoder.logits[0]  # type: ignore[union-attr]
    torch.testing.assert_close(water, seven[2])
    rest = seven[[0, 1, 3, 4, 5, 6]]
    torch.testing.assert_close(other, rest.mean(0) + np.log(6), rtol=1e-4, atol=1e-4)
    assert bool((other <= rest.logsumexp(0) + 1e-4).all())
    scratch = train_equal.build("tiny", WATER, 10.0)
    trained, as_scratch = ({n for n, p in m.named_parameters() if p.requires_grad} for m in (model, scratch))
    assert trained == as_scratch, "all that trains from scratch"
    changed = {
        name for name, value in model.state_dict().items() if value.shape != shipped.state_dict()[name].shape
    }
    assert changed == {"decoder.classify.weight", "decoder.classify.bias"}
    for name, value in shipped.state_dict().items():
        assert name in changed or torch.equal(model.state_dict()[name], value), name


def test_what_starts_from_weights_learns_at_a_lower_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peaks: dict[str, float] = {}

    def spend(
        model: object, stream: object, seconds: float, points: object, folder: Path, peak: float
    ) -> None:
        peaks[folder.name] = peak
        raise KeyboardInterrupt

    monkeypatch.setattr(train_equal, "spend", spend)
    bench = bench_real.Bench(
        tmp_path, bench_real.prepare(write_real(tmp_path / "real"), tmp_path, [ROWS["ombria-tr"]])
    )
    source = train_equal.open_source("ombria-tr", bench.sets, bench.data, images=2)
    for contender in few_labels.STARTS:
        with pytest.raises(KeyboardInterrupt):
            train_equal.trained(contender, source, 0, 1.0, [], tmp_path / contender)
    assert peaks == {
        "shipped": train_equal.FINE_TUNING_RATE,
        "tiny": train_equal.RATE,
        "unet": train_equal.RATE,
    }
    assert train_equal.FINE_TUNING_RATE < train_equal.RATE


def entry(start: str, seed: int, hits: list[int], images: int = 8) -> dict:
    """Of each unit of 10 pixels of water, so many are found; 10 of other all are."""
    counts = np.array([[[10, 0], [10 - hit, hit]] for hit in hits])
    return {**few_labels.about(start, images, seed, 60.0), "counts": counts}


def test_the_table_pairs_starts_by_seed_and_by_draw() -> None:
    hits = [1, 9, 5, 3]
    methods = {f"s{seed}": entry("shipped", seed, [h + 1 for h in hits]) for seed in (0, 1)}
    methods |= {"t0": entry("tiny", 0, hits), "t5": entry("tiny", 5, [0, 0, 0, 0])}
    text = few_labels.few_table({"s1-vv": methods}, SETS, "water")
    header, _, line, mean = ([cell.strip() for cell in row.strip("|").split(" | ")] for row in text)
    row, means = dict(zip(header, line, strict=True)), dict(zip(header, mean, strict=True))
    assert (row["labelled images"], row["seconds"], row["set"]) == ("8", "60", "s1-vv")
    shipped = 100 * drawn_scores(methods["s0"]["counts"], 1)["water"][0]
    assert row["tiny, shipped weights"].startswith(f"{shipped:.1f} [")
    assert row["shipped less tiny, from scratch"] == "10.0 [10.0, 10.0]", (
        "every draw differs by one pixel of ten"
    )
    assert row["U-Net, from scratch"] == row["shipped less U-Net, from scratch"] == "–"
    assert means["set"] == "mean of 1"
    assert means["tiny, from scratch"] == f"{45 / 2:.1f}", "the seed without water counts too"
    assert few_labels.few_table({"s1-vv": {}}, SETS, "water") == []


def test_few_labels_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_equal, "BATCH", 2)
    real = write_real(tmp_path / "real")
    words = f"--real {real} --rows ombria-te --few-labels 1 2 --few-seconds 0.02 --seeds 0 1 --no-simple"
    words += " --work work --out out"
    bench_real.main(words.split())
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"tiny, shipped weights, 0 labelled images"} | {
        f"{start}, {images} labelled images, 0.02 s"
        for start in few_labels.STARTS.values()
        for images in (1, 2)
    }
    assert rows["U-Net, from scratch, 2 labelled images, 0.02 s"]["seeds"] == "2"
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## Few labels: mIoU of water and other" in text
    assert "## Water IoU of models" not in text, "they have a table of their own"
    capsys.readouterr()
    (tmp_path / "work/results/unet-ombria-tr-2-images-0.02s-seed1/ombria-te.json").unlink()
    bench_real.main(words.split())
    said = capsys.readouterr().out
    assert said.count(" done") == 1, "what is finished is not repeated"
    assert "step" not in said, "nor trained again"
