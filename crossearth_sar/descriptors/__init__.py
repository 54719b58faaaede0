"""SAR physical descriptors: what the router knows of the image's physics."""

from crossearth_sar.descriptors.named import (
    PAPER_DESCRIPTORS,
    SCALE_FREE_DESCRIPTORS,
    DescriptorName,
    join_tokens,
    named_descriptors,
)
from crossearth_sar.descriptors.ops import DESCRIPTOR_NAMES, sar_descriptor_map, sar_descriptors
from crossearth_sar.descriptors.scale_free_ops import (
    scale_free_descriptor_map,
    scale_free_descriptors,
    scale_free_descriptors_and_map,
)
from crossearth_sar.descriptors.standardize import RunningStandardizer

__all__ = [
    "DESCRIPTOR_NAMES",
    "PAPER_DESCRIPTORS",
    "SCALE_FREE_DESCRIPTORS",
    "DescriptorName",
    "RunningStandardizer",
    "join_tokens",
    "named_descriptors",
    "sar_descriptor_map",
    "sar_descriptors",
    "scale_free_descriptor_map",
    "scale_free_descriptors",
    "scale_free_descriptors_and_map",
]
