"""Make a video playable in browsers: as it is, in another container, or encoded again by a process of its own.

`plan_for` says which, `Copies` starts the process and stops it when nobody waits, `main` is the process. It imports no
torch and no gradio, so that it starts at once.
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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from suma.video.hdr import HLG, PQ
from suma.video.timeline import Timeline, every_frame, list_frames, video_stream
from suma.video.upright import TURNS, View, shown_size, upright, view_from

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# What every browser plays, by container. PyAV's canonical names.
PICTURES = {".mp4": {"h264", "vp9", "av1"}, ".webm": {"vp8", "vp9", "av1"}}
SOUNDS = {".mp4": {"aac", "mp3", "opus", "flac"}, ".webm": {"opus", "vorbis"}}
ENCODERS = {  # of a copy that is encoded again
    ".mp4": ("libx264", {"preset": "veryfast"}),
    ".webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M"}),
}
LONGEST_SIDE = 720  # pixels of such a copy
BT601, UNSAID, LIMITED = 6, 2, 1  # matrices as ITU-T H.273 numbers them, and FFmpeg's number of a range
LATE = 0.5  # seconds; where an MP4 begins later, Chromium moves seeks
PATIENCE = 5.0  # seconds after the last question until a copy is given up
MEMORY_LIMIT = 4 << 30  # bytes of address space, of each process
TICK = Fraction(1, 1000)  # seconds, the clock of an encoded copy


class Plan(NamedTuple):
    """How browsers get a video."""

    suffix: str  # of what they get: .mp4 or .webm
    as_it_is: bool  # the file itself plays
    remux: bool  # its packets play in another container


def plan_for(path: str) -> Plan:
    """Return how browsers can play a video, judged by its content and not by its name."""
    try:
        there = os.stat(path)
    except OSError:
        return Plan(".mp4", False, False)
    return _plan(path, there.st_mtime_ns, there.st_size)


@lru_cache(maxsize=4096)
def _plan(path: str, changed: int, size: int) -> Plan:
    import av

    encoded = Plan(".mp4", False, False)
    try:
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            stream, form = video_stream(container), container.format.name
            codec, start = stream.codec_context.codec.canonical_name, container.start_time or 0
            sounds = _sounds(path)
            fits = [suffix for suffix in PICTURES if codec in PICTURES[suffix]]
            late = form.startswith("mov") and start > LATE * av.time_base
            if not fits or late or form == "avi" or not _is_plain(stream.codec_context):  # AVI lacks usable times
                return encoded
            own, first = _suffix_of(path, container), stream is container.streams.video[0]
            if own == ".mp4" and not _begins_at_keys(container, stream):
                return encoded
        if own in fits and first and "mp2" not in sounds.values():  # browsers take the first picture stream
            return encoded if own == ".webm" and list_frames(path).joined else Plan(own, True, False)
    except (av.FFmpegError, ValueError, OSError):
        return encoded
    return Plan(max(fits, key=lambda suffix: len({*sounds.values()} & SOUNDS[suffix])), False, True)


def _begins_at_keys(container: "InputContainer", stream: "VideoStream") -> bool:
    """Return whether decoding can begin at the last frame that an open file calls a key frame.

    Where it cannot, Chromium shows one picture, whichever moment is sought. Raises av.FFmpegError where there is none.
    """
    container.seek((container.start_time or 0) + (container.duration or 0))
    key = None
    for packet in container.demux(stream):
        if key is None:
            if packet.is_discard:  # an edit list hides it, so that it gives no picture
                return True
            key = packet.pts
        for frame in packet.decode():
            if frame.pts is None or key is None or frame.pts >= key:  # those before it belong to an open group
                return frame.pts == key and not frame.is_corrupt
    return False


def _sounds(path: str) -> dict[int, str]:
    """Return the codec of each sound track of a file, by the number of its stream.

    What an MP4 file calls MP3 may be another layer of MPEG audio, here "mp2": Chromium stops at its first packet.
    """
    import av

    with av.open(path, metadata_errors="ignore") as container:
        tracks = [track for track in container.streams.audio if track.codec_context]
        codecs = {track.index: track.codec_context.codec.canonical_name for track in tracks}
        for track in tracks:
            if codecs[track.index] == "mp3":
                begin = int.from_bytes(bytes(next(container.demux(track)))[:2], "big")
                codecs[track.index] = "mp3" if begin & 0xFFE6 == 0xFFE2 else "mp2"  # the sync word and the layer
    return codecs


def _is_plain(context: "VideoCodecContext") -> bool:
    """Return whether all browsers show such pictures, and in the same colours: 8 bits, SDR."""
    return context.pix_fmt in ("yuv420p", "yuvj420p") and context.color_trc not in (PQ, HLG)


def _suffix_of(path: str, container: "InputContainer") -> str:
    """Return the suffix under which browsers know an open file's container; "" where they do not."""
    form, brand = container.format.name, container.metadata.get("major_brand", "").strip().lower()
    if form.startswith("matroska"):
        with open(path, "rb") as file:
            return ".webm" if b"webm" in file.read(64) else ""
    return ".mp4" if form.startswith("mov") and brand not in ("qt", "") else ""


@dataclass
class _Job:
    """A copy that is being made."""

    done: float = 0.0  # share of it
    asked: float = field(default_factory=time.monotonic)  # when somebody last waited for it
    failed: str = ""

    def wanted(self) -> bool:
        return time.monotonic() - self.asked < PATIENCE


class Copies:
    """Copies being made, `at_once` at a time. A copy goes on as long as somebody asks for it."""

    def __init__(self, at_once: int = max(1, (os.cpu_count() or 1) // 2)):
        self._turn = threading.Semaphore(at_once)
        self._jobs: dict[Path, _Job] = {}
        self._lock = threading.Lock()

    def ask(self, source: str, target: Path) -> float:
        """Return how much of the copy is made, from 0 to 1; the first question starts it.

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
        """Follow the process to its end, or end it when nobody waits any more. Return whether the copy is whole."""
        assert child.stdout is not None
        with child:
            last = ""
            for line in child.stdout:  # two each second, whatever the decoder does
                last = line.strip()
                with suppress(ValueError):
                    job.done = float(last)
                if not job.wanted():
                    child.kill()
                    return False  # also where somebody asks again just now: the next question starts it anew
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
    """Make one copy: `python -m suma.app.copies SOURCE TARGET`. Prints the share that is done twice a second."""
    source, target = sys.argv[1], Path(sys.argv[2])
    share = [0.0]
    if os.name == "posix":
        import resource

        os.nice(10)  # searches come first
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    threading.Thread(target=_tell, args=(share, target), daemon=True).start()
    try:
        make(source, target, share)
    except Exception as error:  # PyAV raises whatever a damaged file leads to
        target.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the video cannot be decoded"
        print(f"error: {reason}", flush=True)
        return 1
    return 0


def _tell(share: list[float], target: Path) -> None:
    while True:
        try:
            print(f"{share[0]:.3f}", flush=True)
        except OSError:  # the app is gone
            target.unlink(missing_ok=True)
            os._exit(1)
        time.sleep(0.5)


def make(source: str, target: Path, share: list[float]) -> None:
    """Write a copy that browsers play, on the clock of `read_frames`; `share[0]` tells how far it is.

    The packets are taken over where browsers play them and the copy shows the same at the same times, else the video is
    encoded again, upright and without sound. Raises ValueError, OSError or av.FFmpegError.
    """
    line, plan = list_frames(source), plan_for(source)
    if (plan.remux or plan.as_it_is) and not line.counted and not line.joined:
        with suppress(Exception):  # a container that cannot hold these packets
            remux(source, target, line, share)
            if plan_for(str(target)).as_it_is and _looks_like(str(target), source, line):
                return
    encode(source, target, line, share)


def _looks_like(copy: str, source: str, line: Timeline) -> bool:
    """Return whether a copy with the same packets has its frames at the same times, turned and stretched alike."""
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
        sounds = [read.streams[index] for index, codec in _sounds(source).items() if codec in SOUNDS[target.suffix]]
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
    """Yield packets with both times. Matroska stores no decoding times, and FFmpeg guesses none for the first packets
    before B-frames: these are counted back from the first one that is known."""
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
    """Write all frames again, in the codec of the target's suffix, as `upright` shows them and no side longer than
    LONGEST_SIDE. Raises ValueError where none can be decoded."""
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
    """Return the frame as `upright` shows it, for the encoder, at this width and height in pixels."""
    import av

    if view.turn != TURNS[1] or view.transfer in (PQ, HLG):  # else the scaler does it all at once
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame, view, size)), "rgb24")
    matrix = BT601 if frame.format.is_rgb or frame.colorspace == UNSAID else frame.colorspace  # as `upright` takes it
    made = frame.reformat(width, height, "yuv420p", dst_colorspace=matrix, dst_color_range=LIMITED)
    made.colorspace = matrix
    return made


if __name__ == "__main__":
    sys.exit(main())
