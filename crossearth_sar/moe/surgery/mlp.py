"""Reads a dense feed-forward network of two linear maps and one activation: timm's Mlp, transformers'
Dinov2MLP and DINOv3ViTMLP, SAM's MLPBlock. By structure, neither by class nor by the names of its parts.

D dim, F hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.activations import ACTIVATIONS

GATED_NAMES = {"w12", "w3", "weights_in", "gate_proj", "gate_up_proj", "fc1_g"}
"""Children that only a gated (SwiGLU, GLU) network has, in DINOv2, transformers and timm."""

WANTED = "linear, an activation and linear in one module, called as mlp(x) -> y"


def read_mlp(module: nn.Module, path: str) -> tuple[nn.Linear, nn.Linear, str]:
    """The first linear map (D -> F), the second (F -> D) and the activation between them, a key of
    ACTIVATIONS, of the FFN at `path`.

    Raises:
        InputError: if it is anything else, saying what.
    """
    first, second = _linears(module, path)
    return first, second, activation_name(find_activation(module, path), path)


def activation_name(
    activation: Callable[[Tensor], Tensor],
    path: str,
    known: Mapping[str, Callable[[Tensor], Tensor]] = ACTIVATIONS,
) -> str:
    """The key of `known` that `activation` is, told by its values: one function has many class names.

    Raises:
        InputError: if it is none of them.
    """
    with torch.no_grad(), torch.device("cpu"):  # whatever device the model is being built on
        points = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e4, -100.0, 100.0, 1e4])])
        got = activation(points.clone())  # it may work in place
        for name, function in known.items():
            if torch.allclose(got, function(points), rtol=1e-5, atol=2e-6):
                return name
    raise InputError(
        f"the activation of {path!r} is not one the experts have",
        got=repr(activation),
        expected=" | ".join(known),
    )


def _linears(module: nn.Module, path: str) -> tuple[nn.Linear, nn.Linear]:
    children = dict(module.named_children())
    if found := sorted(GATED_NAMES & children.keys()):
        raise InputError(
            f"{path!r} is a gated FFN (SwiGLU)",
            got=f"children {', '.join(found)}",
            expected=WANTED,
            fix='give expert=ExpertSpec(kind="swiglu"), whose experts are gated too',
        )
    # Exactly nn.Linear: quantised, parametrised and LoRA layers compute something else with their weight.
    linears = {name: child for name, child in children.items() if isinstance(child, nn.Linear)}
    if len(linears) != 2 or any(type(child) is not nn.Linear for child in linears.values()):
        raise InputError(
            f"{path!r} is not a dense FFN",
            got=f"{type(module).__name__} with children {', '.join(children) or 'none'}",
            expected=f"{WANTED}, both plain nn.Linear",
            fix="an FFN split into two modules, as BERT's intermediate and output, is not one mlp(x) -> y: "
            "wrap it in one first"
            if "dense" in children
            else None,
        )
    names, (first, second) = list(linears), linears.values()
    if first.out_features != second.in_features or second.out_features != first.in_features:
        raise InputError(
            f"{' and '.join(names)} of {path!r} do not fit each other (a gated FFN?)",
            got=", ".join(f"{layer.in_features} -> {layer.out_features}" for layer in (first, second)),
            expected="D -> F, F -> D",
        )
    if {(p.dtype, p.device) for p in second.parameters()} != {(first.weight.dtype, first.weight.device)}:
        raise InputError(
            f"{' and '.join(names)} of {path!r} differ in dtype or device", fix="bring them together first"
        )
    return first, second


def find_activation(module: nn.Module, path: str) -> nn.Module:
    """The one child that is neither linear nor passive.

    Raises:
        InputError: for none, for several, and for dropout that drops.
    """
    others = {name: child for name, child in module.named_children() if not isinstance(child, nn.Linear)}
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
            got=f"besides its linear maps: {', '.join(rest) or 'nothing'}",
            expected="one activation module (dropout with p = 0 and Identity are passed over)",
        )
    return next(iter(rest.values()))
