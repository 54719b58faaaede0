"""One pass over a domain: counts that add up, and are the same however the samples are shared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.evaluation.evaluate import evaluate, predict_sample
from crossearth_sar.model import CrossEarthSAR, build_model

SMALL = {
    "crop_size": 32,
    "crop_stride": 24,
    "vit": {"dim": 32, "num_heads": 2, "image_size": 32},
    "decoder": {
        "channels": 64,
        "num_heads": 2,
        "num_queries": 6,
        "pixel_layers": 1,
        "pixel_ffn_dim": 32,
        "query_layers": 1,
        "query_ffn_dim": 32,
    },
}
SIZE = 40
WINDOWS = 4  # of 32 pixels every 24 over 40
TOKENS = 1 + (32 // 8) ** 2


def make(*, sparse: bool = True, top_k: int = 1) -> CrossEarthSAR:
    changes = {**SMALL, "moe": {"top_k": top_k}}
    model = build_model("crossearth_sar_tiny", 7, changes=changes, sparse=sparse)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # weights: enough noise for several classes and experts to be chosen
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def domain() -> Domain:
    return open_domain(DomainConfig(name="x", simulated=SimulatorConfig(length=5, image_size=SIZE)))


class WithIgnoredPixels:
    """The domain with a corner of every label ignored."""

    def __init__(self, domain: Domain) -> None:
        self.domain, self.classes = domain, domain.classes

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, index: int) -> Sample:
        sample = self.domain[index]
        sample["mask"] = sample["mask"].clone()
        sample["mask"][:5, :7] = IGNORE_INDEX
        return sample


def test_confusion_is_that_of_the_predictions(domain: Domain) -> None:
    model, data = make(), WithIgnoredPixels(domain)
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for index in (0, 3):
        sample = data[index]
        prediction = model.predict(sample["image"][None], sample["db_mean"], sample["db_std"])[0]
        for target, predicted in zip(sample["mask"].flatten(), prediction.flatten(), strict=True):
            if target != IGNORE_INDEX:
                expected[target, predicted] += 1
    found = evaluate(model, data, [0, 3]).confusion.counts
    assert torch.equal(found, expected)
    assert int(found.sum()) == 2 * (SIZE * SIZE - 35)
    assert (found.sum(0) > 0).sum() > 1, "a test of one predicted class would tell little"


@pytest.mark.parametrize("top_k", [1, 2])
def test_every_routed_token_is_counted(domain: Domain, top_k: int) -> None:
    found = evaluate(make(top_k=top_k), domain, range(3))
    assert found.tokens_LE.shape == (4, 6)
    assert found.tokens_LE.sum(1).tolist() == [3 * WINDOWS * TOKENS * top_k] * 4
    assert torch.equal(found.tokens_LE, found.tokens_LE.round())
    assert (found.tokens_LE > 0).sum() > 4, "a test of one expert per layer would tell little"
    torch.testing.assert_close(found.expert_share_LE.sum(1), torch.ones(4, dtype=torch.float64))


def test_shares_of_two_ranks_add_up_to_the_whole(domain: Domain) -> None:
    model = make()
    whole, *parts = (evaluate(model, domain, indices) for indices in ([0, 1, 2, 3, 4], [0, 2, 4], [1, 3]))
    assert torch.equal(parts[0].confusion.counts + parts[1].confusion.counts, whole.confusion.counts)
    assert torch.equal(parts[0].tokens_LE + parts[1].tokens_LE, whole.tokens_LE)


def test_no_samples_and_a_dense_model(domain: Domain) -> None:
    nothing = evaluate(make(), domain, [])
    assert int(nothing.confusion.counts.sum()) == 0
    assert not nothing.tokens_LE.any()
    assert torch.isfinite(nothing.expert_share_LE).all()
    dense = evaluate(make(sparse=False), domain, [0])
    assert dense.tokens_LE.shape == dense.expert_share_LE.shape == (0, 0)
    assert int(dense.confusion.counts.sum()) == SIZE * SIZE


def test_predictions_use_the_statistics_a_sample_carries(domain: Domain) -> None:
    model, sample = make(), domain[0]
    image = sample["image"]
    own = predict_sample(model, Sample(image=image, mask=sample["mask"], name="x"))
    assert own.shape == (SIZE, SIZE)
    assert own.dtype == torch.int64
    assert torch.equal(own, model.predict(image[None])[0])
    shifted = Sample(**{**sample, "db_mean": sample["db_mean"] + 20})
    assert torch.equal(
        predict_sample(model, shifted),
        model.predict(image[None], shifted["db_mean"], shifted["db_std"])[0],
    )
    assert not torch.equal(predict_sample(model, shifted), predict_sample(model, sample))


def test_evaluation_leaves_the_model_as_it_was(domain: Domain) -> None:
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, domain, [1])
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_samples_are_seen_at_the_spacing_of_the_model_and_scored_on_their_own_pixels() -> None:
    scenes = SimulatorConfig(length=2, image_size=2 * SIZE, resolution_m=5.0)
    domain = open_domain(DomainConfig(name="x", simulated=scenes), pixel_m=10.0)
    model, sample = make(), domain[1]
    model.config = replace(model.config, pixel_m=10.0)
    found = predict_sample(model, sample)
    assert found.shape == sample["mask"].shape
    expected = model.predict(sample["image"][None], sample["db_mean"], sample["db_std"], pixel_m=5.0)[0]
    assert torch.equal(found, expected)
    assert found.unique().numel() > 1
    result = evaluate(model, domain, range(2))
    assert int(result.confusion.counts.sum()) == 2 * (2 * SIZE) ** 2
    assert int(result.tokens_LE[0].sum()) == 2 * WINDOWS * TOKENS
