"""What DeepSpeed must be told about our experts: the one place where its MoE class is named.

The engine averages expert gradients over the right ranks, and partitions their optimizer states, only for
modules of its own MoE class whose parameters carry `allreduce = False` and a group name. Our layer is made
such a module by subclassing, without its constructor: gate and dispatch stay ours.
"""

from __future__ import annotations

from typing import Any

from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import nn

from crossearth_sar.moe.expert_parallel import ExpertParallelExperts
from crossearth_sar.moe.experts import StackedExperts
from crossearth_sar.moe.layer import PhysicsGuidedMoE


class DeepSpeedExperts(ExpertParallelExperts, MoE):
    """A rank's experts in the form DeepSpeed's engine recognises."""

    def __init__(self, full: StackedExperts, group: Any) -> None:
        ExpertParallelExperts.__init__(self, full, group)
        self.num_local_experts = self.num_experts // self.ep_size
        self.expert_group_name = f"ep_size_{self.ep_size}"
        self.enable_expert_tensor_parallelism = False
        for parameter in self.parameters():
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = self.expert_group_name  # type: ignore[attr-defined]

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Called by the engine; the groups exist since `shard_experts`."""
        assert self.expert_group_name in groups._get_expert_parallel_group_dict()


def shard_experts(model: nn.Module, ep_size: int) -> None:
    """Replaces the experts of every PhysicsGuidedMoE in `model` by this rank's slice; a collective call.

    With ep_size 1 nothing is done: experts are plain parameters to DeepSpeed then.
    """
    if ep_size == 1:
        return
    name = f"ep_size_{ep_size}"
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(ep_size)
    group = groups._get_expert_parallel_group(name)
    for module in model.modules():
        if isinstance(module, PhysicsGuidedMoE):
            module.experts = DeepSpeedExperts(module.experts, group)
