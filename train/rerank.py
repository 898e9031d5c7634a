"""Corrections of hubness (items that are near to every query), reported separately from the plain scores.

Shapes: Q queries, N items, B bank queries.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from suma.index import hubness
from suma.index.hubness import INVERSE_TEMPERATURE

RERANKS = ("inverted-softmax", "search", "dual-softmax")


@dataclass(frozen=True)
class Rerank:
    """Which correction, and its bank: a sample of `bank_size` clips of `bank_config`, never of the evaluated split.

    The bank's captions correct videos, its videos correct sentences. `search` does what an index does (hubness.py): it
    corrects only videos, by the folded scores of captions or of words. The inverse temperature is fixed, not tuned:
    choose another one on training videos only.
    """

    method: str
    bank_config: str = "train_9k"
    bank_size: int = 1000
    inverse_temperature: float = None  # type: ignore[assignment]  # None: 20, for `search` that of an index

    def __post_init__(self) -> None:
        if self.inverse_temperature is None:
            object.__setattr__(self, "inverse_temperature", INVERSE_TEMPERATURE if self.method == "search" else 20.0)
        if self.method not in RERANKS:
            raise ValueError(f"re-ranking {self.method!r} is unknown: choose one of {', '.join(RERANKS)}")
        if self.bank_size < 1:
            raise ValueError(f"bank_size={self.bank_size}: the bank needs at least one clip")
        if not 0 < self.inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature={self.inverse_temperature}: expected a positive number")

    @property
    def transductive(self) -> bool:
        """Return True if test queries correct each other."""
        return self.method == "dual-softmax"


def popularity(scores: Tensor, inverse_temperature: float) -> Tensor:
    """Return `suma.index.hubness.popularity` (N,) of scores (B, N)."""
    return torch.from_numpy(hubness.popularity(scores.cpu().numpy(), inverse_temperature)).to(scores.device)


def inverted_softmax(scores: Tensor, bank: Tensor) -> Tensor:
    """Return scores (Q, N) less each item's `popularity` (N,) with a bank of texts that are not the queries (Smith et
    al., 2017, arXiv 1702.03859; QB-Norm, arXiv 2112.12777). Inductive: a query is ranked without knowing of the others.
    """
    return scores - bank


def dual_softmax(scores: Tensor, inverse_temperature: float) -> Tensor:
    """Return scores (Q, N) that rank items by softmax over items times softmax over queries (arXiv 2109.04290).

    A query's own normaliser changes no rank and is left out. This is transductive: the bank is the test queries
    themselves, so a search, where queries come one at a time, cannot do it.
    """
    return scores - popularity(scores, inverse_temperature) / 2
