"""Reads a dense feed-forward network of the form fc1, one activation, fc2, as in timm's Mlp and transformers'
Dinov2MLP. By structure, not by class.

D dim, F hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS

GATED_NAMES = {"w12", "w3", "weights_in", "gate_proj", "gate_up_proj", "fc1_g"}
"""Children that only a gated (SwiGLU, GLU) network has, in DINOv2, transformers and timm."""

WANTED = "fc1, an activation and fc2 in one module, called as mlp(x) -> y"


def read_mlp(module: nn.Module, path: str) -> tuple[nn.Linear, nn.Linear, str]:
    """fc1 (D -> F), fc2 (F -> D) and the activation between them, a key of ACTIVATIONS, of the FFN at `path`.

    Raises:
        InputError: if it is anything else, saying what.
    """
    fc1, fc2 = _linears(module, path)
    return fc1, fc2, activation_name(_find_activation(module, path), path)


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


def _linears(module: nn.Module, path: str) -> tuple[nn.Linear, nn.Linear]:
    children = dict(module.named_children())
    if found := sorted(GATED_NAMES & children.keys()):
        raise InputError(
            f"{path!r} is a gated FFN (SwiGLU)",
            got=f"children {', '.join(found)}",
            expected=WANTED,
            fix="these experts are linear, activation, linear: give the type that reads it as expert=, "
            "or take a model without gated FFNs",
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
