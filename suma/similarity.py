"""The four similarities and their sum: the one score of training, evaluation and search (section 3 of the paper).

Shapes: T texts, V videos, F frames, D joint width, K concepts.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AGGREGATIONS = ("softmax", "mean", "max")


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


class Scoring(NamedTuple):
    """How the four similarities become one score: what of a model's config the score depends on."""

    concept_share: float  # of the aligned space
    aggregation: str = "softmax"  # over frames
    temperature: float = 0.05  # of that softmax
    coarse_share: float = 0.5  # of the whole video in each space; the rest is the frames' (in equal parts: our reading)

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each similarity, by its name; they sum to 1."""
        original, aligned = 1 - self.concept_share, self.concept_share
        coarse, fine = self.coarse_share, 1 - self.coarse_share
        weights = (original * coarse, original * fine, aligned * coarse, aligned * fine)
        return dict(zip(Similarities._fields, weights, strict=True))


class Similarities(NamedTuple):
    """Cosines in [-1, 1], each (T, V)."""

    coarse: Tensor
    fine: Tensor
    concept_coarse: Tensor
    concept_fine: Tensor

    def original(self, coarse_share: float = 0.5) -> Tensor:
        """The original space's score (T, V)."""
        return coarse_share * self.coarse + (1 - coarse_share) * self.fine

    def aligned(self, coarse_share: float = 0.5) -> Tensor:
        """The aligned space's score (T, V)."""
        return coarse_share * self.concept_coarse + (1 - coarse_share) * self.concept_fine


def frame_weights(frame_scores: Tensor, mask: Tensor, how: str = "softmax", temperature: float = 0.05) -> Tensor:
    """How much each frame counts: (T, V, F) >= 0, summing to 1 over the valid frames of mask (V, F), 0 on the others.

    `softmax` weighs each frame by softmax(score / temperature), `mean` equally, `max` takes the best (all our reading).
    Raises ValueError for another name.
    """
    if how == "mean":
        return (mask / mask.sum(-1, keepdim=True)).to(frame_scores.dtype).expand_as(frame_scores)
    masked = frame_scores.masked_fill(~mask, float("-inf"))
    if how == "softmax":
        return torch.softmax(masked / temperature, dim=-1)
    if how == "max":
        return F.one_hot(masked.argmax(-1), masked.shape[-1]).to(frame_scores.dtype)
    raise ValueError(f"aggregation {how!r} is unknown: choose one of {', '.join(AGGREGATIONS)}")


def aggregate(queries: Tensor, frames: Tensor, mask: Tensor, how: str = "softmax", temperature: float = 0.05) -> Tensor:
    """Queries (T, D) against frames (V, F, D) of mask (V, F) -> (T, V): the frames' inner products, by `frame_weights`.

    Frame by frame: nothing of size T x V x F is made. `mean` folds the frames first, `max` keeps a running maximum,
    `softmax` running sums, scaled by the largest score so far.
    Raises ValueError for an unknown aggregation.

    >>> queries, mask = torch.ones(1, 1), torch.tensor([[True, True, False]])
    >>> frames = torch.tensor([[[0.0], [1.0], [9.0]]])
    >>> aggregate(queries, frames, mask, "mean").item(), aggregate(queries, frames, mask, "max").item()
    (0.5, 1.0)
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"aggregation {how!r} is unknown: choose one of {', '.join(AGGREGATIONS)}")
    if how == "mean":
        weights = (mask / mask.sum(-1, keepdim=True)).to(frames.dtype)
        return queries @ torch.einsum("vf,vfd->vd", weights, frames).T
    return _over_frames((queries @ frames[:, f].T for f in range(frames.shape[1])), mask, how, temperature)


def _over_frames(scores: Iterable[Tensor], mask: Tensor, how: str, temperature: float) -> Tensor:
    """Scores (T, V) of one frame after the other -> (T, V), by `frame_weights`."""
    top = total = weighted = torch.zeros(())
    for f, score in enumerate(scores):
        lowest = torch.finfo(score.dtype).min
        masked = score.masked_fill(~mask[:, f], lowest)
        if how == "mean":
            weighted = weighted + score * (mask[:, f] / mask.sum(-1)).to(score.dtype)
            continue
        before = top if f else torch.full_like(score, lowest)
        top = torch.maximum(before, masked if how == "max" else masked.detach())  # softmax: a constant, no gradient
        if how == "softmax":
            shrink = ((before - top) / temperature).exp()
            weight = ((masked - top) / temperature).exp()
            total = total * shrink + weight
            weighted = weighted * shrink + weight * score
    return top if how == "max" else weighted if how == "mean" else weighted / total


def four_similarities(texts: Texts, videos: Videos, how: str = "softmax", temperature: float = 0.05) -> Similarities:
    """Every text against every video: coarse and fine, in the original and in the aligned space."""
    return Similarities(
        coarse=texts.features @ videos.features.T,
        fine=aggregate(texts.features, videos.frames, videos.mask, how, temperature),
        concept_coarse=texts.anchors @ videos.concepts.T,
        concept_fine=aggregate(texts.anchors, videos.frame_concepts, videos.mask, how, temperature),
    )


def combine(similarities: Similarities, how: Scoring) -> Tensor:
    """The score (T, V) of each pair: (1 - share) * original + share * aligned."""
    original, aligned = similarities.original(how.coarse_share), similarities.aligned(how.coarse_share)
    return (1 - how.concept_share) * original + how.concept_share * aligned


def score(texts: Texts, videos: Videos, how: Scoring, chunk: int = 256) -> Tensor:
    """The score (T, V), `chunk` videos at a time, so that what is made on the way fits into caches."""
    parts = [
        combine(
            four_similarities(texts, Videos(*(x[i : i + chunk] for x in videos)), how.aggregation, how.temperature), how
        )
        for i in range(0, len(videos.features), chunk)
    ]
    return torch.cat(parts, dim=1) if parts else texts.features.new_zeros(len(texts.features), 0)


# ---- the parts of one score ----------------------------------------------------------------------------------------


def score_parts(texts: Texts, video: Videos, how: Scoring) -> dict[str, float]:
    """What each of the four similarities adds to the score of one text and one video; they sum up to it."""
    sims = four_similarities(texts, video, how.aggregation, how.temperature)
    return {name: share * float(getattr(sims, name)[0, 0]) for name, share in how.shares.items()}


def concept_parts(texts: Texts, video: Videos, how: Scoring) -> Tensor:
    """What each concept adds to the score of one text and one video, (K,); they sum up to the aligned space's part.

    A cosine is a sum over concepts, and the frames' cosines are summed with the weights of the aggregation.
    """
    heat = torch.einsum("tk,vfk->tvf", texts.anchors, video.frame_concepts)
    weights = frame_weights(heat, video.mask, how.aggregation, how.temperature)[0, 0]  # (F,)
    coarse, fine = how.shares["concept_coarse"], how.shares["concept_fine"]
    return texts.anchors[0] * (coarse * video.concepts[0] + fine * (weights @ video.frame_concepts[0]))


def frame_scores(texts: Texts, videos: Videos, concept_share: float) -> Tensor:
    """Each frame's own score for one text, (V, F), -inf where padded: the fine similarities of both spaces."""
    fine = torch.einsum("d,vfd->vf", texts.features[0], videos.frames)
    aligned = torch.einsum("k,vfk->vf", texts.anchors[0], videos.frame_concepts)
    return ((1 - concept_share) * fine + concept_share * aligned).masked_fill(~videos.mask, float("-inf"))


# ---- the folded form: with plain cosines the aligned space needs no K-wide vector at search time -------------------


def fold_texts(features: Tensor, anchors: Tensor, concepts: Tensor) -> Tensor:
    """Sentences (T, D) with anchors (T, K) -> (T, 2D): [s ; C^T a], s and a of length 1, C the unit concepts."""
    return torch.cat([features, anchors @ F.normalize(concepts, dim=-1)], dim=-1)


def concept_scale(features: Tensor, concepts: Tensor) -> Tensor:
    """1 / |C f| of features (..., D) -> (..., 1): what turns `f . (C^T a)` into the aligned space's cosine."""
    unit = F.normalize(concepts, dim=-1)
    gram = unit.T @ unit  # (D, D), so no K-wide activation is ever made
    squared = ((features @ gram) * features).sum(-1, keepdim=True)
    return squared.clamp_min(1e-12).rsqrt()


def score_by_scale(texts: Texts, named: Tensor, rows: Tensor, scales: Tensor, mask: Tensor, how: Scoring) -> Tensor:
    """`score` (T, V) without K-wide activations, exact: the cosine of C f and an anchor a is f . (C^T a) / |C f|.

    named (T, D): C^T a, the second half of `fold_texts`; rows (V, 1 + F, D): each video's feature, then its frames';
    scales (V, 1 + F): their `concept_scale`; mask (V, F).
    """
    original, aligned = (
        (queries @ rows.flatten(0, 1).T).unflatten(1, rows.shape[:2]) for queries in (texts.features, named)
    )  # (T, V, 1 + F)
    aligned = aligned * scales
    similarities = Similarities(
        coarse=original[..., 0],
        fine=_over_frames(original[..., 1:].unbind(-1), mask, how.aggregation, how.temperature),
        concept_coarse=aligned[..., 0],
        concept_fine=_over_frames(aligned[..., 1:].unbind(-1), mask, how.aggregation, how.temperature),
    )
    return combine(similarities, how)


def fold_videos(features: Tensor, frames: Tensor, mask: Tensor, concepts: Tensor, how: Scoring) -> Tensor:
    """Videos (V, D) with frames (V, F, D) -> (V, 2D), whose inner product with `fold_texts` is exactly `combine` of the
    four similarities under `mean` aggregation, whatever K is. The second half carries the aligned space, so scaling the
    query's halves changes the balance of the spaces at query time.
    """
    weights = (mask / mask.sum(-1, keepdim=True)).unsqueeze(-1).to(frames.dtype)  # (V, F, 1)
    mean_frame = (frames * weights).sum(1)
    mean_scaled = (frames * concept_scale(frames, concepts) * weights).sum(1)
    share = how.shares
    original = share["coarse"] * features + share["fine"] * mean_frame
    scaled = features * concept_scale(features, concepts)
    return torch.cat([original, share["concept_coarse"] * scaled + share["concept_fine"] * mean_scaled], dim=-1)
