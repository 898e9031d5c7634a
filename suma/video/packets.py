"""Packets for another container: those of a file as they are, or of frames that are encoded again.

Each function adds its stream to the open container when its first packet is asked for.
"""

import heapq
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from suma.video.upright import HLG, PQ, TURNS, View, shown_size, upright, view_from

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

ENCODERS = {  # of pictures, by container
    ".mp4": ("libx264", {"preset": "veryfast"}),
    ".webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "4M"}),
}
BT601, UNSAID, LIMITED = 6, 2, 1  # two matrices as ITU-T H.273 numbers them; a colour range as FFmpeg numbers it
TICK = Fraction(1, 1000)  # seconds, the clock of encoded pictures


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
