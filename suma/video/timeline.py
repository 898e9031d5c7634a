"""List with PyAV when each frame of a video appears, without decoding, and decode the chosen ones.

If the file tells groups of pictures apart, only the groups with chosen frames are decoded, without the frames that
neither we nor other frames need (the same bytes as decord's, at about half the work). If it does not, or is damaged, it
is decoded from the beginning.
"""

import sys
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from suma.video.upright import TURNS, View, check_size, frames_of, seconds_shown, view_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

STILL = ("mjpeg", "png", "bmp", "gif", "webp")  # codecs of cover pictures
JUMP = 10.0  # seconds; a recording's own times never go so far between two frames, where they may jump at all
BROADCAST = 0x200  # FFmpeg's AVFMT_TS_DISCONT: formats whose times may jump (MPEG-TS, MPEG-PS)
SKIPPING = ("h264", "hevc")  # codecs whose decoders leave out unneeded frames with the others' bytes the same


class Timeline(NamedTuple):
    """When each of a file's N frames appears on the player's clock, in the order of showing.

    The clock is a browser's. MP4 and Matroska files keep their own times, even if the first picture comes late; nothing
    is shown before 0. Other files count from their beginning.
    """

    ticks: np.ndarray  # (N,) int64, the file's own time of each frame, or its number where `counted`
    times: np.ndarray  # (N,) float64, rising, seconds on the player's clock
    duration: float  # seconds on that clock, when the last frame ends
    keys: np.ndarray  # numbers of the key frames
    counted: bool  # packets do not tell frames apart: the n-th decoded one is frame n
    grouped: bool  # every key frame begins a closed group: decoding may begin there, and decord counts right
    joined: bool  # several recordings in one file: its own times start again or jump
    view: View = View()  # how the frames are to be shown
    picture: bool = False  # read by Pillow


def list_frames(path: str) -> Timeline:
    """Return the timeline of a file, from its packets alone: nothing is decoded (but animated pictures)."""
    if (seconds := seconds_shown(path)) is not None:
        ticks, ends = np.arange(len(seconds)), np.cumsum(seconds)
        view = View(turn=TURNS[1])
        return Timeline(ticks, ends - seconds, float(ends[-1]), ticks, True, False, False, view, picture=True)
    with _opened(path) as (container, stream):
        check_size(stream.width, stream.height)
        view = view_of(container, stream)
        # Only the numbers, as a packet would keep its bytes in memory. Discarded ones are hidden by an edit list.
        packets = ((tick, p) for tick, p in _ticked(container, stream) if p.size and not p.is_discard)
        shown: list[Any] = [
            (tick, p.dts if p.pts is None else p.pts, p.duration or 0, p.is_keyframe) for tick, p in packets
        ]
        form, rate = container.format.name, float(stream.average_rate or stream.guessed_rate or 25)
        unit, start = float(stream.time_base or 0), (container.start_time or 0) / 1e6
    if not shown:
        raise ValueError("there is no readable frame in it")
    # An interlaced picture's second field has no time of its own. If most packets have none, frames are counted.
    timed = [packet for packet in shown if packet[0] is not None]
    if form == "avi" or 2 * len(timed) < len(shown):
        return _counted([stamp for _, stamp, _, _ in shown], unit, rate)._replace(view=view)
    order, stamps, durations, is_key = (np.array(column) for column in zip(*timed, strict=True))  # as in the file
    ticks, raw, joined = np.unique(order), form.startswith(("mov", "matroska")), bool((order != stamps).any())
    lead = 0.0 if joined else float(ticks[0] * unit) - (0.0 if raw else start)  # seconds before the first frame
    times = (ticks - ticks[0]) * unit + (lead if raw or lead > 1e-3 else 0.0)
    first = max(int(np.searchsorted(times, 0, side="right")) - 1, 0)  # on screen at 0; nothing before it is shown
    ticks, times = ticks[first:], np.maximum(times[first:], 0)
    step = float(durations[order.argmax()] * unit) or 1 / rate
    keys = np.flatnonzero(np.isin(ticks, order[is_key]))
    # decord silently returns wrong frames from MPEG-TS (and perhaps others), and near a key frame that stands in the
    # file before frames that are shown earlier (an open group of pictures).
    last_key = order[np.maximum.accumulate(np.where(is_key, np.arange(len(order)), 0))]
    grouped = raw and not joined and bool((order >= last_key).all())
    return Timeline(ticks, times, float(times[-1]) + step, keys, False, grouped, joined, view)


def _counted(stamps: "Sequence[int | None]", unit: float, rate: float) -> Timeline:
    """Return the timeline of a file whose packets do not say which frame they hold: frame n has the n-th stamp.

    AVI stores when packets are decoded, not shown, and skips dropped frames; raw streams store no times.
    """
    numbers = np.arange(len(stamps))
    known = np.unique([stamp for stamp in stamps if stamp is not None])
    times, step = numbers / rate, 1 / rate
    if len(known) == len(stamps) > 1:
        times, step = (known - known[0]) * unit, float(np.median(np.diff(known))) * unit
        times[-1] = max(times[-1], times[-2] + step)  # FFmpeg guesses the last one
    return Timeline(numbers, times, float(times[-1]) + step, numbers[:0], True, False, False)


def every_frame(path: str, line: Timeline) -> "Iterator[tuple[float, VideoFrame]]":
    """Yield each decodable frame of a file, in the order of time, after the second from which a player shows it.

    The first one is on screen from 0, even if its own time is later.
    """
    last = -1
    for tick, frame in _shown(path, line, None, set(line.ticks.tolist()), threads=True):
        number = int(np.searchsorted(line.ticks, tick))
        if last < number < len(line.ticks) and line.ticks[number] == tick:
            yield (0.0 if last < 0 else float(line.times[number])), frame
            last = number


def frames_from(path: str, key: int | None, first: int) -> "Iterator[tuple[int, VideoFrame]]":
    """Yield tick and frame of all that can be decoded from the key frame with tick `key` on; None: from the beginning.

    Frames before the tick `first` may be missing where no other frame needs them.
    """
    with _opened(path, threads=True) as (container, stream):
        if key is not None:  # a second early: some formats are sought inexactly
            container.seek(key - round(1 / (stream.time_base or 1)), stream=stream)
        yield from _decodable(container, stream, False, key, range(first, sys.maxsize), False)


def decode_groups(path: str, line: Timeline, chosen: np.ndarray) -> "dict[int, VideoFrame]":
    """Return the chosen frames by their ticks, in order, or {} if one of them is not where the timeline says.

    A group of pictures is decoded up to its last chosen packet: frames refer only to what is before them in the file.
    """
    import av

    key_of = np.searchsorted(line.keys, chosen, side="right") - 1
    if len(line.keys) == 0 or key_of[0] < 0:
        return {}
    kept: dict[int, VideoFrame] = {}
    with _opened(path) as (container, stream):
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
    """Return the frames with the `wanted` ticks of the group that begins at the key frame with tick `begin`."""
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


@contextmanager
def _opened(path: str, threads: bool = False) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """Open a file. Its film decodes in this thread, or in several."""
    import av

    with av.open(path, "r", metadata_errors="ignore") as container:
        stream = video_stream(container)
        if threads:
            stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", 0
        yield container, stream


def video_stream(container: "InputContainer") -> "VideoStream":
    """Return the stream of the film, not of a cover picture, even if that comes first or is marked as the default.

    It decodes in this thread. Raises ValueError if there is no video.
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
    """Yield all packets, also after damaged ones. The last is empty: it makes the decoder give what it holds back."""
    import av

    for _ in range(100):  # a damaged file can report errors without end
        try:
            return (yield from container.demux(stream))
        except av.FFmpegError:
            continue


def _ticked(container: "InputContainer", stream: "VideoStream") -> "Iterator[tuple[int | None, Packet]]":
    """Yield all packets, each after the time at which its frame appears (in the stream's units; None: not stored).

    If times start again, or jump in a broadcasting format, another recording was appended: it goes on where the one
    before ended. Only key frames must be shown after all frames that precede them in the file.
    """
    unit = float(stream.time_base or 1)
    far = JUMP / unit if container.format.flags & BROADCAST else float("inf")
    shift, latest, decoded = 0, None, None
    step = round(1 / float(stream.average_rate or stream.guessed_rate or 25) / unit)
    for packet in _packets(container, stream):
        tick = None if packet.pts is None else packet.pts + shift
        if tick is not None and not packet.is_discard:
            back = decoded is not None and packet.dts is not None and packet.dts < decoded - 1 / unit
            if latest is not None and (back or tick > latest + far or (packet.is_keyframe and tick < latest)):
                shift += latest + step - tick
                tick = latest + step
            latest = tick if latest is None else max(latest, tick)
            step, decoded = packet.duration or step, packet.dts
        yield tick, packet


def decode_spans(
    path: str, line: Timeline, spans: "Sequence[tuple[list[int], int, int]]", begin: int | None, only_wanted: bool
) -> "Iterator[dict[int, VideoFrame]]":
    """Yield for each span (wanted ticks, lowest, highest) the frames on screen at the wanted ticks, by own tick.

    Spans come in the order of time, and all are decoded in one pass over the file. A frame that cannot be decoded is
    replaced by the one before it in the span, or else the one after it; no frame comes twice.
    """
    wanted = {tick for ticks, _, _ in spans for tick in ticks}
    open_spans = deque(_Open(list(ticks), low, high) for ticks, low, high in spans)
    for tick, frame in _shown(path, line, begin, wanted, only_wanted):
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
    kept: "dict[int, tuple[int, VideoFrame]]" = field(default_factory=dict)  # wanted tick -> a frame's tick, the frame
    previous: "tuple[int, VideoFrame] | None" = None

    def see(self, tick: int, frame: "VideoFrame") -> None:
        """Take the next decoded frame. It may come out of order, as edit lists can cause."""
        if not self.low <= tick <= self.high:
            return
        while self.waiting and self.waiting[0] <= tick:
            wanted = self.waiting.pop(0)
            self.kept[wanted] = self.previous if self.previous and wanted < tick else (tick, frame)
        if tick in self.kept:
            self.kept[tick] = (tick, frame)
        if self.previous is None or tick > self.previous[0]:
            self.previous = (tick, frame)

    def end(self) -> "dict[int, VideoFrame]":
        """Return the kept frames in the order of time; the last one seen stands for the wanted ones that never came."""
        if self.waiting and self.previous:
            self.kept[self.waiting[0]] = self.previous
        return dict(sorted(dict(self.kept.values()).items()))


def _shown(
    path: str, line: Timeline, begin: int | None, wanted: set[int], only_wanted: bool = False, threads: bool = False
) -> "Iterator[tuple[int, VideoFrame]]":
    """Yield tick and frame of all that can be decoded of a file; see `_decodable`."""
    import av

    if line.picture:
        yield from ((n, av.VideoFrame.from_ndarray(frame, "rgb24")) for n, frame in enumerate(frames_of(path)))
        return
    with _opened(path, threads) as (container, stream):
        yield from _decodable(container, stream, line.counted, begin, wanted, only_wanted)


def _decodable(
    container: "InputContainer",
    stream: "VideoStream",
    counted: bool,
    begin: int | None,
    wanted: Container[int],
    only_wanted: bool,
) -> "Iterator[tuple[int, VideoFrame]]":
    """Yield tick and frame of all that can be decoded, from packet `begin` on or of the `wanted` packets only."""
    import av

    count, current = 0, None
    for tick, packet in _ticked(container, stream):
        if packet.size and not counted:
            current = current if tick is None else tick  # a second field belongs to the picture before
            if begin is not None and current != begin:
                continue
            begin = None
            if only_wanted and current not in wanted:
                continue
            if stream.codec_context.name in SKIPPING:  # skip frames that nobody needs
                stream.codec_context.skip_frame = "DEFAULT" if current in wanted else "NONREF"
            packet.pts = tick  # the frame will carry it
        try:
            frames: list[Any] = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            tick, count = (count if counted else frame.pts), count + 1
            if tick is not None:
                yield tick, frame
