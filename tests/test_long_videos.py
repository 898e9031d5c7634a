"""A long video is indexed in parts: it answers with the minute, once, and each part is as if it had been cut out."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import noise_picture, write_video
from PIL import Image
from tensors import texts_of, videos_of

from suma import SUMA, VideoIndex
from suma.explain import explain
from suma.index.search import CANDIDATES
from suma.model.encoder import Queries
from suma.video.frames import NEAR, parts_of, read_frames
from suma.video.preprocess import resize_frames
from suma.video.worker import Decoder

SECONDS, EVENT = 300, 150  # of the film; when, for one minute, it shows something else


def film_picture(index: int, width: int, height: int) -> np.ndarray:
    """Dull grays, one frame a second, but for one minute of the pictures below."""
    if EVENT <= index < EVENT + 60:
        return event_picture(index, width, height)
    return np.full((height, width, 3), 100 + index % 7, np.uint8)


def event_picture(index: int, width: int, height: int) -> np.ndarray:
    picture = np.full((height, width, 3), (230, 20, 20), np.uint8)
    picture[:, : 8 + index % (width // 2)] = (20, 20, 230)
    return picture


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of five minutes, and two short clips."""
    folder = tmp_path_factory.mktemp("long") / "videos"
    folder.mkdir()
    write_video(folder / "film.mp4", frames=SECONDS, fps=1, gop=4, picture=film_picture)
    for n in range(2):
        write_video(folder / f"clip {n}.mp4", picture=lambda i, w, h, n=n: noise_picture(10_000 * (n + 1) + i, w, h))
    return folder


@pytest.fixture(scope="module")
def index(tiny_model: SUMA, videos: Path) -> VideoIndex:
    index = VideoIndex(tiny_model)
    report = index.add(videos)
    assert len(report.added) == 3
    return index


@pytest.fixture(scope="module")
def still(videos: Path) -> Path:
    """A picture out of the film's minute."""
    path = videos.parent / "still.png"
    Image.fromarray(read_frames(videos / "film.mp4", 1, EVENT + 30, EVENT + 31).frames[0]).save(path)
    return path


def test_each_part_is_a_row_with_the_features_of_the_cut_span(index: VideoIndex, videos: Path, tiny_model: SUMA):
    film = videos / "film.mp4"
    rows, parts = index.parts(film)
    assert [(row.start, row.end) for row in rows] == parts_of(SECONDS, 60.0) and len(rows) == 6
    assert len(index) == 8 and index.num_videos == 3
    for v, row in enumerate(rows):
        cut = read_frames(film, 12, row.start, row.end, keyframes=NEAR)
        assert row.times == pytest.approx(cut.times, abs=1e-3) and row.duration == SECONDS
        with torch.no_grad():
            video, frames = tiny_model.encode_video(resize_frames(cut.frames, 32)[None])
        assert parts.features[v] == pytest.approx(video[0].numpy(), abs=1e-3)
        assert parts.frames[v][parts.mask[v]] == pytest.approx(frames[0].numpy(), abs=1e-3)


def test_a_picture_of_one_minute_finds_that_minute_and_the_film_once(index: VideoIndex, videos: Path, still: Path):
    found = index.similar(still, top_k=3)
    assert [Path(match.path).name for match in found].count("film.mp4") == 1 and len(found) == 3
    best = next(match for match in found if match.path.endswith("film.mp4"))
    assert best == found[0]
    assert EVENT <= best.start <= best.moment <= best.end <= EVENT + 60
    whole = index.similar(still, top_k=8, group=False)
    assert len(whole) == 8 and sum(match.path == best.path for match in whole) == 6


def test_a_text_that_fits_one_minute_answers_with_it(index: VideoIndex, videos: Path, tiny_model: SUMA):
    """The text is made of the minute's own features, as random weights know no words."""
    rows, parts = index.parts(videos / "film.mp4")
    v = [row.start for row in rows].index(EVENT)
    videos_ = videos_of(tiny_model, parts)
    texts = Queries(parts.features[v : v + 1], videos_.concepts[v : v + 1].numpy())
    found = index.search(texts, top_k=3)
    assert [Path(m.path).name for m in found].count("film.mp4") == 1 and found[0].path == rows[v].path
    assert rows[v].start <= found[0].start <= found[0].moment <= found[0].end <= rows[v].end
    assert EVENT <= found[0].moment < EVENT + 60
    assert found[0].score == pytest.approx(float(tiny_model.score(texts_of(texts), videos_)[0].max()), abs=1e-4)
    why = explain(index, found[0].path, texts=texts)
    assert (why.start, why.end) == (rows[v].start, rows[v].end)
    assert why.score == pytest.approx(found[0].score, abs=1e-4) and why.times == rows[v].times
    assert explain(index, found[0].path, texts=texts, at=54.0).start == 0.0  # the next part has just begun
    inside = index.search(texts, top_k=5, within=videos / "film.mp4")
    assert all(EVENT <= m.moment < EVENT + 60 for m in inside) and len({m.moment for m in inside}) == 5


def test_captions_count_the_best_part(index: VideoIndex, videos: Path, tiny_model: SUMA):
    captions = ["a dog runs", "a cat sits on the mat", "a red car"]
    index.set_captions(captions)
    parts = videos_of(tiny_model, index.parts(videos / "film.mp4")[1])
    with torch.no_grad():
        expected = tiny_model.score(tiny_model.make_texts(captions), parts).amax(1)
    found = dict(index.captions(videos / "film.mp4", top_k=3))
    assert [found[caption] for caption in captions] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_long_video_outside_the_index_is_read_in_the_same_parts(index: VideoIndex, videos: Path, tiny_model: SUMA):
    empty = VideoIndex(tiny_model)
    rows, parts = empty.parts(videos / "film.mp4")
    kept, stored = index.parts(videos / "film.mp4")
    assert [(r.start, r.end, r.times) for r in rows] == [(r.start, r.end, r.times) for r in kept]
    assert parts.features == pytest.approx(stored.features, abs=1e-3)
    assert empty.read(videos / "film.mp4", at=200.0)[0].start == index.read(videos / "film.mp4", at=200.0)[0].start
    assert index.read(videos / "film.mp4")[0].start == 0.0


def test_many_parts_of_one_film_leave_room_for_the_others(tiny_model: SUMA, tmp_path: Path, videos: Path):
    write_video(tmp_path / "long.mp4", frames=4 * CANDIDATES, fps=1, gop=50, picture=event_picture)
    shutil.copy(videos / "clip 0.mp4", tmp_path)
    index = VideoIndex(tiny_model, segment=2)
    index.add(tmp_path)
    assert len(index) > 2 * CANDIDATES and index.num_videos == 2
    for found in (index.search("a dog", top_k=5), index.similar(videos / "clip 1.mp4", top_k=5)):
        assert sorted(Path(match.path).name for match in found) == ["clip 0.mp4", "long.mp4"]


def test_unchanged_moved_copied_and_removed_with_all_their_parts(
    tiny_model: SUMA, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "videos"
    shutil.copytree(videos, home)
    index = VideoIndex(tiny_model)
    index.add(home)
    monkeypatch.setattr(Decoder, "read", None)  # nothing is decoded again
    assert len(index.add(home).skipped) == 3
    (home / "film.mp4").rename(home / "moved.mp4")
    assert index.add(home).moved == {str(home / "moved.mp4"): str(home / "film.mp4")}
    shutil.copy(home / "moved.mp4", home / "copy.mp4")
    assert list(index.add(home).duplicates) == [str(home / "copy.mp4")]
    assert len(index) == 8 and len(index.parts(home / "copy.mp4")[0]) == 6
    assert index.row_of(home / "copy.mp4") == index.row_of(home / "moved.mp4")
    assert index.remove([home / "copy.mp4"]) == 1 and len(index) == 8
    assert index.remove([home / "moved.mp4"]) == 1 and len(index) == 2


def test_the_length_of_parts_belongs_to_the_index(tiny_model: SUMA, videos: Path, tmp_path: Path):
    index = VideoIndex(tiny_model, segment=120)
    index.add(videos / "film.mp4")
    index.save(tmp_path / "index")
    assert len(index) == 3 and index.store.segment == 120
    again = VideoIndex.load(tmp_path / "index", tiny_model)
    assert again.store.segment == 120 and len(again.add(videos).added) == 2
    assert len(VideoIndex.load(tmp_path / "index", tiny_model, 120)) == 5
    with pytest.raises(ValueError, match=r"120 s.*60 s"):
        VideoIndex.load(tmp_path / "index", tiny_model, 60)
    uncut = VideoIndex(tiny_model, segment=0)
    uncut.add(videos / "film.mp4")
    assert len(uncut) == 1 and uncut.rows[0].end == SECONDS
    with pytest.raises(ValueError, match="segment"):
        VideoIndex(tiny_model, segment=-1)


@pytest.mark.slow
def test_a_slow_reader_of_many_parts_does_not_lose_the_child(videos: Path):
    """The child's own time limit runs while it decodes, not while it waits for us to take what it decoded."""
    child = Decoder(time_limit=2)
    seen = 0
    for part in child.read(str(videos / "film.mp4"), 12, 10.0):
        seen += len(list(part.frames))
        if not part.start:
            time.sleep(7)  # the child's limit is 2 * 2 s + 2
    child.close()
    assert seen > 300 and len(child.digest) == 64
