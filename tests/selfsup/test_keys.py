"""What is kept from step to step: the key network, the queues, the watch for collapse."""

from __future__ import annotations

import pytest
import torch
from view_batches import SIZE, Batch, micro_di3cl, micro_encoder, view_batch

from crossearth_sar import InputError
from crossearth_sar.selfsup.collapse import CollapseError, CollapseWatch
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.di3cl import DI3CL, ENCODER_PREFIX
from crossearth_sar.selfsup.queue import KeyQueue


def keys_of(module: DI3CL) -> torch.Tensor:
    return torch.cat([p.flatten() for p in module.key.parameters()])


def train_step(module: DI3CL, batch: Batch, momentum: float = 0.9) -> float:
    """One step of plain descent, in the order that the method asks for."""
    module.begin_step()
    module.zero_grad()
    terms = module(batch)
    terms.total.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad)
    module.push_keys()
    module.update_keys(momentum)
    return float(terms.total.detach())


def test_keys_start_as_the_query_and_follow_it() -> None:
    module = micro_di3cl()
    theirs = dict(module.query.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in module.key.named_parameters())
    before = {name: value.clone() for name, value in module.key.named_parameters()}
    with torch.no_grad():
        for parameter in module.query.parameters():
            parameter.add_(torch.randn_like(parameter))
    module.update_keys(0.75)
    for name, value in module.key.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * theirs[name], atol=1e-6), name


def test_in_bf16_keys_move_as_in_float32() -> None:
    """A hundred steps of 1 - m = 0.001 towards masters that move: within 1e-2 of the way in float32;
    an average kept in bf16 is far off it."""
    whole, rounded = micro_di3cl(), micro_di3cl().bfloat16()
    assert all(p.dtype is torch.bfloat16 for p in rounded.parameters())
    assert all(p.dtype is torch.float32 for p in rounded.key.parameters())
    start = keys_of(whole).clone()
    rounded.load_state(whole.state())  # made from weights before they were rounded
    torch.manual_seed(0)
    naive = {name: p.detach().bfloat16() for name, p in whole.query.named_parameters()}
    for _ in range(100):
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.add_(1e-3 * torch.randn_like(parameter) + 1e-3)
        masters = {name: p.detach().clone() for name, p in whole.named_parameters()}
        rounded.load_state_dict(masters, strict=False)
        whole.update_keys(0.999)
        rounded.update_keys(0.999, masters.items())
        for name, value in naive.items():
            value.lerp_(masters[f"query.{name}"].bfloat16(), 0.001)
    way = keys_of(whole) - start
    off = (keys_of(rounded) - start - way).norm() / way.norm()
    assert off < 1e-2
    in_bf16 = torch.cat([value.flatten() for value in naive.values()]).float()
    assert (in_bf16 - start - way).norm() / way.norm() > 0.1


def test_a_master_that_is_missing_is_noticed() -> None:
    module = micro_di3cl()
    masters = [item for item in module.named_parameters() if "global_head" not in item[0]]
    with pytest.raises(AssertionError, match="global_head"):
        module.update_keys(0.9, masters)


def test_bf16_losses_are_near_those_of_float32() -> None:
    module, batch = micro_di3cl(contour_weight=1.0), view_batch(4)
    whole = module(batch)
    rounded = module.bfloat16()(batch)
    assert rounded.total.dtype is torch.float32
    for name in ("global_", "contour", "region"):
        assert getattr(rounded, name).item() == pytest.approx(getattr(whole, name).item(), rel=0.05), name
    with torch.autocast("cpu", torch.bfloat16):
        cast = micro_di3cl(contour_weight=1.0)(batch)
    assert cast.total.item() == pytest.approx(whole.total.item(), rel=0.05)


def test_a_module_hands_its_encoder_out_and_nothing_else_of_the_keys() -> None:
    encoder = micro_encoder()
    module = DI3CL(encoder, DI3CLConfig(queue_length=8, hidden_dim=4, output_dim=4))
    assert module.encoder is encoder
    weights = {
        name.removeprefix(ENCODER_PREFIX): value
        for name, value in module.state_dict().items()
        if name.startswith(ENCODER_PREFIX)
    }
    assert weights.keys() == encoder.state_dict().keys()
    assert not [name for name in module.state_dict() if "queue" in name]
    assert len(list(module.parameters())) == len(list(module.query.parameters())) + len(
        list(module.predictor.parameters())  # type: ignore[union-attr]
    )


def test_queues_hold_the_newest_keys() -> None:
    torch.manual_seed(0)
    queue = KeyQueue(2, 6)
    assert torch.allclose(queue.keys_KD.norm(dim=1), torch.ones(6))
    for step in range(4):
        queue.push(torch.tensor([[step, 0.0], [step, 1.0]]))
    assert queue.keys_KD.tolist() == [[3, 0], [3, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert queue.pointer == 2
    with pytest.raises(InputError, match="queue_length=8"):
        queue.push(torch.ones(4, 2))


def test_the_keys_of_a_step_enter_after_its_last_pass_in_order() -> None:
    module = micro_di3cl(queue_length=8)
    queues = {name: module.state()[f"queue.{name}"].clone() for name in ("global", "contour")}
    first, second = view_batch(2, seed=1), view_batch(2, seed=2)
    module.begin_step()
    module(first)
    with torch.no_grad():
        module(first)  # a look at the loss is no pass of the step
    module(second)
    assert all(torch.equal(module.state()[f"queue.{n}"], queue) for n, queue in queues.items())
    module.push_keys()
    for name, queue in queues.items():
        now = module.state()[f"queue.{name}"]
        assert torch.equal(now[4:], queue[4:])
        assert not torch.isclose(now[:4], queue[:4]).all(1).any()
        assert torch.allclose(now[:4].norm(dim=1), torch.ones(4))
    alone = micro_di3cl(queue_length=8)
    alone.begin_step()
    alone(second)
    alone.push_keys()
    assert torch.allclose(alone.state()["queue.global"][:2], module.state()["queue.global"][2:4])


def test_a_step_that_was_left_out_leaves_no_key() -> None:
    module, batch = micro_di3cl(queue_length=4), view_batch(2)
    module.begin_step()
    module(batch)
    module.begin_step()
    module(batch)
    module.push_keys()
    assert int(module.state()["pointer.global"]) == 2


def test_a_resumed_module_goes_on_bit_for_bit() -> None:
    batches = [view_batch(2, seed=seed) for seed in range(5)]
    whole = micro_di3cl(queue_length=6)
    losses = [train_step(whole, batch) for batch in batches]
    begun = micro_di3cl(queue_length=6)
    for batch in batches[:2]:
        train_step(begun, batch)
    torch.manual_seed(99)
    resumed = DI3CL(micro_encoder(), begun.config).train()
    resumed.load_state_dict(begun.state_dict())
    resumed.load_state({name: value.clone() for name, value in begun.state().items()})
    assert [train_step(resumed, batch) for batch in batches[2:]] == losses[2:]
    assert torch.equal(keys_of(resumed), keys_of(whole))


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(InputError, match=r"queue\.contour") as caught:
        micro_di3cl().load_state(micro_di3cl(queue_length=12).state())
    assert "(24, 6)" in str(caught.value)


def test_collapse_stops_with_words() -> None:
    watch, same = CollapseWatch(0.01, 3), torch.ones(8, 4) / 2
    for step in range(2):
        watch.forget()
        assert float(watch.see(same)) < 1e-3
        watch.end_step()
        assert watch.low_steps == step + 1
    watch.forget()
    apart = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
    assert float(watch.see(apart)) == pytest.approx(
        float(apart.var(0, unbiased=False).mean().sqrt()), rel=1e-4
    )
    watch.see(same)
    watch.end_step()
    assert watch.low_steps == 0, "one vector for half of the images is none for all"
    watch.low_steps = 2
    watch.forget()
    watch.see(same)
    with pytest.raises(CollapseError, match=r"collapsed.*(\n.*)*collapse_std=0"):
        watch.end_step()


def test_one_vector_or_none_is_no_collapse() -> None:
    watch = CollapseWatch(0.01, 1)
    watch.see(torch.ones(4, 3), torch.tensor([True, False, False, False]))
    watch.end_step()
    watch.forget()
    watch.see(torch.ones(4, 3), torch.zeros(4, dtype=torch.bool))
    watch.end_step()


@pytest.mark.parametrize(
    "changes",
    [{}, {"global_weight": 0.0, "contour_weight": 0.0}, {"global_weight": 0.0, "region_weight": 0.0}],
)
def test_a_collapsed_network_is_stopped(changes: dict[str, float]) -> None:
    module = micro_di3cl(collapse_std=0.01, collapse_steps=2, **changes)
    with torch.no_grad():
        for name, parameter in module.query.named_parameters():
            if name.endswith("last.weight"):
                parameter.zero_()
    batch = view_batch(3)
    module.begin_step()
    module(batch)
    module.push_keys()
    assert int(module.state()["collapse.low_steps"]) == 1
    module(batch)
    with pytest.raises(CollapseError):
        module.push_keys()


def test_momentum_rises_by_half_a_cosine() -> None:
    assert DI3CLConfig(momentum=0.99).momentum_at(0.7) == 0.99
    rising = DI3CLConfig(momentum=0.99, momentum_rises=True)
    assert [rising.momentum_at(p) for p in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1])


def test_words_name_what_to_beware_of() -> None:
    lines = micro_di3cl().words(images=20)
    assert lines[0] == "losses global 0.8, CC 0.2, DI 5; contour loss infonce"
    assert "queue of 24 keys is longer than the 20 images" in lines[1]
    assert len(micro_di3cl(contour_weight=0).words(images=24)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global_weight": 0.0, "contour_weight": 0.0, "region_weight": 0.0}, "at least one above 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.1}, "momentum"),
        ({"queue_length": 0}, "queue_length"),
        ({"key_group": 1}, "key_group"),
        ({"edge_grid": 1}, "edge_grid"),
        ({"max_iou": 0.0}, "max_iou"),
        ({"region_weight": float("nan")}, "region_weight"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DI3CLConfig(**changes)  # type: ignore[arg-type]


def test_encoders_that_cannot_be() -> None:
    with pytest.raises(InputError, match="decoder null"):
        DI3CL(micro_encoder(decoder={"kind": "fpn", "channels": 16}), DI3CLConfig())
    with pytest.raises(InputError, match="0 to 3"):
        DI3CL(micro_encoder(), DI3CLConfig(contour_map=4))


def test_layers_of_the_contour_head_and_the_image_vector_are_settings() -> None:
    batch = view_batch(2)
    first, third = (micro_di3cl(contour_map=index)(batch).contour for index in (0, 2))
    assert float(first.detach()) != float(third.detach())
    mean, cls = (micro_di3cl(image_vector=kind)(batch).global_ for kind in ("mean", "cls"))
    assert float(mean.detach()) != float(cls.detach())
    assert micro_di3cl().smallest_box == 8, "a cell of the deep map"
    assert micro_di3cl(smallest_box=20.0).smallest_box == 20
    assert SIZE % 8 == 0
