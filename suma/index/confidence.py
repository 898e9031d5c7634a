"""How likely a match is right: a logistic regression over what a search sees anyway.

| feature | what it is |
|---|---|
| `score` | the match's score |
| `standing` | by how many standard deviations it is above the query's mean score with SAMPLE videos of the gallery |
| `log_size` | the logarithm of how many videos the gallery has: among more, the best is more often a wrong one |
| `known` | the share of the query's words that the model knows |

`python train/confidence.py` fits the weights to held-out training videos and keeps them in the model's config.json.

Shapes: M matches, N videos of the sample.
"""

import numpy as np

from suma.model.config import SUMAConfig

FEATURES = ("bias", "score", "standing", "log_size", "known")
SAMPLE = 500
SPREAD = 0.02  # added to the standard deviation, which is nothing in a gallery of one video
GENERIC = {"bias": -7.3, "score": 0.0, "standing": 1.6, "log_size": -0.9, "known": 5.6}  # scores differ between models


def features(scores: np.ndarray, others: np.ndarray, size: int, known: float | np.ndarray) -> np.ndarray:
    """Return the features (M, 5) of a query's matches by their scores (M,), the scores (N,) of a sample of the gallery,
    the gallery's size, and the share of the query's words that the model knows.

    >>> features(np.array([0.5]), np.array([0.1, 0.5]), 2, 1.0).round(2).tolist()
    [[1.0, 0.5, 0.91, 0.69, 1.0]]
    """
    standing = (scores - others.mean()) / (others.std() + SPREAD)
    return np.stack(np.broadcast_arrays(1.0, scores, standing, np.log(size), known), -1)


def evidence(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how much speaks for matches (M, 5): all features but the size of the gallery."""
    return x @ np.where(np.array(FEATURES) == "log_size", 0, weights)


class Calibration:
    """The weights of one model, or generic ones where none were fitted to it."""

    def __init__(self, config: SUMAConfig):
        self.fitted = {*FEATURES} <= {*config.confidence}
        found = config.confidence if self.fitted else GENERIC
        self._weights, self._least = np.array([found[name] for name in FEATURES]), found.get("least", -np.inf)

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the confidence (M,) of matches, and whether they fit: as much speaks for them as for nearly all best
        answers to queries that had one, when the weights were fitted."""
        return 1 / (1 + np.exp(-x @ self._weights)), evidence(x, self._weights) >= self._least
