"""The map of the concepts: t-SNE of their directions, so that neighbours on the map are neighbours in the space.

Shapes: K concepts, D joint width.
"""

from collections.abc import Sequence

import numpy as np

from suma.app.render import render

LARGEST = 2048  # concepts; more are projected on their two main directions
WIDTH = 700  # of the map, in its own units


def concept_map(points: Sequence[Sequence[float]], names: Sequence[str], shares: Sequence[float]) -> str:
    """Return the map: a dot for each concept, at its point in [0, 1] x [0, 1], coloured by how often it stands out."""
    rarest_first = sorted(range(len(names)), key=lambda k: -shares[k])[::-1]  # so that the common ones lie on top
    dots = [(k, 20 + 660 * points[k][0], 16 + 468 * points[k][1], names[k], shares[k]) for k in rarest_first]
    words = [(x, y, name.split(",")[0]) for _, x, y, name, _ in reversed(dots)]
    largest = max(shares, default=0.0) or 1.0
    return render("concept_map", dots=dots, large=_labels(words, 11, 60), small=_labels(words, 24, 24), largest=largest)


def _labels(words: Sequence[tuple[float, float, str]], size: int, most: int) -> list[tuple[float, float, str]]:
    """Return labels (x, y, word) beside the dots (x, y, word) of those words that find room, the first ones first."""
    labels: list[tuple[float, float, str]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for x, y, word in words:
        left, base = x + 9, y + 0.36 * size
        box = (left, base - size, left + 0.58 * size * len(word), base + 0.2 * size)
        free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes)
        if len(labels) < most and box[2] < WIDTH and free:
            boxes.append(box)
            labels.append((left, base, word))
    return labels


def lay_out(concepts: np.ndarray, perplexity: float = 12.0, steps: int = 400) -> np.ndarray:
    """Return a point (K, 2) in [0, 1] for each unit concept (K, D), the same at every call.

    Exact t-SNE, which starts from the two main directions: it tells who is near whom; large distances mean nothing.
    """
    count = len(concepts)
    centred = concepts - concepts.mean(0)
    start = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    if 8 <= count <= LARGEST:
        start = _tsne(concepts, start, min(perplexity, (count - 1) / 3), steps)
    low, high = start.min(0), start.max(0)
    return (start - low) / np.maximum(high - low, 1e-9)


def _tsne(x: np.ndarray, start: np.ndarray, perplexity: float, steps: int) -> np.ndarray:
    distances = np.maximum(0, 2 - 2 * (x @ x.T))
    p = _affinities(distances, perplexity)
    y = (1e-2 * start / max(1e-9, start.std())).astype(np.float32)
    speed, gain = np.zeros_like(y), np.ones_like(y)
    p = ((p + p.T) / (2 * len(x))).astype(np.float32)
    for step in range(steps):
        exaggeration = 8.0 if step < steps // 4 else 1.0
        square = (y**2).sum(1)
        near = 1 / (1 + np.maximum(0, square[:, None] + square - 2 * y @ y.T))
        np.fill_diagonal(near, 0)
        pull = (exaggeration * p - near / near.sum()) * near
        gradient = 4 * (pull.sum(1)[:, None] * y - pull @ y)
        gain = np.where(np.sign(gradient) != np.sign(speed), gain + 0.2, gain * 0.8).clip(0.01)
        speed = (0.5 if step < steps // 4 else 0.8) * speed - max(10.0, len(x) / 8) * gain * gradient
        y = y + speed
        y -= y.mean(0)
    return y


def _affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Return each concept's neighbours as a distribution (K, K) of this perplexity, by bisection of its width."""
    count = len(distances)
    low, high, beta = np.zeros(count), np.full(count, np.inf), np.ones(count)
    away = distances + np.diag(np.full(count, np.inf))
    for _ in range(50):
        p = np.exp(-(away - away.min(1, keepdims=True)) * beta[:, None])
        p /= p.sum(1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    return p
