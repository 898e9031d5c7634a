"""Make the training data worse, to see how robust training is: wrong captions, missing words, fewer clips."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from benchmarks import Clip


def corrupt_captions(
    clips: list[Clip], train: Sequence[int], shuffled: float, dropped: float, number: int, seed: int
) -> list[int]:
    """Corrupt the captions of the clips `train` in place, and return the indices of `number` of these (0: all).

    shuffled: share of the clips that get the captions of another one. dropped: share of the words that are left out,
    each by chance (a caption keeps at least one). Other clips are not changed.
    Raise ValueError for a share outside [0, 1], or more clips than there are.
    """
    if not (0 <= shuffled <= 1 and 0 <= dropped < 1 and 0 <= number <= len(train)):
        raise ValueError(
            f"shuffle_captions={shuffled} and drop_words={dropped} must be shares from 0 to 1, "
            f"and train_clips={number} at most {len(train)}"
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
