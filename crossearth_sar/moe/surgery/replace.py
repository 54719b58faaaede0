"""`replace_ffn`: puts PhysicsGuidedMoE into somebody else's transformer, where mlp(x) -> y is expected.

    moe = replace_ffn(model, "encoder.layer.*.mlp", descriptors=lambda pixel_values: describe(pixel_values))
    output = model(pixel_values)
    loss = task_loss(output) + moe.balance_loss()

The signature leaves no room for descriptors on the way in nor for the routing on the way out, so both pass
through the returned ReplacedFFN: it belongs to one model, and holds what its last forward decided.

B batch, T tokens, D dim, P descriptors, H W rows and columns of tokens.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.expert_spec import ExpertSpec
from crossearth_sar.moe.expert_types import DenseFFN
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.moe.router import Gate, RoutingInfo
from crossearth_sar.moe.surgery.dense_ffn import MoEOptions, read_dense_ffn, upcycled

Describe = Callable[..., Tensor | None]


class RoutedFFN(nn.Module):
    """mlp(x) -> y over a PhysicsGuidedMoE (its child `moe`), for the ReplacedFFN that made it."""

    def __init__(self, moe: PhysicsGuidedMoE, owner: ReplacedFFN) -> None:
        super().__init__()
        self.moe = moe
        self._owner = owner

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) or (B, H, W, D) -> the same shape."""
        if x.ndim not in (3, 4):
            raise InputError(
                "tokens do not fit the layer",
                got=f"shape {tuple(x.shape)}",
                expected="(B, T, D) or (B, H, W, D)",
            )
        x_BTD = x.flatten(1, 2) if x.ndim == 4 else x
        y_BTD, routing = self.moe(x_BTD, self._owner._descriptors_now())
        self._owner._record(routing)
        return y_BTD.view(x.shape)


class ReplacedFFN:
    """The MoE layers that `replace_ffn` put into one model, and the routing of its last forward.

    A forward is a call of the model, or a `with moe.batch(...)` block around calls of its methods. The
    routing is cleared when the next one begins. Recomputation by activation checkpointing adds nothing to
    it and sees the descriptors of the last forward that had gradients enabled; with several forwards before
    one backward, pass `moe.checkpoint_context` as `context_fn` of torch.utils.checkpoint.

    torch.compile takes the model in one graph. Checkpointing around a compiled model begins the routing anew
    as it recomputes: take `balance_loss()` before the backward there. Checkpoints within it break the graph.

    One thread at a time. `copy.deepcopy((model, moe))` copies both, bound to each other; the routing and
    its graph stay behind.
    """

    def __init__(self, describe: Describe | None) -> None:
        self._describe = describe
        self._layers: dict[str, RoutedFFN] = {}
        self._routing: list[RoutingInfo] = []
        self._had_gradients = False
        self._running = False
        self._in_batch = False
        self._descriptors: Tensor | None = None
        self._descriptors_were_given = False
        self._descriptors_of_graph: Tensor | None = None
        self._recomputing: _Recomputing | None = None

    @property
    def layers(self) -> dict[str, PhysicsGuidedMoE]:
        """By the path of the FFN each replaced, in the order of the model's modules."""
        return {path: routed.moe for path, routed in self._layers.items()}

    def routing(self) -> tuple[RoutingInfo, ...]:
        """What the last forward decided, in the order in which its layers ran; empty before the first."""
        return tuple(self._routing)

    def balance_loss(self, weight: float = 0.005) -> Tensor:
        """The sum of eq. (12) over the layers that ran in the last forward.

        Raises:
            InputError: if no layer ran, or if the layers ran without a graph although gradients were
                enabled, as under reentrant checkpointing: the loss would silently train nothing.
        """
        if not self._routing:
            raise InputError(
                "no routing to balance", fix="call the model first: moe.routing() holds its last"
            )
        if self._had_gradients and any(self._lacks_graph(routing) for routing in self._routing):
            raise InputError(
                "the routing has no graph: the layers ran under no_grad inside a forward with gradients",
                fix="checkpoint with use_reentrant=False, or sum moe.routing()'s balance_loss yourself",
            )
        return torch.stack([routing.balance_loss(weight) for routing in self._routing]).sum()

    @contextmanager
    def batch(self, descriptors_BP: Tensor | None = None) -> Iterator[None]:
        """One forward, with these descriptors (B, P), standardised; None counts as zeros, their mean.

        Around a call of the model they go before those that `descriptors=` of replace_ffn would compute.
        Needed around methods that are not the model's own call, such as timm's forward_features.
        """
        if self._in_batch:
            raise InputError("a batch within a batch", fix="open one `with moe.batch(...)` at a time")
        self._in_batch, self._descriptors_were_given = True, descriptors_BP is not None
        self._begin(descriptors_BP)
        try:
            yield
        finally:
            self._in_batch = False
            self._end()

    def checkpoint_context(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` for torch.utils.checkpoint: recomputes with the descriptors of this very forward."""
        return nullcontext(), _Recomputing(self, self._descriptors)

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._in_batch and (self._descriptors_were_given or self._describe is None):
            return
        descriptors_BP = None if self._describe is None else self._describe(*args, **kwargs)
        if self._in_batch:
            self._use(descriptors_BP)
        else:
            self._begin(descriptors_BP)

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._in_batch:
            self._end()

    def _begin(self, descriptors_BP: Tensor | None) -> None:
        self._running = True
        if not _in_backward():  # where checkpointing recomputes the whole model
            self._routing = []
            self._had_gradients = torch.is_grad_enabled()
        self._use(descriptors_BP)

    def _use(self, descriptors_BP: Tensor | None) -> None:
        self._descriptors = descriptors_BP
        if torch.is_grad_enabled() and not _in_backward():
            self._descriptors_of_graph = descriptors_BP

    def _end(self) -> None:
        self._running = False
        self._descriptors = None

    def _descriptors_now(self) -> Tensor | None:
        if self._recomputing is not None:
            return self._recomputing.descriptors_BP
        if self._running:
            return self._descriptors
        if _in_backward():
            return self._descriptors_of_graph
        raise InputError(
            "a replaced FFN ran outside a forward of its model: no descriptors, and no place for its routing",
            fix="call the model itself, or wrap the call: with moe.batch(descriptors): ...",
        )

    def _record(self, routing: RoutingInfo) -> None:
        if not _in_backward():
            self._routing.append(routing)

    def _lacks_graph(self, routing: RoutingInfo) -> bool:
        trained = any(routed.moe.router.weight.requires_grad for routed in self._layers.values())
        return trained and not routing.expert_probability.requires_grad

    def __getstate__(self) -> dict[str, Any]:
        return {"describe": self._describe, "layers": self._layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(ReplacedFFN(state["describe"]).__dict__)
        self._layers = state["layers"]

    def __repr__(self) -> str:
        return f"ReplacedFFN({', '.join(self._layers)})"


class _Recomputing(AbstractContextManager[None]):
    """Brings a forward's descriptors back, as often as its graph is walked."""

    def __init__(self, owner: ReplacedFFN, descriptors_BP: Tensor | None) -> None:
        self._owner, self.descriptors_BP = owner, descriptors_BP

    def __enter__(self) -> None:
        self._owner._recomputing = self

    def __exit__(self, *exception: object) -> None:
        self._owner._recomputing = None


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
        descriptors: called with what the model is called with, before it runs; gives standardised
            descriptors (B, P), or None for none. Not given, `with moe.batch(descriptors): ...` gives them;
            without both, routers see zeros.
        expert_noise, seed: as of `upcycle_state_dict`; 0 keeps the dense function exactly.

    Raises:
        InputError: if nothing matches, or a match is not such an FFN.
    """
    options = MoEOptions(
        num_experts, top_k, num_descriptors, gate, expert or ExpertSpec(), expert_noise, seed, backend
    )
    return _replace(model, _matches(model, pattern), options, ReplacedFFN(descriptors))


def _replace(
    model: nn.Module, matches: dict[str, nn.Module], options: MoEOptions, owner: ReplacedFFN
) -> ReplacedFFN:
    dense = {path: read_dense_ffn(module, path, options.expert) for path, module in matches.items()}
    made = _make(dense, options, owner)
    for path, ffn in dense.items():
        model.set_submodule(path, made[id(ffn.module)])
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


def _in_backward() -> bool:
    """Whether autograd is running this code: a forward then is a recomputation by checkpointing."""
    if torch.compiler.is_compiling():  # the question would break the graph, and what is compiled is a forward
        return False
    return torch._C._current_graph_task_id() != -1
