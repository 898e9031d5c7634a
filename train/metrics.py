"""Ranks, and the metrics of retrieval (R@K, median and mean rank) with their bootstrap interval.

Shapes: Q queries, N items, T texts, V videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks import Clip
from torch import Tensor

from suma.similarity import Scoring, Similarities, combine

SHARES = tuple(i / 20 for i in range(0, 21))  # candidates for the aligned space's share of the score


@dataclass(frozen=True)
class Retrieval:
    """R@K in percent, median and mean rank, of one direction; `low` to `high` is the 95 % interval of R@1."""

    r1: float
    r5: float
    r10: float
    mdr: float
    mnr: float
    low: float
    high: float

    def row(self) -> str:
        """Return the metrics as cells of a Markdown table."""
        first = f"{self.r1:.1f} ({self.low:.1f} to {self.high:.1f})"
        return " | ".join([first, *(f"{x:.1f}" for x in (self.r5, self.r10, self.mdr, self.mnr))])


def ranks(scores: Tensor, correct: Tensor) -> Tensor:
    """Return the rank (Q,) of each query's best correct item: 1 + wrong items above it + half of those level with it.

    scores: (Q, N). correct: (Q, N) bool, at least one per row. Raise ValueError for NaN, which has no rank.

    >>> ranks(torch.tensor([[3.0, 2.0, 2.0]]), torch.tensor([[False, True, False]]))
    tensor([2.5000])
    """
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN and cannot be ranked: look for NaN in the model's weights")
    if not bool(correct.any(1).all()):
        raise ValueError("a query has no correct item: each query needs at least one")
    wrong = ~correct.to(scores.device)
    best = scores.masked_fill(wrong, float("-inf")).amax(1, keepdim=True)
    above, level = ((scores > best) & wrong).sum(1), ((scores == best) & wrong).sum(1)
    return 1 + above + level / 2


def retrieval(scores: Tensor, correct: Tensor) -> Retrieval:
    """Return the metrics of scores (Q, N), given which items are correct (Q, N)."""
    r = ranks(scores, correct)
    r1, r5, r10 = (100 * float((r <= k).double().mean()) for k in (1, 5, 10))
    low, high = bootstrap((r <= 1).double().numpy())
    return Retrieval(r1, r5, r10, float(r.quantile(0.5)), float(r.double().mean()), 100 * low, 100 * high)


def bootstrap(values: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (Q,), by resampling the queries (percentiles, fixed seed)."""
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def both_ways(scores: Tensor, correct: Tensor) -> dict[str, Retrieval]:
    """Return the metrics of scores (T, V), text to video and video to text (by the best of a video's own sentences)."""
    return {"t2v": retrieval(scores, correct), "v2t": retrieval(scores.T, correct.T)}


def owners(clips: Sequence[Clip]) -> tuple[list[str], Tensor]:
    """Return all captions of the clips, and which video each belongs to, (T, V) bool."""
    captions = [caption for clip in clips for caption in clip.captions]
    owner = torch.tensor([v for v, clip in enumerate(clips) for _ in clip.captions])
    return captions, owner[:, None] == torch.arange(len(clips))[None]


def diagonal(scores: Tensor) -> dict[str, Retrieval]:
    """Return the metrics both ways of scores (N, N) of N texts and their N videos, in the same order."""
    return both_ways(scores, torch.eye(len(scores), dtype=torch.bool))


def choose_share(sims: Sequence[Similarities], how: Scoring) -> float:
    """Return the aligned space's share of the score with the best R@1, the mean of both ways and of the data sets.

    sims: of each set's held-out training videos (N, N), each with its own text.
    """
    means = []
    for share in SHARES:
        found = [diagonal(combine(x, how._replace(concept_share=share))) for x in sims]
        means.append(np.mean([way.r1 for ways in found for way in ways.values()]))
    return SHARES[int(np.argmax(means))]
