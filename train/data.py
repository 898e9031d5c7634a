"""A benchmark -> clips with captions, their videos on disk, cached frames, and batches.

Shapes: N clips, F frames, S pixels per side.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from suma.video import read_frames, resize_frames

MSRVTT = "friedrichor/MSR-VTT"
CACHE = Path(os.environ.get("SUMA_CACHE", Path.home() / ".cache" / "suma"))


@dataclass(frozen=True)
class Clip:
    """One video of a benchmark. Clips cut from one source video share `source`; `category` is the benchmark's."""

    video_id: str
    path: Path
    captions: tuple[str, ...]
    category: int
    source: str
    label: str  # the row's "source" column: the dataset's name, or the kind of a minimal pair


def load_clips(data: str, config: str) -> list[Clip]:
    """The clips of one config (`train_9k`, `test_1k`, ...) of MSR-VTT on the Hub, or of a local folder in its layout.

    A layout is: JSON rows named by the README's YAML head, and one zip (or folder) that holds `video/*.mp4`.
    """
    from datasets import load_dataset

    if not Path(data).is_dir() and (data.startswith((".", "/", "~")) or data.count("/") != 1):
        raise FileNotFoundError(f"no benchmark folder {data} (a Hub id has the form owner/name)")
    splits = load_dataset(data, config)
    if len(splits) != 1:
        raise ValueError(f"config {config} of {data} has the splits {', '.join(splits)}: expected one")
    rows = next(iter(splits.values()))
    folder = video_folder(data)
    clips = []
    for row in rows:
        captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        clips.append(
            Clip(row["video_id"], folder / row["video"], tuple(captions), row["category"], row["url"], row["source"])
        )
    return clips


def video_folder(data: str) -> Path:
    """The folder of the benchmark's videos; its zip is fetched and unpacked at the first call (into SUMA_CACHE)."""
    if Path(data).is_dir():
        root = Path(data)
        if (root / "video").is_dir():
            return root / "video"
        archives = sorted(root.glob("*.zip"))
    else:
        from huggingface_hub import HfApi, hf_hub_download

        names = [f for f in HfApi().list_repo_files(data, repo_type="dataset") if f.endswith(".zip")]
        archives = [Path(hf_hub_download(data, name, repo_type="dataset")) for name in names]
    if len(archives) != 1:
        raise ValueError(f"{data} must hold a folder `video` or one zip of it, found {len(archives)} zip files")
    archive = archives[0].resolve()
    target = CACHE / "videos" / hashlib.sha256(f"{archive}{archive.stat().st_size}".encode()).hexdigest()[:12]
    unpack(archive, target)
    return target / "video"


def unpack(archive: Path, target: Path) -> None:
    """Unpack `video/*` of a zip; members already there in full size are kept, names that leave `video/` refused."""
    done = target / "complete"
    if done.exists():
        return
    (target / "video").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as files:
        for member in tqdm(files.infolist(), desc=f"unpack {archive.name}", disable=None):
            if member.is_dir():
                continue
            parts = PurePosixPath(member.filename).parts
            if len(parts) != 2 or parts[0] != "video" or parts[1] in ("", ".", ".."):
                raise ValueError(f"{archive} holds {member.filename!r}: only video/NAME is unpacked")
            path = target / "video" / parts[1]
            if path.exists() and path.stat().st_size == member.file_size:
                continue
            partial = path.with_name(path.name + ".partial")
            with files.open(member) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            partial.rename(path)
    done.touch()


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
        runs: dict[int, list[int]] = {}
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
