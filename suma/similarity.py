"""The four similarities and their weighted sum: the one score of training, evaluation and search (section 3).

suma/index/scoring.py computes the same in numpy, from what an index keeps.
Shapes: T texts, V videos, F frames, D joint width, K concepts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from suma.model.config import AGGREGATIONS, Scoring


class Texts(NamedTuple):
    """Sentences, each row of length 1 (an anchor without words is a row of zeros)."""

    features: Tensor  # (T, D)
    anchors: Tensor  # (T, K)


class Videos(NamedTuple):
    """Videos, each row of length 1; `mask` is True where a frame is real."""

    features: Tensor  # (V, D)
    frames: Tensor  # (V, F, D)
    mask: Tensor  # (V, F) bool
    concepts: Tensor  # (V, K)
    frame_concepts: Tensor  # (V, F, K)


class Similarities(NamedTuple):
    """Cosines in [-1, 1], each (T, V)."""

    coarse: Tensor
    fine: Tensor
    concept_coarse: Tensor
    concept_fine: Tensor

    def original(self, coarse_share: float = 0.5) -> Tensor:
        """Return the original space's score (T, V)."""
        return coarse_share * self.coarse + (1 - coarse_share) * self.fine

    def aligned(self, coarse_share: float = 0.5) -> Tensor:
        """Return the aligned space's score (T, V)."""
        return coarse_share * self.concept_coarse + (1 - coarse_share) * self.concept_fine


def aggregate(queries: Tensor, frames: Tensor, mask: Tensor, how: str = "softmax", temperature: float = 0.05) -> Tensor:
    """Return the inner products (T, V) of queries (T, D) with frames (V, F, D) of mask (V, F), weighed over the frames.

    `softmax` weighs each frame by softmax(score / temperature), `mean` equally, `max` takes the best (all our reading).
    Frame by frame: nothing of size T x V x F is made. `mean` averages the frames first, `max` keeps a running maximum,
    `softmax` running sums, scaled by the largest score so far. Raise ValueError for an unknown aggregation.

    >>> queries, mask = torch.ones(1, 1), torch.tensor([[True, True, False]])
    >>> frames = torch.tensor([[[0.0], [1.0], [9.0]]])
    >>> aggregate(queries, frames, mask, "mean").item(), aggregate(queries, frames, mask, "max").item()
    (0.5, 1.0)
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"aggregation {how!r} is unknown: choose one of {', '.join(AGGREGATIONS)}")
    if how == "mean":
        valid = mask.to(frames.dtype)
        return queries @ torch.einsum("vf,vfd->vd", valid / valid.sum(-1, keepdim=True), frames).T
    top = total = weighted = queries.new_zeros(())
    for f in range(frames.shape[1]):
        score = queries @ frames[:, f].T
        lowest = torch.finfo(score.dtype).min
        masked = torch.where(mask[:, f], score, lowest)
        before = top if f else torch.full_like(score, lowest)
        top = torch.maximum(before, masked if how == "max" else masked.detach())
        if how == "softmax":
            shrink = torch.exp((before - top) / temperature)
            weight = torch.exp((masked - top) / temperature)
            total = total * shrink + weight
            weighted = weighted * shrink + weight * score
    return top if how == "max" else weighted / total


def four_similarities(texts: Texts, videos: Videos, how: str = "softmax", temperature: float = 0.05) -> Similarities:
    """Compare every text with every video: coarse and fine, in the original and in the aligned space."""
    return Similarities(
        coarse=texts.features @ videos.features.T,
        fine=aggregate(texts.features, videos.frames, videos.mask, how, temperature),
        concept_coarse=texts.anchors @ videos.concepts.T,
        concept_fine=aggregate(texts.anchors, videos.frame_concepts, videos.mask, how, temperature),
    )


def combine(similarities: Similarities, how: Scoring) -> Tensor:
    """Return the score (T, V) of each pair: (1 - share) * original + share * aligned."""
    original, aligned = similarities.original(how.coarse_share), similarities.aligned(how.coarse_share)
    return (1 - how.concept_share) * original + how.concept_share * aligned


def score(texts: Texts, videos: Videos, how: Scoring, chunk: int = 256) -> Tensor:
    """Return the score (T, V), `chunk` videos at a time, so that intermediate arrays fit into the CPU's caches."""
    parts = [
        combine(
            four_similarities(texts, Videos(*(x[i : i + chunk] for x in videos)), how.aggregation, how.temperature), how
        )
        for i in range(0, len(videos.features), chunk)
    ]
    return torch.cat(parts, 1) if parts else texts.features[:, :0]
