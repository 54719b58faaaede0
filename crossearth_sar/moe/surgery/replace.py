"""`replace_ffn`: puts PhysicsGuidedMoE into somebody else's transformer, where mlp(x) -> y is expected.

    moe = replace_ffn(model, "encoder.layer.*.mlp", descriptors=lambda model, pixel_values: ...)
    output = model(pixel_values)
    loss = task_loss(output) + moe.balance_loss()

The signature leaves no room for descriptors on the way in nor for the routing on the way out, so both pass
through the returned ReplacedFFN (handle.py).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.expert_spec import ExpertSpec
from crossearth_sar.moe.expert_types import DenseFFN
from crossearth_sar.moe.router import Gate
from crossearth_sar.moe.surgery.dense_ffn import MoEOptions, read_dense_ffn, upcycled
from crossearth_sar.moe.surgery.handle import Describe, ReplacedFFN, RoutedFFN
from crossearth_sar.moe.surgery.record import note_replacement, options_of


def replace_ffn(
    model: nn.Module,
    pattern: str | Sequence[str],
    *,
    num_experts: int = 6,
    top_k: int = 1,
    num_descriptors: int = 3,
    gate: Gate = "normalized",
    expert: ExpertSpec | None = None,
    descriptors: Describe | None = None,
    expert_noise: float = 0.0,
    seed: int = 0,
    backend: str = "auto",
) -> ReplacedFFN:
    """Replaces dense FFNs of `model`, in place, by mixtures whose every expert starts as the FFN it replaces.

    With the "normalized" or "straight_through" gate and no noise the model computes at once what it did. An
    FFN is fc1, one activation (GELU, its tanh form, ReLU) and fc2 in one module, as in timm's Mlp and
    transformers' Dinov2MLP; or what the type of `expert` reads. Dropout inside it is refused unless its p is
    0: the experts have none. dtype, device, training mode and frozen weights follow the dense FFN; parameters
    are then called `<path>.moe.router.*` and `<path>.moe.experts.*`. Replace before the optimizer,
    DistributedDataParallel or FSDP see the model. Nothing is replaced if anything is refused.

    Args:
        pattern: shell-style pattern(s) on module paths, such as "encoder.layer.*.mlp" or "blocks.*.mlp"; *
            also matches dots. What lies inside a module that matches is passed over.
        num_experts, top_k, num_descriptors, gate, backend: as of PhysicsGuidedMoE.
        expert: what an expert is; its activation is read from the model.
        descriptors: called with the model and what it is called with, before it runs; gives standardised
            descriptors (B, P), or None for none. The model is handed over so that a copy of it is described
            by what the copy holds. Not given, `with moe.batch(descriptors): ...` gives them; where neither
            ever did, routers see zeros.
        expert_noise, seed: as of `upcycle_state_dict`; 0 keeps the dense function exactly.

    Raises:
        InputError: if nothing matches, or a match is not such an FFN.
    """
    options = MoEOptions(
        num_experts, top_k, num_descriptors, gate, expert or ExpertSpec(), expert_noise, seed, backend
    )
    return _replace(model, _matches(model, pattern), options, ReplacedFFN(descriptors))


def replace_again(model: nn.Module, call: Mapping[str, Any], describe: Describe | None) -> ReplacedFFN:
    """What a saved call of replace_ffn did, on a fresh model of that kind (saved.py)."""
    modules = {path: model.get_submodule(path) for path in call["paths"]}
    return _replace(model, modules, options_of(call), ReplacedFFN(describe))


def _replace(
    model: nn.Module, matches: dict[str, nn.Module], options: MoEOptions, owner: ReplacedFFN
) -> ReplacedFFN:
    dense = {path: read_dense_ffn(module, path, options.expert) for path, module in matches.items()}
    made = _make(dense, options, owner)
    for path, ffn in dense.items():
        model.set_submodule(path, made[id(ffn.module)])
    note_replacement(model, list(dense), options)
    model.register_forward_pre_hook(owner._before_model, with_kwargs=True)
    model.register_forward_hook(owner._after_model, always_call=True)
    return owner


def _make(dense: dict[str, DenseFFN], options: MoEOptions, owner: ReplacedFFN) -> dict[int, RoutedFFN]:
    """A layer per distinct module: one that stands at several paths stays shared, under its first."""
    made: dict[int, RoutedFFN] = {}
    for path, ffn in dense.items():
        if id(ffn.module) not in made:
            routed = RoutedFFN(upcycled(ffn, path, options), owner)
            routed.train(ffn.module.training)
            made[id(ffn.module)] = owner._layers[path] = routed
    return made


def _matches(model: nn.Module, pattern: str | Sequence[str]) -> dict[str, nn.Module]:
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    modules = {path: m for path, m in model.named_modules(remove_duplicate=False) if path}
    found: dict[str, nn.Module] = {}
    for one in patterns:
        matching = {path: m for path, m in modules.items() if fnmatch.fnmatchcase(path, one)}
        if not matching:
            ffns = [path for path, m in modules.items() if hasattr(m, "fc1") and hasattr(m, "fc2")]
            near = difflib.get_close_matches(one, ffns or modules, n=3, cutoff=0.0)
            raise InputError(
                "no module matches the pattern",
                got=repr(one),
                expected=f"the path of an FFN, such as {', '.join(near)}; * for any part",
            )
        found |= matching
    inner = {path for path in found if any(path.startswith(f"{other}.") for other in found)}
    return {path: m for path, m in modules.items() if path in found and path not in inner}
