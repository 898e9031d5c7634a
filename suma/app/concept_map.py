"""The concepts on a plane: t-SNE of their directions, so that neighbours on the map are neighbours in the space.

Shapes: K concepts, D joint width.
"""

import numpy as np

LARGEST = 2048  # concepts; more are projected on their two main directions


def place(concepts: np.ndarray, perplexity: float = 12.0, steps: int = 400) -> np.ndarray:
    """Unit concepts (K, D) -> places (K, 2) in [0, 1], the same at every call.

    Exact t-SNE from the two main directions on: only who is near whom can be read off, not the large distances.
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
    """Each concept's neighbours as a distribution (K, K) of the given perplexity, by bisection of its width."""
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
