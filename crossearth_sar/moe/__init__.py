"""The sparse mixture of experts: router, dispatch, experts, layer."""

from crossearth_sar.moe.expert_spec import ExpertSpec
from crossearth_sar.moe.expert_types import DenseFFN, ExpertType, register_expert
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.moe.router import PhysicsGuidedRouter, RoutingInfo
from crossearth_sar.moe.surgery.handle import ReplacedFFN
from crossearth_sar.moe.surgery.replace import replace_ffn
from crossearth_sar.moe.surgery.saved import load_replaced
from crossearth_sar.moe.surgery.upcycle import upcycle_state_dict
from crossearth_sar.moe.weight_decay import stacked_biases

__all__ = [
    "DenseFFN",
    "ExpertSpec",
    "ExpertType",
    "PhysicsGuidedMoE",
    "PhysicsGuidedRouter",
    "ReplacedFFN",
    "RoutingInfo",
    "load_replaced",
    "register_expert",
    "replace_ffn",
    "stacked_biases",
    "upcycle_state_dict",
]
