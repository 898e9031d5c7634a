"""From clips and their cached frames to splits, batches, and the tensors of a step.

Shapes: B pairs, N clips, F frames, S pixels per side.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmarks import Clip
from config import TrainConfig
from frame_cache import FrameCache, FrameFeatures
from torch import Tensor

from suma.model.suma import SUMA
from suma.model.vocabulary import split_words


def pick_frames(count: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return which of `count` cached frames to use: one of each of `num_frames` equal segments, or all if fewer.

    With `rng` (training) that is a random frame of the segment, otherwise (evaluation) the middle one.
    """
    if count <= num_frames:
        return np.arange(count)
    edges = np.linspace(0, count, num_frames + 1)
    at = edges[:-1] + (edges[1:] - edges[:-1]) * (rng.random(num_frames) if rng is not None else 0.5)
    return np.minimum(at.astype(int), count - 1)


def pad_frames(videos: Sequence[np.ndarray], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return videos of up to F frames (pixels or features) as one array (N, F, ...), padded with zeros, and its mask.

    The mask (N, F) is bool.
    """
    pixels = np.zeros((len(videos), num_frames, *videos[0].shape[1:]), videos[0].dtype)
    mask = np.zeros((len(videos), num_frames), bool)
    for row, kept, video in zip(pixels, mask, videos, strict=True):
        row[: len(video)], kept[: len(video)] = video, True
    return pixels, mask


def hold_out(clips: Sequence[Clip], number: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of the training clips and of the held-out ones, which share no source video."""
    if not 0 <= number < len(clips):
        raise ValueError(f"cannot hold out {number} of {len(clips)} clips: set --held-out to fewer")
    sources: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        sources.setdefault(clip.source, []).append(i)
    groups = list(sources.values())
    held: list[int] = []
    for g in np.random.default_rng(seed).permutation(len(groups)):
        if len(held) >= number:
            break
        held += groups[g]
    kept = set(range(len(clips))) - set(held)
    if not kept:
        raise ValueError(f"held_out={number} leaves no clip to train on, as clips of one source video stay together")
    return sorted(kept), sorted(held)


def join(clips: Sequence[Clip], further: Sequence[Clip], held: Sequence[int]) -> list[Clip]:
    """Return the clips and further ones; captions of a known video are added to its clip, in its place.

    Further clips that share a source with a held-out clip are left out, so held-out clips do not change.
    """
    left_out = {clips[i].source for i in held}
    joined = {clip.path: clip for clip in clips}
    for clip in further:
        if clip.source not in left_out:
            known = joined.get(clip.path)
            joined[clip.path] = replace(known, captions=known.captions + clip.captions) if known else clip
    return list(joined.values())


def read_vectors(file: str) -> dict[str, np.ndarray] | None:
    """Return words with their vectors from a text file, one word per line as in GloVe; None if `file` is empty."""
    if not file:
        return None
    vectors = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), start=1):
        word, *numbers = line.split()
        try:
            vectors[word] = np.array(numbers, np.float32)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected a word and its numbers, got {line[:40]!r}") from error
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise ValueError(f"{file}: the vectors must all be of one length")
    return vectors


def shared_words(clips: Sequence[Clip], at_least: int) -> list[list[str]]:
    """Return for each clip the rarest word of each caption, among the words that `at_least` so many clips name."""
    named = [[set(split_words(caption)) for caption in clip.captions] for clip in clips]
    counts = Counter(word for sets in named for word in set().union(*sets))
    common = {word for word, count in counts.items() if count >= at_least}
    return [[min(words & common, key=lambda w: (counts[w], w)) for words in sets if words & common] for sets in named]


def batches(
    clips: Sequence[Clip],
    batch_size: int,
    group_size: int,
    rng: np.random.Generator,
    words: Sequence[Sequence[str]] | None = None,
) -> Iterator[list[int]]:
    """Yield one epoch of full batches of indices, each clip at most once.

    With `group_size`, runs of that many clips share a category, and clips of one source video are adjacent: hard
    negatives, which the background alone cannot tell apart. With `words` (of `shared_words`), half of the runs share a
    rare word of a caption instead, often the subject of the clips: these differ in what it does, and where.
    """
    order: list[int] = []
    if group_size:
        runs: dict[int | str, list[int]] = {}
        sources: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            sources.setdefault(clip.source, []).append(i)
        groups = list(sources.values())
        for g in rng.permutation(len(groups)):
            first = groups[g][0]
            key: int | str = clips[first].category
            if words is not None and words[first] and rng.random() < 0.5:
                key = words[first][int(rng.integers(len(words[first])))]
            runs.setdefault(key, []).extend(groups[g])
        chunks = [run[i : i + group_size] for run in runs.values() for i in range(0, len(run), group_size)]
        full = [c for c in chunks if len(c) >= group_size]
        rest = [c for c in chunks if len(c) < group_size]
        for c in rng.permutation(len(full)):
            order += full[c]
        for c in rng.permutation(len(rest)):
            order += rest[c]
    else:
        order = rng.permutation(len(clips)).tolist()
    for i in range(0, len(order) - batch_size + 1, batch_size):
        yield order[i : i + batch_size]


class Part(NamedTuple):
    """One data set of a run, as indices of the run's clips."""

    name: str
    share: float  # of each batch, 0 to 1
    train: list[int]
    held: list[int]  # kept for selection


def pairs_of_each(parts: Sequence[Part], batch_size: int) -> list[int]:
    """Return how many pairs of a batch come from each part; the first part gets what rounding leaves.

    Raise ValueError if a part would have none, or has too few clips.
    """
    further = [round(part.share * batch_size) for part in parts[1:]]
    counts = [batch_size - sum(further), *further]
    for part, count in zip(parts, counts, strict=True):
        if count < 1:
            raise ValueError(f"{part.name} gets no pair of a batch of {batch_size}: give it a larger share")
        if len(part.train) < count:
            raise ValueError(f"{part.name}: {len(part.train)} training clips do not fill one batch of {count}")
    return counts


class Sampler:
    """Draw `size` clips of one part for each step; each clip once per epoch, but for an incomplete last batch."""

    def __init__(self, clips: Sequence[Clip], picks: Sequence[int], size: int, c: TrainConfig, key: tuple[int, ...]):
        """Prepare the first epoch. key: with the seed, what this part's random numbers depend on."""
        self.picks, self.size, self.c, self.key = list(picks), size, c, key
        self.clips = [clips[i] for i in self.picks]
        self.words = shared_words(self.clips, 2 * c.group_size) if c.group_size and c.group_words else None
        self.epoch, self.batches = 0, self._epoch(0)

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.c.seed, 1, epoch, *self.key))
        return list(batches(self.clips, self.size, self.c.group_size, rng, self.words))

    def __call__(self, step: int) -> list[int]:
        """Return the clips of a step, as indices of the run's clips."""
        epoch, at = divmod(step, len(self.batches))
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self._epoch(epoch)
        return [self.picks[i] for i in self.batches[at]]


class Batches:
    """Load this process's part of the batch of each step.

    All randomness depends on (seed, step) alone, so a resumed run has the same batches. Two buffers of pixels take
    turns, because new memory costs more time than reading the cache: a batch is overwritten by the next but one.
    """

    def __init__(
        self,
        model: SUMA,
        clips: Sequence[Clip],
        cache: FrameCache | FrameFeatures,
        parts: Sequence[Part],
        c: TrainConfig,
    ):
        self.model, self.cache, self.clips, self.c = model, cache, clips, c
        self.counts = cache.counts.tolist()
        self.readers = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # JPEGs take more than one core to feed a GPU
        self.buffers: list[np.ndarray] = []
        numbered = enumerate(zip(parts, pairs_of_each(parts, c.batch_size), strict=True))
        self.samplers = [Sampler(clips, part.train, size, c, (n,) if n else ()) for n, (part, size) in numbered]

    def load(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Return tokens, anchors, pixels and mask, and the ids of videos and captions (see `losses.not_negatives`)."""
        members = [i for sampler in self.samplers for i in sampler(step)]
        rng = np.random.default_rng((self.c.seed, 2, step))
        captions = [self.clips[i].captions[rng.integers(len(self.clips[i].captions))] for i in members]
        # data sets write the same caption differently: compare words
        worded = [tuple(split_words(caption)) or caption for caption in captions]
        distinct = {words: n for n, words in enumerate(worded)}
        frames = [pick_frames(self.counts[i], self.c.train_frames, rng) for i in members]
        mine = slice(rank * len(members) // world, (rank + 1) * len(members) // world)
        pixels = self.buffers[step % 2]
        mask = np.zeros(pixels.shape[:2], bool)

        def read(n: int, i: int, picks: np.ndarray) -> None:
            self.cache.get(i, picks, pixels[n, : len(picks)])
            pixels[n, len(picks) :], mask[n, : len(picks)] = 0, True

        list(self.readers.map(read, range(len(mask)), members[mine], frames[mine]))
        return {
            "tokens": self.model.tokenize(captions[mine]),
            "anchors": self.model.anchors(captions[mine]).cpu(),
            "pixels": torch.from_numpy(pixels),
            "mask": torch.from_numpy(mask),
            "video": torch.tensor(members[mine]),
            "caption": torch.tensor([distinct[words] for words in worded[mine]]),
        }

    def __call__(self, first: int, last: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of steps [first, last), each loaded while the one before is in use."""
        shape = (self.c.batch_size // world, self.c.train_frames, *self.cache.shape)
        self.buffers = [np.zeros(shape, self.cache.dtype) for _ in range(2)]
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for step in range(first, last):
                following = pool.submit(self.load, step, rank, world)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()


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
