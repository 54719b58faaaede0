"""From scores to a class: the largest, or first one class against all others together.

A model of seven classes splits what is not water among six. Where it cannot tell fields from bare ground,
water has the largest score of all and yet is the less likely: water or land is the surer question, and comes
first.

K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def decided(scores: Tensor, first: int | None = None) -> Tensor:
    """Scores (..., K, H, W), not negative -> classes (..., H, W), int64.

    Args:
        first: index of a class that a pixel is if it scores more than all others together, and only then; the
            others are decided by the largest score. None: all are.
    """
    if first is None or scores.shape[-3] <= 2:
        return scores.argmax(-3)
    own = scores.select(-3, first)
    best = scores.index_fill(-3, scores.new_tensor([first]).long(), -1).argmax(-3)
    return best.masked_fill(own > scores.sum(-3) - own, first)


def first_class(name: str | None, classes: Sequence[str] | None) -> int | None:
    """The index of the class that `ModelConfig.decided_first` names; None where there is none of it."""
    return classes.index(name) if name is not None and classes is not None and name in classes else None
