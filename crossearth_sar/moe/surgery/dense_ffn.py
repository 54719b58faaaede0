"""Reads a dense feed-forward network in somebody else's model; makes the MoE layer that starts as it.

What form it has, the expert type knows. What the module computes is then compared with what an expert with
its weights computes, so that a look-alike is refused.

B batch, T tokens, D dim, F hidden, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.expert_spec import ExpertSpec
from crossearth_sar.moe.expert_types.base import DenseFFN, compute_dense
from crossearth_sar.moe.experts import SharedExpert
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.moe.router import Gate, PhysicsGuidedRouter
from crossearth_sar.moe.surgery.upcycle import upcycle_state_dict

WANTED = "an FFN in one module, called as mlp(x) -> y"


@dataclass(frozen=True)
class MoEOptions:
    """What `replace_ffn` was asked for; see there."""

    num_experts: int
    top_k: int
    num_descriptors: int
    gate: Gate
    expert: ExpertSpec
    expert_noise: float
    seed: int
    backend: str


def read_dense_ffn(module: nn.Module, path: str, spec: ExpertSpec) -> DenseFFN:
    """The FFN at `path`, for experts as `spec` says.

    Raises:
        InputError: if it is anything else than such an FFN, saying what.
    """
    if isinstance(module, PhysicsGuidedMoE) or isinstance(getattr(module, "moe", None), PhysicsGuidedMoE):
        raise InputError(f"{path!r} is a mixture of experts already", fix="give a pattern without it")
    dense = spec.make().read_dense(module, path)
    if spec.activation not in (None, dense.expert.activation):
        raise InputError(
            f"{path!r} has another activation than the experts", got=dense.expert.activation,
            expected=spec.activation, fix="leave the activation out: it is read from the model",
        )  # fmt: skip
    shapes = dense.expert.shapes(1, dense.dim, dense.hidden_dim)
    wanted = {name: shape[1:] for name, shape in shapes.items()}
    got = {name: tuple(value.shape) for name, value in dense.as_expert().items()}
    if got != wanted:
        raise InputError(f"{path!r} does not fill an expert of {dense.expert}", got=got, expected=wanted)
    _check_it_computes_that(dense, path)
    return dense


def upcycled(dense: DenseFFN, path: str, options: MoEOptions) -> PhysicsGuidedMoE:
    """The MoE layer whose every expert is `dense`, in its dtype, on its device, frozen where it is frozen.

    The router is new, drawn from torch's global generator; so is a shared expert, whose output is 0.
    """
    spec = replace(options.expert, activation=dense.expert.activation)
    with torch.device("meta"):  # E fresh experts would be initialised only to be thrown away
        moe = PhysicsGuidedMoE(
            dense.dim,
            dense.hidden_dim,
            num_experts=options.num_experts,
            top_k=options.top_k,
            num_descriptors=options.num_descriptors,
            gate=options.gate,
            expert=spec,
            backend=options.backend,
        )
    like = next(iter(dense.weights.values()))
    moe.router = PhysicsGuidedRouter(
        dense.dim,
        options.num_experts,
        top_k=options.top_k,
        num_descriptors=options.num_descriptors,
        gate=options.gate,
    ).to(like.device, like.dtype)
    if moe.shared is not None:
        shared = SharedExpert(dense.dim, moe.shared.hidden_dim, dense.expert)
        moe.shared = shared.to(like.device, like.dtype)
    _fill(moe, dense, path, options)
    return moe.train(dense.module.training)


def _fill(moe: PhysicsGuidedMoE, dense: DenseFFN, path: str, options: MoEOptions) -> None:
    """Gives `moe` its experts' parameters; those are frozen that come of frozen ones."""
    prefix = path.replace(".", "/") + ".mlp."  # the noise depends on the path; ".mlp." is upcycle's marker
    state = {f"{prefix}{name}": value.detach() for name, value in dense.weights.items()}
    stacked = upcycle_state_dict(
        state,
        options.num_experts,
        expert_noise=options.expert_noise,
        seed=options.seed,
        expert=options.expert,
    )
    experts = {key.rpartition(".")[2]: value for key, value in stacked.items()}
    moe.experts.load_state_dict(experts, assign=True)
    for name, value in dense.weights.items():
        for parameter in dense.expert.from_dense(name, value.detach()):
            moe.experts.get_parameter(parameter).requires_grad_(value.requires_grad)


@torch.no_grad()
def _check_it_computes_that(dense: DenseFFN, path: str) -> None:
    like = next(iter(dense.weights.values()))
    if like.device.type == "meta":
        return
    steps = torch.arange(4 * dense.dim, device=like.device, dtype=torch.float32)
    x_BTD = (steps * 0.7).sin().view(1, 4, -1).to(like.dtype)
    expected_BTD = compute_dense(dense, x_BTD)
    problem = f"{path!r} is not called as mlp(x) -> y"
    try:
        got_BTD = dense.module(x_BTD)
    except TypeError as error:
        raise InputError(problem, got=str(error), expected=WANTED) from error
    if not isinstance(got_BTD, Tensor) or got_BTD.shape != expected_BTD.shape:
        raise InputError(problem, got=f"a {type(got_BTD).__name__} from it", expected="a tensor shaped as x")
    # Wide: half precision rounds, while a residual, a norm or a scale shows at once.
    if not torch.allclose(got_BTD, expected_BTD, rtol=0.02, atol=0.02 * float(expected_BTD.abs().max())):
        raise InputError(
            f"{path!r} computes something else than its parts say: an expert of {dense.expert}",
            got=f"a difference of up to {float((got_BTD - expected_BTD).abs().max()):.2g}",
            expected=WANTED,
        )
