"""replace_ffn on the FFNs of other packages as they are: told by structure, plain and gated."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from test_replace import large_routers
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from crossearth_sar import InputError, replace_ffn
from crossearth_sar.moe import ExpertSpec

GATED = ExpertSpec(kind="swiglu")
DIM = 32


@pytest.fixture(scope="module")
def timm_layers() -> Any:
    """timm.layers, where timm is and its torchvision fits this torch."""
    try:
        return importlib.import_module("timm.layers")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported here: {error}")


class Blocks(nn.Module):
    def __init__(self, *ffns: nn.Module) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(ffns)

    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            x = x + mlp(x)
        return x


def dinov2(**changes: Any) -> nn.Module:
    sizes = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    return Dinov2Model(Dinov2Config(**sizes, patch_size=7, **changes))


def dinov3(*, gated: bool) -> nn.Module:
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, patch_size=7,
            use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
        )
    )  # fmt: skip


def sam() -> nn.Module:
    return SamVisionEncoder(
        SamVisionConfig(
            hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7,
            global_attn_indexes=[1], window_size=2, output_channels=8,
        )
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "pattern", "expert", "path"),
    [
        (lambda: dinov3(gated=False), "*.mlp", None, "model.layer.1.mlp"),
        (lambda: dinov3(gated=True), "*.mlp", GATED, "model.layer.1.mlp"),
        (lambda: dinov2(use_swiglu_ffn=True), "encoder.layer.*.mlp", GATED, "encoder.layer.1.mlp"),
        (sam, "layers.*.mlp", None, "layers.1.mlp"),
    ],
    ids=["DINOv3", "DINOv3 gated", "DINOv2 gated", "SAM"],
)
def test_models_of_transformers_compute_what_they_did(
    make: Any, pattern: str, expert: ExpertSpec | None, path: str
) -> None:
    torch.manual_seed(0)
    model, pixels = make().eval(), torch.randn(2, 3, 28, 28)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    before = model(pixels).last_hidden_state
    moe = replace_ffn(model, pattern, num_experts=3, expert=expert)
    large_routers(moe)
    assert path in moe.layers
    torch.testing.assert_close(model(pixels).last_hidden_state, before, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "expert"),
    [
        ("Mlp", {}, None),
        ("SwiGLU", {}, GATED),
        ("SwiGLUPacked", {}, GATED),
        ("GluMlp", {"act_layer": nn.GELU, "gate_last": True}, GATED),
    ],
)
def test_layers_of_timm_compute_what_they_did(
    timm_layers: Any, name: str, options: dict[str, Any], expert: ExpertSpec | None
) -> None:
    torch.manual_seed(0)
    model = Blocks(*(getattr(timm_layers, name)(DIM, 64, **options) for _ in range(2))).eval()
    x = torch.randn(2, 7, DIM)
    before = model(x)
    large_routers(replace_ffn(model, "mlps.*", num_experts=3, expert=expert))
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)


class Plain(nn.Module):
    """Two linear maps under names of its own, square, so that nothing but order tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.nonlinearity, self.contract = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.contract(self.nonlinearity(self.expand(x)))
        return y


class Backwards(Plain):
    """Declared the other way round than it is called."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.nonlinearity(self.contract(x)))
        return y


def test_names_do_not_matter_and_the_function_decides() -> None:
    model, x = Blocks(Plain()), torch.randn(1, 3, 8)
    before = model(x)
    replace_ffn(model, "mlps.*")
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="computes something else"):
        replace_ffn(Blocks(Backwards()), "mlps.*")


def test_gated_experts_against_tokens_one_by_one() -> None:
    """Every gradient of the type, by autograd through the formula in float64."""
    from crossearth_sar import PhysicsGuidedMoE

    torch.manual_seed(0)
    layer = PhysicsGuidedMoE(6, 10, num_experts=3, gate="probability", num_descriptors=0, expert=GATED)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(1, 9, 6)
    y, routing = layer(x)
    leaves = {n: p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    own = {n.removeprefix("experts."): leaf for n, leaf in leaves.items()}
    rows = []
    for t, z in enumerate(x[0].double()):
        e = int(routing.expert_index[0, t, 0])
        pi = (leaves["router.weight"] @ z + leaves["router.bias"]).softmax(0)[e]
        gate = own["w_gate"][e] @ z + own["b_gate"][e]
        hidden = gate * torch.sigmoid(gate) * (own["w_up"][e] @ z + own["b_up"][e])
        rows.append(pi * (own["w_down"][e] @ hidden + own["b_down"][e]))
    exact = torch.stack(rows)[None]
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    exact.square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), leaves[name].grad, rtol=1e-4, atol=1e-5, msg=name)
