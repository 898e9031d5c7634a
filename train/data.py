"""Clips -> cached frames, the frames of a step, splits and batches.

Shapes: N clips, F frames, S pixels per side.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import CACHE, Clip
from tqdm import tqdm

from suma.video import read_frames, resize_frames


class FrameCache:
    """The frames of a list of clips, decoded and resized once: a memory-mapped uint8 array (N, F, 3, S, S).

    `counts` (N,) says how many frames each clip has (fewer than F in very short videos; 0: not readable).
    """

    def __init__(self, clips: Sequence[Clip], num_frames: int, image: dict[str, Any], folder: Path | None = None):
        self.clips, self.num_frames, self.image = list(clips), num_frames, image
        identity = [[str(c.path), c.path.stat().st_size] for c in self.clips if c.path.exists()]
        key = json.dumps([identity, num_frames, image], sort_keys=True)
        self.folder = (folder or CACHE / "frames") / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (len(self.clips), num_frames, 3, image["size"], image["size"])
        self._frames = self._array("frames.npy", np.uint8, shape)
        self._counts = self._array("counts.npy", np.int32, shape[:1])  # 0: to do, -1: unreadable

    def _array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / name
        if path.exists():
            return np.load(path, mmap_mode="r+")
        needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(self.folder).free
        if needed > free:  # a memory map that outgrows its disk ends the process without a word
            raise OSError(
                f"the cached frames need {needed / 1e9:.1f} GB, {self.folder} has {free / 1e9:.1f} GB left: "
                "set SUMA_CACHE to another disk, or keep fewer frames"
            )
        fresh = np.lib.format.open_memmap(path.with_suffix(".partial"), mode="w+", dtype=dtype, shape=shape)
        path.with_suffix(".partial").rename(path)
        return fresh

    @property
    def counts(self) -> np.ndarray:
        return np.maximum(self._counts, 0)

    def build(self, skip_unreadable: bool = False, workers: int = 0) -> list[str]:
        """Decode what is not there yet, with a progress bar; a killed build goes on where it stopped.

        Returns the reasons of unreadable videos when they are to be skipped, otherwise the first one raises.
        """

        def read(i: int) -> None:
            frames = read_frames(self.clips[i].path, self.num_frames).frames
            pixels = resize_frames(frames, self.image["size"], self.image["resize_mode"], self.image["interpolation"])
            self._frames[i, : len(pixels)] = pixels.numpy()
            self._counts[i] = len(pixels)

        def attempt(i: int) -> str:
            try:
                read(i)
            except (ValueError, OSError) as error:
                if not skip_unreadable:
                    raise
                self._counts[i] = -1
                return f"{self.clips[i].path}: {error}"
            return ""

        todo = np.flatnonzero(self._counts <= 0)
        failures: list[str] = []
        if len(todo):
            with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                steps = pool.map(attempt, todo.tolist())
                try:
                    for reason in tqdm(steps, total=len(todo), desc="decode frames", unit="video", disable=None):
                        failures += [reason] if reason else []
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                finally:
                    self._frames.flush()  # type: ignore[attr-defined]
                    self._counts.flush()  # type: ignore[attr-defined]
        return failures

    def get(self, i: int, picks: np.ndarray) -> np.ndarray:
        """Frames `picks` of clip i: (len(picks), 3, S, S) uint8."""
        return self._frames[i][picks]


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
    """Videos of up to F frames -> pixels (N, F, 3, S, S) uint8, padded with zeros, and mask (N, F) bool."""
    pixels = np.zeros((len(videos), num_frames, *videos[0].shape[1:]), np.uint8)
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
    return sorted(kept), sorted(held)


def batches(clips: Sequence[Clip], batch_size: int, group_size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """One epoch of full batches of indices, each clip at most once.

    With `group_size`, clips come in runs of that many that share a category, and clips of one source video side by
    side: hard negatives, which the background alone cannot tell apart.
    """
    order: list[int] = []
    if group_size:
        runs: dict[int | str, list[int]] = {}
        sources: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            sources.setdefault(clip.source, []).append(i)
        groups = list(sources.values())
        for g in rng.permutation(len(groups)):
            runs.setdefault(clips[groups[g][0]].category, []).extend(groups[g])
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
