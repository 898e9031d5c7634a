"""Write answers as a list for people, programs and video editors: CSV, JSON, EDL (CMX 3600), FCPXML, OpenTimelineIO."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

from suma.index.files import readable
from suma.index.search import Match

RATES = [Fraction(n * 1000, d) for n, d in ((24, 1001), (30, 1001), (60, 1001))]  # frames a second
RATES += [Fraction(n) for n in (24, 25, 30, 50, 60)]


class _Event(NamedTuple):
    """A match in a list for editors."""

    match: Match
    name: str
    url: str
    rate: Fraction  # of the film: frames per second, as editors know them
    width: int
    height: int
    sound: bool
    begin: int  # in the film; this and what follows in whole frames of the first match's film
    length: int
    at: int  # in the list


def write_list(file: str, matches: Sequence[Match]) -> None:
    """Write the matches, each from its `start` to its `end`. Raises as `writer_for` does."""
    content = writer_for(file)(matches)
    with open(file, "x", encoding="utf-8", errors="surrogateescape", newline="") as written:
        written.write(content)


def writer_for(file: str) -> Callable[[Sequence[Match]], str]:
    """Return what makes the content of a list in the format that the file's suffix names.

    Raises ValueError for another suffix, FileExistsError for a file that is there, RuntimeError without OpenTimelineIO.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"--list {file}: the name must end in one of {', '.join(WRITERS)}")
    if Path(file).exists():
        raise FileExistsError(f"--list {file}: it exists, and no file is overwritten: give another name")
    if suffix == ".otio":
        try:
            import opentimelineio  # noqa: F401
        except ImportError as error:
            raise RuntimeError(f"--list {file} needs OpenTimelineIO: pip install 'suma-video[otio]'") from error
    return WRITERS[suffix]


def _events(matches: Sequence[Match]) -> Iterator[_Event]:
    first, at = None, 0
    for match in matches:
        rate, width, height, heard = _look(match.path)
        first = first or rate
        begin = round(match.start * first)
        length = max(1, round(match.end * first) - begin)
        path = Path(match.path).absolute()
        yield _Event(match, readable(path.name), path.as_uri(), rate, width, height, heard, begin, length, at)
        at += length


def _look(path: str) -> tuple[Fraction, int, int, bool]:
    """Return a film's rate, width, height and whether it has sound; a guess where it cannot be opened now."""
    import av

    from suma.video.timeline import video_stream

    try:
        with av.open(path, metadata_errors="ignore") as film:
            video = video_stream(film)
            rate = min(RATES, key=lambda known: abs(known - (video.average_rate or 25)))
            return rate, video.width, video.height, len(film.streams.audio) > 0
    except (av.FFmpegError, ValueError):
        return Fraction(25), 1920, 1080, True


def _csv(matches: Sequence[Match]) -> str:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(Match.__dataclass_fields__)
    for match in matches:
        table.writerow((asdict(match) | {"concepts": "; ".join(name for name, _ in match.concepts)}).values())
    return out.getvalue()


def _edl(matches: Sequence[Match]) -> str:
    lines, base = ["TITLE: SUMA", "FCM: NON-DROP FRAME"], 0

    def timecode(frame: int) -> str:
        seconds, frames = divmod(frame, base)
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frames:02}"

    for n, e in enumerate(_events(matches), 1):
        base = base or round(e.rate)
        codes = " ".join(map(timecode, (e.begin, e.begin + e.length, e.at, e.at + e.length)))
        lines += [f"{n:03}  AX       {'AA/V' if e.sound else 'V':5} C        {codes}"]
        lines += [f"* FROM CLIP NAME: {e.name}", f"* COMMENT: score {e.match.score:.3f}"]
    return "\n".join(lines) + "\n"


def _fcpxml(matches: Sequence[Match]) -> str:
    events = list(_events(matches))
    base = events[0].rate if events else Fraction(25)
    resources, clips, ids = [], [], dict[str, int]()

    def time(frames: int, rate: Fraction = base) -> str:
        return f'"{frames * rate.denominator}/{rate.numerator}s"'

    for n, e in enumerate(events):
        name, has = quoteattr(e.name), 'hasVideo="1" hasAudio="1"' if e.sound else 'hasVideo="1"'
        if ids.setdefault(e.url, n) == n:
            source = f'src={quoteattr(e.url)} start="0s" duration={time(round(e.match.duration * base))}'
            resources += [
                f'<format id="f{n}" frameDuration={time(1, e.rate)} width="{e.width}" height="{e.height}"/>',
                f'<asset id="a{n}" name={name} {source} {has} format="f{n}"/>',
            ]
        times = f"offset={time(e.at)} start={time(e.begin)} duration={time(e.length)}"
        note = f"<note>score {e.match.score:.3f}</note>"
        clips += [f'<asset-clip ref="a{ids[e.url]}" name={name} {times}>{note}</asset-clip>']
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n<fcpxml version="1.8">\n<resources>'
    body = '</resources>\n<event name="SUMA"><project name="SUMA"><sequence format="f0"><spine>'
    return "\n".join([head, *resources, body, *clips, "</spine></sequence></project></event>\n</fcpxml>\n"])


def _otio(matches: Sequence[Match]) -> str:
    import opentimelineio as otio

    timeline = otio.schema.Timeline("SUMA")
    timeline.tracks.append(otio.schema.Track("V1", kind=otio.schema.TrackKind.Video))
    for e in _events(matches):
        film, clip = (
            otio.opentime.range_from_start_end_time(
                *(otio.opentime.from_seconds(round(seconds * e.rate) / e.rate, float(e.rate)) for seconds in span)
            )
            for span in ((0, e.match.duration), (e.match.start, e.match.end))
        )
        about = {"suma": {"score": e.match.score, "moment": e.match.moment, "concepts": dict(e.match.concepts)}}
        source = otio.schema.ExternalReference(e.url, film)
        timeline.tracks[0].append(otio.schema.Clip(e.name, source, clip, metadata=about))
    return timeline.to_json_string()


WRITERS: dict[str, Callable[[Sequence[Match]], str]] = {
    ".csv": _csv,
    ".json": lambda matches: json.dumps([asdict(match) for match in matches], indent=1),
    ".edl": _edl,
    ".fcpxml": _fcpxml,
    ".otio": _otio,
}
