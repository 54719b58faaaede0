"""An expert type from outside the package, defined in this file alone, in every place that has experts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from micro_model import MICRO, amplitude, label
from ranks import shared_pool
from torch import Tensor, nn

from crossearth_sar import InputError, PhysicsGuidedMoE, build_model, load_model, replace_ffn
from crossearth_sar.backend import MOE_BACKENDS, moe_backend_status, resolve_moe_backend
from crossearth_sar.config import from_mapping, merge, parse_overrides, to_mapping
from crossearth_sar.engine.export import export
from crossearth_sar.engine.optim import parameter_groups
from crossearth_sar.engine.planning.memory import activation_bytes, count_parameters
from crossearth_sar.model import save_model
from crossearth_sar.moe import DenseFFN, ExpertSpec, ExpertType, register_expert, upcycle_state_dict
from crossearth_sar.moe.backends import BACKENDS
from crossearth_sar.moe.backends.base import GroupedLinear
from crossearth_sar.moe.backends.grouped_linear import grouped_linear
from crossearth_sar.moe.expert_parallel import ExpertParallelExperts
from crossearth_sar.presets import ModelConfig, MoEConfig, crossearth_sar_tiny
from crossearth_sar.pretrained import load_backbone

DIM, HIDDEN = 16, 24


@register_expert
class Outsider(ExpertType):
    """(silu(x w_gate^T) * (x w_up^T)) w_down^T, with biases; dense as in DINOv2: w12 for both, then w3."""

    kind = "outsider"
    activations = ("silu",)
    silencing = ("w_down", "b_down")

    def shapes(self, num_experts: int, dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
        up, down = (num_experts, hidden_dim, dim), (num_experts, dim, hidden_dim)
        shapes = {"w_gate": up, "b_gate": up[:2], "w_up": up, "b_up": up[:2]}
        shapes |= {"w_down": down, "b_down": down[:2]}
        return {name: shape for name, shape in shapes.items() if self.bias or name[0] == "w"}

    def forward(self, rows_ND: Tensor, linear: GroupedLinear, weights: Any) -> Tensor:
        gate_NF, up_NF = (linear(rows_ND, weights[f"w_{n}"], weights.get(f"b_{n}")) for n in ("gate", "up"))
        return linear(F.silu(gate_NF) * up_NF, weights["w_down"], weights.get("b_down"))

    def read_dense(self, module: nn.Module, path: str) -> DenseFFN:
        w12, w3 = getattr(module, "w12", None), getattr(module, "w3", None)
        if not isinstance(w12, nn.Linear) or not isinstance(w3, nn.Linear):
            raise InputError(f"{path!r} is no SwiGLU", got=type(module).__name__, expected="w12 and w3")
        return DenseFFN(
            module=module, expert=self, dim=w12.in_features, hidden_dim=w3.in_features,
            weights=dict(module.named_parameters()),
        )  # fmt: skip

    def from_dense(self, name: str, value: Tensor) -> dict[str, Tensor]:
        part, _, kind = name.partition(".")
        letter = {"weight": "w", "bias": "b"}.get(kind)
        if letter is None or part not in ("w12", "w3"):
            return {}
        if part == "w3":
            return {f"{letter}_down": value}
        return dict(zip((f"{letter}_gate", f"{letter}_up"), value.chunk(2), strict=True))


SPEC = ExpertSpec(kind="outsider")


def layer_of(spec: ExpertSpec = SPEC, **options: Any) -> PhysicsGuidedMoE:
    layer = PhysicsGuidedMoE(DIM, HIDDEN, num_experts=4, gate="probability", expert=spec, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer


def by_tokens(layer: PhysicsGuidedMoE, x_BTD: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    """The layer token by token from float64 `leaves`, differentiable; without descriptors."""
    weights = {name.removeprefix("experts."): leaf for name, leaf in leaves.items()}
    rows = []
    for z_D in x_BTD.flatten(0, 1):
        logits_E = leaves["router.weight"][:, :DIM] @ z_D + leaves["router.bias"]
        pi_E = logits_E.softmax(0)
        out_D = torch.zeros_like(z_D)
        for e in pi_E.topk(layer.router.top_k).indices.tolist():
            own = {name: weight[e] for name, weight in weights.items() if not name.startswith("router.")}
            gate_F = own["w_gate"] @ z_D + own["b_gate"]
            hidden_F = gate_F * torch.sigmoid(gate_F) * (own["w_up"] @ z_D + own["b_up"])
            out_D = out_D + pi_E[e] * (own["w_down"] @ hidden_F + own["b_down"])
        rows.append(out_D)
    return torch.stack(rows).view(x_BTD.shape) if rows else x_BTD * 1


@pytest.mark.parametrize("backend", ["auto", "reference", "grouped_mm"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("shape", "unused"), [((2, 9), None), ((3, 7), 2), ((2, 0), None), ((0, 3), None)])
def test_layer_and_every_gradient_against_tokens_one_by_one(
    shape: tuple[int, int], unused: int | None, top_k: int, backend: str
) -> None:
    layer = layer_of(top_k=top_k, backend=backend)
    if unused is not None:
        with torch.no_grad():
            layer.router.bias[unused] = -1e4
    x, dy = torch.randn(2, *shape, DIM).unbind(0)
    x_leaf = x.clone().requires_grad_()
    y, routing = layer(x_leaf)
    y.backward(dy)
    if unused is not None:
        assert routing.expert_fraction[unused] == 0
    leaves = {n: p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    exact_leaf = x.double().requires_grad_()
    exact = by_tokens(layer, exact_leaf, leaves)
    exact.backward(dy.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    assert x_leaf.grad is not None
    torch.testing.assert_close(x_leaf.grad.double(), exact_leaf.grad, rtol=1e-4, atol=1e-4)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient, where zeros were expected"
        want = leaves[name].grad
        want = torch.zeros_like(leaves[name]) if want is None else want
        torch.testing.assert_close(parameter.grad.double(), want, rtol=1e-4, atol=1e-4, msg=name)


def test_without_biases_and_under_autocast() -> None:
    bare = layer_of(ExpertSpec(kind="outsider", bias=False))
    assert {name for name, _ in bare.experts.named_parameters()} == {"w_gate", "w_up", "w_down"}
    x = torch.randn(2, 5, DIM)
    biased = layer_of()
    for name, parameter in biased.named_parameters():
        with torch.no_grad():
            parameter.copy_(bare.get_parameter(name)) if ".b_" not in name else parameter.zero_()
    exact = bare(x)[0]
    torch.testing.assert_close(exact, biased(x)[0])
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = bare(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("backend", ["reference", "grouped_mm"])
def test_compiles_fullgraph(backend: str) -> None:
    layer = layer_of(backend=backend).bfloat16()
    x = torch.randn(1, 7, DIM).bfloat16()
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x)[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_the_reference_composes_by_an_honest_operation(bias: bool) -> None:
    rows, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((9, 4), (3, 5, 4)))
    offsets = torch.tensor([0, 6, 6, 9], dtype=torch.int32)
    leaves = [rows.requires_grad_(), weight.requires_grad_()]
    leaves.append(torch.randn(3, 5, dtype=torch.float64).requires_grad_())
    arguments = (*leaves[:2], leaves[2] if bias else None, offsets)
    torch.library.opcheck(grouped_linear, arguments)

    def run(*given: Tensor) -> Tensor:
        return grouped_linear(*given, *([] if bias else [None]), offsets)

    assert torch.autograd.gradcheck(run, leaves[: 3 if bias else 2], fast_mode=True)


class DenseSwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(DIM, 2 * HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class Swapped(DenseSwiGLU):
    """Has the parts, and takes the wrong half for the gate."""

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class Transformer(nn.Module):
    def __init__(self, mlp: type[nn.Module] = DenseSwiGLU) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(DIM), "mlp": mlp()}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["mlp"](block["norm"](x))
        return x


@pytest.mark.parametrize("shared", [0, 1])
def test_replace_ffn_keeps_the_function_of_a_transformer(shared: int) -> None:
    model, x = Transformer(), torch.randn(2, 7, DIM)
    model.blocks[0]["mlp"].w12.requires_grad_(False)
    before = model(x)
    moe = replace_ffn(model, "*.mlp", num_experts=3, expert=ExpertSpec(kind="outsider", shared=shared))
    for layer in moe.layers.values():
        nn.init.normal_(layer.router.weight)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    first = moe.layers["blocks.0.mlp"]
    frozen = {name for name, p in first.named_parameters() if not p.requires_grad}
    assert frozen == {f"experts.{name}" for name in ("w_gate", "b_gate", "w_up", "b_up")}
    (model(x).square().mean() + moe.balance_loss()).backward()
    assert first.experts.w_down.grad.abs().sum() > 0
    if shared:
        assert first.shared.w_down.grad.abs().sum() > 0, "silent at first, and learns"


def test_noise_of_two_parameters_from_one_tensor_is_not_the_same() -> None:
    models = [Transformer() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    noisy, plain = (
        replace_ffn(model, "*.mlp", expert=SPEC, expert_noise=noise).layers["blocks.1.mlp"].experts
        for model, noise in zip(models, (0.1, 0.0), strict=True)
    )
    gate, up = (getattr(noisy, name) - getattr(plain, name) for name in ("w_gate", "w_up"))
    assert (gate.std(), up.std()) > (0, 0)
    assert abs(torch.corrcoef(torch.stack([gate.flatten(), up.flatten()]))[0, 1]) < 0.2


def test_replace_ffn_refuses_what_is_no_such_ffn() -> None:
    with pytest.raises(InputError, match="computes something else"):
        replace_ffn(Transformer(Swapped), "*.mlp", expert=SPEC)
    with pytest.raises(InputError, match=r"(?s)is a gated FFN \(SwiGLU\).*give expert=ExpertSpec"):
        replace_ffn(Transformer(), "*.mlp")
    with pytest.raises(InputError, match="is no SwiGLU"):
        replace_ffn(nn.Sequential(nn.Linear(3, 3)), "0", expert=SPEC)
    with pytest.raises(InputError, match="does not fill an expert"):
        replace_ffn(Transformer(), "*.mlp", expert=ExpertSpec(kind="outsider", bias=False))


def changes(**expert: Any) -> dict[str, Any]:
    return {**MICRO, "moe": {"num_experts": 3, "expert": {"kind": "outsider", **expert}}}


def test_a_whole_model_trains_is_saved_exported_and_loaded(tmp_path: Path) -> None:
    model = build_model("crossearth_sar_tiny", 3, changes=changes(shared=1))
    image, mask = amplitude(2, 1, 64, 64), label()
    model.loss(model(image), mask).total.backward()
    for name, parameter in model.backbone.named_parameters():
        if ".experts.w_" in name:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
    checkpoint = tmp_path / "run" / "step-000001"
    save_model(model, checkpoint)
    assert json.loads((checkpoint / "config.json").read_text())["moe"]["expert"]["kind"] == "outsider"
    expected = model.predict(image)
    assert torch.equal(load_model(checkpoint).predict(image), expected)
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()}
    state = {"format": 2, "step": 1, "adam_step": 1, "best": None, "sha256": sums, "run": {}}
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    export(checkpoint, tmp_path / "out")
    exported = load_model(tmp_path / "out")
    assert torch.equal(exported.predict(image), expected)
    assert exported.backbone.blocks[0].mlp.experts.expert.kind == "outsider"
    other = build_model("crossearth_sar_tiny", 3, changes=changes(shared=1), weights=checkpoint)
    torch.testing.assert_close(other.backbone.state_dict(), model.backbone.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("expert", [{"kind": "outsider"}, {"kind": "outsider", "shared": 2}, {"bias": False}])
def test_the_planner_counts_what_is_built(expert: dict[str, Any]) -> None:
    config = merge(crossearth_sar_tiny(3), {"moe": {"num_experts": 3, "top_k": 2, "expert": expert}})
    model, counted = (
        build_model("crossearth_sar_tiny", 3, changes=to_mapping(config)),
        count_parameters(config),
    )
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    routed = sum(size for name, size in sizes.items() if ".experts." in name)
    assert counted.total == sum(sizes.values())
    assert counted.experts == routed
    assert counted.active_experts == routed // 3 * 2
    assert counted.backbone == sum(size for name, size in sizes.items() if name.startswith("backbone."))


def test_the_planner_runs_it_on_tensors_without_data() -> None:
    """It saves four hidden rows a token: gate, its silu, up and their product; an FFN saves one."""
    ffn, swiglu = (
        activation_bytes(
            merge(crossearth_sar_tiny(3), {**MICRO, "moe": {"expert": {"kind": kind}}}),
            bf16=False, checkpointing=False,
        )
        for kind in ("ffn", "outsider")
    )  # fmt: skip
    hidden_rows = 4 * 65 * 4 * 32 * 4  # blocks, tokens, four times the width, bytes
    assert 3 * hidden_rows <= swiglu - ffn <= 4 * hidden_rows


def test_matrices_decay_and_biases_do_not() -> None:
    layer = layer_of(ExpertSpec(kind="outsider", shared=1))
    names = {id(p): name for name, p in layer.named_parameters()}
    decayed = {names[id(p)] for g in parameter_groups(layer, 0.05) if g["weight_decay"] for p in g["params"]}
    matrices = {f"{stack}.w_{n}" for stack in ("experts", "shared") for n in ("gate", "up", "down")}
    assert decayed == {"router.weight", *matrices}


def test_a_setting_reaches_it() -> None:
    asked = parse_overrides(["moe.expert.kind=outsider", "moe.expert.bias=false"])
    config = merge(crossearth_sar_tiny(3), asked)
    assert config.moe is not None
    assert config.moe.expert == ExpertSpec(kind="outsider", bias=False)
    assert from_mapping(ModelConfig, to_mapping(config)) == config
    with pytest.raises(InputError, match=r"unknown expert type 'outsidr' \(did you mean 'outsider'"):
        merge(crossearth_sar_tiny(3), parse_overrides(["moe.expert.kind=outsidr"]))
    with pytest.raises(InputError, match=r"(?s)activation.*silu"):
        merge(crossearth_sar_tiny(3), {"moe": {"expert": {"kind": "outsider", "activation": "relu"}}})


def split_experts() -> list[str]:
    """On a rank: what differs between split experts of this type and whole ones."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    torch.manual_seed(3)
    plain = layer_of(top_k=2, backend="reference")
    split = layer_of(top_k=2, backend="reference")
    split.load_state_dict(plain.state_dict())
    split.experts = ExpertParallelExperts(split.experts, dist.group.WORLD)
    rank, outputs = dist.get_rank(), []
    xs = [torch.randn(1, tokens, DIM) for tokens in (5, 0)]
    for layer, own in ((split, xs[rank : rank + 1]), (plain, xs)):
        outputs.append([layer(x)[0] for x in own])
        torch.stack([y.square().sum() for y in outputs[-1]]).sum().backward()
    pairs = {"y": (outputs[0][0], outputs[1][rank])}
    for name, parameter in split.experts.named_parameters():
        whole = plain.experts.get_parameter(name).grad
        assert whole is not None
        assert parameter.grad is not None
        pairs[name] = (parameter.grad, whole[2 * rank : 2 * rank + 2])
    return [name for name, (got, want) in pairs.items() if not torch.allclose(got, want, atol=1e-5)]


def test_experts_split_among_ranks() -> None:
    assert shared_pool(2)(split_experts) == [[], []]


def test_a_backend_without_the_type_is_refused_and_auto_passes_it_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert {s.name for s in moe_backend_status() if s.usable} >= {"triton"}
    with pytest.raises(InputError, match=r"its kernels are for .*'ffn'.*not 'outsider'"):
        layer_of(backend="triton")
    monkeypatch.setattr("crossearth_sar.backend.TRITON_MEASURED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert (resolve_moe_backend("auto"), resolve_moe_backend("auto", 16, 16, "outsider")) == (
        "triton",
        "grouped_mm",
    )


def test_every_backend_of_the_chooser_is_an_object() -> None:
    assert set(BACKENDS) == set(MOE_BACKENDS)
    assert all(backend.name == name for name, backend in BACKENDS.items())


def test_refuses_a_kind_that_is_taken_and_an_activation_said_twice() -> None:
    with pytest.raises(InputError, match="an expert type 'outsider' already"):
        register_expert(type("Other", (Outsider,), {}))
    assert register_expert(Outsider) is Outsider, "the same once more changes nothing"
    with pytest.raises(InputError, match="said twice"):
        PhysicsGuidedMoE(DIM, activation="relu", expert=SPEC)


# The type «ffn» and its options


def test_ffn_without_biases_is_ffn_with_biases_of_zero() -> None:
    x = torch.randn(2, 9, DIM)
    for backend in ("reference", "grouped_mm"):
        bare = layer_of(ExpertSpec(bias=False), backend=backend)
        biased = layer_of(ExpertSpec(), backend=backend)
        with torch.no_grad():
            for name, parameter in biased.named_parameters():
                parameter.zero_() if name in ("experts.b1", "experts.b2") else parameter.copy_(
                    bare.get_parameter(name)
                )
        outputs = [layer(x)[0] for layer in (bare, biased)]
        assert torch.equal(*outputs)
        for y in outputs:
            y.square().sum().backward()
        for name, parameter in bare.named_parameters():
            assert torch.equal(parameter.grad, biased.get_parameter(name).grad), name  # type: ignore[arg-type]


def test_a_shared_expert_is_added_for_every_token() -> None:
    layer, x = layer_of(ExpertSpec(shared=2)), torch.randn(2, 9, DIM)
    y, _ = layer(x)
    w1, b1, w2, b2 = layer.shared.weights().values()
    assert w1.shape == (1, 2 * HIDDEN, DIM)
    added = F.gelu(x @ w1[0].T + b1[0]) @ w2[0].T + b2[0]
    layer.shared = None
    torch.testing.assert_close(y, layer(x)[0] + added)
    fresh = PhysicsGuidedMoE(DIM, expert=ExpertSpec(shared=1))
    assert not fresh.shared(x).any()
    with pytest.raises(InputError, match="shared"):
        ExpertSpec(shared=-1)


def test_dense_weights_become_experts_only_with_their_activation(tmp_path: Path) -> None:
    dense = build_model("crossearth_sar_tiny", 3, changes=MICRO, sparse=False)
    save_model(dense, tmp_path)
    moe = {"expert": {"shared": 1}}
    sparse = build_model("crossearth_sar_tiny", 3, changes={**MICRO, "moe": moe}, weights=tmp_path)
    image = amplitude(1, 1, 64, 64)
    for ours, theirs in zip(
        sparse.features(image).feature_maps, dense.features(image).feature_maps, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    other = build_model(
        "crossearth_sar_tiny", 3, changes={**MICRO, "moe": {"expert": {"activation": "relu"}}}
    )
    with pytest.raises(InputError, match="another activation"):
        load_backbone(other, tmp_path)
    assert MoEConfig().expert == ExpertSpec()
    assert set(upcycle_state_dict({"a.mlp.fc1.weight": torch.ones(2, 3)}, 4, expert=SPEC)) == {
        "a.mlp.fc1.weight"
    }
