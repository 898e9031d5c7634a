"""When frames appear: on the clock of the player, whatever the container, its packets or appended recordings say."""

import base64
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import av
import clips
import numpy as np
import pytest

from suma.video import timeline
from suma.video.frames import read_frames, read_parts

B_FRAMES = {"bf": "2", "x264-params": "b-adapt=0:scenecut=0"}
CODECS = {".flv": "libx264"}
FINE = {"qmax": "3"}  # so that MPEG-4 keeps gray levels


def shift(source: Path, target: Path, seconds: float, sound: bool = False, **options: str) -> Path:
    """Copy a video's packets, so many seconds later; `sound`: with half a second of silence that begins at 0."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        if sound:
            track = written.add_stream("libopus" if target.suffix == ".webm" else "aac", rate=48000, layout="mono")
            for start in range(0, 24000, 960):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 48000, start
                written.mux(track.encode(frame))
            written.mux(track.encode(None))
        for packet in read.demux(video=0):
            if packet.size:
                late = round(seconds / packet.time_base)
                packet.pts += late
                packet.dts = None if packet.dts is None else packet.dts + late
                packet.stream = stream
                written.mux(packet)
    return target


def timed(path: Path, count: int = 200) -> dict[float, int]:
    """Time -> number of each frame that is read."""
    got = read_frames(path, count)
    assert (np.diff(got.times) > 0).all()
    return {round(float(time), 3): clips.number(picture) for time, picture in zip(got.times, got.frames, strict=True)}


def every(numbers: Sequence[int], step: float = 0.1, first: float = 0.0) -> dict[float, int]:
    """Time -> number of frames that follow one another at a constant rate."""
    return {round(first + n * step, 3): number for n, number in enumerate(numbers)}


def all_of(path: Path) -> dict[float, int]:
    """Time -> number of each frame as a copy of the video shows them."""
    frames = timeline.every_frame(str(path), timeline.list_frames(str(path)))
    return {round(time, 3): clips.number(frame.to_ndarray(format="rgb24")) for time, frame in frames}


# One clock


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_a_picture_that_comes_late_is_late(tmp_path: Path, suffix: str, sound: bool):
    """As in a cut without encoding, or where the sound was there first: players do not begin at the first picture."""
    source = clips.write_video(tmp_path / f"a{suffix}", codec="libvpx-vp9" if suffix == ".webm" else "libx264")
    path = shift(source, tmp_path / f"late{suffix}", 3.0, sound)
    assert timed(path) == every(range(20), first=3.0)
    got = read_frames(path, 4)  # of the 2 s that have a picture
    assert clips.numbers(got.frames) == [2, 7, 12, 17] and got.duration == pytest.approx(5.0, abs=1e-3)
    np.testing.assert_allclose(got.times, [3.2, 3.7, 4.2, 4.7], atol=1e-3)
    assert clips.numbers(read_frames(path, 9, 3.5, 3.8).frames) == [5, 6, 7]
    assert clips.numbers(read_frames(path, 2, 1.0, 2.0).frames) == [0]  # what a player shows there
    parts = [(start, end, clips.numbers(frames.frames)) for start, end, frames, _ in read_parts(path, 5, 1.2)]
    assert parts == [(3.0, pytest.approx(4.2), [1, 3, 6, 8, 10]), (4.0, pytest.approx(5.0), [11, 13, 15, 17, 19])]


def test_a_fragmented_mp4_begins_where_its_first_b_frame_lets_it(tmp_path: Path):
    path = clips.write_video(
        tmp_path / "a.mp4", options=B_FRAMES, container_options={"movflags": "frag_keyframe+empty_moov"}
    )
    assert timed(path) == every(range(20), first=0.2)


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".flv", "libx264"), (".mpg", "mpeg2video")])
def test_other_containers_count_from_their_beginning(tmp_path: Path, suffix: str, codec: str):
    """Their times begin anywhere, at 1.4 s or after 24 minutes; the copy that a browser gets begins at 0."""
    for first in (0, 36000):
        path = tmp_path / f"{first}{suffix}"
        ticks = range(first, first + 20)
        clips.write_video(path, size=(176, 144), fps=25, codec=codec, options={"bf": "2", **FINE}, ticks=ticks)
        assert timed(path) == every(range(20), 0.04)
        assert read_frames(path, 1).duration == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize(("seconds", "first"), [(-1.3, 13), (-0.35, 3)])
def test_what_is_before_0_is_not_shown(tmp_path: Path, seconds: float, first: int):
    source = clips.write_video(tmp_path / "a.mp4", options={"bf": "0"})
    path = shift(
        source, tmp_path / "cut.mp4", seconds, avoid_negative_ts="disabled", movflags="frag_keyframe+delay_moov"
    )
    got = timed(path)
    assert list(got.values()) == list(range(first, 20)) and next(iter(got)) == 0.0
    assert max(got) == pytest.approx(1.9 + seconds, abs=1e-3)


CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
PLAY = """async ([data, times]) => {
    const video = document.createElement('video'), canvas = document.createElement('canvas').getContext('2d');
    const when = (name) => new Promise((done, failed) => {
        video.addEventListener(name, done, {once: true});
        video.addEventListener('error', () => failed(video.error.message), {once: true});
    });
    const load = when('loadeddata'), bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes]));
    await load;
    const shown = [];
    for (const time of times) {
        const there = when('seeked'), drawn = new Promise((done) => video.requestVideoFrameCallback(done));
        video.currentTime = time;
        await there;
        await Promise.race([drawn, new Promise((done) => setTimeout(done, 300))]);  // none where the picture stays
        canvas.drawImage(video, 0, 0, 1, 1);
        shown.push(canvas.getImageData(0, 0, 1, 1).data[0]);
    }
    return shown;
}"""


@pytest.mark.browser
def test_a_browser_shows_each_frame_at_its_time(tmp_path: Path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"{CHROMIUM} is not installed")
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    h264 = clips.write_video(tmp_path / "a.mp4", options=B_FRAMES)
    vp9 = clips.write_video(tmp_path / "a.webm")
    before = {"avoid_negative_ts": "disabled", "movflags": "frag_keyframe+delay_moov"}
    paths = [
        h264,
        clips.write_video(tmp_path / "fragments.mp4", gop=20, options=B_FRAMES, container_options=fragments),
        shift(h264, tmp_path / "sound first.mp4", 3.0, sound=True),
        shift(vp9, tmp_path / "late.webm", 3.0),
        shift(vp9, tmp_path / "sound first.webm", 3.0, sound=True),
        shift(clips.write_video(tmp_path / "b.mp4", options={"bf": "0"}), tmp_path / "before 0.mp4", -0.7, **before),
    ]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        for path in paths:
            ours = timed(path, 7)
            into = [time + 0.05 for time in ours]  # a frame lasts 0.1 s
            seen = page.evaluate(PLAY, [base64.b64encode(path.read_bytes()).decode(), into])
            assert [round((gray - 12) / 8) for gray in seen] == list(ours.values()), path.name
        browser.close()


# Which packet times are trusted


@pytest.mark.parametrize(
    ("codec", "options"),
    [("mpeg4", FINE), ("mpeg4", {"bf": "2", **FINE}), ("libx264", {"bf": "0"}), ("libx264", B_FRAMES)],
)
def test_avi_takes_as_long_as_its_packets_say(tmp_path: Path, codec: str, options: dict[str, str]):
    """Twice the frame rate, every second frame empty: how H.264 is often stored, with times that FFmpeg guesses."""
    path = clips.write_video(tmp_path / "a.avi", codec=codec, options=options, ticks=range(0, 40, 2))
    assert timed(path) == every(range(20), 0.2)
    assert read_frames(path, 1).duration == pytest.approx(4.0 if codec == "libx264" else 3.9, abs=0.11)
    assert timed(clips.write_video(tmp_path / "b.avi", codec=codec, options=options)) == every(range(20))


def test_frames_that_an_avi_dropped_stay_on_screen(tmp_path: Path):
    ticks = [*range(10), 14, 19, 24, 29]
    path = clips.write_video(tmp_path / "a.avi", frames=14, ticks=ticks, options=FINE)
    assert timed(path) == {tick / 10: n for n, tick in enumerate(ticks)}
    assert read_frames(path, 1).duration == pytest.approx(3.0)


def test_raw_streams_are_counted(tmp_path: Path):
    assert timed(clips.write_video(tmp_path / "a.h264", fps=25, codec="libx264")) == every(range(20), 0.04)


def with_edits(path: Path, edits: Sequence[tuple[int, int]]) -> None:
    """Put another edit list into an mp4 file: (milliseconds, first frame) of what is shown, at 10 frames per second."""
    data = bytearray(path.read_bytes())
    at = data.find(b"elst") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    (_, media) = struct.unpack(">Ii", data[at + 16 : at + 24])
    entries = b"".join(struct.pack(">IiHH", ms, media + 1024 * frame, 1, 0) for ms, frame in edits)
    box = struct.pack(">I", 16 + len(entries)) + b"elst" + struct.pack(">II", 0, len(edits)) + entries
    data[at : at + length] = box
    for name in (b"edts", b"trak", b"moov"):
        at = data.find(name) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + len(box) - length)
    path.write_bytes(data)


def test_times_rise_where_an_edit_list_hides_a_key_frame_and_pictures_come_out_of_order(tmp_path: Path):
    if not clips.can_encode("libx265"):
        pytest.skip("this PyAV has no libx265")
    path = clips.write_video(tmp_path / "a.mp4", 28, codec="libx265", gop=6, options={"x265-params": "log-level=none"})
    with_edits(path, [(200, 9), (900, 10)])
    got = timed(path)
    assert got.pop(0.0) == 9 and got.pop(0.1) == 10
    assert len(got) > 3 and {round(n / 10 - time, 3) for time, n in got.items()} == {
        0.6
    }  # FFmpeg shifts the second edit


def test_a_decoder_that_gives_frames_out_of_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = clips.write_video(tmp_path / "a.ts")
    original = timeline._decodable

    def swapped(*args: object, **more: object):
        frames = list(original(*args, **more))
        return iter([*frames[:4], frames[5], frames[4], *frames[7:9], frames[6], *frames[9:]])

    monkeypatch.setattr(timeline, "_decodable", swapped)
    assert timed(path) == every(range(20))


# Recordings that were appended to one another

JOINED = [(".ts", "libx264"), (".mts", "libx264"), (".ts", "mpeg2video"), (".mpg", "mpeg2video")]
JOINED += [(".webm", "libvpx-vp9"), (".mkv", "libx264")]


@pytest.mark.parametrize("begins", [(0, 0), (36000, 0), (0, 36000), (36000, 36000)], ids=str)
@pytest.mark.parametrize(("suffix", "codec"), JOINED)
def test_appended_recordings_are_one_film(tmp_path: Path, suffix: str, codec: str, begins: tuple[int, int]):
    if suffix in (".webm", ".mkv") and begins == (0, 36000):
        pytest.skip("a pause in a recording of the screen looks like that, and players show it")
    path, rate = tmp_path / f"film{suffix}", 25 if codec == "mpeg2video" else 10
    options = {".mts": {"mpegts_m2ts_mode": "1"}}.get(suffix, {})
    with path.open("wb") as film:
        for half, begin in enumerate(begins):
            part = clips.write_video(
                tmp_path / f"{half}{suffix}",
                frames=14,
                size=(176, 144),
                fps=rate,
                codec=codec,
                ticks=range(begin, begin + 14),
                picture=lambda n, w, h, half=half: clips.gray_picture(14 * half + n, w, h),
                options={"bf": "2", **FINE} if codec in ("libx264", "mpeg2video") else {},
                container_options=options,
            )
            film.write(part.read_bytes())
    assert timed(path) == every(range(28), 1 / rate)
    got = read_frames(path, 4)
    assert got.duration == pytest.approx(28 / rate, abs=2e-3) and clips.numbers(got.frames) == [3, 10, 17, 24]
    line = timeline.list_frames(str(path))
    assert line.joined and [
        clips.number(f.to_ndarray(format="rgb24")) for _, f in timeline.every_frame(str(path), line)
    ] == [*range(28)]
    parts = [clips.numbers(frames.frames) for _, _, frames, _ in read_parts(path, 2, 14.5 / rate)]
    assert len(parts) == 3 and parts[0] == [3, 10] and parts[-1][-1] > 20


def test_a_long_pause_in_one_recording_is_not_cut_out(tmp_path: Path):
    for suffix in (".mp4", ".webm", ".mkv", ".flv"):
        path = clips.write_video(tmp_path / f"a{suffix}", 6, codec=CODECS.get(suffix), ticks=[0, 1, 2, 303, 304, 305])
        assert list(timed(path)) == [0.0, 0.1, 0.2, 30.3, 30.4, 30.5]


# Copies for the browser


@pytest.mark.parametrize(("name", "options"), [("a.avi", {"bf": "2", **FINE}), ("a.ts", {"bf": "2"}), ("a.mp4", {})])
def test_every_frame_comes_in_the_order_of_time(tmp_path: Path, name: str, options: dict[str, str]):
    path = str(clips.write_video(tmp_path / name, options=options))
    got = [
        (t, clips.number(f.to_ndarray(format="rgb24")))
        for t, f in timeline.every_frame(path, timeline.list_frames(path))
    ]
    assert got == [(pytest.approx(n / 10), n) for n in range(20)]


def test_the_first_picture_of_a_copy_is_there_from_the_beginning(tmp_path: Path):
    path = shift(clips.write_video(tmp_path / "a.mp4"), tmp_path / "late.mp4", 3.0)
    assert all_of(path) == {0.0: 0, **every(range(1, 20), first=3.1)}
