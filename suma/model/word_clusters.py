"""Clusters of words: which words make a concept, and where it lies before any training.

Shapes: W words, K concepts, E token-embedding width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

STARTS = ("tokens", "sentences", "prompts", "random")


def unit(x: np.ndarray) -> np.ndarray:
    """Return the rows (..., n), each of length 1; a row of zeros stays.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Clusters(NamedTuple):
    """The clusters of a model's words, from which its concepts begin."""

    order: np.ndarray  # (W,) int: the words, the best names of each concept first
    assignment: np.ndarray  # (W,) int: the concept of each word, in that order
    centres: np.ndarray  # (K, E) unit: the means of their token embeddings
    concepts: np.ndarray | None  # (K, E) where the concepts begin, if not there


def cluster(
    counts: Mapping[str, int],
    embeddings: np.ndarray,
    num_concepts: int,
    min_count: int = 1,
    seed: int = 0,
    sentences: np.ndarray | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    random: bool = False,
) -> Clusters:
    """Cluster the words of `counts` (most frequent first) by their token embeddings (W, E).

    min_count: less frequent words make no clusters, and go to the nearest one. sentences (W, E): where the text tower
    puts the words; cluster by that, and begin there. vectors: cluster by these instead (word -> vector). random: begin
    at random. Raises ValueError when there are fewer words than concepts.
    """
    words, frequencies = list(counts), np.array(list(counts.values()))
    clustered = int((frequencies >= min_count).sum())
    if sentences is not None:
        vectors = dict(zip(words[:clustered], sentences, strict=False))
    if vectors is None:
        centres, assignment = cluster_words(embeddings[:clustered], num_concepts, seed)
        assignment = np.concatenate([assignment, nearest_centre(embeddings[clustered:], centres)])
    else:
        centres, assignment = cluster_by(vectors, words, embeddings, num_concepts, seed)
    concepts = None
    if sentences is not None:
        concepts = mean_of_each(sentences, assignment, num_concepts)
    elif random:
        concepts = np.random.default_rng(seed).normal(size=centres.shape).astype(np.float32)
    order = naming_order(embeddings, centres, assignment, frequencies)
    return Clusters(order, assignment[order], centres, concepts)


def cluster_words(
    embeddings: np.ndarray, num_concepts: int, seed: int = 0, tries: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster word embeddings (W, E): return unit centres (K, E) and each word's concept (W,), no concept empty.

    Cosine k-means by faiss, the best of `tries`, deterministic for a seed. The paper says "KNN"; a centre stands for
    its words, so k-means is our reading. Raises ValueError when there are fewer words than concepts.
    """
    import faiss

    num_words = len(embeddings)
    if num_concepts < 1:
        raise ValueError(f"num_concepts must be at least 1, got {num_concepts}")
    if num_words < num_concepts:
        raise ValueError(
            f"{num_words} distinct words cannot fill {num_concepts} concepts: "
            f"give more captions or at most num_concepts={num_words}"
        )
    words = np.ascontiguousarray(unit(embeddings), dtype=np.float32)
    if num_concepts == num_words:
        return words.copy(), np.arange(num_words)
    kmeans = faiss.Kmeans(
        words.shape[1],
        num_concepts,
        niter=25,
        nredo=tries,
        seed=seed + 1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, num_words),
    )
    kmeans.train(words)
    centres = np.array(kmeans.centroids, dtype=np.float32).reshape(num_concepts, -1)
    similarity = words @ centres.T
    assignment = similarity.argmax(1)
    closeness = similarity[np.arange(num_words), assignment]
    sizes = np.bincount(assignment, minlength=num_concepts)
    for empty in np.flatnonzero(sizes == 0):  # give it the word that its own concept describes worst
        candidates = np.flatnonzero(sizes[assignment] > 1)
        word = candidates[closeness[candidates].argmin()]
        sizes[assignment[word]] -= 1
        assignment[word], sizes[empty], closeness[word] = empty, 1, 1.0
        centres[empty] = words[word]
    return centres, assignment


def nearest_centre(embeddings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the concept (W,) whose unit centre (K, E) is nearest to each word embedding (W, E), by cosine."""
    return (embeddings @ centres.T).argmax(1)


def cluster_by(
    vectors: Mapping[str, np.ndarray], words: Sequence[str], embeddings: np.ndarray, num_concepts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster words by vectors of another origin: return each cluster's mean token embedding (K, E), and (W,).

    embeddings (W, E): of the words' tokens; words without a vector go to the nearest of these means.
    Raises ValueError where fewer words than concepts have a vector.
    """
    known = np.array([i for i, word in enumerate(words) if word in vectors], np.int64)
    _, found = cluster_words(np.stack([vectors[words[i]] for i in known] or [np.zeros(1)]), num_concepts, seed)
    centres = mean_of_each(unit(embeddings[known]), found, num_concepts)
    assignment = nearest_centre(embeddings, centres)
    assignment[known] = found
    return centres, assignment


def mean_of_each(words: np.ndarray, assignment: np.ndarray, num_concepts: int) -> np.ndarray:
    """Return the unit mean (K, E) of each concept's unit vectors (W, E)."""
    total = np.zeros((num_concepts, words.shape[1]), np.float32)
    np.add.at(total, assignment, words)
    return unit(total)


def naming_order(embeddings: np.ndarray, centres: np.ndarray, assignment: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the order (W,) with the best names of each concept first: words close to the centre, and frequent."""
    central = (unit(embeddings) * centres[assignment]).sum(1)
    return np.argsort(-np.clip(central, 0, None) * np.log1p(counts), kind="stable")
