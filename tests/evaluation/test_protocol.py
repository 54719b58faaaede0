"""A benchmark from files to a score: known predictions, known scores, and what cannot be scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from dataset_trees import WRITERS, write_trees
from torch import Tensor

from crossearth_sar.data.domain import Domain
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.radar import radar_figure
from crossearth_sar.evaluation.protocol import (
    ProtocolConfig,
    absent_rows,
    load_adapter,
    open_source,
    open_target,
    run_benchmark,
    slide_predictor,
)
from crossearth_sar.evaluation.registry import BENCHMARKS, benchmark
from crossearth_sar.model import build_model

ONE_PER_TARGET = ("N2S", "K2C", "A2F", "D2O", "A2S", "D2W")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProtocolConfig]:
    root = tmp_path_factory.mktemp("data")
    write_trees(root)
    logger = logging.getLogger("crossearth_sar")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield ProtocolConfig(data_root=str(root))
    logger.setLevel(before)


@pytest.fixture(scope="module")
def targets(config: ProtocolConfig) -> dict[str, Domain]:
    image_wise = ProtocolConfig(data_root=config.data_root, normalize="image")
    return {key: open_target(benchmark(key), image_wise) for key in ONE_PER_TARGET}


def oracle(sample: Sample) -> Tensor:
    return torch.where(sample["mask"] == IGNORE_INDEX, 0, sample["mask"])


@pytest.mark.parametrize("key", ONE_PER_TARGET)
def test_every_dataset_goes_from_files_to_a_score(key: str, targets: dict[str, Domain]) -> None:
    row, target = benchmark(key), targets[key]
    right = run_benchmark(row, oracle, target, max_images=2)
    assert right.miou == 1.0
    assert right.images == min(2, len(target)) > 0
    wrong = run_benchmark(row, lambda s: (oracle(s) + 1) % len(row.classes.classes), target, max_images=2)
    assert wrong.miou == 0.0
    half = run_benchmark(
        row, lambda s: torch.where(torch.arange(512) % 2 == 0, oracle(s), 0), target, max_images=1
    )
    assert half.miou == pytest.approx(by_hand(half.confusion.counts, row.classes.scored_indices))
    assert 0 < half.miou < 1
    mapping = right.to_mapping()
    assert json.loads(json.dumps(mapping, allow_nan=False))["miou"] == 1.0
    assert any("the paper has" in note for note in mapping["notes"])


def by_hand(counts: Tensor, scored: list[int]) -> float:
    table = counts.tolist()
    found = []
    for i in scored:
        union = sum(table[i]) + sum(r[i] for r in table) - table[i][i]
        found.append(table[i][i] / union)
    return sum(found) / len(found)


def test_only_scored_classes_enter_the_mean(targets: dict[str, Domain]) -> None:
    """Buildings against the rest: a model that sees none scores 0, however right it is elsewhere."""
    score = run_benchmark(
        benchmark("A2S"), lambda s: torch.zeros(512, 512, dtype=torch.int64), targets["A2S"]
    )
    assert score.miou == 0.0
    assert score.confusion.scores().miou > 0.2


def test_source_and_target_of_one_dataset_share_no_place(config: ProtocolConfig) -> None:
    row = benchmark("VV2F")
    source, target = open_source(row, config), open_target(row, config)
    assert not {source[i]["name"] for i in range(len(source))} & {
        target[i]["name"] for i in range(len(target))
    }
    assert source[0]["image"].shape[0] == 1
    assert target[0]["image"].shape[0] == 3
    assert target[0]["db_mean"].shape == (3,)
    assert torch.equal(source[0]["db_mean"], source[1]["db_mean"]), "one statistic for a domain"


def test_statistics_of_each_image_are_its_own(targets: dict[str, Domain]) -> None:
    sample = targets["N2S"][0]
    decibels = 20 * torch.log10(sample["image"].double()).flatten(1)
    torch.testing.assert_close(sample["db_mean"].double(), decibels.mean(1), rtol=1e-4, atol=0)
    torch.testing.assert_close(sample["db_std"].double(), decibels.std(1, correction=0), rtol=1e-3, atol=0)


def test_our_model_and_one_that_does_not_fit(targets: dict[str, Domain]) -> None:
    small = {
        "crop_size": 512,
        "crop_stride": 341,
        "vit": {"dim": 32, "num_heads": 2, "depth": 4, "patch_size": 64, "image_size": 512},
        "decoder": {
            "channels": 32,
            "num_queries": 6,
            "pixel_layers": 1,
            "pixel_ffn_dim": 32,
            "query_layers": 1,
            "query_ffn_dim": 32,
        },
    }
    model = build_model("crossearth_sar_tiny", 5, changes=small).eval()
    score = run_benchmark(benchmark("N2S"), model, targets["N2S"], max_images=1)
    assert score.expert_share_LE.shape[1] == 6
    assert int(score.confusion.counts.sum()) == int((targets["N2S"][0]["mask"] != IGNORE_INDEX).sum())
    with pytest.raises(InputError, match=r"5 classes(.|\n)*6: building, farmland"):
        run_benchmark(benchmark("K2C"), model, targets["K2C"])
    names = benchmark("N2S").classes.classes.names
    model.name_classes([name.capitalize() for name in names])
    assert run_benchmark(benchmark("N2S"), model, targets["N2S"], max_images=1).images == 1
    model.name_classes(names[::-1])
    with pytest.raises(InputError, match=r"(?s)other classes than benchmark N2S.*config\.json"):
        run_benchmark(benchmark("N2S"), model, targets["N2S"])


def test_slide_inference_of_any_network() -> None:
    """Windows of a network that looks at single pixels join into what it gives for the whole."""

    def network(image: Tensor) -> Tensor:
        return torch.cat([image, 3 - image, torch.full_like(image, 0.5)], dim=1)

    image = 3 * torch.rand(1, 70, 90)
    sample = Sample(image=image, mask=torch.zeros(70, 90, dtype=torch.int64), name="x")
    found = slide_predictor(network, 3, crop=32, stride=20)(sample)
    assert torch.equal(found, network(image[None]).argmax(1)[0])
    coarse = slide_predictor(lambda x: network(x)[..., ::4, ::4], 3, crop=32, stride=20)(sample)
    assert coarse.shape == (70, 90)
    with pytest.raises(InputError, match=r"expected: \(1, 4, h, w\)"):
        slide_predictor(network, 4)(sample)
    with pytest.raises(InputError, match="not finite"):
        slide_predictor(lambda x: torch.log(network(x) - 2), 3)(sample)


def test_adapters_are_found_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebodys_model")
    module.build = lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "somebodys_model", module)
    assert load_adapter("somebodys_model:build") is module.build
    for path, words in (
        ("somebodys_model", "package.module:function"),
        ("nobodys_model:build", "cannot be imported"),
        ("somebodys_model:buidl", "did you mean 'build'"),
    ):
        with pytest.raises(InputError, match=words):
            load_adapter(path)


def test_absent_data_and_unknown_datasets(tmp_path: Path) -> None:
    WRITERS["SARBuD"](tmp_path)
    absent = absent_rows(BENCHMARKS, ProtocolConfig(data_root=str(tmp_path)))
    assert set(BENCHMARKS) - set(absent) == {"A2S"}
    assert str(tmp_path / "DDHR-SK") in absent["K2C"]
    with pytest.raises(InputError, match="did you mean 'SARBuD'"):
        ProtocolConfig(data_root="", datasets={"SARBud": {}})


def test_radar_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least three spokes"):
        radar_figure(["a", "b"], {"x": {"a": 1.0}}, tmp_path / "r.png")
    with pytest.raises(InputError, match="negative"):
        radar_figure(["a", "b", "c"], {"x": {"a": -1.0}}, tmp_path / "r.png")
