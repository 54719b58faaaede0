"""Earth-Adapter: bottleneck adapters on a frozen transformer's patch tokens, some on frequency bands.

After each block a small network is added to the patch tokens; the CLS token is left alone. In the blocks of
`fft_layers` three networks see the tokens, their low and their high spatial frequencies, and a router mixes
their outputs per token; the other blocks have the spatial network alone. Initialisation is that of torch's
linear layers, as in the method's public code, so a fresh adapter is near, not at, the identity.

B batch, T tokens (1 + N), N patch tokens (h*w), h w token grid, D dim, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossearth_sar.config import require, require_range
from crossearth_sar.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EarthAdapterConfig:
    """Sizes of the Earth-Adapter; the defaults are the method's."""

    rank: int = 64
    """Width r of every bottleneck."""

    fft_layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Blocks whose tokens are split by frequency."""

    cutoff: float = 0.3
    """Share of the shorter side of the spectrum that is low."""

    scale: float = 0.1
    """Initial factor on what is added, learnt per block."""

    def __post_init__(self) -> None:
        require_range(self, "adapter.", 1, 16384, "rank")
        require_range(self, "adapter.", -1e6, 1e6, "scale")
        require(0 <= self.cutoff <= 1, "adapter.cutoff", self.cutoff, "in [0, 1]")
        require(
            len(set(self.fft_layers)) == len(self.fft_layers) and min(self.fft_layers, default=0) >= 0,
            "adapter.fft_layers",
            self.fft_layers,
            "block indices, each once",
        )


class Bottleneck(nn.Sequential):
    """D -> r -> ReLU -> D."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(nn.Linear(dim, rank), nn.ReLU(), nn.Linear(rank, dim))


class SpatialAdapter(nn.Module):
    """scale * MLP(x): what is added to the patch tokens of a block without a frequency split."""

    def __init__(self, dim: int, config: EarthAdapterConfig) -> None:
        super().__init__()
        self.spatial = Bottleneck(dim, config.rank)
        self.scale = nn.Parameter(torch.tensor(config.scale))

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) -> (B, N, D); the grid is not looked at."""
        return self.scale * self.spatial(x_BND)


class FrequencyAdapter(nn.Module):
    """scale * (a MLP_s(x) + b MLP_l(low x) + c MLP_h(high x)), (a, b, c) = softmax(W x + bias) per token."""

    def __init__(self, dim: int, config: EarthAdapterConfig) -> None:
        super().__init__()
        self.cutoff = config.cutoff
        self.spatial = Bottleneck(dim, config.rank)
        self.low = Bottleneck(dim, config.rank)
        self.high = Bottleneck(dim, config.rank)
        self.router = nn.Linear(dim, 3)
        self.scale = nn.Parameter(torch.tensor(config.scale))

    def forward(self, x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) on the token grid (h, w) -> (B, N, D)."""
        low_BND, high_BND = frequency_split(x_BND, grid, self.cutoff)
        weight_BN3 = self.router(x_BND).softmax(-1)
        outputs = (self.spatial(x_BND), self.low(low_BND), self.high(high_BND))
        mixed_BND = torch.stack([weight_BN3[..., i : i + 1] * y for i, y in enumerate(outputs)]).sum(0)
        return self.scale * mixed_BND


class EarthAdapter(nn.Module):
    """The adapters of all blocks; fits the `adapter` slot of `VisionTransformer`.

    Args:
        dim, depth: of the transformer.
        config: see EarthAdapterConfig.

    Raises:
        InputError: `fft_layers` names a block that is not there.
    """

    def __init__(self, dim: int, depth: int, config: EarthAdapterConfig) -> None:
        super().__init__()
        if max(config.fft_layers, default=0) >= depth:
            raise InputError(
                "adapter.fft_layers names blocks that the transformer does not have",
                got=f"{config.fft_layers} for {depth} blocks",
                expected=f"indices 0 .. {depth - 1}",
                fix=f"--set adapter.fft_layers={list(range(min(depth, 6) // 2))}",
            )
        self.config = config
        self.layers = nn.ModuleList(
            FrequencyAdapter(dim, config) if index in config.fft_layers else SpatialAdapter(dim, config)
            for index in range(depth)
        )

    def forward(self, index: int, x_BTD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Output of block `index`, (B, 1 + h*w, D), CLS token first -> the same shape."""
        patches_BND = x_BTD[:, 1:]
        return torch.cat([x_BTD[:, :1], patches_BND + self.layers[index](patches_BND, grid)], dim=1)


def frequency_split(x_BND: Tensor, grid: tuple[int, int], cutoff: float) -> tuple[Tensor, Tensor]:
    """Low and high spatial frequencies of tokens on a grid; they sum to the input.

    Low is the real part of the inverse transform of a square around the zero frequency, of half side
    int(min(h, w) * cutoff // 2), its lower edge included and its upper not. As the input is real, that equals
    weighting the half spectrum by the mean of the square and its mirror image, which costs half as much.

    Args:
        x_BND: (B, h*w, D), rows first; half precision is transformed in float32.
        grid: (h, w), odd sizes too.
    """
    rows, columns = grid
    x_BhwD = x_BND.unflatten(1, grid)
    working = x_BhwD.to(torch.promote_types(x_BND.dtype, torch.float32))
    spectrum = torch.fft.rfft2(working, dim=(1, 2), norm="ortho")
    weight_hw = low_pass_weight(rows, columns, cutoff)[:, : columns // 2 + 1, None].to(working)
    low_BhwD = torch.fft.irfft2(spectrum * weight_hw, s=grid, dim=(1, 2), norm="ortho")
    high_BhwD = working - low_BhwD
    return low_BhwD.flatten(1, 2).to(x_BND.dtype), high_BhwD.flatten(1, 2).to(x_BND.dtype)


def low_pass_weight(rows: int, columns: int, cutoff: float) -> Tensor:
    """(h, w), zero frequency first: the mean of the low square and its mirror image, 0, 1/2 or 1."""
    half = int(min(rows, columns) * cutoff // 2)

    def inside(size: int) -> Tensor:
        frequency = torch.arange(size)
        signed = torch.where(frequency < (size + 1) // 2, frequency, frequency - size)
        return (signed >= -half) & (signed < half)

    square = inside(rows)[:, None] & inside(columns)[None, :]
    mirrored = square.roll((-1, -1), (0, 1)).flip((0, 1))
    return (square.float() + mirrored.float()) / 2
