"""The sparse mixture of experts: router, dispatch, experts, layer."""

from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.moe.router import PhysicsGuidedRouter, RoutingInfo
from crossearth_sar.moe.surgery.replace import ReplacedFFN, replace_ffn
from crossearth_sar.moe.surgery.upcycle import upcycle_state_dict

__all__ = [
    "PhysicsGuidedMoE",
    "PhysicsGuidedRouter",
    "ReplacedFFN",
    "RoutingInfo",
    "replace_ffn",
    "upcycle_state_dict",
]
