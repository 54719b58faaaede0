"""The k-NN probe: each cell is what its nearest labelled cells are, by cosine, as DINO votes.

DINO weighs the k nearest of a bank by exp(cosine / temperature). Here the features are standardised over
the bank first, else one large feature would decide, and a neighbour votes for the classes by their shares.

N cells, M cells of the bank, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.evaluation.probe.linear import Standardizer

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""DINO's."""

ROWS = 2048
"""Cells that are compared with the bank at a time."""


@dataclass(frozen=True)
class NearestNeighbours:
    """scores: (N, D) features -> (N, K) votes, each row summing to 1."""

    standardize: Standardizer
    bank_MD: Tensor
    shares_MK: Tensor
    neighbours: int = NEIGHBOURS

    def scores(self, features_ND: Tensor) -> Tensor:
        return torch.cat([self._votes(part) for part in features_ND.split(ROWS)])

    def _votes(self, features_ND: Tensor) -> Tensor:
        cosine_NM = F.normalize(self.standardize(features_ND)) @ self.bank_MD.T
        nearest, index_Nk = cosine_NM.topk(min(self.neighbours, len(self.bank_MD)), dim=1)
        weight_Nk = (nearest / TEMPERATURE).softmax(1)
        return (weight_Nk[..., None] * self.shares_MK[index_Nk]).sum(1)


def fit_nearest(features_ND: Tensor, shares_NK: Tensor) -> NearestNeighbours:
    """The bank of these cells; a cell with few labelled pixels votes as loudly as another."""
    standardize = Standardizer.of(features_ND)
    shares = shares_NK / shares_NK.sum(1, keepdim=True)
    return NearestNeighbours(standardize, F.normalize(standardize(features_ND)), shares)
