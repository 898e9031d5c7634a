"""The score in numpy, from what an index keeps: the fast, folded form of `suma.similarity`, which defines it.

With plain cosines the aligned space needs no K-wide vector of a video: the cosine of its activations C f with an
anchor a is f . (C^T a) / |C f|. So a text is folded into [s ; C^T a], a video keeps 1 / |C f| of each of its rows, and
under `mean` aggregation the whole score is one inner product of folded vectors.

Shapes: T texts, V videos, F frames, D joint width, K concepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from suma.index.storage import State
from suma.model.config import Scoring
from suma.model.encoder import Queries
from suma.model.vocabulary import unit

STATISTICS_ROWS = 20_000  # clips


class Clips(NamedTuple):
    """Videos, or parts of them: unit rows, each one's own feature first, then its frames', padded with zeros."""

    rows: np.ndarray  # (V, 1 + F, D)
    inverse_norms: np.ndarray  # (V, 1 + F): `Scorer.inverse_norms` of the rows
    mask: np.ndarray  # (V, F) bool: which frames are real

    @property
    def features(self) -> np.ndarray:
        """Return the videos' own rows (V, D)."""
        return self.rows[:, 0]

    @property
    def frames(self) -> np.ndarray:
        """Return the frames' rows (V, F, D)."""
        return self.rows[:, 1:]

    def one(self, n: int) -> "Clips":
        """Return the n-th video alone."""
        return Clips(*(x[n : n + 1] for x in self))


@dataclass(frozen=True)
class Scorer:
    """The score by one model's concepts."""

    concepts: np.ndarray  # (K, D), each of length 1
    how: Scoring

    @cached_property
    def _gram(self) -> np.ndarray:
        return self.concepts.T @ self.concepts  # (D, D), so no K-wide activation is ever made

    def inverse_norms(self, rows: np.ndarray) -> np.ndarray:
        """Return 1 / |C f| (...) of rows f (..., D)."""
        return np.maximum(((rows @ self._gram) * rows).sum(-1), 1e-12) ** -0.5

    def clips(self, encoded: Sequence[np.ndarray]) -> Clips:
        """Return videos of unit rows (1 + F, D) each as they are compared."""
        valid = np.arange(max(map(len, encoded))) < np.array([len(rows) for rows in encoded])[:, None]
        padded = np.zeros((*valid.shape, encoded[0].shape[1]), np.float32)
        padded[valid] = np.concatenate(encoded)
        return Clips(padded, self.inverse_norms(padded), valid[:, 1:])

    def statistics(self, snapshot: State) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and standard deviation (K,) of every concept's activation over the frames of an index (of a
        large one, of evenly spaced clips)."""
        dim, count = self.concepts.shape[1], 0
        total, squares = np.zeros(dim, np.float32), np.zeros((dim, dim), np.float32)
        chosen = snapshot.live[:: max(1, -(-len(snapshot.live) // STATISTICS_ROWS))]
        for i in range(0, len(chosen), 512):
            features, _, valid = snapshot.gather(chosen[i : i + 512])
            x = unit(features[:, 1:][valid[:, 1:]].astype(np.float32))
            total, squares, count = total + x.sum(0), squares + x.T @ x, count + len(x)
        mean = total / max(1, count)
        covariance = squares / max(1, count) - mean[:, None] * mean
        variances = ((self.concepts @ covariance) * self.concepts).sum(1)
        return self.concepts @ mean, np.sqrt(np.maximum(variances, 1e-6))

    # ---- folded vectors --------------------------------------------------------------------------------------------

    def fold_texts(self, texts: Queries) -> np.ndarray:
        """Return sentences s with anchors a as [s ; C^T a] (T, 2D)."""
        return np.concatenate([texts.features, texts.anchors @ self.concepts], -1)

    def fold_videos(self, clips: Clips) -> np.ndarray:
        """Return (V, 2D), whose inner product with folded texts is the score under `mean` aggregation.

        The second half holds the aligned space: scaling a text's halves changes the balance of the spaces.
        """
        share, equal = self.how.shares, clips.mask / clips.mask.sum(-1, keepdims=True)  # (V, F)
        scaled = clips.rows * clips.inverse_norms[..., None]
        frames, scaled_frames = (np.einsum("vf,vfd->vd", equal, x[:, 1:]) for x in (clips.rows, scaled))
        original = share["coarse"] * clips.features + share["fine"] * frames
        aligned = share["concept_coarse"] * scaled[:, 0] + share["concept_fine"] * scaled_frames
        return np.concatenate([original, aligned], -1).astype(clips.rows.dtype)

    # ---- exact scores ----------------------------------------------------------------------------------------------

    def score(self, folded: np.ndarray, clips: Clips) -> np.ndarray:
        """Return the score (T, V) of folded texts (T, 2D) and videos."""
        shares = self.how.shares
        return np.sum([shares[name] * cosines for name, cosines in self.similarities(folded, clips).items()], axis=0)

    def similarities(self, folded: np.ndarray, clips: Clips) -> dict[str, np.ndarray]:
        """Return the four similarities (T, V) by name, as `suma.similarity.Similarities` has them."""
        original, aligned = self._cosines(folded, clips)
        cosines = (original[..., 0], self._fine(original, clips), aligned[..., 0], self._fine(aligned, clips))
        return dict(zip(self.how.shares, cosines, strict=True))

    def frame_scores(self, folded: np.ndarray, clips: Clips) -> np.ndarray:
        """Return each frame's own score (T, V, F): the fine similarities of both spaces, -inf for padding."""
        original, aligned = self._cosines(folded, clips)
        share = self.how.concept_share
        return np.where(clips.mask, ((1 - share) * original + share * aligned)[..., 1:], -np.inf)

    def concept_parts(self, anchor: np.ndarray, clip: Clips) -> np.ndarray:
        """Return what each concept adds to the score of one anchor (K,) and one video, (K,).

        They sum to the aligned space's part: a cosine is a sum over concepts, and the frames' cosines are summed with
        the weights of the aggregation.
        """
        (row,), (scale,), shares = clip.rows, clip.inverse_norms, self.how.shares
        weights = self._weights((scale * (row @ (anchor @ self.concepts)))[1:], clip.mask[0])
        each = np.concatenate([[shares["concept_coarse"]], shares["concept_fine"] * weights]) * scale
        return anchor * (self.concepts @ (each @ row))

    def _cosines(self, folded: np.ndarray, clips: Clips) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines of both spaces (T, V, 1 + F)."""
        both = np.concatenate(np.split(folded, 2, -1)) @ clips.rows.reshape(-1, clips.rows.shape[-1]).T  # read once
        original, aligned = both.reshape(2, len(folded), *clips.rows.shape[:2])
        return original, aligned * clips.inverse_norms

    def _fine(self, cosines: np.ndarray, clips: Clips) -> np.ndarray:
        """Return the aggregated cosines (T, V) of the frames, of cosines (T, V, 1 + F)."""
        return (self._weights(cosines[..., 1:], clips.mask) * cosines[..., 1:]).sum(-1)

    def _weights(self, scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the weight of each frame (..., F): at least 0, and in sum 1 over the valid ones; equal for `mean`."""
        masked = np.where(mask, scores, -np.inf)
        below = masked - masked.max(-1, keepdims=True)  # 0 at the best
        if self.how.aggregation == "softmax":
            weights = np.exp(below / self.how.temperature)
        else:
            weights = np.broadcast_to(mask if self.how.aggregation == "mean" else below == 0, below.shape)
        return weights / weights.sum(-1, keepdims=True)
