"""Copies of a replaced model, threads, and what must not stay unsaid: each copy has a handle of its own."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from test_replace import DIM, DINOV2, LAYERS, Transformer, dinov2, large_routers, part_experts
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from crossearth_sar import InputError, replace_ffn
from crossearth_sar.descriptors import RunningStandardizer
from crossearth_sar.moe import ReplacedFFN


def describe(model: nn.Module, x: Tensor) -> Tensor:
    """Means of some columns, standardised by what the model holds."""
    return model.standardizer(10 * x.mean(1)[:, :3])  # type: ignore[operator]


def described() -> tuple[Transformer, ReplacedFFN]:
    model = Transformer()
    model.standardizer = RunningStandardizer()
    moe = replace_ffn(model, "*.mlp", descriptors=describe)
    large_routers(moe)
    part_experts(moe)
    return model, moe


def test_a_copy_describes_by_what_it_holds_itself() -> None:
    model, _ = described()
    x = torch.randn(2, 7, DIM)
    model(x)
    before = copy.deepcopy(model.standardizer.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), AveragedModel(model).module, torch.load(file, weights_only=False)]
    expected = model.eval()(x)
    for copied in copies:
        copied.train()(5 * x)
        assert not torch.equal(copied.standardizer.mean, before["mean"]), "its own statistics move"
        copied.load_state_dict(model.state_dict())
        torch.testing.assert_close(copied.eval()(x), expected)
        assert ReplacedFFN.of(copied).layers["blocks.0.mlp"] is copied.blocks[0].mlp.moe
    for name, value in model.standardizer.state_dict().items():
        assert torch.equal(value, before[name]), f"a copy's forward moved {name} of the original"


def test_a_batch_of_the_wrong_handle_is_told() -> None:
    model, x = Transformer(), torch.randn(2, 7, DIM)
    moe = replace_ffn(model, "*.mlp")
    large_routers(moe)
    part_experts(moe)
    given = torch.randn(2, 3) * 5
    with moe.batch(given):
        expected = model(x)
    copied = copy.deepcopy(model)
    with pytest.raises(InputError, match="met descriptors"), moe.batch(given):
        copied(x)  # its handle is not moe, and nothing else gives it any
    with pytest.raises(InputError, match="none of its layers ran"), moe.batch(given):
        pass
    with ReplacedFFN.of(copied).batch(given):
        torch.testing.assert_close(copied(x), expected)
    with moe.batch():
        assert not torch.allclose(model(x), expected), "none are meant, and zeros are another answer"
    with pytest.raises(ValueError, match="its own"), moe.batch(given):
        raise ValueError("an error of the block is its own")


def test_the_handle_of_a_model() -> None:
    model, moe = described()
    assert ReplacedFFN.of(model) is moe
    assert ReplacedFFN.of(model.blocks[1]) is moe
    with pytest.raises(InputError, match="0 handles"):
        ReplacedFFN.of(nn.Linear(2, 2))
    two = Transformer()
    first = replace_ffn(two, "blocks.0.mlp")
    replace_ffn(two, "blocks.1.mlp")
    with pytest.raises(InputError, match="2 handles"):
        ReplacedFFN.of(two)
    assert ReplacedFFN.of(two.blocks[0]) is first


def test_threads_see_their_own_forward() -> None:
    """All have begun, with their descriptors, before a layer of any runs."""
    model, moe = described()
    model.eval()
    inputs = [torch.randn(2, 7 + number, DIM) for number in range(3)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    meeting = threading.Barrier(len(inputs), timeout=60)

    def wait_for_all(module: nn.Module, inputs: object) -> None:
        meeting.wait()

    hook = model.blocks[0].register_forward_pre_hook(wait_for_all)
    found: dict[int, tuple[Tensor, set[int], int]] = {}

    def work(number: int) -> None:
        with torch.no_grad():
            output = model(inputs[number])
        routing = moe.routing()
        found[number] = output, {each.expert_index.shape[1] for each in routing}, len(routing)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert sorted(found) == [0, 1, 2], "one of them failed"
    for number, (output, tokens, layers) in found.items():
        assert torch.equal(output, expected[number])
        assert (tokens, layers) == ({7 + number}, LAYERS)


@pytest.mark.parametrize("broken", ["router weight", "descriptor"])
def test_a_routing_that_is_nan_shows_in_the_output(broken: str) -> None:
    model, pixels = dinov2(), torch.randn(2, 3, 28, 28)
    moe = replace_ffn(model, DINOV2)
    physics = torch.randn(2, 3)
    if broken == "router weight":
        with torch.no_grad():
            moe.layers["encoder.layer.1.mlp"].router.weight[2, 3] = torch.nan
    else:
        physics[1, 0] = torch.nan
    with moe.batch(physics):
        assert model(pixels).last_hidden_state.isnan().any()
