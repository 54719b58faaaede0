"""What a training step needs of a rank's memory, by arithmetic: parameters counted on the meta device,
activations by running the model on tensors without data.

Counted: weights, gradients, optimizer states, the tensors that a forward pass saves for its backward. Not
counted, and left to a reserve: the loss, temporaries of single operations, communication buffers beyond their
configured size, fragmentation, the CUDA context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from crossearth_sar.engine.planning.layout import BUCKET_ELEMENTS, LIVE_ELEMENTS, PERSISTENT_ELEMENTS
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.moe.experts import StackedExperts
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.presets import ModelConfig
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.di3cl import DI3CL

FP32, BF16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model by place. active_experts: of the K experts a layer that a token meets.

    largest_module: those that ZeRO 3 makes whole in one go. persistent: those it never divides.
    """

    experts: int
    active_experts: int
    backbone_rest: int
    decoder: int
    largest_module: int
    persistent: int

    @property
    def total(self) -> int:
        return self.experts + self.shared

    @property
    def shared(self) -> int:
        """What every rank has whatever the expert parallelism."""
        return self.backbone_rest + self.decoder

    @property
    def backbone(self) -> int:
        return self.experts + self.backbone_rest

    @property
    def active_backbone(self) -> int:
        return self.active_experts + self.backbone_rest


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts on the meta device: nothing is allocated."""
    with torch.device("meta"):
        model = CrossEarthSAR(config)
    stacks = [m for m in model.modules() if isinstance(m, StackedExperts)]
    experts = sum(_size(stack) for stack in stacks)
    top_k = config.moe.top_k if config.moe else 1
    active = sum(_size(stack) // stack.num_experts * top_k for stack in stacks)
    return ParameterCount(
        experts=experts,
        active_experts=active,
        backbone_rest=_size(model.backbone) - experts,
        decoder=_size(model) - _size(model.backbone),
        largest_module=max(
            sum(p.numel() for p in module.parameters(recurse=isinstance(module, PhysicsGuidedMoE)))
            for module in model.modules()
        ),
        persistent=sum(p.numel() for p in model.parameters() if p.numel() <= PERSISTENT_ELEMENTS),
    )


def count_selfsup(config: ModelConfig, method: DI3CLConfig) -> tuple[ParameterCount, float]:
    """Of DI3CL on a backbone without a decoder: its parameters, the heads in the decoder's place; and bytes
    of key network and queues, float32 on every rank, once for what trains and once for what is saved."""
    alone = count_parameters(config)
    with torch.device("meta"):
        network = DI3CL(CrossEarthSAR(config), method)
    followed = sum(value.numel() for value in network.state().values())
    return replace(alone, decoder=_size(network) - alone.backbone), 2.0 * FP32 * followed


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of one rank that do not depend on the images.

    weights: with ZeRO 3, this rank's partition and beside it the most that is whole at a time. optimizer:
    fp32 masters (with ZeRO or bf16) and AdamW's two moments. host: what offloading keeps in the host's
    memory. buckets: ZeRO's communication buffers. replica: the whole model in fp32, which validation runs and
    which is filled from all ranks before it.
    """

    weights: float
    gradients: float
    optimizer: float
    buckets: float
    replica: float
    host: float = 0.0

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buckets + self.replica


def state_bytes(
    count: ParameterCount,
    *,
    ranks: int,
    ep_size: int,
    zero_stage: int,
    bf16: bool,
    offload_optimizer: bool = False,
) -> StateBytes:
    """What weights, gradients and optimizer take on one rank.

    Shared parameters are partitioned over all ranks, a slice of experts over the ranks / ep_size that hold
    the same slice: both come to their number divided by the ranks. Not counted: with offloading and several
    passes a step, stages 1 and 2 keep one more copy of the gradients' partition on the host.
    """
    element = BF16 if bf16 else FP32
    held = count.shared + count.experts / ep_size
    partition = count.total / ranks
    whole = min(count.total, LIVE_ELEMENTS + count.largest_module + count.persistent)
    weights = element * (partition + whole if zero_stage == 3 else held)
    gradients = element * (partition if zero_stage >= 2 else held)
    masters = FP32 if zero_stage or bf16 else 0
    optimizer, host = (masters + 2 * FP32) * (partition if zero_stage else held), 0.0
    if offload_optimizer:
        # Beside the three, the fp32 gradient, and a partition in the weights' type: of the weights, on their
        # way to the device, or with ZeRO 3 of the gradients, which add up there.
        optimizer, host = 0.0, optimizer + (FP32 + element) * partition
        gradients = 0.0 if zero_stage >= 2 else gradients
    largest = min(held, BUCKET_ELEMENTS)
    buckets = element * largest * (2 if zero_stage >= 2 else 1) if zero_stage and ranks > 1 else 0.0
    return StateBytes(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buckets=buckets,
        replica=FP32 * count.total,
        host=host,
    )


@cache
def activation_bytes(config: ModelConfig, *, bf16: bool, checkpointing: bool, images: int = 1) -> int:
    """Bytes that a training forward of `images` crops saves for its backward, parameters not counted."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        kept.append(tensor)  # an address may be given again once its tensor is gone
        return tensor

    kept: list[Tensor] = []
    with torch.device("meta"):
        model = CrossEarthSAR(config).to(torch.bfloat16 if bf16 else torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # shapes and types as on a CPU, whose attention saves what a GPU's does
        model.backbone.activation_checkpointing = checkpointing
        image = torch.ones(images, 1, config.crop_size, config.crop_size)
        with _Finite(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(image) if config.decoder else model.features(image)
        own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
        del output
    return sum(size for storage, size in saved.items() if storage not in own)


class _Finite(TorchDispatchMode):
    """Answers a question about values, which tensors without data cannot, with yes: the decoder asks whether
    everything is finite."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True
        return func(*args, **(kwargs or {}))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
