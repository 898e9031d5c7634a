"""Following folders: what is new, changed or gone is told once, and what still grows is not told yet."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import noise_picture, write_video

from suma import SUMA, VideoIndex
from suma.__main__ import main
from suma.index import watch as watching
from suma.index.watch import watch


class Looks:
    """What happens between two looks, in place of the pauses; it ends the watching when there is no more."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __call__(self, seconds: float) -> None:
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def nothing() -> None:
    pass


@pytest.fixture
def index(tiny_model: SUMA, tmp_path: Path) -> VideoIndex:
    (tmp_path / "films").mkdir()
    for n in range(2):
        write_video(tmp_path / "films" / f"{n}.mp4", 8 + n, picture=noise_picture)
    index = VideoIndex(tiny_model)
    index.add(tmp_path / "films")
    return index


def told(index: VideoIndex, folder: Path, monkeypatch, *steps) -> Iterator[tuple[list[str], list[str]]]:
    monkeypatch.setattr(watching, "sleep", Looks(*steps))
    found = []
    with pytest.raises(KeyboardInterrupt):
        for ready, gone in watch(index, [folder]):
            found.append(([Path(path).name for path in ready], [Path(path).name for path in gone]))
    return found


def test_new_changed_and_lost_files_are_told_once(index: VideoIndex, tmp_path: Path, monkeypatch):
    films = tmp_path / "films"
    shutil.copy(films / "0.mp4", tmp_path / "copy.mp4")
    steps = [
        lambda: shutil.move(tmp_path / "copy.mp4", films / "new.mp4"),
        nothing,
        lambda: os.utime(films / "0.mp4", (1, 1)),
        nothing,
        (films / "1.mp4").unlink,
        *[nothing] * 3,
    ]
    assert told(index, films, monkeypatch, *steps) == [(["new.mp4"], []), (["0.mp4"], []), ([], ["1.mp4"])]


def test_a_file_that_grows_waits_and_another_does_not_wait_for_it(index: VideoIndex, tmp_path: Path, monkeypatch):
    films, whole = tmp_path / "films", (tmp_path / "films" / "0.mp4").read_bytes()

    def grow() -> None:
        with open(films / "grows.mp4", "ab") as file:
            file.write(whole[:1000])

    def other() -> None:
        grow()
        (films / "other.mp4").write_bytes(whole[:2000])

    found = told(index, films, monkeypatch, grow, other, grow, grow, nothing, nothing, nothing)
    assert found == [(["other.mp4"], []), (["grows.mp4"], [])]


def test_a_drive_that_is_away_has_lost_nothing(index: VideoIndex, tmp_path: Path, monkeypatch):
    films, away = tmp_path / "films", tmp_path / "away"
    steps = [lambda: films.rename(away), nothing, nothing, nothing, lambda: away.rename(films), nothing, nothing]
    assert told(index, films, monkeypatch, *steps) == []
    steps = [lambda: [file.unlink() for file in films.iterdir()], nothing, nothing, nothing]
    assert told(index, films, monkeypatch, *steps) == []  # as if another drive were mounted there


def test_the_command_goes_on_until_it_is_interrupted(index: VideoIndex, tmp_path: Path, monkeypatch, capsys):
    films, place = tmp_path / "films", tmp_path / "my.index"
    index.model.save_pretrained(tmp_path / "model")
    write_video(tmp_path / "new.mp4", 11, picture=noise_picture)
    steps = [lambda: shutil.move(tmp_path / "new.mp4", films), nothing, (films / "1.mp4").unlink, *[nothing] * 3]
    monkeypatch.setattr(watching, "sleep", Looks(*steps))
    options = ["-o", str(place), "--model", str(tmp_path / "model"), "--workers", "1"]
    assert main(["index", str(films), *options, "--watch"]) == 0
    first, *more = capsys.readouterr().out.splitlines()
    assert first == f"2 added, 0 unchanged, 0 failed; 2 videos in {place}"
    assert more == [
        f"1 added, 0 unchanged, 0 failed; 3 videos in {place}",
        f"0 added, 0 unchanged, 0 failed, 1 pruned; 2 videos in {place}",
    ]
    assert {Path(row.path).name for row in VideoIndex.load(place, index.model).rows} == {"0.mp4", "new.mp4"}
    assert main(["index", str(films), *options, "--watch", "--part", "1/2"]) == 2
    assert "merge the parts" in capsys.readouterr().err


def test_what_comes_later_is_read_as_the_first_films_were(index: VideoIndex, tmp_path: Path, monkeypatch):
    films, place = tmp_path / "films", tmp_path / "my.index"
    index.model.save_pretrained(tmp_path / "model")
    write_video(tmp_path / "phone.mp4", frames=200, size=(64, 48), gop=10)  # 20 s, a key frame each second
    monkeypatch.setattr(watching, "sleep", Looks(lambda: shutil.move(tmp_path / "phone.mp4", films), *[nothing] * 2))
    options = ["-o", str(place), "--model", str(tmp_path / "model"), "--workers", "1", "--exact", "--watch"]
    assert main(["index", str(films), *options]) == 0
    (late,) = (row for row in VideoIndex.load(place, index.model).rows if row.path.endswith("phone.mp4"))
    assert any(time != round(time) for time in late.times)  # not key frames
