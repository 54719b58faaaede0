"""Other projects' layers, given the weights and the routing of the problem; see moe_peers.py.

T tokens, D dim, F hidden, E experts. Top-1 throughout.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed.moe_problem import Absent, Contender, Problem, Scope, route


class _Expert(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


def _deepspeed(problem: Problem, scope: Scope) -> Contender | Absent:
    """DeepSpeed's MoE, one rank, with the capacity of the fullest expert: nothing drops, least padding."""
    name = "DeepSpeed MoE"
    if scope == "experts":
        return Absent(name, "gate, dispatch and experts are one module: see scope layer")
    moe = importlib.import_module("deepspeed.moe.layer").MoE
    _start_one_rank()
    experts, hidden, dim = problem.weights["w1"].shape
    factor = max(problem.splits) * experts / max(1, len(problem.x_TD)) * (1 + 1e-6)
    layer = moe(
        dim, _Expert(dim, hidden), num_experts=experts, k=1, capacity_factor=factor,
        eval_capacity_factor=factor, min_capacity=1, use_rts=False,
    )  # fmt: skip
    layer.set_deepspeed_parallelism()
    layer = layer.to(problem.x_TD)
    own = layer.deepspeed_moe.experts.deepspeed_experts
    paths = {"w1": "up.weight", "b1": "up.bias", "w2": "down.weight", "b2": "down.bias"}
    parameters = {key: [expert.get_parameter(path) for expert in own] for key, path in paths.items()}
    with torch.no_grad():
        layer.deepspeed_moe.gate.wg.weight.copy_(problem.router_ED)
        for key, tensors in parameters.items():
            for tensor, value in zip(tensors, problem.weights[key], strict=True):
                tensor.copy_(value)
    return Contender(name, lambda x: layer(x[None])[0][0], parameters, host_sync=True)


@cache
def _start_one_rank() -> None:
    from crossearth_sar.engine.distributed import start_ranks

    threads = torch.get_num_threads()
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    start_ranks()  # which also gives this rank all threads of the machine
    torch.set_num_threads(threads)


def _megablocks(problem: Problem, scope: Scope) -> Contender | Absent:
    """Dropless MegaBlocks («grouped»): tanh GELU, no biases in its experts."""
    name = "MegaBlocks"
    arguments = importlib.import_module("megablocks.layers.arguments").Arguments
    dmoe = importlib.import_module("megablocks.layers.dmoe").dMoE
    if scope == "experts" or problem.gate != "normalized":
        return Absent(name, "timed as a whole layer with a gate of 1 only")
    experts, hidden, dim = problem.weights["w1"].shape
    layer = dmoe(arguments(
        hidden_size=dim, ffn_hidden_size=hidden, moe_num_experts=experts, moe_top_k=1, mlp_type="mlp",
        mlp_impl="grouped", bias=False, return_bias=False, fp16=problem.x_TD.dtype == torch.float16,
        bf16=problem.x_TD.dtype == torch.bfloat16, device=problem.x_TD.device,
    ))  # fmt: skip
    with torch.no_grad():
        layer.router.layer.weight.copy_(problem.router_ED)
        w1, w2 = (p for key, p in layer.experts.named_parameters() if key.endswith(("w1", "w2")))
        w1.copy_(problem.weights["w1"].reshape(w1.shape))
        w2.copy_(problem.weights["w2"].transpose(1, 2).reshape(w2.shape))  # it keeps (E F, D) for both

    def forward(x_TD: Tensor) -> Tensor:
        out = layer(x_TD[:, None])
        return (out[0] if isinstance(out, tuple) else out)[:, 0]

    parameters = {"w1": [w1], "w2": [w2]}
    return Contender(name, forward, parameters, activation="gelu_tanh", biases=False, host_sync=True)


def _scattermoe(problem: Problem, scope: Scope) -> Contender | Absent:
    """ScatterMoE's MLP: no biases; it is given the routing, so «layer» adds the router in front."""
    mlp = importlib.import_module("scattermoe.mlp").MLP
    experts, hidden, dim = problem.weights["w1"].shape
    layer = mlp(dim, hidden, experts, 1, activation=F.gelu).to(problem.x_TD)
    parameters = {"w1": [layer.experts.weight], "w2": [layer.output_experts.weight]}
    with torch.no_grad():
        for key, (tensor,) in parameters.items():
            tensor.copy_(problem.weights[key])

    def forward(x_TD: Tensor) -> Tensor:
        expert_T, gate_T = route(problem, scope, x_TD)
        gate_T1 = torch.ones_like(x_TD[:, :1]) if gate_T is None else gate_T[:, None]
        out: Tensor = layer(x_TD, gate_T1, expert_T[:, None])
        return out

    return Contender("ScatterMoE", forward, parameters, biases=False, host_sync=True)


def _sonicmoe(problem: Problem, scope: Scope) -> Contender | Absent:
    """SonicMoE, of Hopper and Blackwell: CuTe kernels, tanh GELU, a gate normalised over the chosen."""
    name = "SonicMoE"
    sonic = importlib.import_module("sonicmoe")
    activation = importlib.import_module("sonicmoe.enums").ActivationType.GELU
    if scope == "experts" or problem.gate != "normalized" or problem.x_TD.dtype != torch.bfloat16:
        return Absent(name, "timed as a whole layer with a gate of 1 only, in bfloat16")
    experts, hidden, dim = problem.weights["w1"].shape
    layer = sonic.MoE(experts, 1, dim, hidden, activation, True, 0.02).to(problem.x_TD)
    up, down = layer.c_fc, layer.c_proj
    parameters = {"w1": [up.weight], "b1": [up.bias], "w2": [down.weight], "b2": [down.bias]}
    with torch.no_grad():
        layer.router.weight.copy_(problem.router_ED)
        for key, (tensor,) in parameters.items():
            tensor.copy_(problem.weights[key])
    return Contender(name, lambda x: layer(x)[0], parameters, activation="gelu_tanh")


def _liger(problem: Problem, scope: Scope) -> Absent:
    """Not timed: what it computes is another function, of half as many products again."""
    importlib.import_module("liger_kernel")
    return Absent("Liger fused MoE", "its experts are SwiGLU without biases: another function than this FFN")


OTHERS: dict[str, Callable[[Problem, Scope], Contender | Absent]] = {
    "DeepSpeed MoE": _deepspeed,
    "MegaBlocks": _megablocks,
    "ScatterMoE": _scattermoe,
    "SonicMoE": _sonicmoe,
    "Liger fused MoE": _liger,
}
"""Name -> what builds it, or says why not."""
