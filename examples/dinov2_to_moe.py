"""Turns transformers' DINOv2 into a physics-guided mixture of experts, and runs it on a SAR image.

python examples/dinov2_to_moe.py                          random weights, small, offline
python examples/dinov2_to_moe.py facebook/dinov2-small    published weights, downloaded
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from crossearth_sar import replace_ffn, sar_descriptors
from crossearth_sar.descriptors import RunningStandardizer

if len(sys.argv) > 1:
    model = Dinov2Model.from_pretrained(sys.argv[1])
else:
    model = Dinov2Model(
        Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=112)
    )
model.embeddings.mask_token.requires_grad_(False)  # unused: several ranks would wait for its gradient
amplitude_B1HW = torch.distributions.Gamma(4.0, 4.0).sample((2, 1, 112, 112)).sqrt()  # four looks of speckle
pixels_B3HW = amplitude_B1HW.expand(-1, 3, -1, -1)
dense_tokens = model.eval()(pixels_B3HW).last_hidden_state

# In the model, so that its statistics are trained and saved with it.
model.standardizer = RunningStandardizer()


def describe(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The three SAR descriptors of every image, as the routers want them."""
    return model.standardizer(sar_descriptors(pixel_values[:, 0]))


moe = replace_ffn(model, "encoder.layer.*.mlp", num_experts=6, descriptors=describe)
tokens = model(pixels_B3HW).last_hidden_state
print(f"{len(moe.layers)} FFNs became mixtures of 6 experts each")
print(f"largest change of an output: {(tokens - dense_tokens).abs().max():.1e}")
for number, routing in enumerate(moe.routing()):
    share = [round(f, 2) for f in routing.expert_fraction.tolist()]
    print(f"layer {number}: share of tokens per expert {share}")

model.train()
task_loss = model(pixels_B3HW).last_hidden_state.square().mean()  # any task's in its place
loss = task_loss + moe.balance_loss()
loss.backward()
gradient = torch.stack([layer.router.weight.grad.norm() for layer in moe.layers.values()]).max()
print(f"loss {loss.item():.3f}; largest gradient of a router {gradient.item():.1e}")
