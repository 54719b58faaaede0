"""What `replace_ffn` leaves in a model and returns: the layers, what they are told, what they decided.

B batch, T tokens, D dim, P descriptors, H W rows and columns of tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.moe.router import RoutingInfo

Describe = Callable[..., Tensor | None]
"""(model, *what the model is called with) -> standardised descriptors (B, P), or None for none."""


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
        # The router's part in the output is 0: whoever looks for what a loss reaches, as DDP does, finds it
        # there although its gradient comes by the balance loss; and a router that is NaN shows.
        return (y_BTD + 0 * routing.expert_probability.sum().to(y_BTD.dtype)).view(x.shape)


class _Forward:
    """A forward of one thread, the last: what its layers are told, and what they decided."""

    def __init__(self) -> None:
        self.routing: list[RoutingInfo] = []
        self.had_gradients = False
        self.running = False
        self.in_batch = False
        self.layers_ran = False
        self.descriptors: Tensor | None = None
        self.descriptors_were_given = False
        self.recomputing: _Recomputing | None = None


class ReplacedFFN:
    """The MoE layers that `replace_ffn` put into one model, and the routing of its last forward.

    A forward is a call of the model, or a `with moe.batch(...)` block around calls of its methods. The
    routing is cleared when the next one begins. Recomputation by activation checkpointing adds nothing to
    it and sees the descriptors of the last forward that had gradients enabled; with several forwards before
    one backward, pass `moe.checkpoint_context` as `context_fn` of torch.utils.checkpoint.

    A copy of the model (copy.deepcopy, an average of its weights, a pickle) has a handle of its own,
    `ReplacedFFN.of(copy)`, without routing. Threads may call one model at once: each sees its own forward.

    torch.compile takes the model in one graph. Checkpointing around a compiled model begins the routing anew
    as it recomputes: take `balance_loss()` before the backward there. Checkpoints within it break the graph.
    """

    def __init__(self, describe: Describe | None) -> None:
        self._describe = describe
        self._layers: dict[str, RoutedFFN] = {}
        self._forwards: dict[int, _Forward] = {}
        self._descriptors_of_graph: Tensor | None = None
        self._met_descriptors = False

    @staticmethod
    def of(model: nn.Module) -> ReplacedFFN:
        """The handle of a model, a copy, or a part of one.

        Raises:
            InputError: where no FFN of it was replaced, or several calls of replace_ffn did it.
        """
        found = {id(m._owner): m._owner for m in model.modules() if isinstance(m, RoutedFFN)}
        if len(found) != 1:
            raise InputError(
                f"{type(model).__name__} has {len(found)} handles of replaced FFNs",
                expected="one",
                fix="ask a part of the model that one replace_ffn changed" if found else "call replace_ffn",
            )
        return next(iter(found.values()))

    @property
    def layers(self) -> dict[str, PhysicsGuidedMoE]:
        """By the path of the FFN each replaced, in the order of the model's modules."""
        return {path: routed.moe for path, routed in self._layers.items()}

    def routing(self) -> tuple[RoutingInfo, ...]:
        """What this thread's last forward decided, in the order in which its layers ran; empty before it.

        Kept, graph included, until the next forward of a thread of that number.
        """
        return tuple(self._forward().routing)

    def balance_loss(self, weight: float = 0.005) -> Tensor:
        """The sum of eq. (12) over the layers that ran in the last forward.

        Raises:
            InputError: if no layer ran, or if the layers ran without a graph although gradients were
                enabled, as under reentrant checkpointing: the loss would silently train nothing.
        """
        forward = self._forward()
        if not forward.routing:
            raise InputError(
                "no routing to balance", fix="call the model first: moe.routing() holds its last"
            )
        if forward.had_gradients and any(self._lacks_graph(routing) for routing in forward.routing):
            raise InputError(
                "the routing has no graph: the layers ran under no_grad inside a forward with gradients",
                fix="checkpoint with use_reentrant=False, or sum moe.routing()'s balance_loss yourself",
            )
        return torch.stack([routing.balance_loss(weight) for routing in forward.routing]).sum()

    @contextmanager
    def batch(self, descriptors_BP: Tensor | None = None) -> Iterator[None]:
        """One forward, with these descriptors (B, P), standardised; None counts as zeros, their mean.

        Around a call of the model they go before those that `descriptors=` of replace_ffn would compute.
        Needed around methods that are not the model's own call, such as timm's forward_features.

        Raises:
            InputError: at the end, where none of the layers ran: the model called was another, or a copy.
        """
        forward = self._forward()
        if forward.in_batch:
            raise InputError("a batch within a batch", fix="open one `with moe.batch(...)` at a time")
        forward.in_batch, forward.descriptors_were_given = True, descriptors_BP is not None
        self._met_descriptors |= descriptors_BP is not None
        self._begin(descriptors_BP)
        try:
            yield
        finally:
            forward.in_batch = False
            self._end()
        if not forward.layers_ran:
            raise InputError(
                "a batch ended in which none of its layers ran, so its descriptors reached nothing",
                expected=f"a call of the model that has {', '.join(list(self._layers)[:1])} of this handle",
                fix="a copy of the model has a handle of its own: with ReplacedFFN.of(copy).batch(...)",
            )

    def checkpoint_context(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` for torch.utils.checkpoint: recomputes with the descriptors of this very forward."""
        return nullcontext(), _Recomputing(self, self._forward().descriptors)

    def _forward(self) -> _Forward:
        """This thread's."""
        thread = _thread()
        if thread not in self._forwards:
            self._forwards[thread] = _Forward()
        return self._forwards[thread]

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._forward()
        if forward.in_batch and (forward.descriptors_were_given or self._describe is None):
            return
        if not forward.in_batch and self._describe is None and self._met_descriptors:
            raise InputError(
                "the routers have met descriptors, and this call gives none: they would see zeros",
                expected="the model called within `with moe.batch(descriptors)`, as before",
                fix="with ReplacedFFN.of(model).batch(descriptors): …; batch() says that none are meant",
            )
        descriptors_BP = None if self._describe is None else self._describe(model, *args, **kwargs)
        if forward.in_batch:
            self._use(descriptors_BP)
        else:
            self._begin(descriptors_BP)

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._forward().in_batch:
            self._end()

    def _begin(self, descriptors_BP: Tensor | None) -> None:
        forward = self._forward()
        forward.running, forward.layers_ran = True, False
        if not _in_backward():  # where checkpointing recomputes the whole model
            forward.routing = []
            forward.had_gradients = torch.is_grad_enabled()
        self._use(descriptors_BP)

    def _use(self, descriptors_BP: Tensor | None) -> None:
        self._forward().descriptors = descriptors_BP
        if torch.is_grad_enabled() and not _in_backward():
            self._descriptors_of_graph = descriptors_BP

    def _end(self) -> None:
        forward = self._forward()
        forward.running = False
        forward.descriptors = None

    def _descriptors_now(self) -> Tensor | None:
        forward = self._forward()
        if forward.recomputing is not None:
            return forward.recomputing.descriptors_BP
        if forward.running:
            return forward.descriptors
        if _in_backward() or _compiled_in_backward():
            return self._descriptors_of_graph
        raise InputError(
            "a replaced FFN ran outside a forward of its model: no descriptors, and no place for its routing",
            fix="call the model itself, or wrap the call: with moe.batch(descriptors): ...",
        )

    def _record(self, routing: RoutingInfo) -> None:
        forward = self._forward()
        forward.layers_ran = True
        if forward.running and not _in_backward():
            forward.routing.append(routing)

    def _lacks_graph(self, routing: RoutingInfo) -> bool:
        trained = any(routed.moe.router.weight.requires_grad for routed in self._layers.values())
        return trained and not routing.expert_probability.requires_grad

    def __getstate__(self) -> dict[str, Any]:
        return {"describe": self._describe, "layers": self._layers, "met": self._met_descriptors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(ReplacedFFN(state["describe"]).__dict__)
        self._layers, self._met_descriptors = state["layers"], state["met"]

    def __repr__(self) -> str:
        return f"ReplacedFFN({', '.join(self._layers)})"


class _Recomputing(AbstractContextManager[None]):
    """Brings a forward's descriptors back, as often as its graph is walked, in the thread that walks it."""

    def __init__(self, owner: ReplacedFFN, descriptors_BP: Tensor | None) -> None:
        self._owner, self.descriptors_BP = owner, descriptors_BP

    def __enter__(self) -> None:
        self._owner._forward().recomputing = self

    def __exit__(self, *exception: object) -> None:
        self._owner._forward().recomputing = None


@torch.compiler.assume_constant_result
def _thread() -> int:
    """Which thread this is; in a compiled model, which one compiled it."""
    return threading.get_ident()


@torch.compiler.assume_constant_result
def _compiled_in_backward() -> bool:
    """Whether this code is compiled while autograd runs it: what a checkpoint computes again, outside any
    forward, is compiled once more for that."""
    return torch._C._current_graph_task_id() != -1


def _in_backward() -> bool:
    """Whether autograd is running this code: a forward then is a recomputation by checkpointing."""
    if torch.compiler.is_compiling():  # the question would break the graph, and what is compiled is a forward
        return False
    return torch._C._current_graph_task_id() != -1
