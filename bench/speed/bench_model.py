"""The MoE ViT against the dense ViT of the same active size: images per second, forward and training step.

    python -m bench.speed.bench_model [--preset s] [--batch 1] [--image 512] [--out FOLDER]

Backbones only: descriptors, decoder and loss are the same for both and would dilute the ratio. The MoE's
experts are upcycled from the dense FFN, so both compute the same function, and outputs are compared first.
«training step» is forward, backward and a fused AdamW step: the sparse model's optimizer has all experts to
update, six times the FFN's parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.speed.harness import ERROR_LIMIT, require_close, time_interleaved, write_report
from bench.speed.ratio_pictures import ratio_figure
from crossearth_sar.backend import moe_backend_status
from crossearth_sar.moe import PhysicsGuidedMoE, upcycle_state_dict
from crossearth_sar.presets import model_preset
from crossearth_sar.vit import VisionTransformer

Row = dict[str, Any]


def backbones(preset: str, backends: list[str], *, depth: int | None, device: torch.device,
              dtype: torch.dtype) -> dict[str, VisionTransformer]:  # fmt: skip
    """The dense backbone and a sparse one per backend, of equal function."""
    config = model_preset(f"crossearth_sar_{preset}", 1).vit
    if depth is not None:
        out_blocks = tuple(range(depth - 4, depth))
        config = type(config)(**{**vars(config), "depth": depth, "out_blocks": out_blocks})
    with device:  # drawing a billion numbers on a CPU would take a minute
        dense = VisionTransformer(config)
    for module in dense.modules():  # DINOv2's 1e-5 would hide what the FFNs compute
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.5)
    models = {"dense": dense}
    for backend in backends:
        torch.manual_seed(1)  # the same routers for every backend
        with device:
            sparse = VisionTransformer(config, partial(_sparse, backend=backend))
        state = upcycle_state_dict(dense.state_dict(), 6)
        missing = sparse.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        assert all(".router." in key for key in missing.missing_keys), missing.missing_keys
        models[f"MoE, {backend}"] = sparse
    return {name: model.to(device, dtype) for name, model in models.items()}


def _sparse(dim: int, hidden_dim: int, *, backend: str) -> nn.Module:
    return PhysicsGuidedMoE(dim, hidden_dim, backend=backend)


def usable_backends() -> list[str]:
    """Those of the layer's backends that work here."""
    return [status.name for status in moe_backend_status() if status.usable]


def training_step(
    model: VisionTransformer,
    optimizer: torch.optim.Optimizer | None,
    images: Tensor,
    physics: Tensor,
    dy: Tensor,
) -> None:
    """Forward, backward against a fixed gradient of the tokens, and, with an optimizer, its step."""
    model.zero_grad(set_to_none=True)
    tokens = model(images, physics).tokens
    tokens.backward(dy)
    if optimizer is not None:
        optimizer.step()


def measure(given: argparse.Namespace) -> list[Row]:
    """A row per pass and model."""
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    torch.manual_seed(0)
    backends = given.backends or usable_backends()
    models = backbones(given.preset, backends, depth=given.depth, device=device, dtype=dtype)
    images = torch.randn(given.batch, 3, given.image, given.image, device=device, dtype=dtype)
    physics = torch.randn(given.batch, 3, device=device)
    shares = _agree(models, images, physics, dtype)
    dy = torch.randn_like(models["dense"](images, physics).tokens.detach())
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=1e-12, fused=True) for name, model in models.items()
    }  # a rate that changes nothing: every round is the same work
    passes: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {n: partial(_forward, m, images, physics) for n, m in models.items()},
        "forward+backward": {
            n: partial(training_step, m, None, images, physics, dy) for n, m in models.items()
        },
        "training step": {
            n: partial(training_step, m, optimizers[n], images, physics, dy) for n, m in models.items()
        },
    }
    rows: list[Row] = []
    for name, calls in passes.items():
        timings = time_interleaved(
            calls, rounds=given.rounds, warm_up=1, budget_s=given.budget / 3, device=device
        )
        for model, timing in timings.items():
            parameters = sum(p.numel() for p in models[model].parameters())
            rows.append({
                "pass": name, "model": model, "parameters": f"{parameters / 1e6:.1f}M",
                "ms p50": f"{timing.p50 * 1e3:.4g}",
                "ms p20 .. p80": f"{timing.p20 * 1e3:.4g} .. {timing.p80 * 1e3:.4g}",
                "rounds": timing.rounds,
                "images/s": f"{given.batch / timing.p50:.4g}",
                "images/s over dense": f"{timings['dense'].p50 / timing.p50:.3f}",
                "largest expert's share": f"{shares[model]:.2f}" if model in shares else "",
            })  # fmt: skip
    return rows


@torch.no_grad()
def _forward(model: VisionTransformer, images: Tensor, physics: Tensor) -> None:
    model(images, physics)


@torch.no_grad()
def _agree(
    models: dict[str, VisionTransformer], images: Tensor, physics: Tensor, dtype: torch.dtype
) -> dict[str, float]:
    """Refuses models that differ; returns the largest share of the tokens one expert has, over the blocks."""
    expected = models["dense"](images, physics).tokens
    shares = {}
    for name, model in models.items():
        if name != "dense":
            output = model(images, physics)
            # A block adds an attention and an FFN to what one FFN rounds.
            require_close(name, output.tokens, expected, limit=2 * ERROR_LIMIT[dtype])
            shares[name] = max(float(routing.expert_fraction.max()) for routing in output.routing)
    return shares


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = Path("bench/reports/model-" + ("gpu" if on_gpu else "cpu"))
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--preset", choices=["tiny", "s", "b", "l"], default="l" if on_gpu else "s")
    parser.add_argument("--depth", type=int, help="blocks, where not the preset's; at least 4")
    parser.add_argument("--batch", type=int, default=8 if on_gpu else 1)
    parser.add_argument("--image", type=int, default=512, help="pixels of a side")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--backends", nargs="+", help="those that work here when not given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=120, help="seconds of timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = measure(given)
    notes = [
        f"Backbone of preset {given.preset}{f' cut to {given.depth} blocks' if given.depth else ''}, "
        f"{given.batch} image(s) of {given.image} x {given.image}, {given.dtype}; the routers are untrained.",
        "Above 1 the sparse model is the faster. Its outputs agreed with the dense one's before any ratio.",
    ]
    print(write_report(given.out, "MoE ViT against the dense ViT", rows, notes))
    panels: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["model"] != "dense":
            panels.setdefault(row["pass"], {})[row["model"]] = float(row["images/s over dense"])
    if panels:
        ratio_figure(
            given.out / "ratios.png", "MoE ViT: images per second over the dense ViT's", panels,
            label="images/s over dense",
        )  # fmt: skip


if __name__ == "__main__":
    main()
