"""CrossEarth-SAR: physics-guided sparse mixture-of-experts segmentation of SAR images."""

from crossearth_sar.descriptors import RunningStandardizer, sar_descriptor_map, sar_descriptors
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR, build_model, load_model, save_model
from crossearth_sar.moe import PhysicsGuidedMoE, RoutingInfo, replace_ffn
from crossearth_sar.version import __version__

__all__ = [
    "CrossEarthSAR",
    "InputError",
    "PhysicsGuidedMoE",
    "RoutingInfo",
    "RunningStandardizer",
    "__version__",
    "build_model",
    "load_model",
    "replace_ffn",
    "sar_descriptor_map",
    "sar_descriptors",
    "save_model",
]
