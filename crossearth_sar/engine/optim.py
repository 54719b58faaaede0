"""Parameter groups, AdamW or SGD, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from crossearth_sar.engine.config import OptimConfig
from crossearth_sar.weight_decay import decays

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""What each optimizer keeps of a parameter, besides the number of steps."""


class CountingSGD(torch.optim.SGD):
    """SGD with momentum that counts the steps behind each buffer, as AdamW does and checkpoints want."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["step"] = state.get("step", torch.zeros(())) + 1
        return loss


def moments_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The moments that it keeps, see MOMENTS."""
    return MOMENTS["sgd" if isinstance(optimizer, torch.optim.SGD) else "adamw"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Up to four groups: with and without weight decay, shared and expert-parallel.

    `weight_decay.decays` says what decays. Expert-parallel parameters, which executors/deepspeed/experts.py
    has tagged with a group name, get the name and the mark that DeepSpeed wants.
    """
    groups: dict[tuple[bool, str | None], dict[str, Any]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            decayed = decays(module, name)
            expert: str | None = getattr(parameter, "group_name", None)  # set on expert-parallel ones
            group = groups.setdefault(
                (decayed, expert),
                {
                    "params": [],
                    "weight_decay": weight_decay if decayed else 0.0,
                    "name": expert or ("decay" if decayed else "no_decay"),
                    **({"moe": True} if expert else {}),
                },
            )
            group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD at learning rate 0; `learning_rate` says what to set before each step."""
    groups = parameter_groups(model, config.weight_decay)
    if config.kind == "sgd":
        return CountingSGD(groups, lr=0.0, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then decay to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    if config.decay == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (1 - progress) ** config.decay_power
