"""A ResNet of bottlenecks written down a second time: torchvision's names, plain functions, random weights.

B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(depths: Sequence[int], width: int = 64, channels: int = 3) -> State:
    """The keys and shapes of torchvision's resnet50 (without fc), of healthy scale."""
    state: State = {"conv1.weight": _kernel(width, channels, 7), **_norm("bn1", width)}
    before = width
    for stage, depth in enumerate(depths, start=1):
        inner = width << (stage - 1)
        for block in range(depth):
            name = f"layer{stage}.{block}"
            shapes = ((inner, before, 1), (inner, inner, 3), (4 * inner, inner, 1))
            for i, (wide, given, side) in enumerate(shapes, start=1):
                state[f"{name}.conv{i}.weight"] = _kernel(wide, given, side)
                state |= _norm(f"{name}.bn{i}", wide)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = _kernel(4 * inner, before, 1)
                state |= _norm(f"{name}.downsample.1", 4 * inner)
            before = 4 * inner
    return state


def stages(state: State, image_BCHW: Tensor) -> list[Tensor]:
    """The output of layer1 to layer4, in eval mode."""

    def normed(x: Tensor, name: str) -> Tensor:
        statistics = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    x = F.conv2d(image_BCHW, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(normed(x, "bn1")), 3, stride=2, padding=1)
    found = []
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(normed(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = F.conv2d(
                y, state[f"{name}.conv2.weight"], stride=stride, padding=1
            )  # v1.5: the stride is here
            y = F.relu(normed(y, f"{name}.bn2"))
            y = normed(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                shortcut = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = normed(shortcut, f"{name}.downsample.1")
            x, block = F.relu(x + y), block + 1
        found.append(x)
    return found


def _kernel(wide: int, given: int, side: int) -> Tensor:
    return torch.randn(wide, given, side, side) * (2 / (given * side * side)) ** 0.5


def _norm(name: str, width: int) -> State:
    return {
        f"{name}.weight": 1 + 0.1 * torch.randn(width),
        f"{name}.bias": 0.1 * torch.randn(width),
        f"{name}.running_mean": 0.1 * torch.randn(width),
        f"{name}.running_var": 1 + 0.2 * torch.rand(width),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }
