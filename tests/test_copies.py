"""How videos are played and served: as they are, in another container, or as a copy that nobody else waits for."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from clips import corner_picture, gray_picture, noise_picture, numbers, write_video
from gradio.context import LocalContext
from test_app import MODE, best_of, called, clicked, shown_copies
from test_clock import CHROMIUM, FLAGS, PLAY, shift, with_edits

from suma import SUMA, VideoIndex, read_frames
from suma.app import copies, media, startup
from suma.app import page as app
from suma.app.api import Options
from suma.app.browser_formats import plan_for
from suma.app.copies import Copies, encode, make, remux
from suma.app.tabs import launch_options
from suma.app.uploads import playable_upload
from suma.video.timeline import list_frames

RED_BLUE = [(230, 20, 20), (20, 20, 230)]  # of clips.corner_picture


def noise(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, picture=lambda i, w, h: noise_picture(1000 * seed + i, w, h), **options)


def wait_for(true: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders and copies of this test alone."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(media, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(media, "COPIES", Copies(1))
    monkeypatch.setattr(media, "_served", {})
    return tmp_path / "cache"


def gallery_of(model: SUMA, folder: Path) -> app.Handlers:
    index = VideoIndex(model)
    index.add(folder)
    return app.Handlers(index)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[str]"]]:
    """Copies that are never done: the processes that were started."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, partial: Path) -> "subprocess.Popen[str]":
        code = "import sys, time\nopen(sys.argv[1], 'w').close()\nwhile True: print(0.25, flush=True); time.sleep(0.05)"
        started.append(subprocess.Popen([sys.executable, "-c", code, str(partial)], stdout=subprocess.PIPE, text=True))
        return started[-1]

    monkeypatch.setattr(copies, "_start", start)
    yield started
    for child in started:
        child.kill()


# ---- what browsers play ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "name", "codec", "expected"),
    [
        (".mp4", "a.mp4", "libx264", (".mp4", True, False)),
        (".mp4", "a.avi", "libx264", (".mp4", True, False)),  # its name is wrong
        (".webm", "a.webm", "libvpx-vp9", (".webm", True, False)),
        (".webm", "a.mp4", "libvpx-vp9", (".webm", True, False)),
        (".ts", "a.mp4", "libx264", (".mp4", False, True)),
        (".mkv", "a.mkv", "libx264", (".mp4", False, True)),
        (".mov", "a.mp4", "libx264", (".mp4", False, True)),
        (".mkv", "a.webm", "libvpx", (".webm", False, True)),
        (".mkv", "a.mkv", "mpeg4", (".mp4", False, False)),
        (".mp4", "a.mp4", "mpeg4", (".mp4", False, False)),
        (".avi", "a.avi", "mpeg4", (".mp4", False, False)),
    ],
)
def test_content_and_not_the_name_decides_how_a_file_is_played(
    tmp_path: Path, suffix: str, name: str, codec: str, expected: tuple[str, bool, bool]
):
    written = noise(tmp_path / "made" / f"clip{suffix}", codec=codec, frames=6)
    shutil.move(written, tmp_path / name)
    assert plan_for(str(tmp_path / name)) == expected


def test_a_file_that_is_no_video_or_gone_has_a_plan_too(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "gone.mp4"):
        assert not plan_for(str(tmp_path / name)).as_it_is


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mkv", "libx264"), (".ts", "libx264"), (".flv", "libx264"), (".mov", "libx264"), (".mkv", "libvpx-vp9")],
)
def test_another_container_keeps_every_packet_and_every_moment(tmp_path: Path, suffix: str, codec: str):
    clip = noise(tmp_path / f"clip{suffix}", frames=40, size=(96, 64), codec=codec, gop=20)
    copy = tmp_path / f"copy{plan_for(str(clip)).suffix}"
    make(str(clip), copy, [0.0])
    assert plan_for(str(copy)).as_it_is
    before, after = (read_frames(path, 7) for path in (clip, copy))
    assert after.times == pytest.approx(before.times, abs=0.002)
    assert np.array_equal(before.frames, after.frames)  # to encode again would change them


def test_sound_that_browsers_play_comes_along(tmp_path: Path):
    with av.open(str(tmp_path / "a.mkv"), "w") as written:
        picture, sound = written.add_stream("libx264", rate=10), written.add_stream("aac", rate=16000, layout="mono")
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for i in range(10):
            written.mux(picture.encode(av.VideoFrame.from_ndarray(noise_picture(i, 64, 48), "rgb24")))
        for at in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, at
            written.mux(sound.encode(frame))
        written.mux(picture.encode(None))
        written.mux(sound.encode(None))
    make(str(tmp_path / "a.mkv"), tmp_path / "b.mp4", [0.0])
    with av.open(str(tmp_path / "b.mp4")) as copy:
        assert [s.codec_context.name for s in copy.streams.audio] == ["aac"]


def test_packets_that_the_container_cannot_hold_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = noise(tmp_path / "clip.mkv", frames=20)

    def shifted(source: str, target: Path, line: Any, share: list[float]) -> None:
        remux(source, target, line._replace(ticks=line.ticks[3:]), share)  # a copy whose moments are others

    monkeypatch.setattr(copies, "remux", shifted)
    make(str(clip), tmp_path / "copy.mp4", [0.0])
    assert list_frames(str(tmp_path / "copy.mp4")).times == pytest.approx(list_frames(str(clip)).times, abs=0.002)


@pytest.mark.parametrize(
    ("suffix", "codec", "joined"),
    [
        (".webm", "libvpx-vp9", True),
        (".mkv", "libvpx", True),
        (".mkv", "libx264", True),
        (".webm", "libvpx-vp9", False),
    ],
)
def test_appended_recordings_are_encoded_as_one(tmp_path: Path, suffix: str, codec: str, joined: bool):
    """Browsers play the first of them, or stop where the times start again."""
    film = str(tmp_path / f"film{suffix}")
    with open(film, "wb") as written:
        for n in range(1 + joined):
            half = lambda i, w, h, n=n: gray_picture(14 * n + i, w, h)  # noqa: E731
            written.write(write_video(tmp_path / f"{n}{suffix}", 14, codec=codec, picture=half).read_bytes())
    plan = plan_for(film)
    assert plan.as_it_is is not joined
    copy = tmp_path / f"copy{plan.suffix}"
    make(film, copy, [0.0])
    assert plan_for(str(copy)) == (plan.suffix, True, False)
    assert numbers(read_frames(copy, 28).frames) == list(range(28 if joined else 14))


@pytest.mark.parametrize("source", ["late.mp4", "late.mov", "late.mkv"])
@pytest.mark.parametrize("sound", [False, True])
def test_a_picture_that_comes_late_without_sound_is_encoded_from_the_beginning(
    tmp_path: Path, source: str, sound: bool
):
    """Chromium moves seeks in an MP4 that begins late, not in one whose sound is there first."""
    clip = shift(write_video(tmp_path / "a.mp4"), tmp_path / source, 3.0, sound)
    assert plan_for(str(clip)).as_it_is is (sound and source == "late.mp4")
    make(str(clip), tmp_path / "copy.mp4", [0.0])
    assert plan_for(str(tmp_path / "copy.mp4")).as_it_is
    times = list_frames(str(tmp_path / "copy.mp4")).times
    assert times[0] == pytest.approx(3.0 if sound else 0.0, abs=0.002)
    assert times[1:] == pytest.approx(list_frames(str(clip)).times[1:], abs=0.002)


def without_key_marks(path: Path) -> Path:
    """Write an MP4 file whose first frame alone is a key frame, and which calls every frame one."""
    data = write_video(path, gop=250).read_bytes()
    assert data.count(b"stss") == 1
    path.write_bytes(data.replace(b"stss", b"free"))
    return path


def with_mp2(path: Path) -> Path:
    """Write an MP4 file with MPEG layer 2 sound, which MP4 calls MP3."""
    with (
        av.open(str(write_video(path.with_suffix(".mkv"), codec="libx264"))) as read,
        av.open(str(path), "w") as written,
    ):
        picture = written.add_stream_from_template(read.streams.video[0])
        sound = written.add_stream("mp2", rate=48000, layout="mono")
        for at in range(0, 96000, 1152):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 48000, at
            written.mux(sound.encode(frame))
        written.mux(sound.encode(None))
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = picture
                written.mux(packet)
    return path


def test_a_file_whose_key_frames_are_none_is_encoded(tmp_path: Path):
    """Chromium shows one picture, whichever moment is sought."""
    refreshed = {"x264-params": "intra-refresh=1"}
    for clip in (
        without_key_marks(tmp_path / "all.mp4"),
        write_video(tmp_path / "refreshed.mp4", gop=8, options=refreshed),  # decoding begins there, a picture is later
        write_video(tmp_path / "refreshed.mkv", gop=8, options=refreshed),
    ):
        copy = tmp_path / f"{clip.name} copy.mp4"
        make(str(clip), copy, [0.0])
        assert plan_for(str(clip)).as_it_is is False and plan_for(str(copy)).as_it_is, clip.name
        assert numbers(read_frames(copy, 20).frames) == list(range(20)), clip.name


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2"}, {"bf": "2", "x264-params": "open-gop=1"}])
def test_a_file_with_key_frames_plays_as_it_is(tmp_path: Path, options: dict[str, str]):
    clip = write_video(tmp_path / "a.mp4", options=options)
    assert plan_for(str(clip)).as_it_is
    with_edits(clip, [(1000, 2)])  # hides the last key frame
    assert plan_for(str(clip)).as_it_is


def test_sound_that_is_not_what_the_file_calls_it_is_left_out(tmp_path: Path):
    """Chromium would stop at its first packet."""
    make(str(with_mp2(tmp_path / "a.mp4")), tmp_path / "b.mp4", [0.0])
    assert plan_for(str(tmp_path / "a.mp4")) == (".mp4", False, True)
    assert plan_for(str(tmp_path / "b.mp4")).as_it_is
    with av.open(str(tmp_path / "b.mp4")) as copy:
        assert [stream.type for stream in copy.streams] == ["video"]
    assert np.array_equal(read_frames(tmp_path / "a.mp4", 5).frames, read_frames(tmp_path / "b.mp4", 5).frames)


@pytest.mark.parametrize("matrix", [None, 1, 6, 9])
@pytest.mark.parametrize("form", ["yuv420p", "yuvj420p", "yuv444p"])
def test_a_copy_has_the_colours_of_its_video(tmp_path: Path, matrix: int | None, form: str):
    color_range = 2 if form == "yuvj420p" else 1
    with av.open(str(tmp_path / "a.mkv"), "w") as written:
        stream = written.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, form
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix or 2, color_range
        picture = av.VideoFrame.from_ndarray(corner_picture(0, 96, 64), "rgb24")
        picture = picture.reformat(format=form, dst_colorspace=matrix or 6, dst_color_range=color_range)
        written.mux(stream.encode(picture))
        written.mux(stream.encode(None))
    encode(str(tmp_path / "a.mkv"), tmp_path / "b.mp4", list_frames(str(tmp_path / "a.mkv")), [0.0])
    for shown in (read_frames(tmp_path / name, 1).frames[0] for name in ("a.mkv", "b.mp4")):
        assert [shown[16, x].tolist() for x in (24, 72)] == [pytest.approx(c, abs=6) for c in RED_BLUE]
    with av.open(str(tmp_path / "b.mp4")) as copy:  # said: browsers would guess it by the size
        assert copy.streams.video[0].codec_context.colorspace == (matrix or 6)


@pytest.mark.parametrize(
    ("suffix", "name", "same"),
    [(".mp4", "a.mp4", True), (".mp4", "a.avi", False), (".webm", "a.mp4", False)],
)
def test_an_upload_under_a_wrong_name_is_copied_under_a_right_one(tmp_path: Path, suffix: str, name: str, same: bool):
    """It is served under its name, and gradio would convert it."""
    upload = str(noise(tmp_path / "made" / f"clip{suffix}").rename(tmp_path / name))
    wait_for(lambda: media.ask(upload) == 1)
    shown = playable_upload(upload)
    assert (shown == upload) is same and Path(shown).suffix == suffix
    assert np.array_equal(read_frames(shown, 3).frames, read_frames(upload, 3).frames)


@pytest.mark.browser
def test_a_browser_shows_each_frame_of_a_copy_at_its_time(tmp_path: Path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"{CHROMIUM} is not installed")
    plain, smooth = write_video(tmp_path / "a.mp4"), {"bf": "2"}
    webm = write_video(tmp_path / "a.webm")
    (tmp_path / "twice.webm").write_bytes(2 * webm.read_bytes())
    clips = [
        write_video(tmp_path / "b.avi", options={**smooth, "qmax": "3"}),
        *(write_video(tmp_path / f"b{s}", codec="libx264", options=smooth) for s in (".mkv", ".ts", ".flv", ".mov")),
        write_video(tmp_path / "vp8.mkv", codec="libvpx"),
        *(shift(plain, tmp_path / f"{sound}{s}", 3.0, sound) for s in (".mp4", ".mkv") for sound in (True, False)),
        tmp_path / "twice.webm",
        without_key_marks(tmp_path / "keys.mp4"),
        with_mp2(tmp_path / "mp2.mp4"),
    ]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page()
        for n, clip in enumerate(clips):
            copy = tmp_path / f"copy{n}{plan_for(str(clip)).suffix}"
            make(str(clip), copy, [0.0])
            ours = read_frames(clip, 7)
            into = [float(time) + 0.05 for time in ours.times]  # a frame lasts 0.1 s
            for shown in [copy, clip] if plan_for(str(clip)).as_it_is else [copy]:
                seen = page.evaluate(PLAY, [base64.b64encode(shown.read_bytes()).decode(), into])
                assert [round((gray - 12) / 8) for gray in seen] == numbers(ours.frames), shown.name
        chromium.close()


# ---- nobody else waits -----------------------------------------------------------------------------------------------


def test_a_result_is_there_before_its_copy_and_the_player_comes_with_it(tiny_model: SUMA, tmp_path: Path, cache: Path):
    noise(tmp_path / "videos" / "old.avi", frames=12)
    handlers = gallery_of(tiny_model, tmp_path / "videos")
    name, player, title, why, shares = best_of(handlers, "a dog")
    assert player.visible is False and "score" in title and "suma-cell" in why and "weight in the query" in shares
    assert not (cache / "playable").exists()  # nothing was made for it
    steps = shown_copies(handlers, name)
    assert all("suma-progress" in bar for _, bar in steps[:-1]) and len(steps) > 1
    player, bar = steps[-1]
    assert player.visible is True and bar == "" and player.value["path"] == media.playable(handlers.gallery.row(name))
    assert best_of(handlers, "a dog")[1].visible is True  # the next visitor has it at once
    assert [file.suffix for file in (cache / "playable").iterdir()] == [".mp4"]


def test_a_video_that_plays_as_it_is_waits_for_nothing(tiny_model: SUMA, tmp_path: Path, cache: Path):
    noise(tmp_path / "videos" / "new.mp4")
    handlers = gallery_of(tiny_model, tmp_path / "videos")
    name, player, *_ = best_of(handlers, "a dog")
    assert player.visible is True and [bar for _, bar in shown_copies(handlers, name)] == [""]
    assert not (cache / "playable").exists() and not (tmp_path / "gradio").exists()  # it is served where it is


def test_a_picked_video_is_shown_as_a_handler_of_the_page_does(tiny_model: SUMA, tmp_path: Path, cache: Path):
    """There, gradio's components are only changes of those on the page, without values of their own."""
    for name in ("a.mp4", "b.avi"):
        noise(tmp_path / "videos" / name, len(name))
    handlers = gallery_of(tiny_model, tmp_path / "videos")
    token = LocalContext.in_event_listener.set(True)
    try:
        for name, there in (("a.mp4", True), ("b.avi", False)):
            shown, current, *_ = handlers.show_picked("", clicked(video=name))
            assert bool(shown) is there and current == {"video": name}
    finally:
        LocalContext.in_event_listener.reset(token)


def test_a_copy_for_which_nobody_waits_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: list["subprocess.Popen[str]"]
):
    monkeypatch.setattr(copies, "PATIENCE", 0.4)
    made, target = Copies(1), tmp_path / "cache" / "copy.mp4"
    assert made.ask("a.avi", target) == 0
    for _ in range(10):  # as long as somebody asks, it goes on
        time.sleep(0.1)
        made.ask("a.avi", target)
    assert slow[0].poll() is None and made.ask("a.avi", target) == 0.25
    wait_for(lambda: slow[0].poll() is not None and not target.parent.exists())  # no partial file is left
    wait_for(lambda: made.ask("a.avi", target) < 1 and len(slow) == 2)


def test_half_a_copy_is_never_shown_though_somebody_asks_while_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: list["subprocess.Popen[str]"]
):
    monkeypatch.setattr(copies, "PATIENCE", 0.3)
    made, target = Copies(1), tmp_path / "copy.mp4"
    made.ask("a.avi", target)
    wait_for(lambda: slow)
    job, kill = made._jobs[target], slow[0].kill

    def kill_while_asked() -> None:
        kill()
        job.asked = time.monotonic() + 60

    monkeypatch.setattr(slow[0], "kill", kill_while_asked)
    wait_for(lambda: target not in made._jobs)
    assert not target.exists()


def test_copies_are_made_one_after_the_other_and_those_given_up_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: list["subprocess.Popen[str]"]
):
    monkeypatch.setattr(copies, "PATIENCE", 0.5)
    made = Copies(1)
    made.ask("a.avi", tmp_path / "a" / "copy.mp4")
    made.ask("b.avi", tmp_path / "b" / "copy.mp4")
    for _ in range(12):
        made.ask("a.avi", tmp_path / "a" / "copy.mp4")
        time.sleep(0.1)
    assert len(slow) == 1 and not made._jobs.get(tmp_path / "b" / "copy.mp4")


def test_a_visitor_who_chooses_another_video_waits_no_more_for_the_first(
    tiny_model: SUMA, tmp_path: Path, cache: Path, slow: list["subprocess.Popen[str]"]
):
    for n in range(2):
        noise(tmp_path / "videos" / f"{n}.avi", n)
    handlers = gallery_of(tiny_model, tmp_path / "videos")

    async def visit() -> tuple[list[Any], list[Any]]:
        first, seen = handlers.players.show_copy("0.avi", ("me", "player")), []
        seen.append(await anext(first))
        other = handlers.players.show_copy("1.avi", ("me", "player"))
        later = [await anext(other)]
        seen += [shown async for shown in first]  # it ends by itself
        await other.aclose()
        return seen, later

    seen, later = asyncio.run(visit())
    assert len(seen) == 1 and "copy is being made" in later[0][1] and handlers.players._watching == {}


def test_copies_wait_in_no_queue_of_searches(tiny_model: SUMA):
    demo = app.build_demo(VideoIndex(tiny_model))
    queues: dict[str, set[Any]] = {}
    for function in demo.fns.values():
        queues.setdefault(function.concurrency_id, set()).add(function.concurrency_limit)
    assert queues["copies"] == {None} and queues["model"] == {4}


def test_a_copy_ends_with_the_app(tmp_path: Path):
    clip = noise(tmp_path / "clip.avi", frames=60, size=(640, 480))
    child = copies._start(str(clip), tmp_path / "copy.partial.mp4")
    assert child.stdout is not None and child.stdout.readline()
    child.stdout.close()  # as when the app is killed
    assert child.wait(timeout=20) != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.avi"]


def test_copies_can_be_made_when_videos_are_added(tiny_model: SUMA, tmp_path: Path, cache: Path):
    args = startup.parser().parse_args(["--make-copies", "--folder", str(tmp_path)])
    assert startup.options_of(args).make_copies and not startup.options_of(startup.parser().parse_args([])).make_copies
    noise(tmp_path / "videos" / "old.avi")
    options = Options(False, [tmp_path / "videos"], tmp_path / "library", make_copies=True)
    handlers = app.Handlers(VideoIndex(tiny_model), options)
    list(handlers.add_folder(str(tmp_path / "videos")))
    wait_for(lambda: media.playable(handlers.gallery.row("old.avi")))
    wait_for(lambda: all(thread.name != "copies" for thread in threading.enumerate()))


# ---- what is served --------------------------------------------------------------------------------------------------


@pytest.fixture
def serving(tiny_model: SUMA, tmp_path: Path, cache: Path) -> Iterator[Callable[..., tuple[str, app.Handlers]]]:
    """Start the app over tmp_path/videos: its address, and handlers of the same index."""
    demos = []

    def start(**options: Any) -> tuple[str, app.Handlers]:
        handlers = gallery_of(tiny_model, tmp_path / "videos")
        demos.append(app.build_demo(handlers.index, Options(read_only=False)))
        return demos[-1].launch(prevent_thread_lock=True, quiet=True, **launch_options(), **options)[1], handlers

    yield start
    for demo in demos:
        demo.close()


def test_a_film_is_served_where_it_lies_until_it_is_removed(serving: Callable[..., Any], tmp_path: Path):
    clip = noise(tmp_path / "videos" / "film.mp4")
    url, handlers = serving()
    content, row = clip.read_bytes(), handlers.gallery.row("film.mp4")
    address = f"{url}gradio_api/file={tmp_path}/gradio/{media.SERVED_FROM}/{media._key(row)}.mp4"
    assert httpx.get(address).status_code == 404  # nobody was shown it yet
    assert address.endswith(media.playable(row))
    whole, part = httpx.get(address), httpx.get(address, headers={"Range": "bytes=100-199"})
    assert whole.content == content and whole.headers["content-type"] == "video/mp4"
    assert part.status_code == 206 and part.content == content[100:200]
    assert not (tmp_path / "gradio").exists() or not any((tmp_path / "gradio").rglob("*.mp4"))
    for other in (
        f"/etc/{media.SERVED_FROM}/{media._key(row)}.mp4",
        f"{tmp_path}/gradio/{media.SERVED_FROM}/x.mp4",
        f"{tmp_path}/gradio/{media.SERVED_FROM}/..%2f..%2fvideos%2ffilm.mp4",
        str(clip),
    ):
        assert httpx.get(f"{url}gradio_api/file={other}").status_code in (403, 404)
    handlers.gallery.remove("film.mp4", None)
    assert httpx.get(address).status_code == 404 and clip.is_file()


def test_who_has_not_logged_in_gets_no_film(serving: Callable[..., Any], tmp_path: Path):
    noise(tmp_path / "videos" / "film.mp4")
    url, handlers = serving(auth=("me", "secret"))
    address = f"{url}gradio_api/file={media.playable(handlers.gallery.row('film.mp4'))}"
    assert httpx.get(address).status_code == 401
    with httpx.Client() as visitor:
        visitor.post(f"{url}login", data={"username": "me", "password": "secret"})
        for cookie in list(visitor.cookies.jar):
            cookie.secure = False
        assert visitor.get(address).status_code == 200
        names = [cookie.name for cookie in visitor.cookies.jar]
    assert any(name.startswith("access-token") for name in names)
    assert httpx.get(address, cookies=dict.fromkeys(names, "guessed")).status_code == 401


# ---- folders and names -----------------------------------------------------------------------------------------------


def test_a_temporary_folder_that_cannot_be_written_costs_nothing(
    tiny_model: SUMA, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file" / "gradio"))
    noise(tmp_path / "videos" / "a.mp4")
    handlers = gallery_of(tiny_model, tmp_path / "videos")
    _, player, title, why, shares = best_of(handlers, "a dog")
    assert player.visible is True and "score" in title and "suma-cell" in why and shares
    startup.use_own_temp()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).is_dir() and "note:" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["no folder", "full", "damaged"])
def test_where_no_copy_can_be_made_one_sentence_says_so(
    tiny_model: SUMA, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, reason: str
):
    noise(tmp_path / "videos" / "old.avi")
    handlers = gallery_of(tiny_model, tmp_path / "videos")
    if reason == "no folder":
        cache.write_text("a file")
    else:
        said = "error: No space left on device" if reason == "full" else ""
        code = f"import sys; print({said!r}); sys.exit(1)"
        monkeypatch.setattr(
            copies,
            "_start",
            lambda *_: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True),
        )
    _, player, title, why, shares = best_of(handlers, "a dog")
    assert player.visible is False and "score" in title and "suma-cell" in why and shares
    *_, (_, said) = shown_copies(handlers, "old.avi")
    words = {"no folder": "Not a directory", "full": "No space left", "damaged": "cannot be decoded"}
    assert "cannot be played here" in said and words[reason] in said and "/" not in said.replace("</p>", "")
    player, said, _ = handlers.play(clicked(video="old.avi"))
    assert player.visible is False and "suma-playing" in said
    assert "old.avi" in handlers.show_member(clicked(video="old.avi"))[1]
    assert "suma-cell" in handlers.show_picked("", clicked(video="old.avi"))[-1]


STRANGE = [
    b"caf\xe9.mp4",
    b"caf\xe8.mp4",
    b"two\nlines.mp4",
    b"two\rlines.mp4",
    "日本語の長い題名".encode() * 10 + b".mkv",
    b"\xff" * 250 + b".mkv",
    "half \ud83d".encode("utf-8", "surrogatepass") + b".mp4",
    b"a %2f#?&amp; b.mp4",
]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_every_name_that_a_file_can_have_is_shown_and_played(serving: Callable[..., Any], tmp_path: Path):
    for n, name in enumerate(STRANGE):
        made = noise(tmp_path / f"made{Path(os.fsdecode(name)).suffix}", n, frames=8)
        (tmp_path / "videos").mkdir(exist_ok=True)
        made.rename(os.fsdecode(os.fsencode(tmp_path / "videos") + b"/" + name))
    url, handlers = serving()
    _, answer = called(url, "search", "a dog", 99, None, 0, False, 0.0).split("data: ", 1)
    names = [match["video"] for match in json.loads(answer)[0]]
    assert len(set(names)) == len(STRANGE) and {"caf\\xe9.mp4", "two\\x0alines.mp4", "two\\x0dlines.mp4"} <= set(names)
    html = [*handlers.show_results("a dog")[:2], handlers.show_picker("", 99), *handlers.show_gallery("", 99)]
    assert "caf\\xe9" in "".join(html) and str(tmp_path) not in "".join(html)
    for name in names:
        answer = [*handlers.show_video("a dog", MODE, clicked(video=name))[2:], *handlers.play(clicked(video=name))[1:]]
        "".join(answer).encode()  # no half characters
        shown_copies(handlers, name)
        address = f"{url}gradio_api/file={media.playable(handlers.gallery.row(name))}"
        assert httpx.get(address).headers["content-type"].startswith("video/")


def test_errors_show_no_folder_of_the_server(tiny_model: SUMA, tmp_path: Path, cache: Path, monkeypatch: Any):
    noise(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    options = Options(False, [tmp_path / "videos"], tmp_path / "file" / "library")
    (tmp_path / "file").write_text("no folder")
    handlers = app.Handlers(VideoIndex(tiny_model), options)
    said = [*handlers.add_folder(str(tmp_path / "videos")), *handlers.show_gallery("", 9)]
    upload = noise(tmp_path / "gradio" / "x" / "mine.mp4")
    for call in (lambda: list(handlers.add_uploads([str(upload)])), lambda: handlers.add(str(upload))):
        with pytest.raises(Exception, match="Not a directory") as error:
            call()
        said.append(str(error.value))
        noise(upload)
    assert "broken.mp4" in "".join(said) and str(tmp_path) not in "".join(said)
