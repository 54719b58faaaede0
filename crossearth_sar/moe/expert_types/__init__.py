"""The expert types by their kinds: a type of this package is a line here."""

from crossearth_sar.errors import InputError
from crossearth_sar.moe.expert_types.base import DenseFFN, ExpertType
from crossearth_sar.moe.expert_types.ffn import FFN
from crossearth_sar.moe.expert_types.swiglu import SwiGLU

EXPERT_TYPES: dict[str, type[ExpertType]] = {FFN.kind: FFN, SwiGLU.kind: SwiGLU}


def register_expert(expert_type: type[ExpertType]) -> type[ExpertType]:
    """Makes a type from outside the package known by its `kind`; also as a decorator of its class.

    Raises:
        InputError: where another type has that kind.
    """
    if EXPERT_TYPES.setdefault(expert_type.kind, expert_type) is not expert_type:
        raise InputError(
            f"there is an expert type {expert_type.kind!r} already",
            got=repr(expert_type),
            fix="give yours another kind",
        )
    return expert_type


__all__ = ["EXPERT_TYPES", "FFN", "DenseFFN", "ExpertType", "SwiGLU", "register_expert"]
