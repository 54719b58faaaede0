"""The benchmark on real images, on small made-up ones of the same layout: sets, scores, methods, report."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from real_tree import SIDE, scene, write_real

from bench.experiments.real import bench_real, scoring, simple, train_equal  # bench/ is on the path
from bench.experiments.real.sets import SETS, TASKS, channel_power, class_lookup, prepare
from bench.experiments.real.unet import PeerConfig, SmallUNet
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.domain import open_domain
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import predict_sample
from crossearth_sar.evaluation.probe.budget import rate_at
from crossearth_sar.model import save_model

ROWS = {row.name: row for row in SETS}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_real(tmp_path / "real")


def test_sets_are_written_as_the_package_reads_them(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = {row.name for row in prepare(real, tmp_path / "work")}
    assert {"ombria-te", "ombria-tr", "kompsat5", "sf-hh", "sf-vv", "sf-hv", "sf-vv-cover"} == ready - {
        "sf-hh-cover", "sf-hv-cover",
    }  # fmt: skip
    assert "s1-vv is left out" in capsys.readouterr().out
    domain = open_domain(ROWS["ombria-te"].domain(tmp_path / "work" / "data"), "", 10.0)
    assert len(domain) == 2, "the image that is not trusted is left out"
    sample, (decibels, label) = domain[1], scene(1)
    got = 20 * sample["image"][0].log10().numpy()
    np.testing.assert_allclose(got, decibels.clip(-28, 3.875), atol=1 / 16 + 1e-4)
    label[0, 0] = 255
    assert np.array_equal(sample["mask"].numpy(), label)
    assert sample["pixel_m"] == 10.0
    fine = open_domain(ROWS["kompsat5"].domain(tmp_path / "work" / "data"))[0]
    assert fine["pixel_m"] == pytest.approx(1.1)
    assert fine["image"].shape[-1] == 9 * SIDE
    assert prepare(real, tmp_path / "work"), "a second call finds them"


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no real images"):
        prepare(tmp_path, tmp_path / "work")


@pytest.mark.parametrize(("hh", "vv", "hv"), [(1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.5, -1.5, 0.25)])
def test_channels_of_known_scatterers(hh: float, vv: float, hv: float) -> None:
    """T3 of one scatterer: k = (HH + VV, HH - VV, 2 HV) / sqrt 2, T = k k^T."""
    pauli = np.array([hh + vv, hh - vv, 2 * hv]) / np.sqrt(2)
    values = dict(zip(("T11", "T22", "T33"), pauli**2, strict=True))
    power = channel_power({**values, "rho12_re": np.sign(pauli[0] * pauli[1])})
    assert [power[key] for key in ("hh", "vv", "hv")] == pytest.approx([hh**2, vv**2, hv**2], abs=1e-9)


def test_classes_of_models_become_those_of_a_task() -> None:
    water, cover = TASKS["water"], TASKS["cover4"]
    seven = class_lookup(SEVEN_CLASSES.names, water)
    assert seven is not None
    assert seven[:7].tolist() == [0, 0, 1, 0, 0, 0, 0]
    swapped = class_lookup(("water", "land"), water)
    assert swapped is not None
    assert swapped[:2].tolist() == [1, 0]
    assert class_lookup(("other", "water"), cover) is None
    assert class_lookup(("ship", "sea"), water) is None
    land = class_lookup(SEVEN_CLASSES.names, cover)
    assert land is not None
    assert land[:7].tolist() == [1, 1, 0, 3, 2, 2, 2]


def test_scores_are_of_summed_counts() -> None:
    counts = np.array([[[5, 1], [0, 4]], [[2, 0], [3, 5]]])
    scores = scoring.drawn_scores(counts, 1)
    assert scores["water"][0] == pytest.approx(9 / 13)
    assert scores["miou"][0] == pytest.approx((7 / 11 + 9 / 13) / 2)
    single = {round(4 / 5, 6), round(5 / 8, 6), round(9 / 13, 6)}
    assert set(scores["water"][1:].round(6)) == single, "two images have three different draws"


def test_the_interval_covers_and_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(1000, 0.8, size=200)
    counts = np.zeros((200, 2, 2), np.int64)
    counts[:, 1, 1], counts[:, 1, 0] = hits, 1000 - hits
    scores = scoring.drawn_scores(counts, 1)["water"]
    found = scoring.estimate([scores])
    # 200 units of deviation sqrt(0.16 / 1000): their mean has 0.0894 percent
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.0894, rel=0.15)
    assert found.low < found.value < found.high
    same = scoring.estimate([scores], less=scores)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert scoring.estimate([scores, scores + 0.1]).seed_std == pytest.approx(10 / np.sqrt(2))


def test_a_set_of_one_image_is_counted_in_blocks() -> None:
    mask = torch.zeros(130, 256, dtype=torch.int64)
    counts = scoring.block_counts(torch.ones_like(mask), mask, 2)
    assert counts[:, 0, 1].tolist() == [128 * 128, 128 * 128, 2 * 128, 2 * 128]


def test_results_are_kept_by_their_key(tmp_path: Path) -> None:
    store = scoring.Store(tmp_path)
    store.put("a", "s1-vv", np.eye(2, dtype=np.int64)[None], "1", label="A")
    found = store.get("a", "s1-vv", "1")
    assert found is not None
    assert found.tolist() == [[[1, 0], [0, 1]]]
    assert store.get("a", "s1-vv", "2") is None
    assert store.get("b", "s1-vv", "1") is None


def test_features_stand_out_of_speckle() -> None:
    decibels, label = scene(0)
    found = simple.features(torch.from_numpy(10 ** (decibels / 20)).float())
    assert found.shape == (6, SIDE, SIDE)
    dark, bright = (found[3].numpy()[label == kind].mean() for kind in (1, 0))
    assert dark < -0.5 < 0.5 < bright
    local = found[4, 10:-10, 5:10]  # far from the edge: noise of 1 dB, the image's deviation is about 6
    assert float(local.mean()) == pytest.approx(1 / 6.1, rel=0.1)
    assert bool(torch.isfinite(simple.features(torch.zeros(20, 20))).all())


def test_the_peer_is_of_its_size_and_predicts_any_size() -> None:
    model = SmallUNet(PeerConfig(7))
    assert 0.45e6 < sum(p.numel() for p in model.parameters()) < 0.5e6
    assert model(torch.rand(2, 1, 32, 40)).shape == (2, 7, 32, 40)
    scores = model.eval().slide_scores(torch.rand(1, 1, 131, 37), torch.zeros(1), torch.ones(1))
    assert scores.shape == (1, 7, 131, 37)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 131, 37))
    loss = model.loss(torch.zeros(1, 7, 8, 8), torch.full((1, 8, 8), 255))
    assert float(loss) == 0


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(share, 2e-3) for share in (0.0, 0.025, 0.05, 0.5, 0.999)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
    assert rates[2] == pytest.approx(train_equal.RATE)
    assert rate_at(0.05, 5e-4) == pytest.approx(5e-4)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forest and a threshold of few scenes, and a training of one step a point."""
    forest, threshold = simple.forest.__wrapped__, simple.fixed_threshold.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(simple, "forest", lambda: forest(scenes=3, trees=3))
    monkeypatch.setattr(simple, "fixed_threshold", lambda water: threshold(water, scenes=3))
    monkeypatch.setattr(train_equal, "BATCH", 2)


@pytest.mark.usefixtures("short")
def test_the_benchmark_end_to_end(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = train_equal.build("dense", SEVEN_CLASSES.names, 10.0)
    model.name_classes(SEVEN_CLASSES.names)  # type: ignore[union-attr]
    save_model(model, tmp_path / "trial" / "model")  # type: ignore[arg-type]
    words = (
        f"--real {real} --model trial/model --rows ombria-te kompsat5 sf-vv-cover --in-domain --work work "
    )
    words += "--contenders unet --seconds 0.02 --seeds 0 1 --pictures 1 --out out"
    bench_real.main(words.split())
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for expected in (
        "model trial",
        "unet ombria-tr 0.02 s",
        "random forest",
        "| band | kompsat5 |",
        "sf-vv-cover",
    ):
        assert expected in text, text
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        rows = {(row["set"], row["method"]): row for row in csv.DictReader(file)}
    assert float(rows["ombria-te", "Otsu per image, 1 x 1"]["water IoU"]) > 99
    assert float(rows["kompsat5", "Otsu pooled, 1 x 1 at 10 m"]["water IoU"]) > 95
    assert rows["ombria-te", "unet ombria-tr 0.02 s"]["seeds"] == "2"
    assert ("sf-vv-cover", "unet ombria-tr 0.02 s") not in rows, "two classes are no land cover"
    assert list((tmp_path / "work" / "pictures").glob("ombria-te-model-trial.png"))
    capsys.readouterr()
    bench_real.main(words.split())
    assert " done" not in capsys.readouterr().out, "what is finished is not repeated"


def test_contenders_see_ground_at_the_models_spacing(real: Path, tmp_path: Path) -> None:
    prepare(real, tmp_path / "work")
    sample = open_domain(ROWS["kompsat5"].domain(tmp_path / "work" / "data"), "", 10.0)[0]
    seen: list[torch.Size] = []
    model = SmallUNet(PeerConfig(2)).eval()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert predict_sample(model, sample).shape == sample["mask"].shape  # type: ignore[arg-type]
    assert seen == [torch.Size([1, 1, SIDE, SIDE])]
