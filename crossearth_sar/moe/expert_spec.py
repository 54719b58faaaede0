"""What an expert is, as a config says it."""

from __future__ import annotations

from dataclasses import dataclass

from crossearth_sar.config import require, require_range
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.moe.expert_types import EXPERT_TYPES, ExpertType


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """The experts of a MoE layer.

    kind: the type, a key of EXPERT_TYPES: "ffn" is linear, activation, linear; "swiglu" is gated.
    activation: one of those that the type has, None for its default; of "ffn": gelu | gelu_tanh | relu; of
        "swiglu" silu, its default, too.
    bias: whether the experts' linear maps have biases.
    shared: experts' widths of one more expert that every token passes beside those of its choice, ungated;
        0 for none. It starts with an output of 0, so that an upcycled model computes what the dense one did.
    """

    kind: str = "ffn"
    activation: str | None = None
    bias: bool = True
    shared: int = 0

    def __post_init__(self) -> None:
        if self.kind not in EXPERT_TYPES:
            raise InputError(
                f"unknown expert type {self.kind!r}{nearest(self.kind, EXPERT_TYPES)}",
                expected=" | ".join(EXPERT_TYPES),
                fix="a type from outside the package calls moe.register_expert first",
            )
        made = self.make()
        require_range(self, "", 0, 1024, "shared")
        require(
            self.shared == 0 or bool(made.silencing), "shared", self.shared, f"0 for experts of {self.kind!r}"
        )

    def make(self) -> ExpertType:
        """The type with these options; raises InputError for one that it has not."""
        return EXPERT_TYPES[self.kind](activation=self.activation, bias=self.bias)
