"""Copies of videos that browsers can play, each made by a separate process.

`Copies` starts the process and stops it when nobody waits, `main` is the process. It imports no torch and no gradio, so
that it starts at once.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from suma.app.browser_formats import SOUNDS, plan_for, sounds_of
from suma.video.timeline import Timeline, every_frame, list_frames, video_stream
from suma.video.upright import HLG, PQ, TURNS, View, shown_size, upright, view_from

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

ENCODERS = {  # of copies that are encoded again
    ".mp4": ("libx264", {"preset": "veryfast"}),
    ".webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M"}),
}
LONGEST_SIDE = 720  # pixels of such a copy
BT601, UNSAID, LIMITED = 6, 2, 1  # two matrices as ITU-T H.273 numbers them; a colour range as FFmpeg numbers it
PATIENCE = 5.0  # seconds after the last call of `ask` until a copy is given up
MEMORY_LIMIT = 4 << 30  # bytes of address space, of each process
TICK = Fraction(1, 1000)  # seconds, the clock of an encoded copy


@dataclass
class _Job:
    """A copy that is being made."""

    done: float = 0.0  # share of it, 0 to 1
    asked: float = field(default_factory=time.monotonic)  # when somebody last waited for it
    failed: str = ""

    def wanted(self) -> bool:
        return time.monotonic() - self.asked < PATIENCE


class Copies:
    """Make copies, `at_once` at a time, each of them as long as somebody asks for it."""

    def __init__(self, at_once: int = max(1, (os.cpu_count() or 1) // 2)):
        self._turn = threading.Semaphore(at_once)
        self._jobs: dict[Path, _Job] = {}
        self._lock = threading.Lock()

    def ask(self, source: str, target: Path) -> float:
        """Return how much of the copy is made, from 0 to 1; the first call starts it.

        Raises OSError where the folder cannot be written, ValueError where no copy can be made.
        """
        if target.is_file():
            return 1.0
        with self._lock:
            job = self._jobs.get(target)
            if job is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                job = self._jobs[target] = _Job()
                threading.Thread(target=self._make, args=(source, target, job), daemon=True).start()
            job.asked = time.monotonic()
            if job.failed:
                del self._jobs[target]
                raise ValueError(job.failed)
            return min(job.done, 0.99)

    def _make(self, source: str, target: Path, job: _Job) -> None:
        partial = target.with_name(f"{target.stem}.{os.getpid()}-{threading.get_ident()}.partial{target.suffix}")
        try:
            while not self._turn.acquire(timeout=1.0):
                if not job.wanted():
                    return
            try:
                if self._watch(_start(source, partial), job):
                    partial.replace(target)
            finally:
                self._turn.release()
        except OSError as error:
            job.failed = error.strerror or str(error)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
                target.parent.rmdir()  # where nothing is left in it: the folder of an upload that is gone
            with self._lock:
                if not job.failed:
                    self._jobs.pop(target, None)

    def _watch(self, child: "subprocess.Popen[str]", job: _Job) -> bool:
        """Follow the process to its end, or kill it when nobody waits any more. Return whether the copy is whole."""
        assert child.stdout is not None
        with child:
            last = ""
            for line in child.stdout:  # two each second, whatever the decoder does
                last = line.strip()
                with suppress(ValueError):
                    job.done = float(last)
                if not job.wanted():
                    child.kill()
                    return False  # where somebody asks again just now, the next call starts it anew
        if child.returncode:
            job.failed = last.removeprefix("error: ") if last.startswith("error: ") else "the video cannot be decoded"
        return child.returncode == 0


def _start(source: str, partial: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "suma.app.copies", os.path.abspath(source), str(partial)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def main() -> int:
    """Make one copy: `python -m suma.app.copies SOURCE TARGET`. Print the share that is done, twice a second."""
    source, target = sys.argv[1], Path(sys.argv[2])
    share = [0.0]
    if os.name == "posix":
        import resource

        os.nice(10)  # searches come first
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    threading.Thread(target=_print_share, args=(share, target), daemon=True).start()
    try:
        make(source, target, share)
    except Exception as error:  # PyAV raises whatever a damaged file leads to
        target.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the video cannot be decoded"
        print(f"error: {reason}", flush=True)
        return 1
    return 0


def _print_share(share: list[float], target: Path) -> None:
    while True:
        try:
            print(f"{share[0]:.3f}", flush=True)
        except OSError:  # the app is gone
            target.unlink(missing_ok=True)
            os._exit(1)
        time.sleep(0.5)


def make(source: str, target: Path, share: list[float]) -> None:
    """Write a copy that browsers play, with the times of `read_frames`; `share[0]` tells how far it is.

    Packets are kept where browsers play them and the copy shows the same at the same times; else the video is encoded
    again, upright and without sound. Raises ValueError, OSError or av.FFmpegError.
    """
    line, plan = list_frames(source), plan_for(source)
    if (plan.remux or plan.as_it_is) and not line.counted and not line.joined:
        with suppress(Exception):  # a container that cannot hold these packets
            remux(source, target, line, share)
            if plan_for(str(target)).as_it_is and _looks_like(str(target), source, line):
                return
    encode(source, target, line, share)


def _looks_like(copy: str, source: str, line: Timeline) -> bool:
    """Return whether a copy with the same packets has the same frame times, rotation and shape of pixels."""
    other = list_frames(copy)
    if len(other.times) != len(line.times) or np.abs(other.times - line.times).max() >= 0.002:
        return False
    (_, first), (_, copied) = next(every_frame(source, line)), next(every_frame(copy, other))
    return np.array_equal(upright(first, line.view), upright(copied, other.view))


def remux(source: str, target: Path, line: Timeline, share: list[float]) -> None:
    """Put the packets of the picture and of one sound track into another container, unchanged."""
    import av

    with av.open(source, metadata_errors="ignore") as read, av.open(str(target), "w") as written:
        video = video_stream(read)
        assert video.time_base is not None
        sounds = [read.streams[index] for index, codec in sounds_of(source).items() if codec in SOUNDS[target.suffix]]
        out = {s.index: written.add_stream_from_template(s) for s in (video, *sounds[:1])}
        start = int(line.ticks[0]) * video.time_base - Fraction(float(line.times[0]))  # seconds: 0 of the copy
        for packet in _timed(read.demux(*(read.streams[index] for index in out))):
            share[0] = float(packet.pts * packet.time_base - start) / max(line.duration, 1e-3)
            shift = round(start / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            if packet.stream.type == "audio" and packet.pts < 0:  # before the first picture
                continue
            packet.stream = out[packet.stream.index]
            written.mux(packet)


def _timed(packets: "Iterator[Packet]") -> "Iterator[Any]":
    """Yield packets, each with a presentation and a decoding time.

    Matroska stores no decoding times, and FFmpeg guesses none for the first packets before B-frames: they are counted
    back from the first one that is known.
    """
    waiting: list[Any] = []
    for packet in packets:
        if packet.pts is None:  # the end of a stream
            continue
        if packet.dts is None:
            waiting.append(packet)
            continue
        if waiting and packet.stream is waiting[0].stream:
            for back, early in enumerate(reversed(waiting), 1):
                early.dts = packet.dts - back * (packet.duration or 1)
            yield from waiting
            waiting = []
        yield packet
    for early in waiting:
        early.dts = early.pts
        yield early


def encode(source: str, target: Path, line: Timeline, share: list[float]) -> None:
    """Encode all frames for the target's suffix, as `upright` shows them, no side longer than LONGEST_SIDE.

    Raises ValueError where no frame can be decoded.
    """
    import av

    codec, options = ENCODERS[target.suffix]
    rate = Fraction(max(1.0, len(line.times) / max(line.duration, 1e-3))).limit_denominator(1000)
    out: Any = None
    view, size, last = line.view, (0, 0), -1
    with av.open(str(target), "w") as written:
        for seconds, frame in every_frame(source, line):
            if out is None:
                view, size = view_from(frame, view), shown_size(frame, view, LONGEST_SIDE)
                out = written.add_stream(codec, rate=rate, options=options)
                out.height, out.width = (max(2, side // 2 * 2) for side in upright(frame, view, size).shape[:2])
                out.pix_fmt, out.codec_context.time_base = "yuv420p", TICK
                first = _picture(frame, view, size, out.width, out.height)
                out.codec_context.colorspace, out.codec_context.color_range = first.colorspace, LIMITED
            made = _picture(frame, view, size, out.width, out.height)
            last = max(last + 1, round(seconds / TICK))
            made.pts, made.time_base = last, TICK
            written.mux(out.encode(made))
            share[0] = seconds / max(line.duration, 1e-3)
        if out is None:
            raise ValueError("no frame can be decoded")
        written.mux(out.encode(None))


def _picture(frame: "VideoFrame", view: View, size: tuple[int, int], width: int, height: int) -> "VideoFrame":
    """Return the frame as `upright` shows it, as the encoder takes it, at this width and height in pixels."""
    import av

    if view.turn != TURNS[1] or view.transfer in (PQ, HLG):  # else the scaler does it all at once
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame, view, size)), "rgb24")
    matrix = BT601 if frame.format.is_rgb or frame.colorspace == UNSAID else frame.colorspace  # as `upright` takes it
    made = frame.reformat(width, height, "yuv420p", dst_colorspace=matrix, dst_color_range=LIMITED)
    made.colorspace = matrix
    return made


if __name__ == "__main__":
    sys.exit(main())
