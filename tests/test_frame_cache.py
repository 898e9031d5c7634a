"""The frame cache: decoded once, whole after a kill, as raw bytes or as JPEG."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frame_cache
import numpy as np
import pytest
from benchmarks import Clip, load_clips
from clips import corner_picture, gray, gray_picture, write_video
from frame_cache import FORMATS, FrameCache
from processes import OTHERS
from test_data import IMAGE, benchmark, clip  # noqa: F401  (a fixture)

# ruff: noqa: F811  (fixtures)


@pytest.mark.parametrize("form", FORMATS)
def test_frames_are_decoded_once_and_kept(benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    clips = load_clips(str(benchmark), "train_9k")
    cache = FrameCache(clips, 4, IMAGE, tmp_path, form)
    assert cache.build() == []
    assert cache.counts.tolist() == [3, 4, 4, 4]
    first = cache.get(0, np.array([0, 1, 2]))
    assert first.shape == (3, 3, 32, 32) and first.dtype == np.uint8
    assert first.mean((1, 2, 3)) == pytest.approx([gray(i) for i in range(3)], abs=3)
    assert cache.get(0, np.array([2]))[0].mean() == pytest.approx(gray(2), abs=3)

    def fail(*args: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(frame_cache, "read_frames", fail)
    again = FrameCache(clips, 4, IMAGE, tmp_path, form)
    assert again.build() == []
    assert again.counts.tolist() == [3, 4, 4, 4]
    assert (again.get(0, np.arange(3)) == first).all()


@pytest.mark.parametrize("form", FORMATS)
def test_a_killed_build_decodes_only_what_is_left(benchmark: Path, tmp_path: Path, monkeypatch, form: str):
    clips, read, seen = load_clips(str(benchmark), "train_9k"), frame_cache.read_frames, []

    def dies_at_the_third(path: Path, *args: Any) -> Any:
        seen.append(path.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return read(path, *args)

    monkeypatch.setattr(frame_cache, "read_frames", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        FrameCache(clips, 4, IMAGE, tmp_path, form).build(workers=1)
    del seen[:]
    seen += ["-"] * 9
    cache = FrameCache(clips, 4, IMAGE, tmp_path, form)
    cache.build(workers=1)
    assert cache.counts.tolist() == [3, 4, 4, 4]
    assert "video0.mp4" not in seen and "video2.mp4" in seen


def test_other_frames_or_pictures_have_a_cache_of_their_own(benchmark: Path, tmp_path: Path):
    clips = load_clips(str(benchmark), "train_9k")
    folders = {
        FrameCache(*arguments, tmp_path).folder
        for arguments in (
            (clips, 4, IMAGE),
            (clips, 5, IMAGE),
            (clips[:3], 4, IMAGE),
            (clips, 4, {**IMAGE, "size": 48}),
        )
    }
    folders.add(FrameCache(clips, 4, IMAGE, tmp_path, "jpeg").folder)
    assert len(folders) == 5


def test_jpegs_are_nearly_the_raw_frames_in_a_fraction_of_the_disk(tmp_path: Path):
    """Also where several threads write: each picture comes back to its own place."""
    write_video(tmp_path / "a.mp4", 8, (96, 96), picture=gray_picture)
    write_video(tmp_path / "b.mp4", 5, (96, 96), picture=corner_picture)
    clips = [clip(n, path=tmp_path / f"{name}.mp4") for n, name in enumerate("abababab")]
    image = {**IMAGE, "size": 96}
    raw, jpeg = (FrameCache(clips, 8, image, tmp_path, form) for form in FORMATS)
    for cache in (raw, jpeg):
        cache.build(workers=4)
    assert raw.counts.tolist() == jpeg.counts.tolist() == [8, 5] * 4
    for i, count in enumerate(raw.counts):
        picks = np.arange(count)[::-1]
        a, b = raw.get(i, picks), jpeg.get(i, picks)
        assert a.shape == b.shape and b.dtype == np.uint8
        assert np.abs(a.astype(int) - b).mean() < 2
    size = {cache.folder: sum(f.stat().st_size for f in cache.folder.iterdir()) for cache in (raw, jpeg)}
    assert size[jpeg.folder] < size[raw.folder] / 5


def test_an_unknown_format_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'png'"):
        FrameCache([], 4, IMAGE, tmp_path, "png")


def test_a_full_disk_is_no_unreadable_video(benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = FrameCache(load_clips(str(benchmark), "train_9k"), 4, IMAGE, tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._store, "put", full)
    with pytest.raises(OSError, match="No space left"):
        cache.build(skip_unreadable=True)
    assert cache.counts.tolist() == [0, 0, 0, 0] and (cache._counts == 0).all()


@pytest.fixture
def broken(benchmark: Path, tmp_path: Path) -> list[Clip]:
    """A readable video, a file that is none, and a file that is not there."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    good = load_clips(str(benchmark), "train_9k")[0]
    return [good, clip(1, path=tmp_path / "broken.mp4"), clip(2, path=tmp_path / "gone.mp4")]


def test_an_unreadable_video_stops_the_build_with_its_name(broken: list[Clip], tmp_path: Path):
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        FrameCache(broken[:2], 4, IMAGE, tmp_path / "a").build()
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        FrameCache([broken[2]], 4, IMAGE, tmp_path / "b").build()


def test_unreadable_videos_that_may_be_skipped_are_reported_and_count_no_frames(broken: list[Clip], tmp_path: Path):
    cache = FrameCache(broken, 4, IMAGE, tmp_path / "cache")
    reasons = cache.build(skip_unreadable=True)
    assert [name in reason for name, reason in zip(("broken.mp4", "gone.mp4"), reasons, strict=True)] == [True, True]
    assert cache.counts.tolist() == [3, 0, 0]


def test_a_video_once_skipped_still_stops_a_build_that_skips_none(broken: list[Clip], tmp_path: Path):
    FrameCache(broken[:2], 4, IMAGE, tmp_path / "cache").build(skip_unreadable=True)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        FrameCache(broken[:2], 4, IMAGE, tmp_path / "cache").build()


def test_a_disk_too_small_is_an_error_with_both_sizes_before_anything_is_decoded(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="SUMA_CACHE"):
        FrameCache(broken, 4, IMAGE, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**12))
    FrameCache(broken, 4, IMAGE, tmp_path)


def test_a_missing_video_does_not_shift_the_frames_of_the_others(broken: list[Clip], tmp_path: Path):
    """A list with a gap has a cache of its own: row 1 of one is no row of the other."""
    good, _, gone = broken
    first = FrameCache([gone, good], 4, IMAGE, tmp_path / "cache")
    first.build(skip_unreadable=True)
    second = FrameCache([good, gone], 4, IMAGE, tmp_path / "cache")
    second.build(skip_unreadable=True)
    assert first.counts.tolist() == [0, 3] and second.counts.tolist() == [3, 0]


def test_an_edited_video_is_decoded_again(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", 4, (32, 32), picture=lambda i, w, h: gray_picture(2, w, h))
    cache = FrameCache([clip(0, path=path)], 4, IMAGE, tmp_path / "cache")
    cache.build()
    write_video(path, 4, (32, 32), picture=lambda i, w, h: gray_picture(20, w, h))
    again = FrameCache([clip(0, path=path)], 4, IMAGE, tmp_path / "cache")
    again.build()
    assert again.get(0, np.array([0])).mean() == pytest.approx(gray(20), abs=3)


def build_counts(paths: list[Path], form: str, folder: Path) -> list[float]:
    """Run in a process of its own: the mean gray level of each clip's first frame."""
    cache = FrameCache([clip(n, path=path) for n, path in enumerate(paths)], 4, IMAGE, folder, form)
    cache.build(workers=2)
    return [float(cache.get(n, np.array([0])).mean()) for n in range(len(paths))]


def test_two_processes_build_one_cache(tmp_path: Path):
    paths = [tmp_path / f"{n}.mp4" for n in range(12)]
    for n, path in enumerate(paths):
        write_video(path, 4, (32, 32), picture=lambda i, w, h, n=n: gray_picture(2 * n, w, h))
    with ProcessPoolExecutor(2, OTHERS) as pool:
        for form in FORMATS:
            found = [pool.submit(build_counts, paths, form, tmp_path / form) for _ in range(2)]
            for levels in (future.result() for future in found):
                assert levels == pytest.approx([gray(2 * n) for n in range(12)], abs=3), form
            assert len(list((tmp_path / form).iterdir())) == 1
