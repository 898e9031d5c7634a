"""The four similarities and their weighted sum: the one score of training, evaluation and search (section 3).

Written once for torch and numpy (suma/arrays.py). Shapes: T texts, V videos, F frames, D joint width, K concepts.
"""

from typing import NamedTuple

import numpy as np

from suma.arrays import Array, constant, library, unit

AGGREGATIONS = ("softmax", "mean", "max")


class Texts(NamedTuple):
    """Sentences, each row of length 1 (an anchor without words is a row of zeros)."""

    features: Array  # (T, D)
    anchors: Array  # (T, K)


class Videos(NamedTuple):
    """Videos, each row of length 1; `mask` is True where a frame is real."""

    features: Array  # (V, D)
    frames: Array  # (V, F, D)
    mask: Array  # (V, F) bool
    concepts: Array  # (V, K)
    frame_concepts: Array  # (V, F, K)


class Scoring(NamedTuple):
    """How the four similarities become one score: the options of a model's config that it depends on."""

    concept_share: float  # of the aligned space
    aggregation: str = "softmax"  # over frames
    temperature: float = 0.05  # of that softmax
    coarse_share: float = 0.5  # of the whole video in each space; the rest is the frames' (in equal parts: our reading)

    @property
    def shares(self) -> dict[str, float]:
        """Return the weight of each similarity, by its name; they sum to 1."""
        original, aligned = 1 - self.concept_share, self.concept_share
        coarse, fine = self.coarse_share, 1 - self.coarse_share
        weights = (original * coarse, original * fine, aligned * coarse, aligned * fine)
        return dict(zip(Similarities._fields, weights, strict=True))


class Similarities(NamedTuple):
    """Cosines in [-1, 1], each (T, V)."""

    coarse: Array
    fine: Array
    concept_coarse: Array
    concept_fine: Array

    def original(self, coarse_share: float = 0.5) -> Array:
        """Return the original space's score (T, V)."""
        return coarse_share * self.coarse + (1 - coarse_share) * self.fine

    def aligned(self, coarse_share: float = 0.5) -> Array:
        """Return the aligned space's score (T, V)."""
        return coarse_share * self.concept_coarse + (1 - coarse_share) * self.concept_fine


def frame_weights(frame_scores: Array, mask: Array, how: str = "softmax", temperature: float = 0.05) -> Array:
    """Return the weight of each frame (T, V, F): at least 0, with the sum 1 over the valid frames of mask (V, F).

    `softmax` weighs each frame by softmax(score / temperature), `mean` equally, `max` takes the best (equal ones in
    equal parts; all our reading). Raise ValueError for another name.
    """
    xp = library(frame_scores)
    if how == "mean":
        return xp.broadcast_to(_equal_shares(mask, frame_scores), frame_scores.shape)
    if how not in AGGREGATIONS:
        raise ValueError(f"aggregation {how!r} is unknown: choose one of {', '.join(AGGREGATIONS)}")
    masked = xp.where(mask, frame_scores, -np.inf)
    below = masked - xp.amax(masked, -1, keepdims=True)  # 0 at the best
    weights = xp.exp(below / temperature) if how == "softmax" else xp.asarray(below == 0, dtype=below.dtype)
    return weights / weights.sum(-1, keepdims=True)


def _equal_shares(mask: Array, like: Array) -> Array:
    """Return 1 / the number of valid frames for these, 0 for the others, of a mask (..., F), in the type of `like`."""
    valid = library(mask).asarray(mask, dtype=like.dtype)
    return valid / valid.sum(-1, keepdims=True)


def aggregate(queries: Array, frames: Array, mask: Array, how: str = "softmax", temperature: float = 0.05) -> Array:
    """Return the inner products (T, V) of queries (T, D) with frames (V, F, D) of mask (V, F), by `frame_weights`.

    Frame by frame: nothing of size T x V x F is made. `mean` averages the frames first, `max` keeps a running maximum,
    `softmax` running sums, scaled by the largest score so far. Raise ValueError for an unknown aggregation.

    >>> queries, mask = np.ones((1, 1)), np.array([[True, True, False]])
    >>> frames = np.array([[[0.0], [1.0], [9.0]]])
    >>> aggregate(queries, frames, mask, "mean").item(), aggregate(queries, frames, mask, "max").item()
    (0.5, 1.0)
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"aggregation {how!r} is unknown: choose one of {', '.join(AGGREGATIONS)}")
    if how == "mean":
        return queries @ library(frames).einsum("vf,vfd->vd", _equal_shares(mask, frames), frames).T
    top = total = weighted = 0.0  # type: Array
    with np.errstate(over="ignore"):  # what is far below the top counts nothing
        for f in range(frames.shape[1]):
            score = queries @ frames[:, f].T
            xp, lowest = library(score), float(library(score).finfo(score.dtype).min)
            masked = xp.where(mask[:, f], score, lowest)
            before = top if f else xp.full_like(score, lowest)
            top = xp.maximum(before, masked if how == "max" else constant(masked))
            if how == "softmax":
                shrink = xp.exp((before - top) / temperature)
                weight = xp.exp((masked - top) / temperature)
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


def combine(similarities: Similarities, how: Scoring) -> Array:
    """Return the score (T, V) of each pair: (1 - share) * original + share * aligned."""
    original, aligned = similarities.original(how.coarse_share), similarities.aligned(how.coarse_share)
    return (1 - how.concept_share) * original + how.concept_share * aligned


def score(texts: Texts, videos: Videos, how: Scoring, chunk: int = 256) -> Array:
    """Return the score (T, V), `chunk` videos at a time, so that intermediate arrays fit into the CPU's caches."""
    parts = [
        combine(
            four_similarities(texts, Videos(*(x[i : i + chunk] for x in videos)), how.aggregation, how.temperature), how
        )
        for i in range(0, len(videos.features), chunk)
    ]
    return library(texts.features).concatenate(parts, 1) if parts else texts.features[:, :0]


# ---- the parts of one score ----------------------------------------------------------------------------------------


def score_parts(texts: Texts, video: Videos, how: Scoring) -> dict[str, float]:
    """Return what each similarity adds to the score of one text and one video; the four sum to it."""
    sims = four_similarities(texts, video, how.aggregation, how.temperature)
    return {name: share * float(getattr(sims, name)[0, 0]) for name, share in how.shares.items()}


def concept_parts(texts: Texts, video: Videos, how: Scoring) -> Array:
    """Return what each concept adds to the score of one text and one video, (K,); they sum to the aligned space's part.

    A cosine is a sum over concepts, and the frames' cosines are summed with the weights of the aggregation.
    """
    heat = library(texts.anchors).einsum("tk,vfk->tvf", texts.anchors, video.frame_concepts)
    weights = frame_weights(heat, video.mask, how.aggregation, how.temperature)[0, 0]  # (F,)
    coarse, fine = how.shares["concept_coarse"], how.shares["concept_fine"]
    return texts.anchors[0] * (coarse * video.concepts[0] + fine * (weights @ video.frame_concepts[0]))


def frame_scores(texts: Texts, videos: Videos, concept_share: float) -> Array:
    """Return each frame's own score for one text (V, F): the fine similarities of both spaces, -inf for padding."""
    fine = videos.frames @ texts.features[0]
    aligned = videos.frame_concepts @ texts.anchors[0]
    return library(fine).where(videos.mask, (1 - concept_share) * fine + concept_share * aligned, -np.inf)


# ---- the folded form: with plain cosines the aligned space needs no K-wide vector at search time -------------------


def fold_texts(features: Array, anchors: Array, concepts: Array) -> Array:
    """Fold sentences s (T, D) and anchors a (T, K) into [s ; C^T a] (T, 2D); all of length 1, C the concepts."""
    return library(features).concatenate([features, anchors @ unit(concepts)], -1)


def concept_scale(features: Array, concepts: Array) -> Array:
    """Return 1 / |C f| (..., 1) of features (..., D): what turns `f . (C^T a)` into the aligned space's cosine."""
    directions = unit(concepts)
    gram = directions.T @ directions  # (D, D), so no K-wide activation is ever made
    squared = ((features @ gram) * features).sum(-1, keepdims=True)
    return library(squared).clip(squared, 1e-12, None) ** -0.5


def score_by_scale(
    texts: Texts, concept_query: Array, rows: Array, inverse_norms: Array, mask: Array, how: Scoring
) -> Array:
    """Return `score` (T, V) without K-wide activations, exact: the cosine of C f and anchor a is f . (C^T a) / |C f|.

    concept_query (T, D): C^T a, the second half of `fold_texts`; rows (V, 1 + F, D): each video's feature, then its
    frames'; inverse_norms (V, 1 + F): their `concept_scale`; mask (V, F).
    """
    xp, flat, count = library(rows), rows.reshape(-1, rows.shape[-1]), len(concept_query)
    both = (xp.concatenate([texts.features, concept_query]) @ flat.T).reshape(
        2 * count, *rows.shape[:2]
    )  # rows are read once
    original, aligned = both[:count], both[count:] * inverse_norms  # (T, V, 1 + F)

    def fine(scores: Array) -> Array:
        return (frame_weights(scores, mask, how.aggregation, how.temperature) * scores).sum(-1)

    similarities = Similarities(original[..., 0], fine(original[..., 1:]), aligned[..., 0], fine(aligned[..., 1:]))
    return combine(similarities, how)


def fold_videos(features: Array, frames: Array, mask: Array, concepts: Array, how: Scoring) -> Array:
    """Fold videos (V, D) and frames (V, F, D) into (V, 2D), whose inner product with `fold_texts` is exactly `combine`
    of the four similarities under `mean` aggregation, whatever K is. The second half holds the aligned space, so
    scaling the query's halves changes the balance of the spaces at query time.
    """
    weights = _equal_shares(mask, frames)[..., None]  # (V, F, 1)
    mean_frame = (frames * weights).sum(1)
    mean_scaled = (frames * concept_scale(frames, concepts) * weights).sum(1)
    share = how.shares
    original = share["coarse"] * features + share["fine"] * mean_frame
    scaled = features * concept_scale(features, concepts)
    aligned = share["concept_coarse"] * scaled + share["concept_fine"] * mean_scaled
    return library(original).concatenate([original, aligned], -1)
