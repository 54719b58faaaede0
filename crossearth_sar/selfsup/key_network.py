"""The key network: a copy that follows the query network by exponential averages and gets no gradient.

N images, C bands, S pixels, K boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from crossearth_sar.selfsup.encoders import has_batch_norm
from crossearth_sar.selfsup.network import Network, Pooled
from crossearth_sar.selfsup.ranks import gather_rows, of_first_rank, rank_and_size


class KeyNetwork:
    """Float32 whatever the query's type is: in bf16 an average with 1 - m = 0.001 would move nothing.

    Not a module itself, so that a module can hold it without owning its parameters. BatchNorm in it keeps
    statistics of its own, those of a pass; the descriptors' standardisation is the query's, unmoved by keys.
    """

    def __init__(self, query: Network) -> None:
        self.network = copy.deepcopy(query).float().requires_grad_(False).train()
        self.batch_norm = has_batch_norm(self.network.encoder)

    def named_parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follows a module to another device, but not to another type."""
        self.network._apply(lambda t: t.to(fn(t).device))

    @torch.no_grad()
    def follow(self, momentum: float, weights: Iterable[tuple[str, Tensor]]) -> None:
        """key <- momentum * key + (1 - momentum) * query; `weights` are the query's by name, all of them."""
        own = self.named_parameters()
        for name, value in weights:
            parameter = own.pop(name, None)
            if parameter is not None:
                parameter.lerp_(value.to(parameter), 1 - momentum)
        assert not own, f"no weights to follow for {sorted(own)}"

    @torch.no_grad()
    def pool(self, query: Network, batch: Mapping[str, Tensor], boxes_NK4: Tensor) -> Pooled:
        """Of the batch's key images, computed as the query computes: in bf16 where it does; a collective call
        where there is BatchNorm and more than one rank."""
        self._take_statistics(query)
        inputs = [batch["key_image"], batch["key_mean"], batch["key_std"], boxes_NK4]
        device = inputs[0].device.type
        reduced = next(query.parameters()).dtype is torch.bfloat16
        with torch.autocast(device, torch.bfloat16, enabled=reduced or torch.is_autocast_enabled(device)):
            if not self.batch_norm:
                return self._pool(*inputs)
            return self._pool_apart(inputs)

    def _pool_apart(self, inputs: list[Tensor]) -> Pooled:
        """With BatchNorm statistics of other images than the query's: shuffled over ranks, in groups.

        Only what is pooled comes back, a few vectors an image, not the maps.
        """
        config, number = self.network.config, len(inputs[0])
        rank, size = rank_and_size()
        shuffled = config.shuffle_keys and (size > 1 or config.key_group is not None)
        if shuffled:
            order = of_first_rank(torch.randperm(number * size).to(inputs[0].device))
            mine = order[rank * number : (rank + 1) * number]
            inputs = [gather_rows(rows)[mine] for rows in inputs]
        groups = zip(*(rows.split(config.key_group or number) for rows in inputs), strict=True)
        pooled = _joined([self._pool(*group) for group in groups])
        if not shuffled:
            return pooled
        back = order.argsort()[rank * number : (rank + 1) * number]
        rows = [None if values is None else gather_rows(values)[back] for values in pooled[:3]]
        return Pooled(rows[0], rows[1], rows[2], None, ())  # type: ignore[arg-type]

    def _pool(self, image: Tensor, db_mean: Tensor, db_std: Tensor, boxes: Tensor) -> Pooled:
        return self.network.pool(image, db_mean, db_std, boxes, parts=False)

    def _take_statistics(self, query: Network) -> None:
        own, theirs = self.network.encoder.model, query.encoder.model
        for name in ("standardizer", "local_standardizer"):
            module: nn.Module = getattr(own, name)
            module.load_state_dict(getattr(theirs, name).state_dict())
            module.eval()


def _joined(parts: list[Pooled]) -> Pooled:
    """Groups one after the other, without their routing."""
    fields = [
        None if values[0] is None else torch.cat(values)
        for values in zip(*(part[:3] for part in parts), strict=True)
    ]
    return Pooled(fields[0], fields[1], fields[2], None, ())  # type: ignore[arg-type]
