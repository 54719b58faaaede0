"""DI3CL: a query network that trains, a key network that follows it, and what is compared between them.

N images of a pass, C bands, S pixels a side of a view, K boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.moe import RoutingInfo
from crossearth_sar.selfsup.config import DI3CLConfig


@dataclass(frozen=True)
class DI3CLTerms:
    """Losses of a pass: their mean over passes and ranks is the loss of the whole batch.

    total: what is minimised, the weighed sum and the balance loss. global_, contour, region, balance:
    unweighed; 0 where switched off. values: scalars for the log, without a graph, whose means over passes and
    ranks count: top1_global, top1_contour, boxes, without_boxes, embedding_std, cosine_positive,
    cosine_negative, cosine_boxes, each where its part is switched on. routing: the query's, per sparse block.
    """

    total: Tensor
    global_: Tensor
    contour: Tensor
    region: Tensor
    balance: Tensor
    values: Mapping[str, Tensor]
    routing: tuple[RoutingInfo, ...]


class DI3CL(nn.Module):
    """Query and key network over one encoder, heads and queues.

    A step is: `begin_step()`, `forward` of each pass with its backward, the optimizer's update,
    `push_keys()`, `update_keys(momentum)`. A step whose update is left out ends without the last two.

    The module's parameters and buffers are the query's alone, `query.encoder.…` and heads; `encoder` is that
    model. The key network and the queues are neither, so that no optimizer, cast or checkpoint of weights
    meets them: they stay float32, follow `.to(device)`, and are kept by `state`.

    Args:
        encoder: a model without a decoder; its weights are those that both networks start from.
        config: the method.

    Raises:
        InputError: for a model with a decoder, or settings that do not fit the encoder.
    """

    def __init__(self, encoder: CrossEarthSAR, config: DI3CLConfig) -> None:
        super().__init__()
        self.config = config

    def begin_step(self) -> None:
        """Forgets keys of passes whose step was left out."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Tensor]) -> DI3CLTerms:
        """The losses of one pass; a collective call where ranks run.

        Args:
            batch: query_image, key_image (N, C, S, S) linear amplitude; query_mean, query_std, key_mean,
                key_std (N, C) dB statistics; query_boxes, key_boxes (N, K, 4) float32 pixels of the view;
                valid (N, K) bool, which boxes there are (the others may hold anything finite). With the
                contour loss «edges» also mirrored (N, 2) bool: whether one view is mirrored to the other
                along x, along y. Optionally mean_boxes, a scalar: boxes of a pass, in the mean over all
                passes and ranks of the step; not given, it is the mean over ranks of this pass.
        """
        raise NotImplementedError

    def push_keys(self) -> None:
        """Puts the keys of all passes and ranks into the queues; a collective call.

        Raises:
            CollapseError: when the embeddings have been one for `collapse_steps` steps.
        """
        raise NotImplementedError

    def update_keys(self, momentum: float, masters: Iterable[tuple[str, Tensor]] | None = None) -> None:
        """key <- momentum * key + (1 - momentum) * query, in float32.

        Args:
            masters: the module's weights in float32 by their names in its state_dict, where its own
                parameters are a rounded copy of them; None: its own parameters.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Key network, queues and watch, by name, equal on all ranks."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave; InputError where it is another network's."""
        raise NotImplementedError

    def words(self, images: int | None = None) -> list[str]:
        """Lines for the user before the first step: what the method is here, and what to beware of.

        Args:
            images: of the data set.
        """
        raise NotImplementedError
