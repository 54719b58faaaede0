"""CrossEarth-SAR: physics-guided sparse mixture-of-experts segmentation of SAR images.

Names are handed out when they are asked for (PEP 562), so that a layer does not load what a model needs: the
decoder's transformers alone takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crossearth_sar.errors import InputError
from crossearth_sar.version import __version__

if TYPE_CHECKING:
    from crossearth_sar.descriptors import (
        RunningStandardizer,
        sar_descriptor_map,
        sar_descriptors,
        scale_free_descriptor_map,
        scale_free_descriptors,
    )
    from crossearth_sar.model import CrossEarthSAR, build_model, load_model, save_model
    from crossearth_sar.moe import PhysicsGuidedMoE, RoutingInfo, replace_ffn

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
    "scale_free_descriptor_map",
    "scale_free_descriptors",
]

_HOMES = {
    "descriptors": (
        "RunningStandardizer",
        "sar_descriptor_map",
        "sar_descriptors",
        "scale_free_descriptor_map",
        "scale_free_descriptors",
    ),
    "model": ("CrossEarthSAR", "build_model", "load_model", "save_model"),
    "moe": ("PhysicsGuidedMoE", "RoutingInfo", "replace_ffn"),
}
"""Module -> the names that it gives; a test holds them against the two lists above."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value  # the next one does not come here
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
