"""Corrections of hubness, for items that are near to every query; reported apart from the plain scores.

Shapes: Q queries, N items, B bank queries.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RERANKS = ("inverted-softmax", "dual-softmax")


@dataclass(frozen=True)
class Rerank:
    """Which correction, and its bank: a sample of `bank_size` clips of `bank_config`, never of the evaluated split.

    Their captions are the queries by which videos are corrected, their videos those by which sentences are. The inverse
    temperature is fixed, not tuned: choose another one on training videos only.
    """

    method: str
    bank_config: str = "train_9k"
    bank_size: int = 1000
    inverse_temperature: float = 20.0

    def __post_init__(self) -> None:
        if self.method not in RERANKS:
            raise ValueError(f"re-ranking {self.method!r} is unknown: choose one of {', '.join(RERANKS)}")
        if self.bank_size < 1:
            raise ValueError(f"bank_size={self.bank_size}: the bank needs at least one clip")
        if not 0 < self.inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature={self.inverse_temperature}: expected a positive number")

    @property
    def transductive(self) -> bool:
        """Whether test queries correct each other."""
        return self.method == "dual-softmax"


def popularity(scores: Tensor, inverse_temperature: float) -> Tensor:
    """How near each item is to queries at large, (N,): (1/b) log of the mean of exp(b * score) over scores (B, N).

    b, the inverse temperature, says how much the nearest queries count: the mean score at 0, the largest at infinity.

    >>> popularity(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 100.0).round(decimals=2)
    tensor([0.0000, 0.9900])
    """
    b = inverse_temperature
    return (torch.logsumexp(b * scores, 0) - math.log(len(scores))) / b


def inverted_softmax(scores: Tensor, bank: Tensor) -> Tensor:
    """Scores (Q, N) less each item's `popularity` (N,) with a bank of training queries (Smith et al., 2017, arXiv
    1702.03859; QB-Norm, arXiv 2112.12777). Inductive: a query is ranked without knowing of the other test queries.
    """
    return scores - bank.to(scores.device)


def dual_softmax(scores: Tensor, inverse_temperature: float) -> Tensor:
    """Scores (Q, N) that rank each query's items by softmax over items times softmax over queries (arXiv 2109.04290).

    A query's own normaliser changes no rank and is left out. Transductive: the bank is the test queries themselves, so
    it is no result of a search, where queries come one at a time.
    """
    return scores - popularity(scores, inverse_temperature) / 2
