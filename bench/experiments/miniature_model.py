"""The model and the three phases of the miniature benchmarks: pre-train, fit a head on it frozen, score.

It is this project's ViT, descriptors and MoE layer under a head of two linear maps per patch. Mask2Former is
not here: on a budget of seconds its matching is still settling when the head has converged, and it would hide
what the FFNs differ in. Everything is float32 on one thread, and depends on (setting, seed, budget) alone.

B batch, N tiles, H W pixels, h w patches, D dim of the tokens, P descriptors, K classes, L layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossearth_sar.config import to_mapping
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES, Task
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.descriptors import (
    SCALE_FREE_DESCRIPTORS,
    RunningStandardizer,
    join_tokens,
    named_descriptors,
)
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.evaluation.miniature import (
    SIMULATED_TASKS,
    Tiles,
    draw_tiles,
    join_tiles,
    pretraining_sensors,
)
from crossearth_sar.moe import PhysicsGuidedMoE, RoutingInfo
from crossearth_sar.network_input import network_input
from crossearth_sar.presets import MoEConfig
from crossearth_sar.vit import DenseFFN, VisionTransformer, ViTConfig

SCENE = 128
"""Side of a simulated scene in pixels; tiles are cut from it."""

STRIDE = 2
"""Of the head's logits, in pixels: they learn from every second label of every second row, and are resized
for the score, which counts all pixels."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is computed. tile, patch: pixels. sensors, sensor_scenes: of the pre-training mixture.

    row_scenes: that a row trains its head on; test_scenes: that it is scored on, in each domain.
    """

    dim: int = 64
    depth: int = 4
    heads: int = 2
    patch: int = 8
    tile: int = 64
    sensors: int = 24
    sensor_scenes: int = 8
    steps: int = 400
    batch: int = 16
    lr: float = 2e-3
    row_scenes: int = 32
    test_scenes: int = 24
    head_steps: int = 80
    head_batch: int = 32
    head_lr: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compared. moe: None is the dense baseline. shuffled: the router gets another image's
    descriptors, in training and after: a control that has their distribution and not their meaning."""

    moe: MoEConfig | None = None
    shuffled: bool = False

    def mapping(self) -> dict[str, Any]:
        return {"moe": to_mapping(self.moe) if self.moe else None, "shuffled": self.shuffled}


class Backbone(nn.Module):
    """Amplitude tiles -> four feature maps and the routing."""

    def __init__(self, setting: Setting, budget: Budget) -> None:
        super().__init__()
        moe, self.shuffled = setting.moe, setting.shuffled
        self.names = moe.descriptors if moe else ()
        self.standardizer = RunningStandardizer(len(self.names)) if self.names else nn.Identity()
        self.local_patch = budget.patch if moe and moe.local_physics else None
        self.local_standardizer = (
            RunningStandardizer(len(SCALE_FREE_DESCRIPTORS)) if self.local_patch else nn.Identity()
        )
        self.vit = VisionTransformer(
            ViTConfig(
                dim=budget.dim,
                depth=budget.depth,
                num_heads=budget.heads,
                out_blocks=tuple(range(budget.depth - 4, budget.depth)),
                patch_size=budget.patch,
                image_size=budget.tile,
                layer_scale=1.0,
            ),
            partial(_sparse_ffn, moe) if moe else DenseFFN,
        )

    def forward(self, tiles: Tiles) -> tuple[Tensor, tuple[RoutingInfo, ...]]:
        """-> (B, h, w, 4 * D) and one RoutingInfo per sparse block."""
        image_B1HW = tiles.image_NHW[:, None]
        pixels = network_input(image_B1HW, tiles.db_mean_N[:, None], tiles.db_std_N[:, None])
        output = self.vit(pixels, self._descriptors(image_B1HW))
        maps = torch.cat(output.feature_maps, 1).permute(0, 2, 3, 1)
        return maps, tuple(r for r in output.routing if r is not None)

    def _descriptors(self, image_B1HW: Tensor) -> Tensor | None:
        if not self.names and self.local_patch is None:
            return None
        values, tokens_BT4 = named_descriptors(image_B1HW, self.names, patch_size=self.local_patch)
        values = self.standardizer(values)
        if tokens_BT4 is not None:
            local_BT4 = self.local_standardizer(tokens_BT4.flatten(0, 1)).view_as(tokens_BT4)
            values = join_tokens(values, local_BT4)
        if self.shuffled:  # half a batch away, for neighbours in a list of tiles may be of one scene
            values = values.roll(len(values) // 2, 0)
        return values


class PatchHead(nn.Module):
    """(B, h, w, 4 D) features -> (B, K, H / 2, W / 2) logits, each patch by itself."""

    def __init__(self, dim: int, num_classes: int, patch: int) -> None:
        super().__init__()
        self.cells = patch // STRIDE
        self.layers = nn.Sequential(
            nn.LayerNorm(4 * dim),
            nn.Linear(4 * dim, 2 * dim),
            nn.GELU(),
            nn.Linear(2 * dim, num_classes * self.cells**2),
        )

    def forward(self, features_BhwD: Tensor) -> Tensor:
        return F.pixel_shuffle(self.layers(features_BhwD).permute(0, 3, 1, 2), self.cells)


@cache
def pretraining_tiles(sensors: int, scenes: int, tile: int) -> Tiles:
    """The mixture of sensors, drawn once per process; all seven classes."""
    configs = [replace(c, length=scenes, image_size=SCENE) for c in pretraining_sensors(sensors)]
    return join_tiles([draw_tiles(config, None, tile) for config in configs])


@lru_cache(maxsize=64)
def row_tiles(config: SimulatorConfig, task: str, tile: int) -> Tiles:
    """The tiles of one side of a row, kept, for many settings read them. task: a key of SIMULATED_TASKS."""
    return draw_tiles(config, SIMULATED_TASKS[task], tile)


def pretrain(setting: Setting, seed: int, budget: Budget) -> Backbone:
    """A backbone trained on the mixture with a seven-class head, which is then dropped; L_seg + L_BC.

    The weights outside the FFNs start as the dense model's of the same seed, and batches come in the same
    order for every setting, so that two settings of a seed are a pair.
    """
    torch.manual_seed(seed)
    dense = Backbone(Setting(), budget)
    torch.manual_seed(seed + 1_000)
    backbone = Backbone(setting, budget)
    shared = {key: value for key, value in dense.state_dict().items() if ".mlp." not in key}
    backbone.load_state_dict(shared if setting.moe else dense.state_dict(), strict=not setting.moe)
    torch.manual_seed(seed + 2_000)
    head = PatchHead(budget.dim, len(SEVEN_CLASSES), budget.patch)
    tiles = pretraining_tiles(budget.sensors, budget.sensor_scenes, budget.tile)
    weights_K = _class_weights(tiles.mask_NHW, len(SEVEN_CLASSES))
    optimizer = _optimizer([backbone, head], budget.lr)
    balance_weight = setting.moe.balance_weight if setting.moe else 0.0
    draws = _draws(len(tiles), budget.batch, budget.steps, seed)
    for step, (index, flips) in enumerate(draws):
        _set_rate(optimizer, budget.lr, step, budget.steps)
        batch = _flipped(_take(tiles, index), flips)
        features, routing = backbone(batch)
        loss = _segmentation_loss(head(features), batch.mask_NHW, weights_K)
        for layer in routing:
            loss = loss + layer.balance_loss(balance_weight)
        _step(optimizer, loss)
    return backbone.eval()


def fit_head(backbone: Backbone, tiles: Tiles, task: Task, seed: int, budget: Budget) -> PatchHead:
    """A head of the row's classes on the frozen backbone's features, which are computed once."""
    features_NhwD, _ = extract(backbone, tiles)
    torch.manual_seed(seed + 3_000)
    head = PatchHead(budget.dim, len(task.classes), budget.patch)
    weights_K = _class_weights(tiles.mask_NHW, len(task.classes))
    optimizer = _optimizer([head], budget.head_lr)
    draws = _draws(len(tiles), budget.head_batch, budget.head_steps, seed + 1)
    for step, (index, _) in enumerate(draws):
        _set_rate(optimizer, budget.head_lr, step, budget.head_steps)
        _step(optimizer, _segmentation_loss(head(features_NhwD[index]), tiles.mask_NHW[index], weights_K))
    return head.eval()


@torch.no_grad()
def extract(backbone: Backbone, tiles: Tiles, batch: int = 64) -> tuple[Tensor, Tensor]:
    """All tiles' features (N, h, w, 4 D), and the share of tokens per layer and expert (L, E)."""
    parts, shares = [], []
    for index in torch.arange(len(tiles)).split(batch):
        features, routing = backbone(_take(tiles, index))
        parts.append(features)
        if routing:
            shares.append(torch.stack([r.expert_fraction for r in routing]) * len(index))
    share_LE = torch.stack(shares).sum(0) / len(tiles) if shares else torch.zeros(0, 0)
    return torch.cat(parts), share_LE


@torch.no_grad()
def score(backbone: Backbone, head: PatchHead, tiles: Tiles, task: Task) -> tuple[float, Tensor]:
    """mIoU of the task's scored classes, a fraction, over all tiles together; and the share (L, E)."""
    features_NhwD, share_LE = extract(backbone, tiles)
    confusion = ConfusionMatrix(len(task.classes))
    for index in torch.arange(len(tiles)).split(64):
        mask_BHW = tiles.mask_NHW[index]
        logits = F.interpolate(
            head(features_NhwD[index]), mask_BHW.shape[-2:], mode="bilinear", align_corners=False
        )
        confusion.update(logits.argmax(1), mask_BHW)
    return scored_miou(confusion, task), share_LE


def scored_miou(confusion: ConfusionMatrix, task: Task) -> float:
    return float(confusion.scores().iou[task.scored_indices].nanmean())


def majority_miou(train: Tiles, test: Tiles, task: Task) -> float:
    """mIoU of calling every pixel the class that is commonest in the training masks."""
    counts = torch.bincount(train.mask_NHW.flatten().long(), minlength=256)[: len(task.classes)]
    confusion = ConfusionMatrix(len(task.classes))
    confusion.update(torch.full_like(test.mask_NHW, int(counts.argmax())), test.mask_NHW)
    return scored_miou(confusion, task)


def effective_experts(share_LE: Tensor) -> float:
    """exp of the entropy of the share, mean over layers: E where all work alike, 1 where one does all."""
    if share_LE.numel() == 0:
        return math.nan
    return float(torch.special.entr(share_LE).sum(-1).exp().mean())


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Written beside and moved into place, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in backbone.state_dict().items()}, unfinished)
    unfinished.replace(path)


def load_backbone(setting: Setting, budget: Budget, path: Path) -> Backbone:
    backbone = Backbone(setting, budget)
    backbone.load_state_dict(load_file(path))
    return backbone.eval()


def _sparse_ffn(moe: MoEConfig, dim: int, hidden_dim: int) -> PhysicsGuidedMoE:
    return PhysicsGuidedMoE(
        dim,
        hidden_dim,
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        num_descriptors=moe.num_descriptors,
        gate=moe.gate,
        backend=moe.backend,
    )


def _segmentation_loss(logits_BKHW: Tensor, mask_BHW: Tensor, weights_K: Tensor) -> Tensor:
    labels_BHW = mask_BHW[:, ::STRIDE, ::STRIDE].long()
    return F.cross_entropy(logits_BKHW, labels_BHW, weight=weights_K, ignore_index=IGNORE_INDEX)


def _class_weights(mask_NHW: Tensor, num_classes: int) -> Tensor:
    """(K,), one over the root of a class's share, mean 1 over the pixels: rare classes count in mIoU too."""
    counts = torch.bincount(mask_NHW.flatten().long(), minlength=256)[:num_classes].float()
    weights = (counts / counts.sum()).clamp(min=1e-3).rsqrt()
    return weights * counts.sum() / (weights * counts).sum()


def _optimizer(modules: list[nn.Module], lr: float) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, foreach=True)


def _set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Warm-up over a twentieth, then a cosine to 0."""
    warm = max(steps // 20, 1)
    factor = (
        (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * factor


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def _draws(count: int, batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Indices of each step, every tile once before any again, and the axes to flip."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        index, order = order[:batch], order[batch:]
        flips = torch.rand(2, generator=generator)
        yield index, [axis for axis, draw in ((-1, flips[0]), (-2, flips[1])) if draw < 0.5]


def _take(tiles: Tiles, index: Tensor) -> Tiles:
    return Tiles(
        tiles.image_NHW[index],
        tiles.mask_NHW[index],
        tiles.db_mean_N[index],
        tiles.db_std_N[index],
    )


def _flipped(tiles: Tiles, axes: list[int]) -> Tiles:
    if not axes:
        return tiles
    return Tiles(tiles.image_NHW.flip(axes), tiles.mask_NHW.flip(axes), tiles.db_mean_N, tiles.db_std_N)
