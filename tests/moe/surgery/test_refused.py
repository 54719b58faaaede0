"""What replace_ffn takes for no dense FFN, and says so in words, with the model left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_replace import DIM, DINOV2, Mlp, Transformer, dinov2
from torch import Tensor, nn

from crossearth_sar import InputError, PhysicsGuidedMoE, replace_ffn
from crossearth_sar.moe.activations import ACTIVATIONS
from crossearth_sar.moe.surgery.mlp import activation_name


class Residual(Mlp):
    """Has the parts of an FFN, but adds its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class TwoInputs(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + residual


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(DIM, 96), nn.Linear(48, DIM)


class SplitHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.intermediate_act_fn = nn.Linear(DIM, 48), nn.GELU()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Mlp(drop=0.1), r"drop1 drops out(.|\n)*p = 0.1"),
        (lambda: Mlp(act=nn.SiLU()), "not one the experts have(.|\n)*SiLU"),
        (lambda: Mlp(act=nn.ReLU6()), "not one the experts have"),
        (lambda: Mlp(norm=nn.LayerNorm(48)), r"besides its linear maps: act, norm"),
        (Gated, r"gated FFN \(SwiGLU\)"),
        (SplitHalf, "split into two modules"),
        (Residual, "computes something else"),
        (TwoInputs, r"not called as mlp\(x\) -> y"),
        (lambda: nn.Linear(DIM, DIM), "not a dense FFN"),
        (lambda: PhysicsGuidedMoE(DIM), "mixture of experts already"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_dense_ffn_and_leaves_the_model_alone(
    make: Callable[[], nn.Module], problem: str
) -> None:
    model = Transformer()
    model.blocks[2].mlp = make()
    before = [block.mlp for block in model.blocks]
    with pytest.raises(InputError, match=problem) as caught:
        replace_ffn(model, "*.mlp")
    assert "blocks.2.mlp" in str(caught.value)
    assert [block.mlp for block in model.blocks] == before
    assert not model._forward_pre_hooks


def test_refuses_half_a_gated_and_a_quantised_one() -> None:
    model = Transformer()
    model.blocks[0].mlp.fc2 = nn.Linear(24, DIM)
    with pytest.raises(InputError, match="do not fit each other"):
        replace_ffn(model, "*.mlp")
    model.blocks[0].mlp.fc2 = type("Linear8bit", (nn.Linear,), {})(48, DIM)
    with pytest.raises(InputError, match=r"plain nn\.Linear"):
        replace_ffn(model, "*.mlp")
    model.blocks[0].mlp.fc2 = nn.Linear(48, DIM).half()
    with pytest.raises(InputError, match="differ in dtype"):
        replace_ffn(model, "*.mlp")


def test_swiglu_dinov2_wants_gated_experts() -> None:
    with pytest.raises(InputError, match=r'gated FFN(.|\n)*kind="swiglu"'):
        replace_ffn(dinov2(use_swiglu_ffn=True), DINOV2)


def test_activations_are_told_by_their_values() -> None:
    for name, function in ACTIVATIONS.items():
        assert activation_name(function, "mlp") == name
    assert activation_name(nn.ReLU(inplace=True), "mlp") == "relu"
    with pytest.raises(InputError, match="activation of 'mlp'"):
        activation_name(lambda x: x * torch.sigmoid(1.702 * x), "mlp")
