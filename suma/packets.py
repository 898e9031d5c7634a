"""What PyAV finds in a video file: when each frame appears, without decoding, and then the chosen frames.

Frames are decoded group of pictures by group, where the file tells groups apart, leaving out those that neither we nor
other frames need (decord's bytes, at about half the work); from the beginning on where it does not, or is damaged.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from suma.upright import View, check_size, view_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

STILL = ("mjpeg", "png", "bmp", "gif", "webp")  # codecs of cover pictures
SKIPPING = ("h264", "hevc")  # codecs whose decoders leave out unneeded frames with the others' bytes the same


class Timeline(NamedTuple):
    """When each of a file's N frames appears, in the order in which they are shown."""

    ticks: np.ndarray  # (N,) int64, the file's own time of each frame, or its number where `counted`
    times: np.ndarray  # (N,) float64, seconds from the first
    duration: float  # seconds
    keys: np.ndarray  # numbers of the key frames
    counted: bool  # the file carries no usable times
    grouped: bool  # every key frame begins a closed group: decord numbers rightly, and one may begin to decode there
    view: View = View()  # how the frames are to be shown


def list_frames(path: str) -> Timeline:
    """Read the packets of a file, decoding none."""
    with _open(path) as container:
        stream = video_stream(container)
        check_size(stream.width, stream.height)
        view = view_of(container, stream)
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
        return Timeline(np.arange(len(shown)), times, len(shown) / rate, np.arange(0), True, False, view)
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
    return Timeline(ticks, times, float(times[-1]) + step, keys, False, grouped, view)


def decode_groups(path: str, line: Timeline, chosen: np.ndarray) -> "dict[int, VideoFrame]":
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
        stream = video_stream(container)
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


def video_stream(container: "InputContainer") -> "VideoStream":
    """Return the stream that is the film: no cover picture, whichever comes first or is marked as the default.

    It decodes in this thread. Raises ValueError where there is none.
    """
    from av.stream import Disposition

    best = container.streams.best("video")

    def likeness(stream: "VideoStream") -> tuple[bool, bool, bool]:
        cover = bool(stream.disposition & Disposition.attached_pic)
        # Matroska and MPEG-TS do not say how many frames there are.
        still = stream.frames == 1 or (not stream.frames and stream.codec_context.name in STILL)
        return not cover, not still, stream is best

    decodable = [stream for stream in container.streams.video if stream.codec_context]
    if not decodable:
        raise ValueError("there is no video in it")
    stream: Any = max(decodable, key=likeness)
    stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet]":
    """All packets, going on after damaged ones; the last is empty and makes the decoder give what it holds back."""
    import av

    for _ in range(100):  # a damaged file can report errors without end
        try:
            return (yield from container.demux(stream))
        except av.FFmpegError:
            continue


def decode_spans(
    path: str, line: Timeline, spans: "Sequence[tuple[list[int], int, int]]", begin: int | None, only_wanted: bool
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

    stream = video_stream(container)
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
