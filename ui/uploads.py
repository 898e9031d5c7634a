"""Files that visitors bring: checked, made playable, kept under a safe name for the gallery, or deleted."""

import os
import re
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from suma import read_frames
from suma.disk import digest_of
from suma.hdr import HLG, PQ
from suma.packets import video_stream
from suma.upright import shown_size, upright, view_from, view_of

CONTAINERS = {".mp4": "mov", ".m4v": "mov", ".webm": "matroska"}  # by FFmpeg's names, and
PLAYED = {"mov": ("h264", "vp9", "av1", "dav1d"), "matroska": ("vp8", "vp9", "av1", "dav1d")}  # all browsers play them
LONGEST_SIDE = 720  # pixels of a copy made to be played


@dataclass
class Uploads:
    """What may be uploaded, and which uploads are in use: one is deleted when nobody needs it any more."""

    max_megabytes: int = 200
    max_seconds: float = 600
    _uses: Counter[str] = field(default_factory=Counter)
    _of: dict[str, str] = field(default_factory=dict)  # session -> its upload
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, path: str) -> None:
        """Raises ValueError, for the visitor to read, for what is too large, too long or no video."""
        name, megabytes = Path(path).name, os.path.getsize(path) / 1e6
        if megabytes > self.max_megabytes:
            raise ValueError(f"{name} has {megabytes:.0f} MB; the limit is {self.max_megabytes} MB")
        try:
            seconds = read_frames(path, 1, keyframes=True).duration
        except ValueError as error:
            text = f"{name} cannot be read as a video. An MP4 or WebM file should work."
            raise ValueError(text) from error
        if seconds > self.max_seconds:
            raise ValueError(f"{name} lasts {seconds:.0f} s; the limit is {self.max_seconds:.0f} s")

    def take(self, path: str, session: str = "") -> None:
        """Note that a session uses an upload (instead of the one before), or a call without a session."""
        with self._lock:
            self._uses[path] += 1
        if session:
            before, self._of[session] = self._of.get(session, ""), path
            self.leave(before)

    def leave(self, path: str) -> None:
        """The upload is not needed here any more."""
        with self._lock:
            if path not in self._uses:
                return
            self._uses[path] -= 1
            if self._uses[path] > 0:
                return
            del self._uses[path]
        for file in (Path(path), played_copy(path)):
            file.unlink(missing_ok=True)
            if file.parent.is_dir() and not any(file.parent.iterdir()):
                file.parent.rmdir()

    def goodbye(self, session: str) -> None:
        """A visitor has left."""
        self.leave(self._of.pop(session, ""))


def played_copy(path: str) -> Path:
    """Where the copy of an upload that a browser can play would be."""
    return Path(path).with_name("playable") / f"{Path(path).stem}.mp4"


def playable_upload(path: str) -> str:
    """The upload, or a copy beside it that a browser can play."""
    if browser_plays(path):
        return path
    copy = played_copy(path)
    if not copy.is_file():
        to_mp4(path, copy)
    return str(copy)


def keep(path: str, folder: Path) -> Path:
    """Copy an upload to where the gallery keeps its own: folder/content/name, so nothing is ever overwritten."""
    name = re.sub(r"[^\w.() -]+", "_", Path(path).name).strip(". ")[-100:] or "video"
    target = folder / digest_of(path)[:16] / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{name}.{threading.get_ident()}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)
    return target


def browser_plays(path: str) -> bool:
    """Return whether browsers play this file as it is: by its content, under a suffix that says the same.

    A file whose first picture stream is a cover is not: browsers take the first one.
    """
    import av

    try:
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            form = container.format.name.split(",")[0]
            stream = video_stream(container)
            name = stream.codec_context.name.removeprefix("lib").split("-")[0]
            return (
                CONTAINERS.get(Path(path).suffix.lower()) == form
                and stream is container.streams.video[0]
                and name in PLAYED[form]
                and stream.codec_context.pix_fmt in ("yuv420p", "yuvj420p")
                and stream.codec_context.color_trc not in (PQ, HLG)  # shown without tone mapping by some
            )
    except (av.FFmpegError, ValueError):
        return False


def to_mp4(source: str | Path, target: Path) -> None:
    """Write a copy as H.264 in MP4, without sound, at most LONGEST_SIDE pixels. Raises ValueError where none can be.

    PyAV brings the encoder, so nobody has to install ffmpeg.
    """
    import av

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.stem}.{os.getpid()}.{threading.get_ident()}.partial.mp4")
    try:
        with av.open(os.path.abspath(source), metadata_errors="ignore") as read, av.open(str(partial), "w") as written:
            _transcode(read, written)
        partial.replace(target)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{Path(source).name} cannot be converted for the browser: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _transcode(read: Any, written: Any) -> None:
    import av

    stream, out, last = video_stream(read), None, -1
    view = view_of(read, stream)
    for packet in read.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:  # damage: the reader goes on after it, too
            continue
        for frame in frames:
            if out is None:
                view, size = view_from(frame, view), shown_size(frame, view, LONGEST_SIDE)
                picture = upright(frame, view, size)
                out = written.add_stream("libx264", rate=stream.average_rate or 25, options={"preset": "veryfast"})
                out.height, out.width = (max(2, side // 2 * 2) for side in picture.shape[:2])
                out.pix_fmt, out.codec_context.time_base = "yuv420p", Fraction(1, 1000)
                first = frame.time or 0.0
            picture = np.ascontiguousarray(upright(frame, view, size))
            made = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(out.width, out.height, "yuv420p")
            last = max(last + 1, round(1000 * ((frame.time or 0.0) - first)))
            made.pts, made.time_base = last, Fraction(1, 1000)
            written.mux(out.encode(made))
    if out is None:
        raise ValueError("no frame can be decoded")
    written.mux(out.encode(None))
