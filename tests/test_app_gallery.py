"""What comes into the app and what goes: uploads, the library, removal, limits, copies that browsers play."""

import base64
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from clips import corner_picture, noise_picture, write_audio, write_video
from gradio_client import Client, handle_file
from PIL import Image
from tensors import videos_of
from test_app import make_gallery, shown_copies

from suma import SUMA, VideoIndex, read_frames
from suma.app import media, startup
from suma.app import page as app
from suma.app.api import Options
from suma.app.browser_formats import plan_for
from suma.app.copies import encode
from suma.app.media import ask
from suma.app.startup import options_of, parser
from suma.app.tabs import launch_options
from suma.app.uploads import Uploads, keep_upload, playable_upload
from suma.index.storage import describe
from suma.similarity import score
from suma.video.timeline import list_frames


def session(name: str) -> Any:
    return SimpleNamespace(session_hash=name)


def noise(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, picture=lambda i, w, h: noise_picture(1000 * seed + i, w, h), **options)


@pytest.fixture(scope="module")
def gallery(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery to be copied: its index names the videos by paths relative to its folder."""
    folder = tmp_path_factory.mktemp("gallery")
    make_gallery(folder, tiny_model)
    return folder


def writable(gallery: Path, model: SUMA, folder: Path) -> app.Handlers:
    """An app whose gallery can be written to: an index on disk, a library, a folder that may be added."""
    shutil.copytree(gallery, folder, dirs_exist_ok=True)
    index = VideoIndex.load(folder / "index", model)
    noise(folder / "allowed" / "more.mp4", 7)
    (folder / "allowed" / "broken.mp4").write_bytes(b"no video")
    options = Options(False, [folder / "allowed"], folder / "library", Uploads(max_megabytes=1, max_seconds=5))
    return app.Handlers(index, options)


@pytest.fixture
def made(gallery: Path, tiny_model: SUMA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> app.Handlers:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return writable(gallery, tiny_model, tmp_path)


def test_an_upload_joins_the_gallery_and_survives_a_restart(made: app.Handlers, tiny_model: SUMA, tmp_path: Path):
    clip = noise(tmp_path / "mine.mp4", 9)
    steps = list(made.add_uploads([str(clip)]))
    assert "1 of 1" in steps[-1] and "1 added" in steps[-1]
    assert not clip.exists()  # the upload itself is gone, the library has its copy
    assert "mine.mp4" in made.gallery.names and len(made.show_results("a dog")[0].split("data-video")) == 6
    again = app.Handlers(VideoIndex.load(tmp_path / "index", tiny_model), made.options)
    assert set(again.gallery.names) == set(made.gallery.names)
    assert again.search("a dog", 9) == made.search("a dog", 9)


def test_a_folder_of_the_server_is_added_with_progress_and_reasons(made: app.Handlers, tmp_path: Path):
    steps = list(made.add_folder(str(tmp_path / "allowed")))
    assert "0 of 2" in steps[0] and "s left" in steps[1]
    assert "2 of 2 · 1 added · 1 failed" in steps[-1] and "<b>broken.mp4</b>" in steps[-1]
    stock, _ = made.show_gallery("", 24)
    assert "5 videos" in stock and "broken.mp4" in stock
    assert "1 there already" in list(made.add_folder(str(tmp_path / "allowed")))[-1]


@pytest.mark.parametrize("folder", [None, "", "/etc", "allowed/..", ".."])
def test_no_other_folder_is_added(made: app.Handlers, tmp_path: Path, folder: str | None):
    with pytest.raises(gr.Error, match="allowed"):
        list(made.add_folder(str(tmp_path / folder) if folder == ".." else folder))
    assert len(made.gallery.names) == 4


def test_a_removed_video_is_gone_and_its_own_file_with_it(made: app.Handlers, tiny_model: SUMA, tmp_path: Path):
    list(made.add_uploads([str(noise(tmp_path / "mine.mp4", 9))]))
    mine, other = (made.gallery.names[name] for name in ("mine.mp4", "clip 0.mp4"))
    made.remove("mine.mp4")
    made.remove("clip 0.mp4")
    assert not Path(mine).exists() and Path(other).exists()
    assert set(made.gallery.names) == {"clip 1.mp4", "clip 2.mp4", "clip 3.mp4"}
    assert len(VideoIndex.load(tmp_path / "index", tiny_model)) == 3
    with pytest.raises(gr.Error, match="no video"):
        made.remove("mine.mp4")


def test_read_only_refuses_everything_that_writes(made: app.Handlers, tmp_path: Path):
    made.options.read_only = True
    clip = noise(tmp_path / "mine.mp4")
    for call in (
        lambda: list(made.add_uploads([str(clip)])),
        lambda: list(made.add_folder(str(tmp_path / "allowed"))),
        lambda: made.remove("clip 0.mp4"),
        lambda: made.add(str(clip)),
    ):
        with pytest.raises(gr.Error):
            call()
    assert len(made.gallery.names) == 4


def test_names_and_captions_are_found_whether_their_accents_are_composed_or_not(tiny_model: SUMA, tmp_path: Path):
    noise(tmp_path / "films" / "videos" / "cafe\u0301.mp4")
    (tmp_path / "films" / "captions.json").write_text(json.dumps({"caf\u00e9.mp4": "An e\u0301t\u00e9 in a bar"}))
    index = VideoIndex(tiny_model)
    index.add(tmp_path / "films")
    gallery = app.Handlers(index, Options(False, [], None, Uploads(1, 5))).gallery
    assert list(gallery.names) == ["caf\u00e9.mp4"]
    for name in ("caf\u00e9.mp4", "cafe\u0301.mp4"):
        assert gallery.title(gallery.row(name).path) == "An e\u0301t\u00e9 in a bar"
    for words in ("\u00e9t\u00e9", "\u00c9te\u0301 BAR", "cafe\u0301"):
        assert len(gallery.page(words, 5)[0]) == 1


def test_a_videos_name_stays_when_another_of_the_same_name_comes(made: app.Handlers, tmp_path: Path):
    before = dict(made.gallery.names)
    list(made.add_uploads([str(noise(tmp_path / "clip 0.mp4", 5))]))
    assert before.items() <= made.gallery.names.items() and len(made.gallery.names) == 5


@pytest.mark.parametrize(
    "name", ["../../evil.mp4", "..mp4", "/etc/passwd", ".hidden.mp4", "a" * 300 + ".mp4", "x;$(y).mp4"]
)
def test_an_upload_keeps_within_the_library_and_overwrites_nothing(tmp_path: Path, name: str):
    (tmp_path / "up").mkdir()
    first, second = tmp_path / "up" / "1", tmp_path / "up" / "2"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    kept = []
    for source, content in ((first, b"one"), (second, b"two")):
        target = tmp_path / "up" / Path(name).name[-120:]
        shutil.copyfile(source, target)
        kept.append(keep_upload(str(target), tmp_path / "library"))
        assert kept[-1].read_bytes() == content
    assert kept[0] != kept[1] and kept[0].read_bytes() == b"one"
    assert all(path.resolve().is_relative_to(tmp_path / "library") and not path.name.startswith(".") for path in kept)


def test_limits_are_said(made: app.Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: said.append(message))
    large, long, sound = tmp_path / "large.mp4", tmp_path / "long.mp4", write_audio(tmp_path / "sound.mp4")
    large.write_bytes(b"x" * 1_100_000)
    noise(long, frames=80)
    for file in (large, long, sound):
        made.show_upload(str(file), "", session("me"))
        assert not file.exists()
    assert "limit is 1 MB" in said[0] and "lasts 8 s; the limit is 5 s" in said[1] and "sound.mp4" in said[2]
    noise(long, frames=80)
    assert "limit is 5 s" in list(made.add_uploads([str(long)]))[-1]


def test_an_upload_is_deleted_when_the_next_comes_and_when_its_visitor_leaves(made: app.Handlers, tmp_path: Path):
    files = [noise(tmp_path / str(n) / "clip.avi", n) for n in range(3)]
    current = made.show_upload(str(files[0]), "", session("a"))[1]
    made.show_upload(str(files[0]), "", session("b"))
    shown, _ = shown_copies(made, current)[-1]
    assert shown != str(files[0]) and plan_for(shown).as_it_is
    made.show_upload(str(files[1]), "", session("a"))
    assert files[0].exists()  # b still looks at it
    made.forget_upload(session("b"))
    assert not files[0].exists() and not Path(shown).exists() and files[1].exists()
    made.forget_upload(session("a"))
    made.forget_upload(session("nobody"))
    assert not files[1].exists() and files[2].exists()


@pytest.mark.parametrize("suffix", [".avi", ".gif", ".mkv", ".ts", ".webm"])
def test_any_format_that_is_read_is_made_playable(tmp_path: Path, suffix: str):
    clip = write_video(tmp_path / f"clip{suffix}", frames=20, size=(64, 48), picture=corner_picture)
    while ask(str(clip)) < 1:
        time.sleep(0.1)
    shown = playable_upload(str(clip))
    assert plan_for(shown).as_it_is and (shown == str(clip)) == (suffix == ".webm")
    frames, _, duration = read_frames(shown, 4)
    assert frames.shape == (4, 48, 64, 3) and duration == pytest.approx(2, abs=0.3)
    assert frames[0, 5, 5, 0] > 180 and frames[0, 5, 50, 2] > 180  # red top left, blue top right


def test_a_copy_is_upright_and_not_larger_than_it_must_be(tmp_path: Path):
    clip = write_video(tmp_path / "turned.mp4", frames=6, size=(1600, 900), rotation=90, picture=corner_picture)
    encode(str(clip), tmp_path / "copy.mp4", list_frames(str(clip)), [0.0])
    copy, original = read_frames(tmp_path / "copy.mp4", 1).frames[0], read_frames(clip, 1).frames[0]
    assert copy.shape == (720, 404, 3) and original.shape == (1600, 900, 3)
    for y, x in ((100, 100), (100, 300), (600, 100), (600, 300)):
        assert abs(int(copy[y, x, 0]) - int(original[y * 20 // 9, x * 20 // 9, 0])) < 25
    (tmp_path / "broken.mkv").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be decoded"):
        while ask(str(tmp_path / "broken.mkv")) < 1:
            time.sleep(0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mkv", "copy.mp4", "turned.mp4"]


def test_searches_go_on_while_videos_are_added(made: app.Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suma.app.filling.PATIENCE", 0.0)  # one video a step
    for n in range(2):
        noise(tmp_path / "allowed" / f"{n}.mp4", 20 + n)
    between: list[int] = []  # answers after each step
    meanwhile: list[int] = []  # answers at any moment
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            meanwhile.append(len(made.search("a dog", 99)))
            time.sleep(0.01)

    with ThreadPoolExecutor(2) as pool:
        searching = pool.submit(search)
        for _ in made.add_folder(str(tmp_path / "allowed")):
            between.append(len(pool.submit(made.search, "a dog", 99).result(timeout=60)))
        done.set()
        searching.result(timeout=60)
    assert sorted(set(between)) == list(range(4, 8)) and between == sorted(between)
    assert meanwhile == sorted(meanwhile) and set(meanwhile) <= set(between) and len(made.gallery.names) == 7


def test_own_lines_are_ranked_by_the_models_score(made: app.Handlers, tiny_model: SUMA):
    lines = "a dog runs\n\n  a cat sits \na dog runs\na red car"
    found = made.captions("clip 0.mp4", None, 9, lines)
    video = videos_of(tiny_model, made.index.read(made.gallery.names["clip 0.mp4"])[1])
    c = tiny_model.config
    texts = ["a dog runs", "a cat sits", "a red car"]
    scores = score(tiny_model.make_texts(texts), video, c.scoring)[:, 0]
    expected = dict(zip(texts, scores.tolist(), strict=True))
    assert {f["caption"]: f["score"] for f in found} == pytest.approx(expected, abs=1e-4)
    assert [f["score"] for f in found] == sorted((f["score"] for f in found), reverse=True)
    assert "a cat sits" in made.show_captions({"video": "clip 0.mp4"}, lines) and made.show_captions({}, lines) == ""


def test_concepts_and_steered_searches_answer(made: app.Handlers, tmp_path: Path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    assert "broken.mp4" in made.add(str(tmp_path / "broken.mp4"))["failed"]
    concepts = made.concepts("dog", 3)
    assert "dog" in concepts[0]["words"] and set(concepts[0]) == {"id", "name", "words", "frequency", "best"}
    assert {b["video"] for b in concepts[0]["best"]} <= {*made.gallery.names}
    plain, steered = (made.search("a dog", 9, weights) for weights in (None, {"snow": 1.0, "dog": -1.0}))
    assert {f["video"]: f["score"] for f in plain} != {f["video"]: f["score"] for f in steered}
    why = made.explain(steered[0]["video"], "a dog", "query", 8, {"snow": 1.0, "dog": -1.0})
    assert why["score"] == pytest.approx(steered[0]["score"], abs=1e-3)


# ---- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(gallery: Path, tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A visitor of such an app in which two calls may wait."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        made = writable(gallery, tiny_model, folder)
        demo = app.build_demo(made.index, made.options).queue(max_size=2)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(1))
        yield Client(url, verbose=False)
        demo.close()


def test_a_video_is_added_by_api(client: Client, tmp_path: Path):
    clip = noise(tmp_path / "new one.mp4", 33)
    assert client.predict(handle_file(str(clip)), api_name="/add") == {
        "added": ["new one.mp4"],
        "skipped": 0,
        "failed": {},
        "videos": 5,
    }
    assert len(client.predict("a dog", 9, api_name="/search")) == 5


def test_no_upload_of_a_call_is_left(client: Client, tmp_path: Path):
    clip = noise(tmp_path / "private.mp4", 44)
    before = clip.read_bytes()
    for endpoint in ("/captions", "/similar"):
        assert client.predict(file=handle_file(str(clip)), api_name=endpoint)
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    assert uploads.is_dir()
    assert [path for path in uploads.rglob("*") if path.is_file() and path.read_bytes() == before] == []


def test_an_upload_over_the_limit_is_refused_by_the_server(client: Client, tmp_path: Path):
    (tmp_path / "large.mp4").write_bytes(os.urandom(1_500_000))
    with pytest.raises(Exception, match=r"413|exceed|large"):
        client.predict(file=handle_file(str(tmp_path / "large.mp4")), api_name="/captions")
    assert client.predict("a dog", api_name="/search")


def test_a_full_queue_says_so(client: Client, monkeypatch: pytest.MonkeyPatch):
    release, find = threading.Event(), app.Handlers.find
    monkeypatch.setattr(app.Handlers, "find", lambda self, *a, **k: release.wait(90) and find(self, *a, **k))
    try:
        call = f"{client.src}gradio_api/call/search", {"data": ["a dog", 9, None, 0, False, 0.0]}
        answers = [httpx.post(call[0], json=call[1], timeout=60) for _ in range(12)]
    finally:
        release.set()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 6 <= len(refused) < 12 and all("queue is full" in answer.text.lower() for answer in refused)


# ---- the command line ----------------------------------------------------------------------------------------------


def test_the_operators_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert options_of(parser().parse_args([])).read_only is False
    assert options_of(parser().parse_args(["--read-only"])).read_only is True
    assert options_of(parser().parse_args(["--share"])).read_only is True
    monkeypatch.setenv("SPACE_ID", "me/suma")
    assert options_of(parser().parse_args([])).read_only is True
    monkeypatch.setenv("SUMA_READ_ONLY", "0")
    assert options_of(parser().parse_args([])).read_only is False
    for wrong in (["--auth", "nobody"], ["--folder", str(tmp_path / "none")], ["--max-megabytes", "0"]):
        with pytest.raises((ValueError, FileNotFoundError)):
            options_of(parser().parse_args(wrong))


def test_the_bundled_index_is_carried_on_elsewhere(
    made: app.Handlers, tiny_model: SUMA, tmp_path: Path, monkeypatch: Any
):
    (tmp_path / "gallery").mkdir()
    shutil.copytree(tmp_path / "videos", tmp_path / "gallery" / "videos")
    bundled = VideoIndex(tiny_model)
    bundled.add(tmp_path / "gallery" / "videos")
    bundled.save(tmp_path / "gallery" / "index")
    monkeypatch.setattr(startup, "ASSETS", tmp_path)
    monkeypatch.setattr(startup.media, "CACHE", tmp_path / "cache")
    before = {path.name for path in (tmp_path / "gallery" / "index").iterdir()}
    opened = startup.open_index(tiny_model, "", "", read_only=False)
    opened.add(tmp_path / "allowed" / "more.mp4")
    assert {path.name for path in (tmp_path / "gallery" / "index").iterdir()} == before
    assert len(startup.open_index(tiny_model, "", "", read_only=False)) == 5
    assert len(startup.open_index(tiny_model, "", "", read_only=True)) == 4


def test_a_copy_of_a_video_of_the_gallery_is_counted_as_there_already(made: app.Handlers, tmp_path: Path):
    clip = write_video(tmp_path / "one.mp4", picture=lambda i, w, h: noise_picture(500 + i, w, h))
    list(made.add_files([str(clip)]))
    copy = tmp_path / "copy.mp4"
    shutil.copy(made.gallery.rows[made.gallery.names["one.mp4"]].path, copy)
    *_, last = made.add_files([str(copy)])
    assert last.added == [] and last.skipped == 1 and last.failed == {}


def test_a_copy_is_shown_where_a_query_asks_for_it_and_goes_with_its_video(
    made: app.Handlers, tiny_model: SUMA, tmp_path: Path
):
    (tmp_path / "holidays").mkdir()
    shutil.copy(made.gallery.rows[made.gallery.names["clip 0.mp4"]].path, tmp_path / "holidays" / "beach.mp4")
    made.index.add(tmp_path / "holidays")
    made.gallery.refresh()
    assert len(made.gallery.names) == 4 and "4 videos" in made.show_gallery("", 24)[0]
    assert [answer["video"] for answer in made.search("a dog in:holidays", 9)] == ["beach.mp4"]
    assert "beach.mp4" in made.show_results("a dog in:holidays")[0]
    assert made.explain("beach.mp4")["video"] == "beach.mp4"
    original = Path(made.gallery.rows[made.gallery.names["clip 0.mp4"]].path)
    original.rename(original.with_suffix(".away"))
    made.gallery.refresh()
    assert "beach.mp4" in {answer["video"] for answer in made.search("a dog", 9)}  # the one that is there
    made.remove("beach.mp4")
    original.with_suffix(".away").rename(original)
    again = startup.open_index(tiny_model, str(tmp_path / "index"), str(tmp_path / "videos"))
    assert len(again) == 3  # also the copy that has come back stays removed


def test_the_poster_of_a_film_is_no_blank_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Half a second of pictures, then white, as films end and begin; the middle key frame is white."""
    monkeypatch.setattr(media, "CACHE", tmp_path / "cache")

    def picture(i: int, w: int, h: int) -> np.ndarray:
        return noise_picture(i, w, h) if i < 6 else np.full((h, w, 3), 255, np.uint8)

    film = write_video(tmp_path / "film.mp4", 40, (64, 48), 10, picture=picture)
    assert read_frames(film, 1, keyframes=True).frames[0].std() < media.FLAT
    data, _ = media.poster(describe(film))
    with Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[1]))) as shown:
        assert np.asarray(shown).std() > 20
