"""Parameter-efficient fine-tuning: small trained parts on a frozen backbone."""

from crossearth_sar.peft.attach import attach_earth_adapter, detach_earth_adapter, freeze_backbone
from crossearth_sar.peft.earth_adapter import EarthAdapter, EarthAdapterConfig

__all__ = [
    "EarthAdapter",
    "EarthAdapterConfig",
    "attach_earth_adapter",
    "detach_earth_adapter",
    "freeze_backbone",
]
