"""Choose frames of a video, or of its parts, and decode them.

PyAV lists the frames and decodes the chosen ones (suma.video.timeline). If PyAV fails, decord tries.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from suma.video import timeline
from suma.video.timeline import Timeline
from suma.video.upright import shown_size, upright, view_from

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

TOLERANCE = 1e-3  # seconds; times nearer than this are equal
SEGMENT = 60.0  # seconds: into such parts an index cuts longer videos, unless told otherwise
OVERLAP = 1 / 6  # of a part, that the next one shows again: what happens at a cut is whole in one of them
NEAR = 1 / 3  # of the spacing of frames: so near to its time a key frame is as good for an index


class Frames(NamedTuple):
    """Frames of one video as players show them: upright, square pixels, SDR (upright.py). h and w are in pixels."""

    frames: np.ndarray  # (F, h, w, 3) uint8, RGB
    times: np.ndarray  # (F,) float64, rising: when each frame appears, in seconds on the player's clock (Timeline)
    duration: float  # seconds on that clock; where the file's last frame ends


class _Choice(NamedTuple):
    """Numbers of frames of a file."""

    chosen: np.ndarray
    first: int  # on screen in the span
    last: int
    exact: bool = True


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    start: float | None = None,
    end: float | None = None,
    keyframes: float = 0.0,
) -> Frames:
    """Return F = num_frames evenly spaced frames of a video (a photograph is a video of one frame that lasts 0 s).

    The span [start, end] in seconds (default: the whole video), cut at the file's end, is divided into F equal
    segments. The frame on screen at the middle of each is returned, each frame once: fewer than F if the video has
    fewer, or fewer can be read. Where each middle has a key frame of the span within `keyframes` segments, these are
    returned instead: they are decoded alone, which is many times faster on long or HD video.

    Raises FileNotFoundError, or ValueError for a bad span or a file that neither decoder can read.
    """
    if not 0 <= (start or 0) < (float("inf") if end is None else end):
        raise ValueError(f"the span must satisfy 0 <= start < end, in seconds, not start={start}, end={end}")
    file, line = _listed(path, num_frames)
    if (start or 0.0) >= max(line.duration, TOLERANCE):
        raise ValueError(f"start={start} s is beyond the end of {path}, which lasts {line.duration:.3f} s")
    begin, end = start or 0.0, line.duration if end is None else min(end, line.duration)
    return _span(file, line, _choose(line, num_frames, begin, end, keyframes))


def parts_of(duration: float, segment: float) -> list[tuple[float, float]]:
    """Return start and end (seconds) of the parts in which a video is indexed.

    It is one part if it lasts no longer than `segment`, or `segment` is 0. Else the parts are `segment` seconds long,
    and each shares OVERLAP of that with the next.

    >>> parts_of(150.0, 60.0)
    [(0.0, 60.0), (50.0, 110.0), (100.0, 150.0)]
    """
    if not segment or duration <= segment + TOLERANCE:
        return [(0.0, duration)]
    step = segment * (1 - OVERLAP)
    count = math.ceil((duration - TOLERANCE - segment) / step) + 1
    return [(n * step, min(n * step + segment, duration)) for n in range(count)]


def read_parts(
    path: str | os.PathLike[str], num_frames: int, segment: float = 0.0, keyframes: float = 0.0
) -> Iterator[tuple[float, float, Frames, bool]]:
    """Yield start, end and frames of each part of a video (`parts_of`), in the order of time, and whether these are the
    exact ones, not key frames (`keyframes`: see `read_frames`).

    The file's frames are listed only once. A part without a readable frame is left out. Raises what `read_frames`
    raises, also if no part can be read.
    """
    file, line = _listed(path, num_frames)
    late = float(line.times[0])
    parts = [(late + start, late + end) for start, end in parts_of(line.duration - late, segment)]
    chosen = [_choose(line, num_frames, start, end, keyframes) for start, end in parts]
    if len(parts) == 1:
        yield 0.0, line.duration, _span(file, line, chosen[0]), chosen[0].exact
        return
    found, reason = 0, ""
    if line.grouped:
        for (start, end), numbers in zip(parts, chosen, strict=True):
            try:
                yield start, end, _span(file, line, numbers, thorough=False), numbers.exact
                found += 1
            except ValueError as error:
                reason = str(error)
    else:  # one may not begin in the middle: all parts in one pass
        spans = [(line.ticks[c].tolist(), int(line.ticks[a]), int(line.ticks[b])) for c, a, b, _ in chosen]
        alone = all(_are_keys(line, numbers) for numbers, *_ in chosen)
        decoded = timeline.decode_spans(file, line, spans, None, alone)
        for (start, end), numbers, kept in zip(parts, chosen, decoded, strict=True):
            if kept:
                yield start, end, Frames(*_pictures(line, kept), line.duration), numbers.exact
                found += 1
    if not found:
        raise ValueError(reason or f"cannot decode {path}: none of its {len(parts)} parts has a readable frame")


def _listed(path: str | os.PathLike[str], num_frames: int) -> tuple[str, Timeline]:
    """Return the file's absolute path and its timeline. Raises as `read_frames` says."""
    path = Path(path)
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
    if not path.exists():
        raise FileNotFoundError(f"no such video: {path}")
    if not path.is_file():
        raise ValueError(
            f"not a file: {path}" + "; suma.index.files.find_videos lists the videos in a folder" * path.is_dir()
        )
    if path.stat().st_size == 0:
        raise ValueError(f"the file is empty (0 bytes): {path}")
    file = os.path.abspath(path)  # a leading slash: ffmpeg takes no part of it for a protocol
    try:
        return file, timeline.list_frames(file)
    except Exception as error:  # PyAV raises whatever a damaged file leads to
        raise ValueError(f"cannot read {path} as a video: {_first_line(error)}") from None


def _span(file: str, line: Timeline, numbers: _Choice, thorough: bool = True) -> Frames:
    """Return the frames that `_choose` named. `thorough`: if some are damaged, decode from the file's beginning."""
    chosen = numbers.chosen
    try:
        pictures, times = _pyav_frames(file, line, numbers, thorough)
    except Exception as error:
        reason = "not used for this kind of file"
        if line.grouped:
            try:
                return Frames(_decord_frames(file, line, chosen), line.times[chosen], line.duration)
            except Exception as other:  # decord's own error is a plain Exception
                reason = _first_line(other)
        raise ValueError(f"cannot decode {file} (PyAV: {_first_line(error)}; decord: {reason})") from None
    return Frames(pictures, times, line.duration)


def _first_line(error: Exception) -> str:
    """Return the first line of an error, without decord's "[time] file:line:"."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", (str(error).strip() or repr(error)).splitlines()[0])


def _are_keys(line: Timeline, chosen: np.ndarray) -> bool:
    """Return True if all of these are key frames, which need no other frame."""
    return bool(np.isin(chosen, line.keys).all())


def _choose(line: Timeline, num_frames: int, start: float, end: float, keyframes: float) -> _Choice:
    """Return the frames for the span [start, end]; see `read_frames`."""
    start = max(start, float(line.times[0]))  # a late first picture is on screen before its time, too
    first, last = (np.searchsorted(line.times, (start + TOLERANCE, end - TOLERANCE)) - 1).tolist()
    last = max(first, last)
    if last - first < num_frames:
        return _Choice(np.arange(first, last + 1), first, last)
    middles = start + (end - start) * (np.arange(num_frames) + 0.5) / num_frames
    keys = line.keys[(line.keys >= first) & (line.keys <= last)]
    if keyframes and len(keys):
        distances = np.abs(line.times[keys] - middles[:, None])
        if distances.min(1).max() <= keyframes * (end - start) / num_frames:
            return _Choice(np.unique(keys[distances.argmin(1)]), first, last, exact=False)
    return _Choice(np.unique(np.searchsorted(line.times, middles + TOLERANCE) - 1), first, last)


def _decord_frames(path: str, line: Timeline, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen frames as decord reads them, uint8 (F, h, w, 3)."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # The tolerance makes it raise rather than repeat a frame in the place of each it cannot decode.
    reader = decord.VideoReader(path, ctx=decord.cpu(), num_threads=1, fault_tol=1e-9)
    if len(reader) != len(line.times):  # it counts frames that an edit list hides
        raise ValueError(f"{len(reader)} frames counted where there are {len(line.times)}")
    return reader.get_batch(chosen).asnumpy()


def _pyav_frames(path: str, line: Timeline, numbers: _Choice, thorough: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen frames, or the nearest decodable ones in [first, last]: uint8 (F, h, w, 3) and their times."""
    chosen, first, last, _ = numbers
    span = (line.ticks[chosen].tolist(), int(line.ticks[first]), int(line.ticks[last]))
    kept = timeline.decode_groups(path, line, chosen) if line.grouped else {}
    if len(kept) < len(chosen):
        only_wanted = _are_keys(line, chosen)
        begin = next((line.ticks[key] for key in line.keys[::-1] if key <= chosen[0]), None)
        (kept,) = timeline.decode_spans(path, line, [span], begin, only_wanted)
    if len(kept) < len(chosen) and thorough:  # damage, or a false key frame: decode from the beginning
        (kept,) = timeline.decode_spans(path, line, [span], None, False)
    if not kept:
        raise ValueError("no frame of the span is decodable")
    return _pictures(line, kept)


def _pictures(line: Timeline, kept: "dict[int, VideoFrame]") -> tuple[np.ndarray, np.ndarray]:
    """Return decoded frames as uint8 (F, h, w, 3), all of the first one's size, and their rising times."""
    times = line.times[np.searchsorted(line.ticks, list(kept))]
    if (np.diff(times) <= 0).any():
        raise ValueError(f"its frames come out of order, at {times.tolist()} s")
    first = next(iter(kept.values()))
    view, size = view_from(first, line.view), shown_size(first, line.view)
    return np.stack([upright(frame, view, size) for frame in kept.values()]), times
