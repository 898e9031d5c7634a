"""How browsers can play a video: as it is, in another container, or only encoded again.

Part of the process that makes copies: it imports no torch and no gradio.
"""

import os
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from suma.video.cut import next_key
from suma.video.timeline import list_frames, video_stream
from suma.video.upright import HLG, PQ

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

# What every browser plays, by container. PyAV's canonical names.
PICTURES = {".mp4": {"h264", "vp9", "av1"}, ".webm": {"vp8", "vp9", "av1"}}
SOUNDS = {".mp4": {"aac", "mp3", "opus", "flac"}, ".webm": {"opus", "vorbis"}}
LATE = 0.5  # seconds; where an MP4 begins later, Chromium moves seeks


class Plan(NamedTuple):
    """How browsers get a video."""

    suffix: str  # of the file that they get: .mp4 or .webm
    as_it_is: bool  # browsers play the file itself
    remux: bool  # browsers play its packets in another container


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
        if list_frames(path).picture:
            return encoded
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            stream, form = video_stream(container), container.format.name
            codec, start = stream.codec_context.codec.canonical_name, container.start_time or 0
            sounds = sounds_of(path)
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
    return next_key(container, stream)[0]


def sounds_of(path: str) -> dict[int, str]:
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
