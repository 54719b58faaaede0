"""ResNet-50 and -101, the backbone of most published self-supervised SAR weights."""

from crossearth_sar.resnet.config import ResNetConfig
from crossearth_sar.resnet.resnet import ResNet, ResNetOutput

__all__ = ["ResNet", "ResNetConfig", "ResNetOutput"]
