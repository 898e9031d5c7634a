"""Where the files of an index lie: copies, spellings of a path, drives that are not connected, what is left out."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clips import noise_picture, write_video

from suma import SUMA, VideoIndex
from suma.__main__ import main
from suma.app import startup
from suma.index.files import find_videos
from suma.index.query import Filter
from suma.index.storage import Report, key

NAMES = ["0.mp4", "1.mp4", "2.mp4"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short clips of different noise."""
    folder = tmp_path_factory.mktemp("clips")
    for n, name in enumerate(NAMES):
        write_video(folder / name, frames=4, picture=lambda i, w, h, n=n: noise_picture(100 * n + i, w, h))
    return folder


@pytest.fixture
def videos(clips: Path, tmp_path: Path) -> Path:
    """A copy of them: 0.mp4 and 1.mp4 in `data/videos`, 2.mp4 in its folder `nas`."""
    folder = tmp_path / "data" / "videos"
    (folder / "nas").mkdir(parents=True)
    for n, name in enumerate(NAMES):
        shutil.copy2(clips / name, folder / ("nas" if n == 2 else "") / name)
    return folder


def made(model: SUMA, videos: Path, folder: Path) -> VideoIndex:
    index = VideoIndex(model)
    index.add(videos)
    index.save(folder)
    return index


def names(paths: Any) -> list[str]:
    return sorted(Path(path).name for path in paths)


# Copies of one content


@pytest.fixture
def copies(tiny_model: SUMA, clips: Path, tmp_path: Path) -> VideoIndex:
    """`a/x.mp4`, of 2020, and its copy `holidays/y.mp4`, of 2024, with another video in `a`."""
    for path, name, year in (("a/x.mp4", "0.mp4", 2020), ("holidays/y.mp4", "0.mp4", 2024), ("a/z.mp4", "1.mp4", 2020)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(clips / name, tmp_path / path)
        os.utime(tmp_path / path, (1e9, (year - 1970) * 31_556_952.0 + 1e6))
    index = VideoIndex(tiny_model)
    index.add([tmp_path / "a", tmp_path / "holidays"])
    assert len(index) == 2
    return index


def test_a_copy_answers_that_satisfies_the_query(copies: VideoIndex, tmp_path: Path):
    x, y, z = (str(tmp_path / path) for path in ("a/x.mp4", "holidays/y.mp4", "a/z.mp4"))

    def found(words: str = "") -> set[str]:
        return {match.path for match in copies.search(f"a dog {words}", 9)}

    assert found() == {x, z} == found("in:a") == found("before:2022-01-01")
    assert found("in:holidays") == {y} == found("after:2022-01-01") == found("in:holidays after:2022-01-01")
    assert found("in:a after:2022-01-01") == set()
    assert [match.path for match in copies.similar(z, filter=Filter("holidays"))] == [y]
    assert {match.path for match in copies.search("a dog", within=y)} == {y}
    assert {row.path for row in copies.parts(y)[0]} == {y}


def test_a_copy_answers_that_is_there(copies: VideoIndex, tmp_path: Path):
    x, y, z = (str(tmp_path / path) for path in ("a/x.mp4", "holidays/y.mp4", "a/z.mp4"))
    Path(x).unlink()
    assert {match.path for match in copies.search("a dog", 9)} == {y, z} == {row.path for row in copies.rows}
    Path(y).unlink()  # maybe out of reach: it is still found, and its place said
    assert {match.path for match in copies.search("a dog in:holidays", 9)} == {y}
    assert {match.path for match in copies.search("a dog", 9)} == {x, z}


# Other spellings of a folder


def moved_beside(model: SUMA, videos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    home = videos.parents[1] / "home"
    made(model, videos, home / "my.index")
    (home / "my.index").rename(videos.parent / "my.index")
    return str(videos.parent / "my.index"), str(videos)


def relative_then_absolute(model: SUMA, videos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(videos.parent)
    made(model, Path("videos"), Path("../my.index"))
    return str(videos.parents[1] / "my.index"), str(videos)


def absolute_then_relative(model: SUMA, videos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    made(model, videos, videos.parent / "my.index")
    monkeypatch.chdir(videos)
    return "../my.index", "../videos/nas/.."


def through_links(model: SUMA, videos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    made(model, videos, videos.parent / "my.index")
    (videos.parents[1] / "link").symlink_to(videos.parent)
    (videos.parents[1] / "link.index").symlink_to(videos.parent / "my.index")
    return str(videos.parents[1] / "link.index"), str(videos.parents[1] / "link" / "videos")


def made_through_links(model: SUMA, videos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    (videos.parents[1] / "link").symlink_to(videos.parent)
    made(model, videos.parents[1] / "link" / "videos", videos.parents[1] / "link" / "my.index")
    return str(videos.parent / "my.index"), str(videos)


Way = Callable[[SUMA, Path, pytest.MonkeyPatch], tuple[str, str]]
WAYS = [moved_beside, relative_then_absolute, absolute_then_relative, through_links, made_through_links]


@pytest.mark.parametrize("way", WAYS)
def test_an_index_is_the_same_by_any_spelling(
    tiny_model: SUMA, videos: Path, monkeypatch: pytest.MonkeyPatch, way: Way
):
    folder, spelled = way(tiny_model, videos, monkeypatch)
    index, first = VideoIndex.load(folder, tiny_model), os.path.join(spelled, "0.mp4")
    assert names(m.path for m in index.similar(first, 9)) == NAMES[1:]  # read only: not the video itself
    assert names(m.path for m in index.search(f"a dog in:{Path(spelled).absolute()}", 9)) == NAMES
    report = index.add(spelled, prune=True)
    assert (names(report.skipped), report.added, report.duplicates, report.moved) == (NAMES, [], {}, {})
    assert {row.path for row in index.rows} == {str(videos / "nas" / "2.mp4"), *(str(videos / n) for n in NAMES[:2])}
    assert index.row_of(first) >= 0 and names(m.path for m in index.similar(first, 9)) == NAMES[1:]
    assert index.remove([first]) == 1 and len(index) == 2


@pytest.mark.parametrize("way", WAYS)
def test_index_and_videos_moved_together_go_on(
    tiny_model: SUMA, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way
):
    folder, spelled = way(tiny_model, videos, monkeypatch)
    VideoIndex.load(folder, tiny_model).add(spelled)
    place, moved = Path(os.path.realpath(folder)), tmp_path.parent / f"{tmp_path.name}-moved"
    monkeypatch.chdir("/")
    tmp_path.rename(moved)
    try:
        index = VideoIndex.load(moved / place.relative_to(tmp_path), tiny_model)
        assert {Path(row.path).exists() for row in index.rows} == {True}
        report = index.add(moved / "data" / "videos", prune=True)
        assert (names(report.skipped), report.added, report.moved) == (NAMES, [], {}) and len(index) == 3
    finally:
        moved.rename(tmp_path)


def test_an_index_with_two_spellings_of_a_file_keeps_one(tiny_model: SUMA, videos: Path, tmp_path: Path):
    index = made(tiny_model, videos, tmp_path / "my.index")
    (tmp_path / "link").symlink_to(videos)
    with index.store.writing(), index.store.snapshot.origin.transaction() as run:  # as an earlier version kept them
        run("UPDATE files SET path = 'link/1.mp4' WHERE path LIKE '%1.mp4'")
        columns = "size, mtime, digest, duration, reason, born"
        run(f"INSERT INTO files (path, {columns}) SELECT 'link/0.mp4', {columns} FROM files WHERE path LIKE '%/0.mp4'")
    again = VideoIndex.load(tmp_path / "my.index", tiny_model)
    assert names(again.add(videos).skipped) == NAMES and len(again) == 3
    assert again.remove([tmp_path / "link" / "0.mp4"]) == 1 and again.remove([videos / "1.mp4"]) == 1
    assert names(row.path for row in again.rows) == ["2.mp4"]


def test_a_file_that_is_a_link_keeps_its_name(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").touch()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "film.mp4").symlink_to("../blobs/0123")
    (tmp_path / "link").symlink_to("snapshot")
    assert key(tmp_path / "link" / "film.mp4") == str(tmp_path / "snapshot" / "film.mp4")
    assert [path.name for path in find_videos([tmp_path / "snapshot", tmp_path / "link"])] == ["film.mp4"]


# Offline is not deleted


def emptied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    away = folder.with_name(".away")
    folder.rename(away)
    folder.mkdir()
    return lambda: (folder.rmdir(), away.rename(folder))


def taken_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    folder.rename(folder.with_name(".away"))
    return lambda: folder.with_name(".away").rename(folder)


def with_another_in_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    back = emptied(folder, monkeypatch)
    (folder / "another drive.txt").touch()
    return lambda: ((folder / "another drive.txt").unlink(), back())


def forbidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Refuse the folder, as for a user without rights (root has them all)."""
    patch = pytest.MonkeyPatch()

    def refusing(real: Callable[..., Any], place: Callable[[Any], Any]) -> Callable[..., Any]:
        def call(path: Any = ".", **options: Any) -> Any:
            if not isinstance(path, int) and os.fspath(place(path)) == str(folder):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return real(path, **options)

        return call

    patch.setattr(os, "scandir", refusing(os.scandir, lambda path: path))
    patch.setattr(os, "listdir", refusing(os.listdir, lambda path: path))
    patch.setattr(os, "lstat", refusing(os.lstat, os.path.dirname))
    return patch.undo


@pytest.mark.parametrize("away", [emptied, taken_away, with_another_in_its_place, forbidden])
def test_what_is_out_of_reach_is_kept_and_said(
    tiny_model: SUMA, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Any
):
    index = made(tiny_model, videos, tmp_path / "index")
    back = away(videos / "nas", monkeypatch)
    try:
        for prune in (False, True):
            report = index.add(videos, prune=prune)
            assert (report.pruned, report.missing) == ([], []) and len(index) == 3
            assert list(report.out_of_reach) == [str(videos / "nas" / "2.mp4")]
            assert any(str(videos / "nas") in note for note in report.notes())
    finally:
        back()
    report = index.add(videos, prune=True)
    assert names(report.skipped) == NAMES and (report.added, report.out_of_reach) == ([], {})


@pytest.mark.parametrize("away", [emptied, taken_away, forbidden])
@pytest.mark.parametrize("whole", [False, True])
def test_the_app_starts_with_what_is_out_of_reach(
    tiny_model: SUMA, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, away: Any, whole: bool
):
    folder = str(tmp_path / "index")
    assert len(startup.open_index(tiny_model, folder, str(videos))) == 3
    (videos / "0.mp4").unlink()  # only `index --prune` forgets it
    back = away(videos if whole else videos / "nas", monkeypatch)
    try:
        assert len(startup.open_index(tiny_model, folder, str(videos))) == 3
        assert str(videos) in capsys.readouterr().err
    finally:
        back()
    assert names(VideoIndex.load(folder, tiny_model).add(videos, prune=True).pruned) == ["0.mp4"]


def test_an_unreadable_folder_is_said_at_once(
    tiny_model: SUMA, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    tiny_model.save_pretrained(tmp_path / "model")
    command = ["index", str(videos), "-o", str(tmp_path / "index"), "--model", str(tmp_path / "model")]
    back = forbidden(videos / "nas", monkeypatch)
    try:
        assert main(command) == 0
        told = capsys.readouterr()
        assert "2 added" in told.out and f"not read: {videos / 'nas'}: Permission denied" in told.err
        with pytest.raises(PermissionError):
            find_videos(videos / "nas")
    finally:
        back()
    assert main(command) == 0 and "1 added" in capsys.readouterr().out
    back = emptied(videos / "nas", monkeypatch)
    assert main([*command, "--prune"]) == 0
    told = capsys.readouterr()
    assert "1 out of reach; 3 videos" in told.out and str(videos / "nas") in told.err
    back()


def test_a_broken_link_is_said(tmp_path: Path, videos: Path, tiny_model: SUMA):
    (videos / "far.mp4").symlink_to(tmp_path / "drive" / "far.mp4")
    index = VideoIndex(tiny_model)
    report = index.add(videos)
    assert len(report.added) == 3 and list(report.unreadable) == [str(videos / "far.mp4")]


def test_a_video_that_was_removed_for_good_stays_removed(tiny_model: SUMA, videos: Path, tmp_path: Path):
    index = startup.open_index(tiny_model, str(tmp_path / "index"), str(videos))
    assert index.remove([videos / "0.mp4"], for_good=True) == 1 and index.remove([videos / "0.mp4"], for_good=True) == 0
    for _ in range(2):
        again = startup.open_index(tiny_model, str(tmp_path / "index"), str(videos))
        assert names(row.path for row in again.rows) == NAMES[1:] and again.failed == []
    report = again.add(videos)
    assert report.added == [] and report.failed == {}
    assert len(again.add(videos / "0.mp4").added) == 1  # by its own path it comes back
    again.remove([videos / "0.mp4"], for_good=True)
    assert len(again.add(videos, retry=True).added) == 1
    again.remove([videos / "0.mp4"], for_good=True)
    (videos / "0.mp4").unlink()
    assert names(again.add(videos, prune=True).pruned) == ["0.mp4"]


# What is left out


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def kept(root: Path, *exclude: str, pattern: str = "") -> list[str]:
    return [str(path.relative_to(root)) for path in find_videos(root / pattern if pattern else root, exclude)]


@pytest.mark.parametrize("pattern", ["", "**/*.mp4", "*", "*/**/*.mp4"])
def test_bins_and_thumbnails_of_file_servers_are_left_out(tmp_path: Path, pattern: str):
    bins = ["@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found", ".Trash-1000", "@Recycle", "#snapshot"]
    touch(tmp_path, "a/1.mp4", "a/b/2.mp4", *(f"{at}/{bin}/x/old.mp4" for bin in bins for at in ("a", "a/b", ".")))
    touch(tmp_path, "recycle/3.mp4", "a/lost+found.mp4")
    assert kept(tmp_path, pattern=pattern) == ["a/1.mp4", "a/b/2.mp4", "a/lost+found.mp4", "recycle/3.mp4"]
    assert kept(tmp_path / "a" / "#recycle") == ["x/old.mp4"]  # named outright
    assert len(kept(tmp_path, "!#recycle", pattern=pattern)) == 4 + 3


FILES = ("0.mp4", "1.MOV", "drafts/2.mp4", "old/3.mp4", "old/x/4.mp4", "x/old/5.mp4", "x/#6.mp4")


@pytest.mark.parametrize(
    ("lines", "out"),
    [
        (["*.mov"], {1}),
        (["drafts/"], {2}),
        (["old"], {3, 4, 5}),
        (["/old/"], {3, 4}),
        (["old/*.mp4"], {3, 4}),
        (["x/old"], {5}),
        (["**/old/*.mp4"], {3, 4, 5}),
        (["[0-3].*"], {0, 1, 2, 3}),
        (["old", "!5.mp4", "", "# 0.mp4", "#6.mp4"], {3, 4, 5}),  # below a folder that is left out nothing comes back
        (["*.mp4", "!/x/"], {0, 2, 3, 4, 5, 6}),
        (["*.mp4", "!5.mp4", "!\\#6.mp4"], {0, 2, 3, 4}),
        (["\\#6.mp4"], {6}),
        (["2.mp4/", "nothing"], set()),
    ],
)
@pytest.mark.parametrize("way", ["file", "option", "glob"])
def test_patterns_leave_out_as_in_a_gitignore(tmp_path: Path, lines: list[str], out: set[int], way: str):
    touch(tmp_path, *FILES)
    options = [line for line in lines if not line.startswith("#")] if way == "option" else []
    if way != "option":
        (tmp_path / ".sumaignore").write_text("\r\n".join(lines), encoding="utf-8-sig")
    found = kept(tmp_path, *options, pattern="**/*" if way == "glob" else "")
    assert sorted(found) == sorted(name for n, name in enumerate(FILES) if n not in out)


def test_a_deeper_file_counts_more_and_the_command_line_most(tmp_path: Path):
    touch(tmp_path, "a/1.mp4", "a/b/2.mp4", "c/2.mp4")
    (tmp_path / ".sumaignore").write_text("2.mp4\n")
    (tmp_path / "a" / ".sumaignore").write_text("!2.mp4\n/1.mp4\n")
    assert kept(tmp_path) == ["a/b/2.mp4"]
    assert kept(tmp_path, "!*.mp4") == ["a/1.mp4", "a/b/2.mp4", "c/2.mp4"]
    assert kept(tmp_path / "a", "cafe\u0301*") == ["b/2.mp4"]


def test_what_is_excluded_later_goes_with_prune_only(tiny_model: SUMA, videos: Path, tmp_path: Path, capsys: Any):
    tiny_model.save_pretrained(tmp_path / "model")
    command = ["index", str(videos), "-o", str(tmp_path / "index"), "--model", str(tmp_path / "model")]
    assert main([*command, "--exclude", "1.*", "--exclude", "nas/"]) == 0
    assert "1 added" in capsys.readouterr().out
    assert main(command) == 0 and "2 added, 1 unchanged" in capsys.readouterr().out
    (videos / ".sumaignore").write_text("nas\n")
    assert main(command) == 0 and "1 excluded; 3 videos" in capsys.readouterr().out
    assert main([*command, "--prune"]) == 0 and "1 pruned; 2 videos" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    told = capsys.readouterr().out
    assert "--exclude PATTERN" in told and ".sumaignore" in told


def test_the_report_says_where():
    report = Report(out_of_reach={"/x/1": "/x: gone", "/x/2": "/x: gone"}, unreadable={"/y": "Permission denied"})
    assert report.notes() == [
        "not read: /y: Permission denied",
        "out of reach, and kept in the index: 2 videos of /x: gone",
    ]
