"""`probe_table` on small images whose classes an encoder can know: scores, fine-tuning, wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dataset_trees import save
from micro_model import amplitude, micro
from torch import Tensor, nn

from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.decibels import to_db
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.baselines import class_histogram
from crossearth_sar.evaluation.probe.cells import encode
from crossearth_sar.evaluation.probe.encoder import Encoder, model_encoder, random_twin
from crossearth_sar.evaluation.probe.finetune import FineTuning
from crossearth_sar.evaluation.probe.floors import statistics_encoder
from crossearth_sar.evaluation.probe.report import write_probe_report
from crossearth_sar.evaluation.probe.row import ProbeRow
from crossearth_sar.evaluation.probe.table import probe_table
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.presets import ModelConfig
from crossearth_sar.resnet import ResNetConfig


class Backscatter(nn.Module):
    """A network whose one parameter is a gain on the mean dB of a cell; its other feature says nothing."""

    def __init__(self, useful: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.useful = useful

    def forward(self, image: Tensor, mean: Tensor, std: Tensor) -> list[Tensor]:
        decibels = (to_db(image) - mean[..., None, None]) / std[..., None, None]
        cells = F.avg_pool2d(decibels, 4) * self.gain
        noise = torch.rand(cells.shape, generator=torch.Generator().manual_seed(0))
        return [torch.cat([cells if self.useful else noise, noise], 1)]


def encoder(useful: bool = True) -> Encoder:
    module = Backscatter(useful)
    return Encoder(maps=module, multiple=4, window=64, stride=48, module=module)


def images(root: Path, count: int, seed: int, water_db: float = -12.0) -> None:
    """Dark water below a border, land above, four looks; some pixels without a label."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        is_water = np.arange(40)[:, None] > rng.integers(10, 30) + np.zeros((1, 50))
        speckle = np.sqrt(rng.gamma(4, 1 / 4, (40, 50)))
        label = is_water.astype(np.uint8)
        label[:2] = IGNORE_INDEX
        save(
            root / "images" / f"{i}.tif",
            (np.where(is_water, 10 ** (water_db / 20), 1.0) * speckle).astype(np.float32),
        )
        save(root / "labels" / f"{i}.png", label)


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Domain, Domain]:
    root = tmp_path_factory.mktemp("probe")
    images(root / "train", 10, 1)
    images(root / "test", 5, 2)
    return opened(root / "train"), opened(root / "test")


def opened(root: Path) -> Domain:
    folder = FolderConfig(
        root=str(root), images="images/*.tif", labels="labels/*.png", values="amplitude",
        classes=("land", "water"),
    )  # fmt: skip
    return open_domain(DomainConfig(name=root.name, folder=folder))


def test_features_that_know_score_above_those_that_do_not(
    domains: tuple[Domain, Domain], tmp_path: Path
) -> None:
    train, test = domains
    encoders = {"knows": encoder(), "guesses": encoder(useful=False), "statistics": statistics_encoder(4)}
    rows = probe_table(encoders, train, {"lake": test}, labels=(2, "100%"), seeds=(0, 1, 2))
    key = [(row.labels, row.images, row.method, row.encoder, row.seeds) for row in rows]
    assert key == [
        (labels, images, method, name, seeds)
        for labels, images, seeds in (("2", 2, (0, 1, 2)), ("100%", 10, (0,)))
        for method in ("linear", "knn")
        for name in encoders
    ]
    by = {(row.labels, row.method, row.encoder): row for row in rows}
    for row in rows:
        assert row.counts_SNCC.shape == (len(row.seeds), 5, 2, 2)
        np.testing.assert_array_equal(row.counts_SNCC.sum((1, 3))[0], class_histogram(test).numpy())
        assert row.absent == ((),) * len(row.seeds)
        assert row.miou > (0.8 if row.encoder != "guesses" else 0.0)
    for labels in ("2", "100%"):
        for method in ("linear", "knn"):
            value, ends = by[labels, method, "knows"].above(by[labels, method, "guesses"])
            assert ends is not None
            assert 0.25 < ends.low < value < ends.high
    row = by["2", "linear", "knows"]
    assert len(set(row.miou_by_seed)) > 1, "other images, other scores"
    again = ProbeRow.from_mapping(json.loads(json.dumps(row.to_mapping())))
    assert (again.miou, again.interval, again.units) == (row.miou, row.interval, row.units)
    page = write_probe_report(tmp_path, rows, floor="guesses", about={"commit": "none"}).read_text()
    assert "| linear probe | 2 labelled images | 100%: 10 labelled images |" in page
    assert f"| knows | {100 * row.miou:.1f} ± " in page
    assert "| knows above guesses | +" in page
    assert "## lake: 5 images" in page
    assert len((tmp_path / "probes.csv").read_text().splitlines()) == 1 + 6 * (3 + 1)
    assert len(json.loads((tmp_path / "probes.json").read_text())["rows"]) == 12


def test_encoders_by_themselves_and_together_are_scored_alike(domains: tuple[Domain, Domain]) -> None:
    train, test = domains
    both = {"a": encoder(), "b": statistics_encoder(4)}
    together = probe_table(both, train, {"t": test}, labels=(3,), seeds=(4,), methods=("linear",))
    alone = [
        row
        for name in both
        for row in probe_table(
            {name: both[name]}, train, {"t": test}, labels=(3,), seeds=(4,), methods=("linear",)
        )
    ]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.counts_SNCC, other.counts_SNCC)


def test_fine_tuning_starts_at_the_linear_probe_and_leaves_the_encoder_as_it_was(
    domains: tuple[Domain, Domain],
) -> None:
    train, test = domains
    tuned = encoder()
    assert tuned.module is not None
    before = tuned.module.state_dict()["gain"].clone()

    def rows(how: FineTuning) -> list[ProbeRow]:
        return probe_table(
            {"net": tuned, "statistics": statistics_encoder(4)}, train, {"t": test}, labels=(2,), seeds=(0,),
            methods=("linear", "finetune"), fine_tuning=how,
        )  # fmt: skip

    still = rows(FineTuning(steps=2, lr=1e-12))
    assert [(row.method, row.encoder) for row in still] == [
        ("linear", "net"),
        ("linear", "statistics"),
        ("finetune", "net"),
    ]
    np.testing.assert_array_equal(still[2].counts_SNCC, still[0].counts_SNCC)
    moved = rows(FineTuning(steps=30, lr=0.05, batch_size=2))
    assert (moved[2].counts_SNCC != moved[0].counts_SNCC).any()
    assert moved[2].miou > 0.8
    assert torch.equal(tuned.module.state_dict()["gain"], before)


def test_wrong_input_is_said(domains: tuple[Domain, Domain], tmp_path: Path) -> None:
    train, test = domains
    floor = statistics_encoder(4)
    for words, change in (
        ("some of linear, knn, finetune", {"methods": ("svm",)}),
        ("an encoder with a module", {"methods": ("finetune",)}),
        ("1 to 10", {"labels": (64,)}),
        ("each once", {"seeds": (1, 1)}),
        ("at least one domain", {"tests": {}}),
        ("10.0, the encoder's", {"encoders": {"far": replace(floor, pixel_m=10.0)}}),
    ):
        given = {"encoders": {"floor": floor}, "train": train, "tests": {"t": test}, "labels": (2,), **change}
        with pytest.raises(InputError, match=words):
            probe_table(**given)  # type: ignore[arg-type]
    images(tmp_path / "blank", 2, 3)
    for path in (tmp_path / "blank" / "labels").iterdir():
        save(path, np.full((40, 50), IGNORE_INDEX, np.uint8))
    blank = opened(tmp_path / "blank")
    with pytest.raises(InputError, match="'t' has no labelled pixel"):
        probe_table({"floor": floor}, train, {"t": blank}, labels=(2,), seeds=(0,))
    with pytest.raises(InputError, match="show two classes"):
        probe_table({"floor": floor}, blank, {"t": test}, labels=(2,), seeds=(0,))


def test_our_models_give_their_tokens_and_twins_forget() -> None:
    model = micro().eval()
    image = amplitude(1, 1, 64, 64)
    mean, std = torch.tensor([[0.0]]), torch.tensor([[6.0]])
    with torch.no_grad():
        output = model.features(image, mean, std)
        (last,) = model_encoder(model).maps(image, mean, std)
        every = model_encoder(model, "all").maps(image, mean, std)
        state = torch.get_rng_state()
        twins = [random_twin(model, seed=seed) for seed in (5, 5, 6)]
        assert torch.equal(torch.get_rng_state(), state)
        first, same, other = (twin.maps(image, mean, std)[0] for twin in twins)
    torch.testing.assert_close(last.flatten(2).mT, output.tokens[:, 1:])
    assert last.shape == (1, 32, 8, 8)
    assert [m.shape for m in every] == [m.shape for m in output.feature_maps]
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, last)


def test_a_resnet_gives_its_deepest_map() -> None:
    config = ModelConfig(
        num_classes=2, resnet=ResNetConfig(depths=(1, 1, 1, 1), width=8), moe=None, decoder=None,
        crop_size=64, crop_stride=64,
    )  # fmt: skip
    encoder = model_encoder(CrossEarthSAR(config).eval())
    one = Sample(image=amplitude(1, 50, 70), mask=torch.zeros(50, 70, dtype=torch.int64), name="one")
    windows = encode("resnet", encoder, one)
    assert [w.padded for w in windows] == [(64, 64), (64, 64)]
    assert {w.grid for w in windows} == {(2, 2)}
