"""Masters and moments by parameter name, whatever DeepSpeed made of them.

ZeRO keeps the fp32 master of a weight and its Adam moments in flat partitions, cut by rank without regard
to parameters. This file knows where a parameter's elements lie there, for every stage, so that a checkpoint
need not know of ranks: `gather` joins a parameter's values from all ranks that hold a part, and its experts
from all ranks that hold some; `scatter` is the way back, at the same or another layout.

DeepSpeed's own `safe_get_full_optimizer_state` serves only after a first step, and in 0.19.8 finds the
moments of the first parameter group alone; the partitions themselves are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossearth_sar.engine.optim import moments_of
from crossearth_sar.moe.expert_parallel import ExpertParallelExperts, full_state_dict


@dataclass(frozen=True)
class Fragment:
    """This rank's part of one flattened parameter: elements start .. start + numel, at `offset` of `flat`.

    flat: the tensor that the inner optimizer steps, float32. group: the ranks that hold the other parts;
    None when this rank holds all. numel is 0 on a rank without a part. subgroup: stage 3's number of `flat`.
    """

    flat: Tensor
    offset: int
    start: int
    numel: int
    group: Any
    subgroup: int | None = None


class OptimizerState:
    """The optimizer of a DeepSpeed engine, seen by parameter names. `names` are the trainable ones."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._zero = engine, engine.optimizer
        self.stage = int(engine.zero_optimization_stage())
        self._inner: torch.optim.Optimizer = self._zero.optimizer if self.stage else self._zero
        self._parameters = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
        self._experts = dict(expert_parameters(engine.module))
        self.names, self.moments = list(self._parameters), moments_of(self._inner)
        self.device = engine.device

    @property
    def on_nvme(self) -> bool:
        """Whether the partitions are on NVMe between steps: to be read through DeepSpeed alone."""
        return bool(getattr(self._zero, "swap_optimizer", False))

    @property
    def adam_step(self) -> int:
        """Optimizer steps behind the moments, the same for every parameter."""
        return max((int(state["step"]) for state in self._inner.state.values() if state), default=0)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter, all experts included."""
        return full_shape(self._parameters[name], self._experts.get(name))

    def gather(self, name: str, moment: str | None = None) -> Tensor:
        """The whole fp32 master, or a moment of it (zeros before a first step); a collective call."""
        parameter = self._parameters[name]
        fragment = self._fragment(parameter)
        shape = local_shape(parameter)
        values = torch.zeros(shape.numel(), device=self.device)
        part = self._part(parameter, fragment, moment)
        if part is not None:
            values.narrow(0, fragment.start, fragment.numel).copy_(part)
        if fragment.group is not None and dist.get_world_size(fragment.group) > 1:
            dist.all_reduce(values, group=fragment.group)
        values = values.view(shape)
        experts = self._experts.get(name)
        return values if experts is None else experts.gather(values)

    @torch.no_grad()
    def scatter(self, name: str, whole: Tensor, moment: str | None = None) -> None:
        """Puts this rank's part of `whole` where `gather` would take it from."""
        fragment = self._fragment(self._parameters[name])
        if not fragment.numel:
            return
        experts = self._experts.get(name)
        own = whole if experts is None else experts.own_slice(whole)
        part = own.reshape(-1).narrow(0, fragment.start, fragment.numel)
        with self._in_memory(fragment):
            target = fragment.flat if moment is None else self._inner.state[fragment.flat][moment]
            target.data.view(-1).narrow(0, fragment.offset, fragment.numel).copy_(part)

    def prepare(self, adam_step: int) -> None:
        """Makes room for moments as after `adam_step` steps, zeros until `scatter` fills them."""
        for name in self.names:
            fragment = self._fragment(self._parameters[name])
            if not fragment.numel:
                continue
            state = self._inner.state[fragment.flat]
            if not state:
                with self._in_memory(fragment):
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state.update({moment: torch.zeros_like(fragment.flat.data) for moment in self.moments})
            state["step"].fill_(adam_step)

    @contextmanager
    def _in_memory(self, fragment: Fragment) -> Iterator[None]:
        """Inside, the partition that the fragment is of may be written; with NVMe it is read from there and
        written back, unless it is too small to live there. Whole partitions go over the disk for each
        parameter and moment: a resume is slower there than a step."""
        number = fragment.subgroup
        swapped = number is not None and self._zero._swappable_optimizer_subgroup(number)
        if swapped:
            self._zero._optimizer_states_and_gradient_swap_in(number)
        try:
            yield
        finally:
            if swapped:
                self._zero._optimizer_states_and_gradient_swap_out(number)

    def _part(self, parameter: nn.Parameter, fragment: Fragment, moment: str | None) -> Tensor | None:
        """This rank's elements of a master or moment; None where it has none."""
        if not fragment.numel or (moment is not None and not self.adam_step):
            return None
        if self.on_nvme:
            return self._zero.get_local_fp32_param(parameter, moment).narrow(0, 0, fragment.numel)
        source = fragment.flat if moment is None else self._inner.state.get(fragment.flat, {}).get(moment)
        if source is None:  # without ZeRO, a parameter that never got a gradient
            return None
        return source.detach().view(-1).narrow(0, fragment.offset, fragment.numel)

    def _fragment(self, parameter: nn.Parameter) -> Fragment:
        if self.stage == 0:
            return Fragment(parameter, 0, 0, parameter.numel(), None)
        if self.stage == 3:
            return self._fragment_of_stage_3(parameter)
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        group: Any = parameter._dp_group  # type: ignore[attr-defined]
        if mapping is None:
            return Fragment(torch.empty(0), 0, 0, 0, group)
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        own, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Fragment(flat, there.start, own.start, own.numel, group)

    def _fragment_of_stage_3(self, parameter: Any) -> Fragment:
        subgroup, offset, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
        group = self._zero._get_param_partition_group(parameter)
        start = dist.get_rank(group) * length
        numel = max(0, min(length, parameter.ds_numel - start))  # the last parts may be padding
        flat = self._zero.fp32_partitioned_groups_flat[subgroup]
        return Fragment(flat, offset, start, numel, group, subgroup)


def expert_parameters(model: nn.Module) -> Iterator[tuple[str, ExpertParallelExperts]]:
    """Names of the parameters that this rank has a slice of, with the module that joins them."""
    for prefix, module in model.named_modules():
        if isinstance(module, ExpertParallelExperts):
            for name, _ in module.named_parameters():
                yield f"{prefix}.{name}", module


def local_shape(value: Any) -> torch.Size:
    """A parameter's shape on this rank, not the empty one that ZeRO 3 leaves behind."""
    return torch.Size(value.ds_shape) if hasattr(value, "ds_shape") else value.shape


def full_shape(value: Any, experts: ExpertParallelExperts | None) -> tuple[int, ...]:
    """The shape in a model with all experts on one rank."""
    shape = tuple(local_shape(value))
    return shape if experts is None else (experts.num_experts, *shape[1:])


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """The model's weights and buffers as one rank alone would have them, in the precision of training; a
    collective call."""
    if int(engine.zero_optimization_stage()) < 3:
        return full_state_dict(engine.module)
    import deepspeed

    state = engine.module.state_dict()
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone()
    return state


def gather_masters(engine: Any, optimizer: OptimizerState) -> Iterator[tuple[str, Tensor]]:
    """`gather_weights`, one tensor at a time and in float32: masters where there are some; collective."""
    module = engine.module
    parameters, experts = dict(module.named_parameters()), dict(expert_parameters(module))
    trained = set(optimizer.names)
    for name, value in module.state_dict().items():
        if name in trained:
            yield name, optimizer.gather(name)
        elif optimizer.stage == 3 and name in parameters:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameters[name]]):
                yield name, parameters[name].detach().float().clone()
        else:
            whole = experts[name].gather(value) if name in experts else value
            yield name, whole.float() if whole.is_floating_point() else whole


@torch.no_grad()
def copy_masters(engine: Any, model: nn.Module) -> None:
    """Makes a plain `model` with all experts what a checkpoint of the engine now would hold; collective."""
    own = model.state_dict()
    for name, value in gather_masters(engine, OptimizerState(engine)):
        own[name].copy_(value)


@torch.no_grad()
def set_weight(engine: Any, name: str, whole: Tensor, experts: dict[str, ExpertParallelExperts]) -> None:
    """Writes a whole weight or buffer into this rank's model; a collective call with ZeRO 3."""
    parameters = dict(engine.module.named_parameters())
    own = experts[name].own_slice(whole) if name in experts else whole
    target = parameters.get(name)
    if target is None:
        dict(engine.module.named_buffers())[name].copy_(own)
    elif hasattr(target, "ds_shape"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
            target.data.copy_(own)
    else:
        target.data.copy_(own)
