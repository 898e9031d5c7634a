"""Measure whether the concepts that a model sees in a video are those that its captions name, on any benchmark.

Shapes: V videos, K concepts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from benchmarks import Clip

from suma.model.suma import SUMA
from suma.model.vocabulary import split_words
from suma.similarity import Videos

LEAST = 5  # a concept counts if the captions of so many videos name it: fewer say nothing about a ranking


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
