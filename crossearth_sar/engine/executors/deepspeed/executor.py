"""The executor over DeepSpeed: expert parallelism, ZeRO 0 to 3, offload, bf16 with fp32 masters."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.base import Outcome
from crossearth_sar.engine.executors.deepspeed.optimizer_state import (
    OptimizerState,
    copy_masters,
    expert_parameters,
    full_shape,
    gather_masters,
    set_weight,
)
from crossearth_sar.engine.log import told_if_lost
from crossearth_sar.engine.optim import make_optimizer
from crossearth_sar.engine.planning.layout import (
    Layout,
    check_machine,
    deepspeed_config,
)
from crossearth_sar.whole import write_text


class DeepSpeedExecutor:
    """One DeepSpeed engine on this rank.

    Raises:
        InputError: for settings that this machine cannot carry out.
    """

    name = "deepspeed"

    def __init__(self, config: RunConfig, ranks: Ranks, layout: Layout) -> None:
        check_machine(config)
        self.config, self.ranks, self.layout = config, ranks, layout
        self.micro_batch, self.ep_size = layout.micro_batch, layout.ep_size
        self._norm, self._applied = math.nan, True

    def start(self, build: Callable[..., nn.Module], *, from_start: bool) -> None:
        """Shards the experts, starts the engine, and builds the plain copy that is scored."""
        model = build(from_start=from_start)
        # Validation runs on a plain copy with all experts: no collective, so ranks may differ in their work,
        # and what is measured is what is saved.
        self.replica = build(from_start=False).to(self.ranks.device).eval()
        self.engine = self._engine(model)

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def _engine(self, model: nn.Module) -> Any:
        import deepspeed

        from crossearth_sar.engine.executors.deepspeed.experts import shard_experts

        stage = self.config.parallel.zero_stage
        shard_experts(model, self.ep_size)
        optimizer = make_optimizer(model, self.config.optim)
        settings = deepspeed_config(self.config, self.layout)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        if stage in (1, 2):
            # In fp32 DeepSpeed looks at the norm alone, where a rank's expert with a NaN can average away.
            engine.optimizer.check_grad_overflow = True
        return engine

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.engine(*arguments, **named)

    def set_rate(self, rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def accumulate(self, loss: Tensor, index: int) -> None:
        self.engine.backward(loss)
        applied = True
        if self.config.parallel.zero_stage == 0:  # the engine neither keeps a norm then nor looks at it
            self._norm = _gradient_norm(self.engine.module)
            applied = math.isfinite(self._norm) or index < self.config.accumulation - 1
        with contextlib.nullcontext() if applied else _no_update(self.engine.optimizer):
            self.engine.step()
        self._applied = applied

    def outcome(self) -> Outcome:
        norm = self._norm
        if self.config.parallel.zero_stage:
            norm = float(self.engine.get_global_grad_norm())
        return Outcome(norm, self._applied and not getattr(self.engine.optimizer, "overflow", False))

    def whole(self) -> nn.Module:
        copy_masters(self.engine, self.replica)
        return self.replica

    def state(self) -> OptimizerState:
        return OptimizerState(self.engine)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return gather_masters(self.engine, self.state())

    def set_weight(self, name: str, whole: Tensor) -> None:
        set_weight(self.engine, name, whole, dict(expert_parameters(self.engine.module)))

    def full_shapes(self) -> dict[str, tuple[int, ...]]:
        experts = dict(expert_parameters(self.engine.module))
        parameters = dict(self.engine.module.named_parameters())
        return {
            name: full_shape(parameters.get(name, value), experts.get(name))
            for name, value in self.engine.module.state_dict().items()
        }

    def facts(self) -> dict[str, Any]:
        return {
            "executor": self.name,
            "ranks": self.ranks.size,
            "ep_size": self.ep_size,
            "zero_stage": self.config.parallel.zero_stage,
        }

    def words(self) -> str:
        import deepspeed

        parallel = self.config.parallel
        words = [f"ZeRO stage {parallel.zero_stage}", "bf16" if self.layout.use_bf16 else "fp32"]
        if parallel.offload_optimizer != "none":
            words.append(f"optimizer on {parallel.offload_optimizer}")
        if parallel.offload_parameters != "none":
            words.append(f"parameters on {parallel.offload_parameters}")
        return f"experts split over {self.ep_size}; {', '.join(words)}; DeepSpeed {deepspeed.__version__}"

    def leave_record(self, output: Path) -> None:
        if not self.ranks.is_main:
            return
        text = json.dumps(deepspeed_config(self.config, self.layout), indent=2)
        with told_if_lost("deepspeed.json"):
            write_text(output / "deepspeed.json", text + "\n")


@contextlib.contextmanager
def _no_update(optimizer: Any) -> Iterator[None]:
    """The engine's step in here ends as it should, but for the weights and moments, which stay."""
    optimizer.step = lambda: None
    try:
        yield
    finally:
        del optimizer.step  # the class's own is seen again


def _gradient_norm(model: nn.Module) -> float:
    """Of whole gradients, each rank's equal."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
