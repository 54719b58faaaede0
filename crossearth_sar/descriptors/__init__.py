"""SAR physical descriptors: what the router knows of the image's physics."""

from crossearth_sar.descriptors.ops import DESCRIPTOR_NAMES, sar_descriptor_map, sar_descriptors
from crossearth_sar.descriptors.standardize import RunningStandardizer

__all__ = ["DESCRIPTOR_NAMES", "RunningStandardizer", "sar_descriptor_map", "sar_descriptors"]
