"""Save a stretch of a video as an mp4 file: its packets if a key frame is near the beginning, else encoded again."""

import heapq
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from suma.video.timeline import Timeline, every_frame, frames_from, list_frames, video_stream
from suma.video.upright import HLG, PQ, TURNS, View, shown_size, upright, view_from, view_of

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

ENCODERS = {  # of pictures, by container
    ".mp4": ("libx264", {"preset": "veryfast"}),
    ".webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M"}),
}
BT601, UNSAID, LIMITED = 6, 2, 1  # two matrices as ITU-T H.273 numbers them; a colour range as FFmpeg numbers it
TICK = Fraction(1, 1000)  # seconds, the clock of encoded pictures
PADDING = 1.0  # seconds before and after what is to be saved
SLACK = 0.5  # seconds that a clip may begin early, so that it begins at a key frame
COPIED = {"h264", "hevc", "av1", "vp9", "aac", "mp3", "opus", "flac", "ac3", "eac3", "alac"}  # codecs that mp4 holds
TOLERANCE = 1e-3  # seconds; times nearer than this are equal
LEFTOVER = 3600.0  # seconds after which a hidden partial file is one that a killed run left


def in_order(streams: "Iterable[Iterator[Packet]]") -> "Iterator[Any]":
    """Yield the packets of several streams in the order of their decoding times, all streams being added by then."""
    return heapq.merge(*streams, key=lambda packet: packet.dts * packet.time_base)


def copied(
    path: str, index: int, written: "OutputContainer", zero: Fraction, end: float | None = None
) -> "Iterator[Packet]":
    """Yield the packets of a file's stream, of which `zero` (seconds in the file) will be the time 0.

    With `end` (seconds from there), only what is shown from 0 to `end` is read. Sound before 0 is left out.
    """
    import av

    with av.open(path, metadata_errors="ignore") as read:
        stream = read.streams[index]
        out = written.add_stream_from_template(stream)
        if stream.codec_context.codec.canonical_name == "hevc":
            out.codec_context.codec_tag = "hvc1"  # Apple's players know no other
        assert stream.time_base is not None
        shift, latest = round(zero / stream.time_base), 0
        if end is not None:
            read.seek(int((zero - 1) * av.time_base))  # by the pictures: sound often has no index
        for packet in _timed(read.demux(stream)):
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            if packet.pts < 0 and (end is not None or stream.type == "audio"):
                continue
            if end is not None and packet.pts > latest and (latest + packet.duration) * packet.time_base >= end:
                return  # not before: frames that are shown earlier may follow in the file
            latest, packet.stream = max(latest, packet.pts), out
            yield packet


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
        for back, early in enumerate(reversed(waiting), 1):
            early.dts = packet.dts - back * (packet.duration or 1)
        yield from waiting
        waiting = []
        yield packet
    for early in waiting:
        early.dts = early.pts
        yield early


def encoded(
    written: "OutputContainer",
    suffix: str,
    frames: "Iterable[tuple[float, VideoFrame]]",
    view: View,
    rate: Fraction,
    longest: int | None = None,
) -> "Iterator[Packet]":
    """Yield the packets of frames (seconds, frame), encoded as `upright` shows them, no side over `longest` pixels.

    Raises ValueError where there is no frame.
    """
    codec, options = ENCODERS[suffix]
    out: Any = None
    size, last = (0, 0), -1
    for seconds, frame in frames:
        if out is None:
            view, size = view_from(frame, view), shown_size(frame, view, longest)
            out = written.add_stream(codec, rate=rate, options=options)
            out.height, out.width = (max(2, side // 2 * 2) for side in upright(frame, view, size).shape[:2])
            out.pix_fmt, out.codec_context.time_base = "yuv420p", TICK
            first = _picture(frame, view, size, out.width, out.height)
            out.codec_context.colorspace, out.codec_context.color_range = first.colorspace, LIMITED
        made = _picture(frame, view, size, out.width, out.height)
        last = max(last + 1, round(seconds / TICK))
        made.pts, made.time_base = last, TICK
        yield from out.encode(made)
    if out is None:
        raise ValueError("no frame can be decoded")
    yield from out.encode(None)


def _picture(frame: "VideoFrame", view: View, size: tuple[int, int], width: int, height: int) -> "VideoFrame":
    """Return the frame as `upright` shows it, as the encoder takes it, at this width and height in pixels."""
    import av

    if view.turn != TURNS[1] or view.transfer in (PQ, HLG):  # else the scaler does it all at once
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame, view, size)), "rgb24")
    matrix = BT601 if frame.format.is_rgb or frame.colorspace == UNSAID else frame.colorspace  # as `upright` takes it
    made = frame.reformat(width, height, "yuv420p", dst_colorspace=matrix, dst_color_range=LIMITED)
    made.colorspace = matrix
    return made


def encoded_sound(path: str, index: int, written: "OutputContainer", zero: Fraction, end: float) -> "Iterator[Packet]":
    """Yield a file's sound as AAC, mono or stereo, from `zero` (seconds in the file) on for `end` seconds."""
    import av

    with av.open(path, metadata_errors="ignore") as read:
        stream: Any = read.streams[index]
        out = written.add_stream("aac", rate=48000, layout="mono" if stream.channels == 1 else "stereo")
        shift = round(zero / stream.time_base)
        read.seek(int((zero - 1) * av.time_base))
        for packet in read.demux(stream):
            frames: list[Any] = []
            with suppress(av.FFmpegError):  # damage
                frames = packet.decode()
            for frame in frames:
                frame.pts -= shift
                if 0 <= frame.pts * stream.time_base < end:
                    yield from out.encode(frame)
            if packet.pts is not None and (packet.pts - shift) * stream.time_base >= end:
                break
        yield from out.encode(None)


def save_clip(path: str | Path, start: float, end: float, folder: str | Path, padding: float = PADDING) -> Path:
    """Save a video from `start` to `end` (seconds) and `padding` on either side as a new mp4 file; return its path.

    It begins at a key frame and keeps the packets if there is one in the padding, or at most SLACK before it. Else the
    pictures are encoded again, upright and SDR. The sound is that of the track which players choose. Files that are not
    MP4, MOV or Matroska are read through first, AVI is also decoded from its beginning. The clip appears under its name
    when it is whole, and no file is ever replaced.

    Raises ValueError for a bad span, or where no frame of it can be decoded; OSError.
    """
    if not (0 <= start < end < math.inf and 0 <= padding < math.inf):
        raise ValueError(f"a clip needs 0 <= start < end and padding >= 0, in seconds, not {start}, {end}, {padding}")
    import av

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".suma-*.partial"):
        with suppress(FileNotFoundError):  # another process may clear up, too
            if time.time() - left.stat().st_mtime > LEFTOVER:
                left.unlink()
    partial = folder / f".suma-{os.getpid()}-{threading.get_ident()}.partial"
    try:
        _cut(os.path.abspath(path), str(partial), max(0.0, start - padding), start, end + padding)
        return _publish(partial, Path(path).stem, start)
    except av.FFmpegError as error:
        raise ValueError(f"no clip can be made of {path}, {start:g} to {end:g} s: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _publish(partial: Path, stem: str, start: float) -> Path:
    """Give a file its name, the first one that is not taken: `film 0-01-23.mp4`, `film 0-01-23 (2).mp4`, ..."""
    minutes, seconds = divmod(int(start), 60)
    name = os.fsdecode(os.fsencode(stem)[:200])  # bytes; a whole name has at most 255
    for n in count(1):
        number = f" ({n})" if n > 1 else ""
        target = partial.with_name(f"{name} {minutes // 60}-{minutes % 60:02}-{seconds:02}{number}.mp4")
        with suppress(FileExistsError):
            target.open("xb").close()  # the name is ours from now on
            break
    return partial.replace(target)


class _Film:
    """An open file, and what is to be known of it for a clip that starts at `start` seconds."""

    def __init__(self, path: str, read: "InputContainer", start: float):
        import av

        self.path, self.read, self.video = path, read, cast("Any", video_stream(read))
        self.zero = Fraction(0)  # seconds in the file where the player's clock shows 0
        self.line: Timeline | None = None  # not needed where the file's own times are a player's
        if not (read.format.name.startswith(("mov", "matroska")) and start < (read.duration or 0) / av.time_base):
            self.line = list_frames(path)
            if start >= self.line.duration:
                raise ValueError(f"{path} lasts {self.line.duration:.3f} s: there is no clip from {start:g} s on")
            self.zero = int(self.line.ticks[0]) * self.video.time_base - Fraction(float(self.line.times[0]))
        self.view, sound = view_of(read, self.video), read.streams.best("audio")
        heard = sound is not None and sound.codec_context and not (self.line and self.line.joined)
        self.sound = sound.index if sound and heard else None  # of joined recordings no time of it is known

    def write(
        self, target: str, begin: Fraction, end: float, pictures: "Callable[[OutputContainer], Iterator[Packet]]"
    ) -> None:
        """Write the pictures and the sound between `begin` (seconds in the file) and `end` (seconds of the clip)."""
        import av

        with av.open(target, "w", format="mp4") as written:
            streams = [pictures(written)]
            if self.sound is not None:
                codec = self.read.streams[self.sound].codec_context.codec.canonical_name
                sound = copied if codec in COPIED else encoded_sound
                streams.append(sound(self.path, self.sound, written, begin, end))
            for packet in in_order(streams):
                written.mux(packet)

    def key_before(self, at: Fraction) -> "VideoFrame | None":
        """Return the last key frame at `at` (seconds in the file) or before, if decoding can begin there."""
        tick = int((at + Fraction(TOLERANCE)) / self.video.time_base)
        for back in (0, 2, 10):  # seconds: formats without an index are sought inexactly
            self.read.seek(tick - round(back / self.video.time_base), stream=self.video)
            good, frame = next_key(self.read, self.video)
            if frame is not None and frame.pts is not None and frame.pts <= tick:
                return frame if good else None
        return None


def next_key(container: "InputContainer", stream: Any) -> "tuple[bool, VideoFrame | None]":
    """Return whether decoding can begin at the next key frame of an open file, and the first picture from there on.

    There is no picture where an edit list hides it, or no key frame follows. Raises av.FFmpegError for damage.
    """
    key = None
    for packet in container.demux(stream):
        if key is None:
            if packet.is_discard:
                return True, None
            if not packet.is_keyframe:
                continue
            key = packet.pts
        for frame in packet.decode():
            if frame.pts is None or key is None or frame.pts >= key:  # those before it belong to an open group
                return frame.pts == key and not frame.is_corrupt, frame
    return False, None


def _cut(path: str, target: str, begin: float, start: float, end: float) -> None:
    """Write the clip from `begin`, or from a key frame up to `start`, to `end`: seconds on the player's clock."""
    import av

    with av.open(path, metadata_errors="ignore") as read:
        film = _Film(path, read, start)
        zero, unit, key = film.zero, film.video.time_base, None
        if not (film.line and (film.line.joined or film.line.counted)):  # else its own times do not lead there
            with suppress(av.FFmpegError, ValueError):  # damage, or packets that mp4 cannot hold
                key = film.key_before(zero + Fraction(begin))
                if _copy(film, target, key, begin, end) or _copy(
                    film, target, film.key_before(zero + Fraction(start)), begin, end
                ):
                    return
            tick = None if key is None else key.pts
            first = round((zero + Fraction(begin) - 1) / unit)  # the picture on screen at `begin` may have come earlier
            frames = frames_from(path, tick, first)
            pictures = _on_screen(((float(t * unit - zero), frame) for t, frame in frames), begin, end)
        else:
            pictures = _on_screen(every_frame(path, film.line), begin, end)
        rate = Fraction(film.video.average_rate or 25)
        film.write(
            target, zero + Fraction(begin), end - begin, lambda to: encoded(to, ".mp4", pictures, film.view, rate)
        )


def _copy(film: _Film, target: str, key: "VideoFrame | None", begin: float, end: float) -> bool:
    """Write the clip from a key frame without encoding; return False if that is too early, or shows something else."""
    if key is None or key.pts is None or film.video.codec_context.codec.canonical_name not in COPIED:
        return False
    at = key.pts * film.video.time_base
    if at - film.zero < max(0, begin - SLACK):
        return False
    last = float(end + film.zero - at)
    film.write(target, at, last, lambda to: copied(film.path, film.video.index, to, at, last))
    line = list_frames(target)
    shown = next((frame for _, frame in every_frame(target, line)), None)  # is it turned, and in shape, as before?
    return shown is not None and np.array_equal(upright(shown, line.view), upright(key, film.view))


def _on_screen(frames: "Iterator[tuple[float, VideoFrame]]", begin: float, end: float) -> Any:
    """Yield the frames that are on screen between `begin` and `end`, with seconds since `begin`."""
    before = None
    for seconds, frame in frames:
        if seconds >= end - TOLERANCE:
            break
        if seconds <= begin + TOLERANCE:
            before = frame
            continue
        if before is not None:
            yield 0.0, before
            before = None
        yield seconds - begin, frame
    if before is not None:
        yield 0.0, before
