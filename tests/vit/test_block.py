"""The block: its formula, its injected FFN, and attention against the textbook."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.vit.attention import Attention
from crossearth_sar.vit.block import Block, DenseFFN


class RecordingFFN(nn.Module):
    """Doubles its input, keeps what it was given, and returns a routing of its own."""

    def forward(self, x_BTD: Tensor, descriptors_BP: Tensor | None = None) -> tuple[Tensor, str]:
        self.seen = x_BTD, descriptors_BP
        return 2 * x_BTD, "routing"


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention, x = Attention(12, 3).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    randomise(attention)
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).split(12, dim=-1)
    heads = []
    for h in range(3):
        mine = slice(4 * h, 4 * h + 4)
        weights = (q[..., mine] @ k[..., mine].transpose(1, 2) / 2.0).softmax(-1)
        heads.append(weights @ v[..., mine])
    expected = F.linear(torch.cat(heads, -1), attention.proj.weight, attention.proj.bias)
    torch.testing.assert_close(attention(x), expected)


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(InputError, match="divisor of dim = 12"):
        Attention(12, 5)


def test_dense_ffn_ignores_descriptors_and_routes_nothing() -> None:
    ffn, x = DenseFFN(8, 16), torch.randn(2, 5, 8)
    y, routing = ffn(x, torch.randn(2, 3))
    assert routing is None
    assert torch.equal(y, ffn(x)[0])
    hidden = x @ ffn.fc1.weight.T + ffn.fc1.bias
    exact_gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(y, exact_gelu @ ffn.fc2.weight.T + ffn.fc2.bias)


def test_block_formula_and_what_reaches_the_ffn() -> None:
    ffn = RecordingFFN()
    block, x, d = Block(8, 2, ffn, layer_scale=0.5), torch.randn(2, 5, 8), torch.randn(2, 3)
    randomise(block)
    y, routing = block(x, d)
    middle = x + block.ls1.gamma * block.attn(block.norm1(x))
    torch.testing.assert_close(y, middle + block.ls2.gamma * 2 * block.norm2(middle))
    torch.testing.assert_close(ffn.seen[0], block.norm2(middle))
    assert ffn.seen[1] is d
    assert routing == "routing"


def test_layer_scale_starts_where_told_and_tiny_means_identity() -> None:
    block, x = Block(8, 2, DenseFFN(8, 16), layer_scale=1e-5), torch.randn(1, 5, 8)
    assert torch.equal(block.ls1.gamma, torch.full((8,), 1e-5))
    assert torch.equal(block.ls2.gamma, torch.full((8,), 1e-5))
    torch.testing.assert_close(block(x)[0], x, rtol=0, atol=1e-3)
    assert not torch.equal(block(x)[0], x)


def test_parameter_names_are_those_of_dinov2() -> None:
    names = {name for name, _ in Block(8, 2, DenseFFN(8, 16), layer_scale=1.0).named_parameters()}
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {
        "ls1.gamma",
        "ls2.gamma",
    }
