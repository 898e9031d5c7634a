"""Lists of answers: what is written is read back, by other programs' readers where they are installed."""

import csv
import json
import sys
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import pytest
from clips import write_video

from suma.index.edit_list import write_list
from suma.index.search import Match


@pytest.fixture
def matches(tmp_path: Path) -> list[Match]:
    """Two moments of a film of 25 frames a second with sound, one of a silent film, one of a film that is gone."""
    first = write_video(tmp_path / 'a "film" & <more>.mp4', frames=50, fps=25, sound="aac")
    second = write_video(tmp_path / "größe\t2.mp4", frames=30, fps=10)
    return [
        Match(str(first), 0.5, 1.0, (("dog", 0.2), ("ball", 0.1)), 2.0, 0.2, 1.4),
        Match(str(first), 0.4, 0.1, (), 2.0, 0.0, 0.6),
        Match(str(second), 0.3, 2.0, (), 3.0, 1.0, 3.0),
        Match(str(tmp_path / "gone.mp4"), 0.2, 5400.0, (), 7200.0, 5398.0, 5403.0),
    ]


def test_csv_and_json_are_read_back(tmp_path: Path, matches: list[Match]):
    for suffix in ("csv", "json"):
        write_list(str(tmp_path / f"hits.{suffix}"), matches)
    with open(tmp_path / "hits.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], float(row["start"]), float(row["end"])) for row in rows] == [
        (m.path, m.start, m.end) for m in matches
    ]
    assert rows[0]["concepts"] == "dog; ball"
    told = json.loads((tmp_path / "hits.json").read_text())
    assert [(row["path"], row["score"]) for row in told] == [(m.path, m.score) for m in matches]


def frames(timecode: str, rate: int = 25) -> int:
    hours, minutes, seconds, count = map(int, timecode.split(":"))
    return ((hours * 60 + minutes) * 60 + seconds) * rate + count


def test_an_edl_has_an_event_for_each_answer(tmp_path: Path, matches: list[Match]):
    write_list(str(tmp_path / "hits.edl"), matches)
    lines = (tmp_path / "hits.edl").read_text().splitlines()
    assert lines[:2] == ["TITLE: SUMA", "FCM: NON-DROP FRAME"]
    events = [line.split() for line in lines if line[:3].isdigit()]
    assert [event[0] for event in events] == ["001", "002", "003", "004"]
    assert [event[2] for event in events] == ["AA/V", "AA/V", "V", "AA/V"]
    spans = [[frames(code) for code in event[4:]] for event in events]
    assert spans == [[5, 35, 0, 30], [0, 15, 30, 45], [25, 75, 45, 95], [134950, 135075, 95, 220]]
    names = [line.removeprefix("* FROM CLIP NAME: ") for line in lines if line.startswith("* FROM")]
    assert names[0] == names[1] == 'a "film" & <more>.mp4' and names[3] == "gone.mp4"


def test_an_edl_is_read_by_opentimelineio(tmp_path: Path, matches: list[Match]):
    otio = pytest.importorskip("opentimelineio", reason="OpenTimelineIO is not installed")
    if "cmx_3600" not in otio.adapters.available_adapter_names():
        pytest.skip("otio-cmx3600-adapter is not installed")
    write_list(str(tmp_path / "hits.edl"), matches)
    timeline = otio.adapters.read_from_file(str(tmp_path / "hits.edl"), rate=25)
    (track,) = [track for track in timeline.tracks if track.kind == "Video"]
    spans = [clip.trimmed_range() for clip in track.find_clips()]
    assert [s.start_time.to_seconds() for s in spans] == pytest.approx([m.start for m in matches])
    assert [s.duration.to_seconds() for s in spans] == pytest.approx([m.end - m.start for m in matches])


def seconds(time: str) -> float:
    assert time.endswith("s")
    return float(Fraction(time[:-1]))


def test_fcpxml_names_each_film_once_and_each_span(tmp_path: Path, matches: list[Match]):
    write_list(str(tmp_path / "hits.fcpxml"), matches)
    root = ElementTree.parse(tmp_path / "hits.fcpxml").getroot()
    assert (root.tag, root.get("version")) == ("fcpxml", "1.8")
    formats = {f.get("id"): f for f in root.findall("resources/format")}
    assets = {asset.get("id"): asset for asset in root.findall("resources/asset")}
    films = [unquote(urlparse(asset.get("src")).path) for asset in assets.values()]
    assert films == list(dict.fromkeys(m.path for m in matches))
    assert [asset.get("hasAudio") for asset in assets.values()] == ["1", None, "1"]
    assert {asset.get("format") for asset in assets.values()} == set(formats)
    assert seconds(formats["f0"].get("frameDuration")) == 1 / 25
    sequence = root.find("event/project/sequence")
    assert sequence.get("format") in formats
    clips = sequence.findall("spine/asset-clip")
    assert [unquote(urlparse(assets[c.get("ref")].get("src")).path) for c in clips] == [m.path for m in matches]
    assert [seconds(c.get("start")) for c in clips] == pytest.approx([m.start for m in matches])
    assert [seconds(c.get("duration")) for c in clips] == pytest.approx([m.end - m.start for m in matches])
    assert [seconds(c.get("offset")) for c in clips] == pytest.approx([0, 1.2, 1.8, 3.8])
    assert clips[0].find("note").text == "score 0.500"


def test_otio_is_read_back(tmp_path: Path, matches: list[Match]):
    otio = pytest.importorskip("opentimelineio", reason="OpenTimelineIO is not installed: pip install OpenTimelineIO")
    write_list(str(tmp_path / "hits.otio"), matches)
    timeline = otio.adapters.read_from_file(str(tmp_path / "hits.otio"))
    clips = list(timeline.find_clips())
    assert [unquote(urlparse(c.media_reference.target_url).path) for c in clips] == [m.path for m in matches]
    assert [c.source_range.start_time.to_seconds() for c in clips] == pytest.approx(
        [m.start for m in matches], abs=0.02
    )
    spans = [c.source_range.duration.to_seconds() for c in clips]
    assert spans == pytest.approx([m.end - m.start for m in matches], abs=0.04)
    assert clips[0].metadata["suma"]["score"] == 0.5


def test_rates_that_editors_do_not_know_become_those_they_know(tmp_path: Path):
    film = write_video(tmp_path / "film.mp4", frames=60, fps=30, ticks=[n + n // 50 for n in range(60)])
    write_list(str(tmp_path / "hits.fcpxml"), [Match(str(film), 0.5, 1.0, (), 2.0, 0.0, 1.0)])
    rate = ElementTree.parse(tmp_path / "hits.fcpxml").find("resources/format").get("frameDuration")
    assert rate in ("1/30s", "1001/30000s")


def test_what_cannot_be_written_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.csv"):
        write_list(str(tmp_path / "mine.csv"), [])
    assert (tmp_path / "mine.csv").read_text() == "mine"
    with pytest.raises(ValueError, match=r"--list hits.xls: .*\.csv, \.json, \.edl, \.fcpxml, \.otio"):
        write_list("hits.xls", [])
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    with pytest.raises(RuntimeError, match=r"pip install 'suma-video\[otio\]'"):
        write_list(str(tmp_path / "hits.otio"), [])
