"""Ranks, the metrics of retrieval (R@K, median and mean rank) with their bootstrap interval, corrections of hubness,
and whether the concepts that a model sees in a video are those that its captions name.

Shapes: Q queries, N items, B bank queries, T texts, V videos, K concepts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks import Clip
from torch import Tensor

from suma.index import hubness
from suma.index.hubness import INVERSE_TEMPERATURE
from suma.model.suma import SUMA
from suma.model.vocabulary import split_words
from suma.similarity import Scoring, Similarities, Videos, combine

SHARES = tuple(i / 20 for i in range(0, 21))  # candidates for the aligned space's share of the score
RERANKS = ("inverted-softmax", "search", "dual-softmax")
LEAST = 5  # a concept counts if the captions of so many videos name it: fewer say nothing about a ranking


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


def average_precision(scores: np.ndarray, true: np.ndarray) -> float:
    """Return the mean precision at each true item of a ranking of N by score; N bool (1: all true ones come first)."""
    ordered = true[np.argsort(-scores, kind="stable")]
    hits = np.flatnonzero(ordered)
    return float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))


def named_concepts(model: SUMA, clips: Sequence[Clip]) -> np.ndarray:
    """Return which concepts each clip's captions name by a word of the model's (V, K), bool."""
    concept = dict(zip(model.space.words, model.space.word_to_concept.tolist(), strict=True))
    named = np.zeros((len(clips), model.space.num_concepts), bool)
    for row, clip in zip(named, clips, strict=True):
        for caption in clip.captions:
            row[[concept[word] for word in split_words(caption) if word in concept]] = True
    return named


def concept_precision(model: SUMA, clips: Sequence[Clip], videos: Videos) -> dict[str, float]:
    """Return `map`, the mean average precision in percent of rankings of the videos by a concept's activation.

    The videos whose captions name the concept count as right. `chance` is the expected value of a random ranking, about
    the mean share of right videos; `concepts` is the number of concepts that at least LEAST videos name.
    """
    named = named_concepts(model, clips)
    with torch.no_grad():
        activations = model.space.activations(videos.features).cpu().numpy()  # (V, K)
    chosen = np.flatnonzero((named.sum(0) >= LEAST) & ~named.all(0))
    if not len(chosen):
        return {"map": 0.0, "chance": 0.0, "concepts": 0}
    found = [average_precision(activations[:, k], named[:, k]) for k in chosen]
    chance = named[:, chosen].mean(0)
    return {"map": 100 * float(np.mean(found)), "chance": 100 * float(chance.mean()), "concepts": len(chosen)}
