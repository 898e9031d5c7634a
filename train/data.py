"""Clips and their cached frames -> splits, batches, and the tensors of a step.

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
from frame_cache import FrameCache
from frame_features import FrameFeatures
from torch import Tensor

from suma.model.suma import SUMA
from suma.model.vocabulary import split_words


def pick_frames(count: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Which of `count` cached frames to use: one of each of num_frames equal segments, a random one with `rng`
    (training), else the middle one (evaluation); all of them where there are fewer.
    """
    if count <= num_frames:
        return np.arange(count)
    edges = np.linspace(0, count, num_frames + 1)
    at = edges[:-1] + (edges[1:] - edges[:-1]) * (rng.random(num_frames) if rng is not None else 0.5)
    return np.minimum(at.astype(int), count - 1)


def pad_frames(videos: Sequence[np.ndarray], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Videos of up to F frames (pixels or features) -> the same in one array (N, F, ...), padded with zeros, and mask
    (N, F) bool."""
    pixels = np.zeros((len(videos), num_frames, *videos[0].shape[1:]), videos[0].dtype)
    mask = np.zeros((len(videos), num_frames), bool)
    for row, kept, video in zip(pixels, mask, videos, strict=True):
        row[: len(video)], kept[: len(video)] = video, True
    return pixels, mask


def hold_out(clips: Sequence[Clip], number: int, seed: int) -> tuple[list[int], list[int]]:
    """Split indices into (train, held out): whole source videos, so that no held-out clip has a sibling in training."""
    if not 0 <= number < len(clips):
        raise ValueError(f"cannot hold out {number} of {len(clips)} clips")
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
        raise ValueError(f"held_out={number} leaves no clip to train on: clips of one source video stay together")
    return sorted(kept), sorted(held)


def join(clips: Sequence[Clip], further: Sequence[Clip], held: Sequence[int]) -> list[Clip]:
    """Clips and further ones: those of a known video add their captions to it. What shares a source with a held-out
    clip is left out, so the held-out clips stay as they are; the others keep their places."""
    left_out = {clips[i].source for i in held}
    joined = {clip.path: clip for clip in clips}
    for clip in further:
        if clip.source not in left_out:
            known = joined.get(clip.path)
            joined[clip.path] = replace(known, captions=known.captions + clip.captions) if known else clip
    return list(joined.values())


def read_vectors(file: str) -> dict[str, np.ndarray] | None:
    """Words with their vectors, one to a line, as GloVe writes them; None without a file."""
    if not file:
        return None
    vectors = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), start=1):
        word, *numbers = line.split()
        try:
            vectors[word] = np.array(numbers, np.float32)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected a word and its numbers") from error
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise ValueError(f"{file}: the vectors must all be of one length")
    return vectors


def shared_words(clips: Sequence[Clip], at_least: int) -> list[list[str]]:
    """Of each clip the rarest word of each of its captions, of those words that so many clips name."""
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
    """One epoch of full batches of indices, each clip at most once.

    With `group_size`, clips come in runs of that many that share a category, and clips of one source video side by
    side: hard negatives, which the background alone cannot tell apart. With `words` (`shared_words`), half of them
    share a rare word of a caption instead, often what the clips are about: these differ in what it does, and where.
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
                key = words[first][rng.integers(len(words[first]))]
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
    """One data set of a run: which of the run's clips are its own."""

    name: str
    share: float  # of each batch, 0 to 1
    train: list[int]
    held: list[int]  # kept for selection


def pairs_of_each(parts: Sequence[Part], batch_size: int) -> list[int]:
    """Return how many pairs of a batch each part gives; the first one's share takes what rounding leaves.

    Raise ValueError where a part would give none, or has too few clips for it.
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
    """Draw `size` clips of one part for each step, every clip once per epoch (but what does not fill a batch)."""

    def __init__(self, clips: Sequence[Clip], picks: Sequence[int], size: int, c: TrainConfig, key: tuple[int, ...]):
        """key: what tells this part's randomness from the others' (seed aside)."""
        self.picks, self.size, self.c, self.key = list(picks), size, c, key
        self.clips = [clips[i] for i in self.picks]
        self.words = shared_words(self.clips, 2 * c.group_size) if c.group_size and c.group_words else None
        self.epoch, self.batches = 0, self._epoch(0)

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.c.seed, 1, epoch, *self.key))
        return list(batches(self.clips, self.size, self.c.group_size, rng, self.words))

    def __call__(self, step: int) -> list[int]:
        """Return the clips (indices of the run's) of a step."""
        epoch, at = divmod(step, len(self.batches))
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self._epoch(epoch)
        return [self.picks[i] for i in self.batches[at]]


class Batches:
    """Step -> this process's part of the global batch, the same however often a run is resumed: all randomness hangs
    on (seed, step). Two buffers of pixels take turns, since new memory costs more than reading the cache: a batch is
    overwritten when the one after the next is asked for.
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
        """Tokens, anchors, pixels, mask, and the ids by which pairs that are no negatives are told."""
        members = [i for sampler in self.samplers for i in sampler(step)]
        rng = np.random.default_rng((self.c.seed, 2, step))
        captions = [self.clips[i].captions[rng.integers(len(self.clips[i].captions))] for i in members]
        worded = [
            tuple(split_words(caption)) or caption for caption in captions
        ]  # sets write alike captions differently
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
        """The batches of steps [first, last), each loaded while the one before is computed on."""
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
