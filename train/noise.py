"""Worse annotations, to see what a training bears: captions of other videos, missing words, fewer clips."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from benchmarks import Clip


def spoil(
    clips: list[Clip], train: Sequence[int], shuffled: float, dropped: float, number: int, seed: int
) -> list[int]:
    """Change the training clips in place, and draw `number` of them (0: all); the indices that are left.

    shuffled: share of the clips that get the captions of another of them. dropped: share of the words that are left
    out, each by chance (a caption keeps at least one). Held-out clips stay as they are.
    Raises ValueError for a share outside [0, 1] or more clips than there are.
    """
    if not (0 <= shuffled <= 1 and 0 <= dropped < 1 and 0 <= number <= len(train)):
        raise ValueError(
            f"shuffle_captions={shuffled} and drop_words={dropped} must be shares, and train_clips={number} at most "
            f"{len(train)}"
        )
    rng = np.random.default_rng((seed, 4))
    kept = sorted(rng.permutation(train)[:number].tolist()) if number else list(train)
    chosen = rng.permutation(kept)[: round(shuffled * len(kept))].tolist()
    for i, captions in zip(chosen, [clips[j].captions for j in chosen[1:] + chosen[:1]], strict=True):
        clips[i] = replace(clips[i], captions=captions)
    for i in kept if dropped else ():
        clips[i] = replace(clips[i], captions=tuple(_drop(caption, dropped, rng) for caption in clips[i].captions))
    return kept


def _drop(caption: str, share: float, rng: np.random.Generator) -> str:
    words = caption.split()
    kept = [word for word, stays in zip(words, rng.random(len(words)) >= share, strict=True) if stays]
    return " ".join(kept or [words[int(rng.integers(len(words)))]])
