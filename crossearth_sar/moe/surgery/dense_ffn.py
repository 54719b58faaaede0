"""Recognises a dense feed-forward network in somebody else's model; makes the MoE layer that starts as it.

By structure, not by class: fc1, one activation, fc2, as in timm's Mlp and transformers' Dinov2MLP. What the
module computes is then compared with fc2(activation(fc1(x))), so that a look-alike is refused.

D dim, F hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.moe.router import Gate, PhysicsGuidedRouter
from crossearth_sar.moe.surgery.upcycle import upcycle_state_dict

GATED_NAMES = {"w12", "w3", "weights_in", "gate_proj", "gate_up_proj", "fc1_g"}
"""Children that only a gated (SwiGLU, GLU) network has, in DINOv2, transformers and timm."""

WANTED = "fc1, an activation and fc2 in one module, called as mlp(x) -> y"


@dataclass(frozen=True, kw_only=True)
class DenseFFN:
    """fc2(activation(fc1(x))): fc1 (D -> F), fc2 (F -> D); activation a key of ACTIVATIONS."""

    module: nn.Module
    fc1: nn.Linear
    fc2: nn.Linear
    activation: str


@dataclass(frozen=True, kw_only=True)
class MoEOptions:
    """What `replace_ffn` was asked for; see there."""

    num_experts: int
    top_k: int
    num_descriptors: int
    gate: Gate
    expert_noise: float
    seed: int
    backend: str


def read_dense_ffn(module: nn.Module, path: str) -> DenseFFN:
    """The parts of the FFN at `path`.

    Raises:
        InputError: if it is anything else, saying what.
    """
    fc1, fc2 = _linears(module, path)
    activation = activation_name(_find_activation(module, path), path)
    ffn = DenseFFN(module=module, fc1=fc1, fc2=fc2, activation=activation)
    _check_it_computes_that(ffn, path)
    return ffn


def activation_name(activation: Callable[[Tensor], Tensor], path: str) -> str:
    """The key of ACTIVATIONS that `activation` is, told by its values: one function has many class names.

    Raises:
        InputError: if it is none of them.
    """
    points = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e4, -100.0, 100.0, 1e4])])
    with torch.no_grad():
        got = activation(points.clone())  # it may work in place
    for name, function in ACTIVATIONS.items():
        if torch.allclose(got, function(points), rtol=1e-5, atol=2e-6):
            return name
    raise InputError(
        f"the activation of {path!r} is not one the experts have",
        got=repr(activation),
        expected=" | ".join(ACTIVATIONS),
    )


def upcycled(dense: DenseFFN, path: str, options: MoEOptions) -> PhysicsGuidedMoE:
    """The MoE layer whose every expert is `dense`, in its dtype, on its device, frozen where it is frozen.

    A missing bias becomes zeros. The router is new, drawn from torch's global generator.
    """
    dim, hidden_dim = dense.fc1.in_features, dense.fc1.out_features
    with torch.device("meta"):  # E fresh experts would be initialised only to be thrown away
        moe = PhysicsGuidedMoE(
            dim,
            hidden_dim,
            num_experts=options.num_experts,
            top_k=options.top_k,
            num_descriptors=options.num_descriptors,
            gate=options.gate,
            activation=dense.activation,
            backend=options.backend,
        )
    weight = dense.fc1.weight
    moe.router = PhysicsGuidedRouter(
        dim,
        options.num_experts,
        top_k=options.top_k,
        num_descriptors=options.num_descriptors,
        gate=options.gate,
    ).to(weight.device, weight.dtype)
    linears = {"fc1": dense.fc1, "fc2": dense.fc2}
    prefix = path.replace(".", "/") + ".mlp."  # the noise depends on the path; ".mlp." is upcycle's marker
    state: dict[str, Tensor] = {}
    for name, linear in linears.items():
        bias = linear.bias if linear.bias is not None else weight.new_zeros(linear.out_features)
        state |= {f"{prefix}{name}.weight": linear.weight.detach(), f"{prefix}{name}.bias": bias.detach()}
    stacked = upcycle_state_dict(
        state, options.num_experts, expert_noise=options.expert_noise, seed=options.seed
    )
    experts = {key.rpartition(".")[2]: value for key, value in stacked.items()}
    moe.experts.load_state_dict(experts, assign=True)
    for name, linear in zip(("1", "2"), linears.values(), strict=True):
        moe.experts.get_parameter(f"w{name}").requires_grad_(linear.weight.requires_grad)
        trainable = linear.bias is None or linear.bias.requires_grad
        moe.experts.get_parameter(f"b{name}").requires_grad_(trainable)
    return moe.train(dense.module.training)


def _linears(module: nn.Module, path: str) -> tuple[nn.Linear, nn.Linear]:
    children = dict(module.named_children())
    if isinstance(module, PhysicsGuidedMoE) or isinstance(children.get("moe"), PhysicsGuidedMoE):
        raise InputError(f"{path!r} is a mixture of experts already", fix="give a pattern without it")
    if found := sorted(GATED_NAMES & children.keys()):
        raise InputError(
            f"{path!r} is a gated FFN (SwiGLU)",
            got=f"children {', '.join(found)}",
            expected=WANTED,
            fix="the experts are linear, activation, linear: take a model without gated FFNs",
        )
    fc1, fc2 = children.get("fc1"), children.get("fc2")
    # Exactly nn.Linear: quantised, parametrised and LoRA layers compute something else with their weight.
    if type(fc1) is not nn.Linear or type(fc2) is not nn.Linear:
        raise InputError(
            f"{path!r} is not a dense FFN",
            got=f"{type(module).__name__} with children {', '.join(children) or 'none'}",
            expected=f"{WANTED}, both plain nn.Linear",
            fix="an FFN split into two modules, as BERT's intermediate and output, is not one mlp(x) -> y: "
            "wrap it in one first"
            if "dense" in children
            else None,
        )
    if fc1.out_features != fc2.in_features or fc2.out_features != fc1.in_features:
        raise InputError(
            f"fc1 and fc2 of {path!r} do not fit each other (a gated FFN?)",
            got=f"{fc1.in_features} -> {fc1.out_features}, {fc2.in_features} -> {fc2.out_features}",
            expected="D -> F, F -> D",
        )
    if {(p.dtype, p.device) for p in fc2.parameters()} != {(fc1.weight.dtype, fc1.weight.device)}:
        raise InputError(
            f"fc1 and fc2 of {path!r} differ in dtype or device", fix="bring them together first"
        )
    return fc1, fc2


def _find_activation(module: nn.Module, path: str) -> nn.Module:
    others = {name: child for name, child in module.named_children() if name not in ("fc1", "fc2")}
    for name, child in others.items():
        if isinstance(child, nn.modules.dropout._DropoutNd) and child.p > 0:
            raise InputError(
                f"{path}.{name} drops out, which the experts do not",
                got=f"p = {child.p}",
                expected="p = 0",
                fix=f"set model.get_submodule({f'{path}.{name}'!r}).p = 0 if training without it is meant",
            )
    passive = (nn.Identity, nn.modules.dropout._DropoutNd)
    rest = {name: child for name, child in others.items() if not isinstance(child, passive)}
    if len(rest) != 1:
        raise InputError(
            f"{path!r} is not a dense FFN",
            got=f"besides fc1 and fc2: {', '.join(rest) or 'nothing'}",
            expected="one activation module (dropout with p = 0 and Identity are passed over)",
        )
    return next(iter(rest.values()))


@torch.no_grad()
def _check_it_computes_that(ffn: DenseFFN, path: str) -> None:
    weight = ffn.fc1.weight
    if weight.device.type == "meta":
        return
    steps = torch.arange(4 * ffn.fc1.in_features, device=weight.device, dtype=torch.float32)
    x_BTD = (steps * 0.7).sin().view(1, 4, -1).to(weight.dtype)
    expected = ffn.fc2(ACTIVATIONS[ffn.activation](ffn.fc1(x_BTD)))
    problem = f"{path!r} is not called as mlp(x) -> y"
    try:
        got = ffn.module(x_BTD)
    except TypeError as error:
        raise InputError(problem, got=str(error), expected=WANTED) from error
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        raise InputError(problem, got=f"a {type(got).__name__} from it", expected="a tensor shaped as x")
    # Wide: half precision rounds, while a residual, a norm or a scale shows at once.
    if not torch.allclose(got, expected, rtol=0.02, atol=0.02 * float(expected.abs().max())):
        raise InputError(
            f"{path!r} computes something else than fc2(activation(fc1(x)))",
            got=f"a difference of up to {float((got - expected).abs().max()):.2g}",
            expected=WANTED,
        )
