"""DI3CL: a query network that trains, a key network that follows it, and what is compared between them.

N images of a pass, C bands, S pixels a side of a view, K boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.moe import RoutingInfo
from crossearth_sar.selfsup.collapse import CollapseWatch, deviation
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.edges import as_query_sees, edge_losses, explained_share, log_ratios
from crossearth_sar.selfsup.heads import Head
from crossearth_sar.selfsup.key_network import KeyNetwork
from crossearth_sar.selfsup.losses import agreement, info_nce, mean_over_boxes, unit
from crossearth_sar.selfsup.network import Network, Pooled, Vectors, contrasts_contours, predicts_edges
from crossearth_sar.selfsup.queue import KeyQueue
from crossearth_sar.selfsup.ranks import gather_rows, rank_and_size, sum_over_ranks

ENCODER_PREFIX = "query.encoder.model."
"""Before the names of the trained model's weights in `DI3CL.state_dict`."""


@dataclass(frozen=True)
class DI3CLTerms:
    """Losses of a pass: their mean over passes and ranks is the loss of the whole batch.

    total: what is minimised, the weighed sum and the balance loss. global_, contour, region, balance:
    unweighed; 0 where switched off. values: scalars for the log, without a graph, whose means over passes and
    ranks count: embedding_std, boxes (of an image) and without_boxes (share of images); where switched on
    top1_global, cosine_positive, cosine_negative, top1_contour, edges_explained (share of the edges' mean
    square), cosine_boxes and boxes_std, the standard deviation of boxes' unit vectors. routing: the query's,
    per sparse block.
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

    The module's parameters and buffers are the query's alone, `query.encoder.model.…` and heads; `encoder` is
    that model. The key network and the queues are neither, so that no optimizer, cast or checkpoint of
    weights meets them: they stay float32, follow `.to(device)`, and are kept by `state`.

    Args:
        encoder: a model without a decoder; its weights are those that both networks start from.
        config: the method.

    Raises:
        InputError: for a model with a decoder, or settings that do not fit the encoder.
    """

    def __init__(self, encoder: CrossEarthSAR, config: DI3CLConfig) -> None:
        super().__init__()
        self.config = config
        self.query = Network(encoder, config)
        out, hidden = config.output_dim, config.hidden_dim
        self.predictor = self.edge_head = None
        if self.query.region_projector is not None:
            self.predictor = Head(out, hidden, out, self.query.region_norm)
        if predicts_edges(config):
            self.edge_head = Head(self.query.encoder.shallow_dim, hidden, 1, "none")
        self._key = KeyNetwork(self.query)
        self._queues: dict[str, KeyQueue] = {}
        if config.global_weight:
            self._queues["global"] = KeyQueue(out, config.queue_length)
        if contrasts_contours(config):
            self._queues["contour"] = KeyQueue(out, config.queue_length)
        self._watch = CollapseWatch(config.collapse_std, config.collapse_steps)
        self.begin_step()

    @property
    def encoder(self) -> CrossEarthSAR:
        """The model that trains."""
        return self.query.encoder.model

    @property
    def key(self) -> Network:
        """The key network."""
        return self._key.network

    @property
    def smallest_box(self) -> float:
        """Least side of a box in pixels of the view."""
        return self.config.smallest_box or float(self.query.encoder.stride)

    def begin_step(self) -> None:
        """Forgets what passes left behind whose step was left out."""
        self._new_keys: dict[str, list[Tensor]] = {name: [] for name in self._queues}
        self._watch.forget()

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
        image, valid_NK = batch["query_image"], batch["valid"]
        # Boxes that are not there become the whole view: fixed shapes, the same graph on every rank.
        whole = image.new_tensor([0, 0, image.shape[-1], image.shape[-1]], dtype=torch.float32)
        query_boxes, key_boxes = (
            torch.where(valid_NK[..., None], batch[name].float(), whole)
            for name in ("query_boxes", "key_boxes")
        )
        pooled = self.query.pool(
            image, batch["query_mean"], batch["query_std"], query_boxes, parts=self.edge_head is not None
        )
        query = self.query.heads(pooled, valid_NK)
        with torch.no_grad():
            key = self.key.heads(self._key.pool(self.query, batch, key_boxes), valid_NK)
        mean_boxes = batch.get("mean_boxes")
        if mean_boxes is None:
            mean_boxes = sum_over_ranks(valid_NK.sum().float()) / rank_and_size()[1]
        values = self._looked_at(query, pooled, valid_NK)
        region = contour = image.new_zeros(())
        if self.predictor is not None:
            region = self._region(query, key, valid_NK, mean_boxes, values)
        if self.edge_head is not None:
            contour = self._edges(pooled, batch, key_boxes, mean_boxes, values)
        elif "contour" in self._queues:
            contour = self._contrast("contour", query.contour, key.contour, values)
        global_ = image.new_zeros(())
        if "global" in self._queues:
            global_ = self._contrast("global", query.global_, key.global_, values)
        return self._weighed(global_, contour, region, pooled, values)

    def push_keys(self) -> None:
        """Puts the keys of all passes into the queues, pass by pass in rank order; a collective call.

        Raises:
            CollapseError: when the embeddings have been one for `collapse_steps` steps.
        """
        for name, passes in self._new_keys.items():
            assert passes, "no pass since begin_step"
            self._queues[name].push(torch.cat([gather_rows(keys) for keys in passes]))
        self._watch.end_step()
        self.begin_step()

    def update_keys(self, momentum: float, masters: Iterable[tuple[str, Tensor]] | None = None) -> None:
        """key <- momentum * key + (1 - momentum) * query, in float32.

        Args:
            masters: the module's weights in float32 by their names in its state_dict, where its own
                parameters are a rounded copy of them; None: its own parameters.
        """
        weights = self.named_parameters() if masters is None else masters
        prefix = "query."
        ours = ((name[len(prefix) :], value) for name, value in weights if name.startswith(prefix))
        self._key.follow(momentum, ours)

    def state(self) -> dict[str, Tensor]:
        """Key network, queues and watch, by name, equal on all ranks."""
        state = {f"key.{name}": value for name, value in self._key.named_parameters().items()}
        for name, queue in self._queues.items():
            state[f"queue.{name}"] = queue.keys_KD
            state[f"pointer.{name}"] = torch.tensor(queue.pointer)
        return {**state, "collapse.low_steps": torch.tensor(self._watch.low_steps)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave; InputError where it is another network's."""
        own = self.state()
        found, expected = ({n: tuple(v.shape) for n, v in which.items()} for which in (state, own))
        if found != expected:
            differing = sorted(n for n in found.keys() | own.keys() if found.get(n) != expected.get(n))
            raise InputError(
                "the key network and queues are of other settings",
                got=", ".join(f"{name} {found.get(name, 'missing')}" for name in differing[:3]),
                expected=", ".join(f"{name} {expected.get(name, 'absent')}" for name in differing[:3]),
                fix="go on with the settings of the run that saved them",
            )
        for name, value in own.items():
            if name.startswith(("key.", "queue.")):
                value.copy_(state[name])
        for name, queue in self._queues.items():
            queue.pointer = int(state[f"pointer.{name}"])
        self._watch.low_steps = int(state["collapse.low_steps"])
        self.begin_step()

    def words(self, images: int | None = None) -> list[str]:
        """Lines for the user before the first step: what of the method is on, and what to beware of.

        Args:
            images: of the data set.
        """
        config, lines = self.config, []
        parts = {"global": config.global_weight, "CC": config.contour_weight, "DI": config.region_weight}
        on = ", ".join(f"{name} {weight:g}" for name, weight in parts.items() if weight)
        lines.append(
            f"losses {on}; contour loss {config.contour}" if config.contour_weight else f"losses {on}"
        )
        if self._queues and images is not None and config.queue_length > images:
            lines.append(
                f"beware: a queue of {config.queue_length} keys is longer than the {images} images of the "
                "data: it holds earlier keys of the image itself as negatives (queue_length)"
            )
        apart = config.key_group is not None or rank_and_size()[1] > 1
        if self._key.batch_norm and not (config.shuffle_keys and apart):
            cause = "one rank needs key_group=8" if config.shuffle_keys else "shuffle_keys is off"
            lines.append(
                "beware: BatchNorm statistics of key and query are of the same images, which tells keys from "
                f"negatives; {cause}"
            )
        return lines

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Takes the key network and the queues along to another device; to another type they do not go."""
        super()._apply(fn, recurse)
        self._key.move(fn)
        for queue in self._queues.values():
            queue.keys_KD = queue.keys_KD.to(fn(queue.keys_KD).device)
        return self

    def _looked_at(self, query: Vectors, pooled: Pooled, valid_NK: Tensor) -> dict[str, Tensor]:
        """Boxes counted, and the embeddings watched: of images where they are compared, else of boxes."""
        values = {
            "boxes": valid_NK.sum(1).float().mean(),
            "without_boxes": (~valid_NK.any(1)).float().mean(),
        }
        counted = None
        units = query.global_ if query.global_ is not None else query.contour
        if query.regions is not None:
            boxes, of_boxes = query.regions.flatten(0, 1), valid_NK.flatten()
            values["boxes_std"] = deviation(boxes, of_boxes)
            if units is None:
                units, counted = boxes, of_boxes
        return {
            "embedding_std": self._watch.see(unit(pooled.vector) if units is None else units, counted),
            **values,
        }

    def _contrast(
        self, name: str, query_ND: Tensor | None, key_ND: Tensor | None, values: dict[str, Tensor]
    ) -> Tensor:
        assert query_ND is not None
        assert key_ND is not None
        contrast = info_nce(query_ND, key_ND, self._queues[name].keys_KD, self.config.temperature)
        values[f"top1_{name}"] = contrast.top1
        if name == "global":
            values["cosine_positive"], values["cosine_negative"] = contrast.positive, contrast.negative
        if torch.is_grad_enabled():  # else it is no pass of a step
            self._new_keys[name].append(key_ND)
        return contrast.loss

    def _region(
        self, query: Vectors, key: Vectors, valid_NK: Tensor, mean_boxes: Tensor, values: dict[str, Tensor]
    ) -> Tensor:
        assert self.predictor is not None
        assert query.projected is not None
        assert key.regions is not None
        predicted = unit(self.predictor(query.projected.flatten(0, 1), valid_NK.flatten()))
        losses_NK = agreement(predicted.view_as(key.regions), key.regions)
        loss = mean_over_boxes(losses_NK, valid_NK, mean_boxes)
        values["cosine_boxes"] = (1 - loss.detach() / 2) * (mean_boxes > 0)
        return loss

    def _edges(
        self,
        pooled: Pooled,
        batch: Mapping[str, Tensor],
        key_boxes: Tensor,
        mean_boxes: Tensor,
        values: dict[str, Tensor],
    ) -> Tensor:
        assert self.edge_head is not None
        assert pooled.parts is not None
        level = self.edge_head(pooled.parts.flatten(0, 3)).view(pooled.parts.shape[:4])
        with torch.no_grad():
            ratios = log_ratios(batch["key_image"], key_boxes, self.config.edge_grid)
        seen = as_query_sees(ratios, batch["mirrored"])
        values["edges_explained"] = explained_share(level.detach(), seen, batch["valid"])
        return mean_over_boxes(edge_losses(level, seen), batch["valid"], mean_boxes)

    def _weighed(
        self, global_: Tensor, contour: Tensor, region: Tensor, pooled: Pooled, values: Mapping[str, Tensor]
    ) -> DI3CLTerms:
        config, moe = self.config, self.encoder.config.moe
        balance = global_.new_zeros(())
        if moe is not None:
            balance = torch.stack([r.balance_loss(moe.balance_weight) for r in pooled.routing]).sum()
        weights = config.global_weight, config.contour_weight, config.region_weight
        terms = zip(weights, (global_, contour, region), strict=True)
        total = torch.stack([weight * loss for weight, loss in terms if weight]).sum() + balance
        return DI3CLTerms(total, global_, contour, region, balance, values, pooled.routing)
