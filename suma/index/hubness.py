"""Hubness: videos that are near to every text, and what takes that from their scores.

A video's popularity is what it scores with texts at large, a bank of them: the captions of the index or, without any,
bundles of words of the model's concept space (of a model without training captions, the bundled caption words). Single
words would do harm: each is popular with just the videos that show it. Less its popularity, a score says how much
better the query describes the video than a text does that knows nothing of it. In the folded form
(suma/similarity.py) this is one dimension more, -popularity in the video and 1 in the query, so that a search is still
one inner product.

Shapes: N items, B texts of the bank, D joint width.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from suma.atomic_io import keep_checked, read_checked
from suma.index.storage import AnyStore, Vectors
from suma.model.encoder import Encoder

INVERSE_TEMPERATURE = 10.0  # chosen on training clips of Scenes
BUNDLE = 4  # words of a text where there are no captions; likewise
BANK = 1000  # texts of the bank at most
BLOCK = 20_000  # videos compared with the bank at once


def popularity(scores: np.ndarray, inverse_temperature: float = INVERSE_TEMPERATURE) -> np.ndarray:
    """How near each item is to texts at large, (N,): (1/b) log of the mean of exp(b * score) over scores (B, N).

    b, the inverse temperature, says how much the nearest texts count: the mean score at 0, the largest at infinity.

    >>> popularity(np.array([[0.0, 1.0], [0.0, 0.0]]), 100.0).round(2)
    array([0.  , 0.99])
    """
    b, highest = inverse_temperature, scores.max(0)
    return highest + (np.log(np.exp(b * (scores - highest)).sum(0)) - math.log(len(scores))) / b


def evenly(texts: Sequence[str], number: int = BANK) -> list[str]:
    """At most so many of the texts, evenly spaced."""
    return [texts[i * len(texts) // number] for i in range(number)] if len(texts) > number else list(texts)


def word_bundles(model: Encoder) -> list[str]:
    """BANK texts of BUNDLE words of a model's concept space each, by a fixed seed: a bank without captions."""
    words, random = model.config.words, np.random.default_rng(0)
    chosen = [random.choice(len(words), min(BUNDLE, len(words)), replace=False) for _ in range(BANK)]
    return [" ".join(words[i] for i in some) for some in chosen]


class Popularity:
    """The popularity of every clip of a store, which takes in what is added."""

    def __init__(self, texts: Sequence[str], fold: Callable[[Sequence[str]], np.ndarray]):
        self.texts = list(texts)
        self.name = "hubness-" + hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:16]  # of its file
        self._fold = fold  # texts -> folded vectors (B, 2D)
        self._bank: np.ndarray | None = None
        self._origin: Any = None  # of the vectors that are held
        self._values = np.zeros(0, np.float32)
        self._mutex = threading.Lock()

    def of(self, store: AnyStore, snapshot: Vectors) -> np.ndarray:
        """Of all positions (N,), float32: with the folded scores, which are exact for `mean` aggregation."""
        with self._mutex:
            if self._origin is not snapshot.origin:
                self._origin, self._values = snapshot.origin, self._kept(store, len(snapshot.folded))
            parts = [self._values]
            for i in range(len(self._values), len(snapshot.folded), BLOCK):
                if self._bank is None:
                    self._bank = self._fold(self.texts)
                parts.append(popularity(self._bank @ snapshot.folded[i : i + BLOCK].astype(np.float32).T))
            if len(parts) > 1:
                self._values = np.concatenate(parts)
            return self._values[: len(snapshot.folded)]

    def keep(self, store: AnyStore) -> None:
        """Write them beside the index, so that the next process need not compare; the store is being written."""
        values = self.of(store, store.snapshot)
        if store.folder and len(self._kept(store, len(values))) < len(values):
            file = f"{self.name}-{store.generation}-{{}}.f32"
            keep_checked(store.folder, file, values.astype(np.float32).tobytes(), "hubness-*.f32")

    def _kept(self, store: AnyStore, count: int) -> np.ndarray:
        """Return what is on disk of this bank, if it is whole."""
        for file in store.folder.glob(f"{self.name}-{store.generation}-*.f32") if store.folder else ():
            if content := read_checked(file):
                return np.frombuffer(content, np.float32)[:count]
        return np.zeros(0, np.float32)


def is_kept(store: AnyStore) -> bool:
    """Return True if the index, in a folder, keeps its clips' popularity, so that it grows with them."""
    return store.folder is not None and any(store.folder.glob("hubness-*.f32"))
