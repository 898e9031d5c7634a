"""VideoIndex: what it finds equals the score of every pair; what it cannot read it says; what it keeps is whole."""

import os
import shutil
import signal
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import noise_picture, write_video
from tensors import videos_of

from suma import SUMA, VideoIndex
from suma.index import ingest
from suma.index.store import Store
from suma.video.frames import read_frames
from suma.video.worker import Decoder

QUERIES = ["a dog runs", "a cat sits on the mat", "something never said before"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of different noise, one text file that pretends, one empty file."""
    folder = tmp_path_factory.mktemp("gallery") / "videos"
    folder.mkdir()
    for n in range(6):
        pictures = [noise_picture(100 * n + i // 4, 64, 48) for i in range(16)]
        write_video(folder / f"clip {n}.mp4", frames=16, size=(64, 48), picture=lambda i, w, h, p=pictures: p[i])
    write_video(folder.parent / "other.mp4", frames=16, size=(64, 48), picture=noise_picture)
    (folder / "liar.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def index(tiny_model: SUMA, folder: Path) -> VideoIndex:
    index = VideoIndex(tiny_model)
    index.add(folder)
    return index


def brute_force(index: VideoIndex, query: str) -> torch.Tensor:
    model = index.model
    with torch.no_grad():
        return model.score(model.make_texts([query]), videos_of(model, index.videos(range(len(index)))))[0]


def test_unreadable_files_are_kept_with_reasons_and_never_found(tiny_model: SUMA, folder: Path):
    index = VideoIndex(tiny_model)
    report = index.add(folder)
    assert len(report.added) == len(index) == 6
    assert {Path(path).name for path in report.failed} == {"liar.mp4", "empty.mp4"}
    assert all(reason for reason in report.failed.values())
    assert {Path(row.path).name for row in index.failed} == {"liar.mp4", "empty.mp4"}
    assert len(index.search("a dog", top_k=50)) == 6


def test_bfloat16_is_taken_only_where_the_processor_has_it(
    tiny_model: SUMA, folder: Path, index: VideoIndex, monkeypatch
):
    def encoded(there: bool) -> np.ndarray:
        monkeypatch.setattr("suma.model.suma.has_bf16", lambda: there)
        half = VideoIndex(tiny_model)
        half.add(folder / "clip 0.mp4", bf16=True)
        return half.videos([0]).frames

    exact = index.videos([index.row_of(folder / "clip 0.mp4")]).frames
    with pytest.warns(UserWarning, match="no bfloat16"):
        assert np.allclose(encoded(False), exact, atol=1e-3)  # float16 of other batches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = encoded(True)
    assert not np.allclose(near, exact, atol=1e-3) and float((near * exact).sum(-1).min()) > 0.999


@pytest.mark.parametrize("query", QUERIES)
def test_search_ranks_by_the_score_of_every_pair(index: VideoIndex, query: str):
    expected = brute_force(index, query)
    order = expected.argsort(descending=True).tolist()
    matches = index.search(query, top_k=6)
    assert [match.path for match in matches] == [index.rows[i].path for i in order]
    assert [match.score for match in matches] == pytest.approx(expected[order].tolist(), abs=1e-4)
    assert [m.path for m in index.search(query, top_k=2)] == [m.path for m in matches[:2]]


def test_candidates_of_the_folded_stage_are_rescored_with_their_frames(index: VideoIndex, monkeypatch):
    monkeypatch.setattr("suma.index.search.CANDIDATES", 3)
    expected = brute_force(index, QUERIES[0])
    for match in index.search(QUERIES[0], top_k=2):
        row = index.row_of(match.path)
        assert match.score == pytest.approx(float(expected[row]), abs=1e-4)


def test_the_moment_is_the_time_of_the_best_frame(index: VideoIndex):
    match = index.search(QUERIES[0], top_k=1)[0]
    row, clip = index.read(match.path)
    video = videos_of(index.model, clip)
    with torch.no_grad():
        texts, share = index.model.make_texts([QUERIES[0]]), index.model.config.concept_share
    best, best_score = -1, -9.0
    for f, _ in enumerate(row.times):
        fine = float(texts.features[0] @ video.frames[0, f])
        aligned = float(texts.anchors[0] @ video.frame_concepts[0, f])
        if (1 - share) * fine + share * aligned > best_score:
            best, best_score = f, (1 - share) * fine + share * aligned
    assert match.moment == row.times[best]


def test_captions_rank_by_the_same_score(index: VideoIndex, monkeypatch):
    captions = [*QUERIES, "a dog", "a bird sings", "the mat", "dogs and cats"]
    index.set_captions([*captions, "", "  ", captions[0]])
    assert index.caption_list == captions
    model = index.model
    video = videos_of(model, index.read(index.rows[2].path)[1])
    with torch.no_grad():
        expected = model.score(model.make_texts(captions), video)[:, 0]
    found = index.captions(index.rows[2].path, top_k=7)
    assert [caption for caption, _ in found] == [captions[i] for i in expected.argsort(descending=True)]
    assert [score for _, score in found] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-4)


def test_similar_is_the_cosine_of_both_spaces_and_leaves_the_video_out(index: VideoIndex):
    path, share = index.rows[1].path, index.model.config.concept_share
    videos = videos_of(index.model, index.videos(range(len(index))))
    naive = {}
    for i, row in enumerate(index.rows):
        original = float(videos.features[1] @ videos.features[i])
        aligned = float(videos.concepts[1] @ videos.concepts[i])
        naive[row.path] = (1 - share) * original + share * aligned
    del naive[path]
    found = index.similar(path, top_k=10)
    assert {m.path: m.score for m in found} == pytest.approx(naive, abs=1e-3)
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)


def test_a_video_outside_the_index_is_read_and_not_added(index: VideoIndex, folder: Path, tmp_path: Path):
    copy = tmp_path / "copy.mp4"
    shutil.copy(folder / "clip 3.mp4", copy)
    assert Path(index.similar(copy, top_k=1)[0].path).name == "clip 3.mp4"
    assert len(index) == 6
    with pytest.raises(FileNotFoundError, match="nowhere"):
        index.similar(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match=r"liar\.mp4"):
        index.similar(folder / "liar.mp4")


def test_an_image_finds_the_video_it_was_taken_from(index: VideoIndex, folder: Path, tmp_path: Path):
    from PIL import Image

    Image.fromarray(read_frames(folder / "clip 4.mp4", 12).frames[6]).save(tmp_path / "still.png")
    assert Path(index.similar(tmp_path / "still.png", top_k=1)[0].path).name == "clip 4.mp4"


def test_unchanged_files_are_not_decoded_again_and_changed_ones_are(tiny_model: SUMA, folder: Path, tmp_path: Path):
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    index = VideoIndex(tiny_model)
    index.add(videos)
    before = {row.path: index.videos([i]).frames for i, row in enumerate(index.rows)}
    (videos / "clip 0.mp4").touch()  # a new time, the same content
    shutil.copy(folder.parent / "other.mp4", videos / "clip 2.mp4")
    report = index.add(videos)
    assert [Path(p).name for p in report.added] == ["clip 2.mp4"]
    assert len(report.skipped) == 5
    after = {row.path: index.videos([i]).frames for i, row in enumerate(index.rows)}
    changed = {Path(p).name for p in after if not np.array_equal(after[p], before[p])}
    assert changed == {"clip 2.mp4"}
    assert len(index) == 6


def test_remove_forgets_a_video(tiny_model: SUMA, folder: Path):
    index = VideoIndex(tiny_model)
    index.add(folder)
    assert index.remove([folder / "clip 5.mp4", folder / "liar.mp4", "never there.mp4"]) == 2
    assert len(index) == 5
    assert "clip 5.mp4" not in {Path(m.path).name for m in index.search("a dog", top_k=9)}


def test_bad_questions_have_clear_errors_and_long_ones_an_answer(index: VideoIndex, tiny_model: SUMA):
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="empty"):
            index.search(empty)
    with pytest.raises(ValueError, match="top_k"):
        index.search("a dog", top_k=0)
    assert len(index.search("dog " * 2500, top_k=3)) == 3
    assert index.search("\U0001f415 \u72ac", top_k=1)
    assert VideoIndex(tiny_model).search("a dog") == []
    with pytest.raises(ValueError, match="no captions"):
        VideoIndex(tiny_model).captions(index.rows[0].path)


def test_a_saved_index_answers_the_same_also_when_moved(index: VideoIndex, folder: Path, tmp_path: Path):
    index.set_captions(QUERIES)
    home = tmp_path / "home"
    shutil.copytree(folder, home / "videos")
    fresh = VideoIndex(index.model)
    fresh.add(home / "videos")
    fresh.set_captions(QUERIES)
    fresh.save(home / "index")
    moved = tmp_path / "moved"
    home.rename(moved)
    loaded = VideoIndex.load(moved / "index", index.model)
    assert loaded.caption_list == QUERIES
    assert {Path(r.path).parent for r in [*loaded.rows, *loaded.failed]} == {moved / "videos"}
    for a, b in zip(fresh.search(QUERIES[1]), loaded.search(QUERIES[1]), strict=True):
        assert (Path(a.path).name, a.score, a.moment, a.concepts) == (Path(b.path).name, b.score, b.moment, b.concepts)
    assert len(loaded.add(moved / "videos").skipped) == 6


def test_loading_with_another_model_names_both(index: VideoIndex, tiny_model: SUMA, tmp_path: Path):
    index.save(tmp_path / "index")
    tiny_model.save_pretrained(tmp_path / "model")
    other = SUMA.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        other.space.centres[0, 0] += 1
    with pytest.raises(ValueError, match=f"{tiny_model.fingerprint()}.*{other.fingerprint()}"):
        VideoIndex.load(tmp_path / "index", other)


def test_file_names_that_are_no_text_are_kept(tiny_model: SUMA, folder: Path, tmp_path: Path):
    odd = tmp_path / "videos" / os.fsdecode(b"d\xff \n \xf0\x9f\x90\x95.mp4")
    odd.parent.mkdir()
    shutil.copy(folder / "clip 0.mp4", odd)
    index = VideoIndex(tiny_model)
    index.add(tmp_path / "videos")
    index.save(tmp_path / "index")
    assert VideoIndex.load(tmp_path / "index", tiny_model).search("a dog")[0].path == str(odd)


def test_a_change_in_a_few_bytes_of_the_same_size_is_seen(tiny_model: SUMA, folder: Path, tmp_path: Path):
    video = tmp_path / "clip.mp4"
    shutil.copy(folder / "clip 0.mp4", video)
    index = VideoIndex(tiny_model)
    index.add(video)
    content = bytearray(video.read_bytes())
    content[-1] ^= 255
    video.write_bytes(content)
    os.utime(video, (1, 1))
    assert index.add(video).added == [str(video)]


def test_concept_statistics_are_those_of_all_frames(index: VideoIndex):
    heat = []
    for i in range(len(index)):
        heat.append(index.videos([i]).frames[0] @ index.model.concepts().T)
    every = np.concatenate(heat)
    mean, deviation = index.concept_statistics()
    assert mean == pytest.approx(every.mean(0), abs=1e-5)
    assert deviation == pytest.approx(np.maximum(every.std(0), 1e-3), abs=1e-4)


def test_real_clips_are_indexed(tiny_model: SUMA):
    clips = Path(__file__).resolve().parents[2] / "shared" / "realclips" / "videos"
    if not clips.is_dir():
        pytest.skip("no real clips beside the repository")
    index = VideoIndex(tiny_model)
    report = index.add(clips)
    assert len(index) == len(list(clips.iterdir())) and not report.failed


# Changed, moved, deleted, copied


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names: list[str] = []
    read = Decoder.read

    def counting(self: Decoder, path: str, *args: object) -> object:
        names.append(Path(path).name)
        return read(self, path, *args)

    monkeypatch.setattr(Decoder, "read", counting)
    return names


@pytest.fixture
def gallery(tiny_model: SUMA, folder: Path, tmp_path: Path) -> tuple[VideoIndex, Path]:
    """An index of a copy of the six clips, and the copy's folder."""
    shutil.copytree(folder, tmp_path / "videos")
    index = VideoIndex(tiny_model)
    index.add(tmp_path / "videos")
    index.save(tmp_path / "index")
    return index, tmp_path / "videos"


def names(paths: Iterable[str]) -> list[str]:
    return sorted(Path(path).name for path in paths)


def test_nothing_is_decoded_twice_also_not_what_failed(gallery: tuple[VideoIndex, Path], decoded: list[str]):
    index, videos = gallery
    report = index.add(videos)
    assert decoded == [] and len(report.skipped) == 6 and names(report.failed) == ["empty.mp4", "liar.mp4"]
    assert names(index.add(videos, retry=True).failed) == ["empty.mp4", "liar.mp4"]
    assert sorted(decoded) == ["empty.mp4", "liar.mp4"]
    shutil.copy(videos / "clip 1.mp4", videos / "liar.mp4")  # mended, by a copy of another
    report = index.add(videos)
    assert names(report.duplicates) == ["liar.mp4"] and names(report.failed) == names(r.path for r in index.failed)
    assert names(index.add(videos).failed) == ["empty.mp4"]


def test_a_moved_file_keeps_its_features(gallery: tuple[VideoIndex, Path], decoded: list[str]):
    index, videos = gallery
    before = index.videos([index.row_of(videos / "clip 2.mp4")]).frames
    (videos / "deeper").mkdir()
    (videos / "clip 2.mp4").rename(videos / "deeper" / "new name.mp4")
    report = index.add(videos)
    assert decoded == [] and report.added == [] and report.missing == []
    assert report.moved == {str(videos / "deeper" / "new name.mp4"): str(videos / "clip 2.mp4")}
    assert len(index) == 6 and np.array_equal(
        index.videos([index.row_of(videos / "deeper" / "new name.mp4")]).frames, before
    )
    with pytest.raises(KeyError):
        index.row_of(videos / "clip 2.mp4")


def test_a_renamed_file_whose_old_name_another_took_is_not_lost(gallery: tuple[VideoIndex, Path], decoded: list[str]):
    index, videos = gallery
    before = index.videos([index.row_of(videos / "clip 2.mp4")]).frames
    (videos / "clip 2.mp4").rename(videos / "later.mp4")
    write_video(videos / "clip 2.mp4", picture=lambda i, w, h: noise_picture(500 + i, w, h))
    report = index.add(videos)
    assert str(videos / "later.mp4") not in report.failed
    assert index.row_of(videos / "clip 2.mp4") != index.row_of(videos / "later.mp4")
    again = index.videos([index.row_of(videos / "later.mp4")]).frames
    assert np.allclose(again, before, atol=1e-3)


def test_copies_share_one_clip_until_the_last_is_gone(gallery: tuple[VideoIndex, Path], decoded: list[str]):
    index, videos = gallery
    shutil.copy(videos / "clip 3.mp4", videos / "another.mp4")
    report = index.add(videos)
    assert report.duplicates == {str(videos / "another.mp4"): str(videos / "clip 3.mp4")}
    assert decoded == [] and len(index) == 6
    assert index.row_of(videos / "another.mp4") == index.row_of(videos / "clip 3.mp4")
    (videos / "clip 3.mp4").unlink()
    assert names(index.add(videos, prune=True).pruned) == ["clip 3.mp4"]
    assert len(index) == 6 and names(row.path for row in index.rows)[0] == "another.mp4"
    assert index.remove([videos / "another.mp4"]) == 1 and len(index) == 5


def test_two_new_copies_are_decoded_once(tiny_model: SUMA, folder: Path, tmp_path: Path, decoded: list[str]):
    for n in range(8):
        shutil.copy(folder / "clip 0.mp4", tmp_path / f"{n}.mp4")
        shutil.copy(folder / "liar.mp4", tmp_path / f"broken {n}.mp4")
    index = VideoIndex(tiny_model)
    report = index.add(tmp_path, workers=4)
    assert len(decoded) == 2 and len(index) == 1 and len(report.added) == 1 and len(report.duplicates) == 7
    assert len(report.failed) == len(index.failed) == 8 and all(report.failed.values())
    assert len(index.add(tmp_path).skipped) == 8


def test_deleted_files_are_told_and_pruned_on_request_only(gallery: tuple[VideoIndex, Path]):
    index, videos = gallery
    for name in ("clip 0.mp4", "clip 4.mp4", "liar.mp4"):
        (videos / name).unlink()
    outside = [row.path for row in index.rows]
    report = index.add(videos)
    assert names(report.missing) == ["clip 0.mp4", "clip 4.mp4", "liar.mp4"] and [r.path for r in index.rows] == outside
    assert index.add(videos / "clip 1.mp4", prune=True).pruned == []  # only in folders that are given
    assert names(index.add(videos, prune=True).pruned) == ["clip 0.mp4", "clip 4.mp4", "liar.mp4"]
    assert names(row.path for row in index.rows) == [f"clip {n}.mp4" for n in (1, 2, 3, 5)]
    assert names(row.path for row in VideoIndex.load(index.folder, index.model).failed) == ["empty.mp4"]


def test_a_file_that_may_not_be_read_is_tried_again(tiny_model: SUMA, folder: Path, tmp_path: Path, monkeypatch):
    shutil.copy(folder / "clip 0.mp4", tmp_path / "0.mp4")
    index, read = VideoIndex(tiny_model), Decoder.read

    def refused(*args: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Decoder, "read", refused)
    assert "Permission denied" in index.add(tmp_path).failed[str(tmp_path / "0.mp4")]
    monkeypatch.setattr(Decoder, "read", read)
    assert len(index.add(tmp_path).added) == 1 and index.failed == []


@pytest.mark.parametrize("when", ["behind the commit's transaction", "between two parts of a batch"])
def test_ctrl_c_at_a_bad_moment_costs_nothing(
    tiny_model: SUMA, folder: Path, index: VideoIndex, monkeypatch, when: str
):
    cut, calls = VideoIndex(tiny_model), 0

    def third_clip(*args: object, real=ingest.NewClip):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        if when == "behind the commit's transaction":
            real, written = Store._look, []

            def behind(self: Store, *args: object) -> object:  # the first commit of clips is through, the state not yet
                if not written and self.snapshot.origin.all("SELECT 1 FROM clips"):
                    written.append(os.kill(os.getpid(), signal.SIGINT))
                return real(self, *args)

            write = Store._write
            patch.setattr(Store, "_write", lambda *args: patch.setattr(Store, "_look", behind) or write(*args))
        else:
            patch.setattr(ingest, "NewClip", third_clip)
        with pytest.raises(KeyboardInterrupt):
            cut.add(folder)
    signal.signal(signal.SIGINT, before)
    assert len(cut) > 0
    cut.add(folder)
    assert len(cut) == len(index) == 6
    for path in sorted(folder.glob("clip*")):
        kept, whole = cut.videos([cut.row_of(path)]), index.videos([index.row_of(path)])
        assert np.allclose(kept.rows, whole.rows, atol=1e-3)


def test_a_broken_file_whose_name_is_no_utf8_costs_that_file_alone(tiny_model: SUMA, tmp_path: Path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "good.mp4", 6, (64, 64), fps=6)
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.mp4")).write_bytes(b"no video")
    index = VideoIndex(tiny_model)
    index.save(tmp_path / "index")
    report = index.add(folder)
    assert [Path(path).name for path in report.added] == ["good.mp4"] and len(report.failed) == 1
    again = VideoIndex.load(tmp_path / "index", tiny_model)
    assert "bad\\udcff.mp4" in again.failed[0].reason and again.failed[0].path == next(iter(report.failed))
