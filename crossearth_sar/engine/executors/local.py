"""The light executor, over Accelerate: one process, or one a GPU under torchrun; DDP and autocast.

Parameters are float32 and whole on every rank. bf16 is autocast around the forward pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks, any_rank
from crossearth_sar.engine.executors.base import Outcome
from crossearth_sar.engine.optim import make_optimizer, moments_of
from crossearth_sar.engine.planning.layout import check_local, micro_batch_of, wants_bf16
from crossearth_sar.engine.planning.selfsup_rules import check_selfsup


class LocalExecutor:
    """Whole parameters on this rank, gradients averaged over ranks.

    Raises:
        InputError: for settings that only DeepSpeed carries out.
    """

    name = "local"
    ep_size = 1

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        check_local(config)
        check_selfsup(config)
        self.config, self.ranks = config, ranks
        self.micro_batch = micro_batch_of(config, ranks.size)
        self.use_bf16 = wants_bf16(config, on_gpu=ranks.device.type == "cuda")

    def start(self, build: Callable[..., nn.Module], *, from_start: bool) -> None:
        model = build(from_start=from_start).to(self.ranks.device)
        self._optimizer = make_optimizer(model, self.config.optim)
        # Autocast is torch's own below: Accelerate keeps one precision for the life of a process. Unused
        # parameters exist (a mask token, say), and buffers follow the ranks' own rules.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        self._accelerator = Accelerator(cpu=self.ranks.device.type == "cpu", kwargs_handlers=[ddp])
        self._model = self._accelerator.prepare_model(model)
        self._plain = model
        self._losses_finite = torch.tensor(True)
        self._outcome = Outcome(math.nan, True)

    @property
    def module(self) -> nn.Module:
        return self._plain

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.use_bf16):
            return self._model(*arguments, **named)

    def set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def accumulate(self, loss: Tensor, index: int) -> None:
        if index == 0:
            self._optimizer.zero_grad(set_to_none=True)
            self._losses_finite = torch.ones_like(loss, dtype=torch.bool)
        self._losses_finite = self._losses_finite & torch.isfinite(loss.detach())
        last = index == self.config.accumulation - 1
        together = contextlib.nullcontext() if last else self._accelerator.no_sync(self._model)
        with together:
            self._accelerator.backward(loss / self.config.accumulation)
        if last:
            self._update()

    def _update(self) -> None:
        trained = [p for p in self._plain.parameters() if p.requires_grad]
        limit = self.config.optim.clip_norm or math.inf
        norm = float(self._accelerator.clip_grad_norm_(trained, limit))
        applied = not any_rank(not (math.isfinite(norm) and bool(self._losses_finite)), self.ranks)
        if applied:  # else it would be in every weight
            self._optimizer.step()
        self._outcome = Outcome(norm, applied)

    def outcome(self) -> Outcome:
        return self._outcome

    def whole(self) -> nn.Module:
        return self._plain.eval()

    def state(self) -> LocalState:
        return LocalState(self._plain, self._optimizer)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._plain.state_dict().items():
            yield name, value.detach().float() if value.is_floating_point() else value

    @torch.no_grad()
    def set_weight(self, name: str, whole: Tensor) -> None:
        self._plain.state_dict()[name].copy_(whole)

    def full_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self._plain.state_dict().items()}

    def facts(self) -> dict[str, Any]:
        return {"executor": self.name, "ranks": self.ranks.size, "ep_size": 1, "zero_stage": 0}

    def words(self) -> str:
        return f"all experts on each rank; {'bf16 autocast' if self.use_bf16 else 'fp32'}; no DeepSpeed"

    def leave_record(self, output: Path) -> None:
        """Nothing: config.yaml says all."""


class LocalState:
    """Masters and moments of a plain optimizer, every rank having all of them."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._optimizer = optimizer
        self.names, self.moments = list(self._parameters), moments_of(optimizer)

    @property
    def adam_step(self) -> int:
        return max((int(state["step"]) for state in self._optimizer.state.values() if state), default=0)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._parameters[name].shape)

    def gather(self, name: str, moment: str | None = None) -> Tensor:
        parameter = self._parameters[name]
        if moment is None:
            return parameter.detach()
        state = self._optimizer.state.get(parameter)
        return state[moment] if state else torch.zeros_like(parameter)  # it never got a gradient

    @torch.no_grad()
    def scatter(self, name: str, whole: Tensor, moment: str | None = None) -> None:
        parameter = self._parameters[name]
        target = parameter if moment is None else self._optimizer.state[parameter][moment]
        target.copy_(whole)

    def prepare(self, adam_step: int) -> None:
        for parameter in self._parameters.values():
            state = self._optimizer.state[parameter]
            state["step"] = torch.tensor(float(adam_step))
            state.update({moment: torch.zeros_like(parameter) for moment in self.moments})
