"""What an index asks of a model: sentences and pictures in, numpy arrays out. Torch stops here.

`SUMA` is one (suma.py), and `TextEncoder` (text_encoder.py) another, which needs no torch for sentences.

Shapes: T texts, F frames, S pixels of a side, D joint width, K concepts.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, Self

import numpy as np

from suma.model.config import SUMAConfig
from suma.model.vocabulary import Vocabulary


class Queries(NamedTuple):
    """Sentences in numpy, float32, each row of length 1 (an anchor without words is a row of zeros)."""

    features: np.ndarray  # (T, D)
    anchors: np.ndarray  # (T, K)
    known: np.ndarray | float = 1.0  # the share of their words that the model knows


class Encoder(Protocol):
    """A model, as an index sees it."""

    config: SUMAConfig
    source: str  # the string that an index remembers it by

    @property
    def dim(self) -> int:
        """D, the joint width."""

    @property
    def space(self) -> Vocabulary:
        """The words of its concepts."""

    def eval(self) -> Self:
        """Return itself, ready to encode."""

    def fingerprint(self) -> str:
        """Return 16 hex digits that name it."""

    def concepts(self) -> np.ndarray:
        """Return the concepts (K, D), each of length 1."""

    def embed_words(self, words: Sequence[str]) -> np.ndarray:
        """Return the token embeddings (W, E) of words, by which `space` tells the concept of words never seen."""

    def encode_queries(self, sentences: Sequence[str]) -> Queries:
        """Return the features and anchors of sentences."""

    def encode_videos(self, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return unit rows (1 + F, D) float32 of each video's pixels (F, 3, S, S) uint8: its own, then its frames'."""

    def encoding(self, bf16: bool = False) -> AbstractContextManager[int]:
        """Encode videos faster until the `with` block ends; its value is how many frames to encode at once."""
