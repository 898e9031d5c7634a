"""From a video file to pictures: choose frames, of all of it or of its parts, and decode them.

PyAV lists when each frame appears, without decoding, then decodes the chosen ones: group of pictures by group, where
the file tells them apart, leaving out the frames that neither we nor other frames need (decord's bytes, at about half
the work); from the beginning on where it does not, or is damaged. decord has the last word where PyAV fails.
"""

import math
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_EXTENSIONS = frozenset(
    (".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov")
    + (".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
)
MAX_PIXELS = 64_000_000  # per frame; 8K is 33 million
SKIPPING = ("h264", "hevc")  # codecs whose decoders leave out unneeded frames with the others' bytes the same
TOLERANCE = 1e-3  # seconds; times nearer than this are equal
SEGMENT = 60.0  # seconds: into such parts an index cuts longer videos, unless told otherwise
OVERLAP = 1 / 6  # of a part, that the next one shows again: what happens at a cut is whole in one of them


class Frames(NamedTuple):
    """Frames of one video. h and w are the upright picture's, in pixels."""

    frames: np.ndarray  # (F, h, w, 3) uint8, RGB
    times: np.ndarray  # (F,) float64, seconds from the first frame of the file to the moment the frame appears
    duration: float  # seconds, of the whole file


class _Timeline(NamedTuple):
    """When each of a file's N frames appears, in the order in which they are shown."""

    ticks: np.ndarray  # (N,) int64, the file's own time of each frame, or its number where `counted`
    times: np.ndarray  # (N,) float64, seconds from the first
    duration: float  # seconds
    keys: np.ndarray  # numbers of the key frames
    counted: bool  # the file carries no usable times
    grouped: bool  # every key frame begins a closed group: decord numbers rightly, and one may begin to decode there


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    start: float | None = None,
    end: float | None = None,
    keyframes: bool = False,
) -> Frames:
    """F = num_frames evenly spaced frames of a video (an image is a video of one frame).

    The span [start, end] in seconds (default: all; cut at the file's end) is divided in F equal segments, and the frame
    on screen at the middle of each is returned. Each frame comes once: a video with fewer frames, or few of them
    readable, gives fewer. `keyframes=True` snaps to the nearest key frames of the span, often seconds away:
    several times faster on long or HD video; exact again where they are fewer than F/2.

    Raises FileNotFoundError; ValueError for a bad span or a file that neither decoder can read.
    """
    if not 0 <= (start or 0) < (float("inf") if end is None else end):
        raise ValueError(f"the span must satisfy 0 <= start < end, in seconds, not start={start}, end={end}")
    file, line = _listed(path, num_frames)
    if (start or 0.0) >= max(line.duration, TOLERANCE):
        raise ValueError(f"start={start} s is beyond the end of {path}, which lasts {line.duration:.3f} s")
    begin, end = start or 0.0, line.duration if end is None else min(end, line.duration)
    return _span(file, line, _choose(line, num_frames, begin, end, keyframes), keyframes)


def parts_of(duration: float, segment: float) -> list[tuple[float, float]]:
    """Start and end (seconds) of the parts in which a video is indexed: one where it lasts no longer than `segment`
    (0: whatever it lasts), else parts of that length, each of which shares OVERLAP of it with the next.

    >>> parts_of(150.0, 60.0)
    [(0.0, 60.0), (50.0, 110.0), (100.0, 150.0)]
    """
    if not segment or duration <= segment + TOLERANCE:
        return [(0.0, duration)]
    step = segment * (1 - OVERLAP)
    count = math.ceil((duration - TOLERANCE - segment) / step) + 1
    return [(n * step, min(n * step + segment, duration)) for n in range(count)]


def read_parts(
    path: str | os.PathLike[str], num_frames: int, segment: float = 0.0
) -> Iterator[tuple[float, float, Frames]]:
    """Start, end and `read_frames` of each of a video's `parts_of`, in the order of time; its frames are listed once.

    A part of a long video without a readable frame is left out. Raises what `read_frames` raises, also where no part
    can be read.
    """
    file, line = _listed(path, num_frames)
    parts = parts_of(line.duration, segment)
    chosen = [_choose(line, num_frames, start, end, False) for start, end in parts]
    if len(parts) == 1:
        yield 0.0, line.duration, _span(file, line, chosen[0], False)
        return
    found, reason = 0, ""
    if line.grouped:
        for (start, end), numbers in zip(parts, chosen, strict=True):
            try:
                yield start, end, _span(file, line, numbers, False, thorough=False)
                found += 1
            except ValueError as error:
                reason = str(error)
    else:  # one may not begin in the middle: all parts in one pass
        spans = [(line.ticks[c].tolist(), int(line.ticks[first]), int(line.ticks[last])) for c, first, last in chosen]
        for (start, end), kept in zip(parts, _decode(file, line, spans, None, False), strict=True):
            if kept:
                yield start, end, Frames(*_pictures(line, kept), line.duration)
                found += 1
    if not found:
        raise ValueError(reason or f"cannot decode {path}: none of its {len(parts)} parts has a readable frame")


def _listed(path: str | os.PathLike[str], num_frames: int) -> tuple[str, _Timeline]:
    """The file's absolute path and timeline; raises as `read_frames` says."""
    path = Path(path)
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
    if not path.exists():
        raise FileNotFoundError(f"no such video: {path}")
    if not path.is_file():
        raise ValueError(
            f"not a file: {path}" + "; suma.files.find_videos lists the videos in a folder" * path.is_dir()
        )
    if path.stat().st_size == 0:
        raise ValueError(f"the file is empty (0 bytes): {path}")
    file = os.path.abspath(path)  # a leading slash: ffmpeg takes no part of it for a protocol
    try:
        return file, _timeline(file)
    except Exception as error:  # PyAV raises whatever a damaged file leads to
        raise ValueError(f"cannot read {path} as a video: {_first_line(error)}") from None


def _span(
    file: str, line: _Timeline, numbers: tuple[np.ndarray, int, int], keyframes: bool, thorough: bool = True
) -> Frames:
    """The frames that `_choose` named; `thorough`: where some are damaged, all that comes before may be decoded."""
    chosen, first, last = numbers
    try:
        pictures, times = _pyav_frames(file, line, chosen, first, last, keyframes, thorough)
    except Exception as error:
        reason = "not used for this kind of file"
        if line.grouped:
            try:
                return Frames(_decord_frames(file, line, chosen, keyframes), line.times[chosen], line.duration)
            except Exception as other:  # decord's own error is a plain Exception
                reason = _first_line(other)
        raise ValueError(f"cannot decode {file} (PyAV: {_first_line(error)}; decord: {reason})") from None
    return Frames(pictures, times, line.duration)


def _first_line(error: Exception) -> str:
    """The message without decord's "[time] file:line:" and stack trace."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", (str(error).strip() or repr(error)).splitlines()[0])


def _choose(line: _Timeline, num_frames: int, start: float, end: float, keyframes: bool) -> tuple[np.ndarray, int, int]:
    """Numbers of the frames to return, and those of the first and the last frame on screen in [start, end]."""
    first, last = (np.searchsorted(line.times, (start + TOLERANCE, end - TOLERANCE)) - 1).tolist()
    last = max(first, last)
    if last - first < num_frames:
        return np.arange(first, last + 1), first, last
    middles = start + (end - start) * (np.arange(num_frames) + 0.5) / num_frames
    keys = line.keys[(line.keys >= first) & (line.keys <= last)]
    if keyframes and len(keys):
        distances = np.abs(line.times[keys] - middles[:, None])
        nearest = np.unique(keys[distances.argmin(1)])
        if 2 * len(nearest) >= num_frames:
            return nearest, first, last
    return np.unique(np.searchsorted(line.times, middles + TOLERANCE) - 1), first, last


def _timeline(path: str) -> _Timeline:
    """Read the packets of a file, decoding none."""
    with _open(path) as container:
        stream = _video_stream(container)
        _check_size(stream)
        # The numbers only: a packet would keep its bytes. What an edit list hides is marked to be discarded.
        packets = (p for p in _packets(container, stream) if p.size and not p.is_discard)
        shown: list[Any] = [(p.pts, p.duration or 0, p.is_keyframe) for p in packets]
        form, rate = container.format.name, float(stream.average_rate or stream.guessed_rate or 25)
        unit = float(stream.time_base or 0)
    if not shown:
        raise ValueError("there is no readable frame in it")
    # AVI and raw streams carry no usable times.
    if form == "avi" or any(pts is None for pts, _, _ in shown):
        times = np.arange(len(shown)) / rate
        return _Timeline(np.arange(len(shown)), times, len(shown) / rate, np.arange(0), True, False)
    ticks = np.unique([pts for pts, _, _ in shown])
    times = (ticks - ticks[0]) * unit
    step = next((duration * unit for pts, duration, _ in shown if pts == ticks[-1] and duration), 1 / rate)
    keys = np.flatnonzero(np.isin(ticks, [pts for pts, _, is_key in shown if is_key]))
    # decord returns other frames than asked, silently, from MPEG-TS (and perhaps others), and next to a key frame that
    # precedes, in the file, frames shown before it (an open group of pictures).
    key, in_order = ticks[0], True
    for pts, _, is_key in shown:
        key = pts if is_key else key
        in_order = in_order and pts >= key
    grouped = in_order and form.startswith(("mov", "matroska"))
    return _Timeline(ticks, times, float(times[-1]) + step, keys, False, grouped)


def _decord_frames(path: str, line: _Timeline, chosen: np.ndarray, keyframes: bool) -> np.ndarray:
    """uint8 (F, h, w, 3)."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # The tolerance makes it raise rather than repeat a frame in the place of each it cannot decode.
    reader = decord.VideoReader(path, ctx=decord.cpu(), num_threads=1, fault_tol=1e-9)
    if len(reader) != len(line.times):  # it counts frames that an edit list hides, and fills up with the last one
        raise ValueError(f"{len(reader)} frames counted where there are {len(line.times)}")
    if not (keyframes and np.isin(chosen, line.keys).all()):
        return reader.get_batch(chosen).asnumpy()
    pictures = []
    for number in chosen.tolist():
        reader.seek(number)
        pictures.append(reader.next().asnumpy())
    return np.stack(pictures)


def _pyav_frames(
    path: str, line: _Timeline, chosen: np.ndarray, first: int, last: int, keyframes: bool, thorough: bool
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (F, h, w, 3) and the frames' times: the chosen ones, or the nearest decodable ones in [first, last]."""
    span = (line.ticks[chosen].tolist(), int(line.ticks[first]), int(line.ticks[last]))
    kept = _decode_groups(path, line, chosen) if line.grouped else {}
    if len(kept) < len(chosen):
        only_wanted = keyframes and bool(np.isin(chosen, line.keys).all())
        begin = next((line.ticks[key] for key in line.keys[::-1] if key <= chosen[0]), None)
        (kept,) = _decode(path, line, [span], begin, only_wanted)
    if len(kept) < len(chosen) and thorough:  # damage, or a key frame that is none: decode all that comes before, too
        (kept,) = _decode(path, line, [span], None, False)
    if not kept:
        raise ValueError("no frame of the span is decodable")
    return _pictures(line, kept)


def _pictures(line: _Timeline, kept: "dict[int, VideoFrame]") -> tuple[np.ndarray, np.ndarray]:
    """uint8 (F, h, w, 3), all of the first one's size, and their times."""
    like = next(iter(kept.values()))
    pictures = np.stack([_upright(frame, like) for frame in kept.values()])
    return pictures, line.times[np.searchsorted(line.ticks, list(kept))]


def _decode_groups(path: str, line: _Timeline, chosen: np.ndarray) -> "dict[int, VideoFrame]":
    """The chosen frames by their ticks, in order; none at all where one is not where the timeline says.

    One seek per group of pictures that holds a chosen frame. A group is decoded up to its last chosen packet: what a
    frame refers to comes before it in the file.
    """
    import av

    key_of = np.searchsorted(line.keys, chosen, side="right") - 1
    if len(line.keys) == 0 or key_of[0] < 0:
        return {}
    kept: dict[int, VideoFrame] = {}
    with _open(path) as container:
        stream = _video_stream(container)
        for key in np.unique(key_of):
            wanted = set(line.ticks[chosen[key_of == key]].tolist())
            try:
                frames = _decode_group(container, stream, int(line.ticks[line.keys[key]]), wanted)
            except av.FFmpegError:
                return {}
            if set(frames) != wanted:
                return {}
            kept.update(sorted(frames.items()))
    return kept


def _decode_group(
    container: "InputContainer", stream: "VideoStream", begin: int, wanted: set[int]
) -> "dict[int, VideoFrame]":
    """The frames with the `wanted` ticks, in the group that the key frame with tick `begin` begins."""
    found: dict[int, VideoFrame] = {}
    left = set(wanted)
    container.seek(begin, stream=stream)
    begun = False
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None:
            if not begun and packet.pts > begin:
                return {}
            begun = begun or packet.pts == begin
            if not begun:
                continue
            if stream.codec_context.name in SKIPPING:
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in left else "NONREF"
            left.discard(packet.pts)
        for frame in packet.decode() + ([] if left else stream.codec_context.decode(None)):
            if frame.pts in wanted and not frame.is_corrupt:
                found[frame.pts] = frame
        if not left:
            break
    return found


def _open(path: str) -> "InputContainer":
    import av

    return av.open(path, metadata_errors="ignore")


def _video_stream(container: "InputContainer") -> "VideoStream":
    stream: Any = container.streams.best("video")
    if stream is None:
        raise ValueError("there is no video in it")
    stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _check_size(picture: Any) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"frames of {picture.width}x{picture.height} exceed {MAX_PIXELS // 10**6} megapixels")


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet]":
    """All packets, going on after damaged ones; the last is empty and makes the decoder give what it holds back."""
    import av

    for _ in range(100):  # a damaged file can report errors without end
        try:
            return (yield from container.demux(stream))
        except av.FFmpegError:
            continue


def _decode(
    path: str, line: _Timeline, spans: "Sequence[tuple[list[int], int, int]]", begin: int | None, only_wanted: bool
) -> "Iterator[dict[int, VideoFrame]]":
    """For each span (wanted ticks, lowest, highest), in the order of time, the frames on screen at the wanted ticks, by
    their own ticks, which lie within it. For a frame that cannot be decoded: the one before it, or else the one after
    it; none comes twice. All spans in one pass over the file."""
    wanted = {tick for ticks, _, _ in spans for tick in ticks}
    open_spans = deque(_Open(list(ticks), low, high) for ticks, low, high in spans)
    with _open(path) as container:
        for tick, frame in _decodable(container, line.counted, begin, wanted, only_wanted):
            for span in open_spans:
                if tick < span.low:
                    break
                span.see(tick, frame)
            while open_spans and (not open_spans[0].waiting or tick > open_spans[0].high):
                yield open_spans.popleft().end()
            if not open_spans:
                return
    for span in open_spans:
        yield span.end()


@dataclass
class _Open:
    """A span whose frames are being decoded."""

    waiting: list[int]  # wanted ticks that are not reached yet
    low: int
    high: int
    kept: "dict[int, VideoFrame]" = field(default_factory=dict)
    previous: "tuple[int, VideoFrame] | None" = None

    def see(self, tick: int, frame: "VideoFrame") -> None:
        """Take in the next decoded frame."""
        if not self.low <= tick <= self.high:
            return
        while self.waiting and self.waiting[0] <= tick:
            number, shown = self.previous if self.previous and self.waiting[0] < tick else (tick, frame)
            self.kept[number] = shown
            self.waiting.pop(0)
        self.previous = (tick, frame)

    def end(self) -> "dict[int, VideoFrame]":
        """What was kept; the last one seen stands for those that never came."""
        if self.waiting and self.previous:
            self.kept[self.previous[0]] = self.previous[1]
        return self.kept


def _decodable(
    container: "InputContainer", counted: bool, begin: int | None, wanted: set[int], only_wanted: bool
) -> "Iterator[tuple[int, VideoFrame]]":
    """Each decodable frame and its tick, from the packet with tick `begin` on, or from the `wanted` packets only."""
    import av

    stream = _video_stream(container)
    count = 0
    for packet in _packets(container, stream):
        if packet.size and not counted:
            if begin is not None and packet.pts != begin:
                continue
            begin = None
            if only_wanted and packet.pts not in wanted:
                continue
            if stream.codec_context.name in SKIPPING:  # leave out frames that neither we nor other frames need
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            frames: list[Any] = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            tick, count = (count if counted else frame.pts), count + 1
            if tick is not None:
                yield tick, frame


def _upright(frame: "VideoFrame", like: "VideoFrame") -> np.ndarray:
    """uint8 (h, w, 3) RGB, turned as the file says; a frame that changes size is scaled to that of `like`."""
    _check_size(frame)
    picture = frame.to_ndarray(format="rgb24", width=like.width, height=like.height)
    return np.rot90(picture, round(like.rotation / 90))
