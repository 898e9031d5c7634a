"""Keep a benchmark's frames, decoded and resized once: on disk as raw bytes (memory-mapped) or as JPEG; and what a
frozen image tower makes of them, stored beside them and read like them.

Shapes: N clips, F frames, S pixels per side, C channels of the image tower's trunk (and what a frame grid adds).
"""

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import Clip
from filelock import FileLock
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from video_files import CACHE

from suma.model.cpu import fast_image_tower, has_bf16
from suma.model.suma import SUMA
from suma.progress import Progress
from suma.video.frames import read_frames
from suma.video.preprocess import prepare

FORMATS = ("raw", "jpeg")
JPEG_QUALITY = 90
BATCH = 4  # clips encoded at once: more pictures than a processor's cache holds take twice as long each


class RawStore:
    """uint8 (N, F, 3, S, S) in one memory-mapped file: the fastest, and exact; F frames of 224 px are F * 0.15 MB."""

    def __init__(self, folder: Path, clips: int, num_frames: int, size: int):
        self._frames = _array(folder / "frames.npy", np.uint8, (clips, num_frames, 3, size, size))

    def put(self, i: int, pixels: np.ndarray) -> None:
        """Keep the frames of clip i. Several threads may call this, each for other clips."""
        self._frames[i, : len(pixels)] = pixels

    def get(self, i: int, picks: np.ndarray, out: np.ndarray) -> None:
        """Read frames `picks` of clip i into `out`."""
        np.take(self._frames[i], picks, axis=0, out=out, mode="clip")

    def flush(self) -> None:
        """Write to the disk what is still in memory."""
        self._frames.flush()  # type: ignore[attr-defined]


class JpegStore:
    """Each frame a JPEG of quality 90, one after the other in one file: about a tenth of the disk, slightly lossy."""

    def __init__(self, folder: Path, clips: int, num_frames: int):
        self._spans = _array(folder / "spans.npy", np.int64, (clips, num_frames, 2))  # offset and length, bytes
        self._file = (folder / "frames.jpeg").open("a+b")
        self._writing = threading.Lock()

    def put(self, i: int, pixels: np.ndarray) -> None:
        """Keep the frames of clip i. Several threads may call this, each for other clips."""
        pictures = [bytes(encode_jpeg(torch.from_numpy(p), JPEG_QUALITY).numpy()) for p in pixels]
        with self._writing:  # a killed build leaves bytes that no span points to
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(b"".join(pictures))
            self._file.flush()
        for j, picture in enumerate(pictures):
            self._spans[i, j] = offset, len(picture)
            offset += len(picture)

    def get(self, i: int, picks: np.ndarray, out: np.ndarray) -> None:
        """Read frames `picks` of clip i into `out`."""
        data = [os.pread(self._file.fileno(), length, offset) for offset, length in self._spans[i][picks].tolist()]
        for picture, x in zip(out, data, strict=True):
            picture[:] = decode_jpeg(torch.frombuffer(bytearray(x), dtype=torch.uint8), ImageReadMode.RGB).numpy()

    def flush(self) -> None:
        """Write to the disk what is still in memory."""
        os.fsync(self._file.fileno())
        self._spans.flush()  # type: ignore[attr-defined]


class FrameCache:
    """The frames of a list of clips, up to F of each; very short videos have fewer."""

    def __init__(
        self,
        clips: Sequence[Clip],
        num_frames: int,
        image: dict[str, Any],
        folder: Path | None = None,
        form: str = "raw",
    ):
        if form not in FORMATS:
            raise ValueError(f"frames are kept as {' or '.join(FORMATS)}, not {form!r}")
        self.clips, self.num_frames, self.image = list(clips), num_frames, image
        self.shape, self.dtype = (3, image["size"], image["size"]), np.dtype(np.uint8)  # of one frame
        identity = [[str(c.path), *_state(c.path)] for c in self.clips]
        key = json.dumps([identity, num_frames, image, form], sort_keys=True)
        self.folder = (folder or CACHE / "frames") / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")  # one process builds, the others find it built
        with self._lock:
            self._store: RawStore | JpegStore
            if form == "raw":
                self._store = RawStore(self.folder, len(clips), num_frames, image["size"])
            else:
                self._store = JpegStore(self.folder, len(clips), num_frames)
            self._counts = _array(self.folder / "counts.npy", np.int32, (len(clips),))  # 0: to do, -1: unreadable

    @property
    def counts(self) -> np.ndarray:
        """Return how many frames each clip has (N,); 0 if it is not decoded yet, or unreadable."""
        return np.maximum(self._counts, 0)

    def build(self, skip_unreadable: bool = False, workers: int = 0) -> list[str]:
        """Decode the clips that are not decoded yet, with a progress bar; a killed build resumes where it stopped.

        Return what is wrong with unreadable videos if they are to be skipped; otherwise raise the first error.
        """
        with self._lock:
            return self._build(skip_unreadable, workers)

    def _build(self, skip_unreadable: bool, workers: int) -> list[str]:
        def attempt(i: int) -> str:
            try:
                frames = read_frames(self.clips[i].path, self.num_frames).frames
            except (ValueError, OSError) as error:
                if not skip_unreadable:
                    raise
                self._counts[i] = -1
                return f"{self.clips[i].path}: {error}"
            pixels = prepare([frames], self.image)
            self._store.put(i, pixels)
            self._counts[i] = len(pixels)
            return ""

        todo = np.flatnonzero(self._counts <= 0)
        failures: list[str] = []
        if len(todo):
            with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                steps = pool.map(attempt, todo.tolist())
                try:
                    for reason in Progress(steps, total=len(todo), desc="decode frames", unit="video"):
                        failures += [reason] if reason else []
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                finally:
                    self._store.flush()
                    self._counts.flush()  # type: ignore[attr-defined]
        return failures

    def get(self, i: int, picks: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return frames `picks` of clip i, (len(picks), 3, S, S) uint8. out: an array to fill (faster)."""
        if out is None:
            out = np.empty((len(picks), *self.shape), self.dtype)
        self._store.get(i, picks, out)
        return out


def _state(path: Path) -> tuple[int, int]:
    """Return a file's size and time, which tell whether it has changed; (-1, 0) if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def _array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the memory-mapped array in a file, or write one of zeros."""
    if path.exists():
        there = np.load(path, mmap_mode="r+")
        if there.shape != shape or there.dtype != dtype:
            raise ValueError(
                f"{path} is {there.dtype}{there.shape}, expected {np.dtype(dtype)}{shape}: remove its folder"
            )
        return there
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if needed > free:  # a memory map that outgrows its disk ends the process without a word
        raise OSError(
            f"the cached frames need {needed / 1e9:.1f} GB, {path.parent} has {free / 1e9:.1f} GB left: "
            "set SUMA_CACHE to another disk, keep fewer frames, or keep them as JPEG (--cache-format jpeg)"
        )
    fresh = np.lib.format.open_memmap(path.with_suffix(".partial"), mode="w+", dtype=dtype, shape=shape)
    path.with_suffix(".partial").rename(path)
    return fresh


class FrameFeatures:
    """The output of `SUMA.encode_images` for a cache's frames, (N, F, C + ...) float16, in place of their pixels.

    Computed in bfloat16 on a CPU that has it. The file's name holds a checksum of the image tower.
    """

    def __init__(self, cache: FrameCache, model: SUMA):
        self.clips, self.counts, self.image, self.num_frames = cache.clips, cache.counts, cache.image, cache.num_frames
        digest = hashlib.sha256(repr((model.config.image, model.config.frame_grid)).encode())
        trunk = getattr(
            model.clip.visual, "trunk", model.clip.visual
        )  # a head may be trained while its trunk is frozen
        for name, tensor in sorted(trunk.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.file = cache.folder / f"features-{digest.hexdigest()[:16]}.npy"
        if not self.file.exists():
            self._encode(cache, model)
        self._features = np.load(self.file, mmap_mode="r")
        self.shape, self.dtype = self._features.shape[2:], self._features.dtype

    @torch.no_grad()
    def _encode(self, cache: FrameCache, model: SUMA) -> None:
        partial, order = self.file.with_suffix(".partial.npy"), np.arange(self.num_frames)
        features: np.memmap | None = None
        on_cpu = model.device.type == "cpu"
        with fast_image_tower(model.clip, half=on_cpu and has_bf16()):
            for i in Progress(range(0, len(self.clips), BATCH), desc="encode frames", unit="batch"):
                rows = [j for j in range(i, min(i + BATCH, len(self.clips))) if self.counts[j]]
                if not rows:
                    continue
                pixels = [torch.from_numpy(cache.get(j, order[: self.counts[j]])) for j in rows]
                done = model.encode_images(torch.cat(pixels).to(model.device)).to(torch.float16).cpu().numpy()
                if features is None:
                    shape = (len(self.clips), self.num_frames, done.shape[1])
                    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                at = 0
                for j in rows:
                    features[j, : self.counts[j]] = done[at : at + self.counts[j]]
                    at += self.counts[j]
        if features is None:
            raise ValueError("there is no readable video to encode: see the reasons above")
        features.flush()
        partial.rename(self.file)

    def get(self, i: int, picks: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the features (len(picks), C + ...) of frames `picks` of clip i. out: an array to fill."""
        found = self._features[i, picks]
        if out is None:
            return found
        out[:] = found
        return out
