"""Parts of an index, merged, are the index of one process; a part that was killed continues."""

import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import noise_picture, write_video
from stored import DIM, clip

from suma import SUMA, VideoIndex
from suma.__main__ import main
from suma.index import merge
from suma.index.files import Part, look_for
from suma.index.hubness import is_kept
from suma.index.merge import merge_folders
from suma.index.storage import describe
from suma.index.store import Store, newest

ROOT = Path(__file__).resolve().parents[1]
Suma = Callable[..., int]  # runs a command with the tiny model; its exit code


@pytest.fixture(scope="module")
def place(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 12 videos of 3 folders, a copy of one, and a broken one."""
    place = tmp_path_factory.mktemp("parts")
    tiny_model.save_pretrained(place / "model")
    for n in range(12):
        (place / "videos" / str(n % 3)).mkdir(parents=True, exist_ok=True)
        picture = lambda i, w, h, n=n: noise_picture(100 * n + i, w, h)  # noqa: E731
        write_video(place / "videos" / str(n % 3) / f"{n}.mp4", frames=8 + n, size=(64, 48), picture=picture)
    shutil.copy(place / "videos" / "0" / "0.mp4", place / "videos" / "2" / "zero.mp4")
    (place / "videos" / "1" / "broken.mp4").write_bytes(b"\0" * 100)
    (place / "captions.txt").write_text("a dog runs\na cat sits\n")
    return place


@pytest.fixture(scope="module")
def whole(place: Path, tiny_model: SUMA) -> VideoIndex:
    """The index of one process."""
    index = VideoIndex(tiny_model)
    index.add(place / "videos", workers=1)
    index.save(place / "whole")
    return index


@pytest.fixture
def suma(place: Path) -> Suma:
    def run(command: str, *args: str | Path) -> int:
        options = ["--model", str(place / "model"), *(["--workers", "1"] if command == "index" else [])]
        return main([command, *map(str, args), *options])

    return run


def add_parts(model: SUMA, videos: Path, output: Path, count: int = 2) -> list[Path]:
    """Index all parts of a folder, with what is there already."""
    folders = []
    for part in [Part(k, count) for k in range(1, count + 1)]:
        folder = part.folder(output)
        index = VideoIndex.load(folder, model) if folder.exists() else VideoIndex(model)
        index.save(folder)
        index.add(videos, workers=1, part=part)
        folders.append(folder)
    return folders


def assert_same(got: VideoIndex, whole: VideoIndex) -> None:
    """The same clips in the same order, with the same features (but for the last bit of float16: other batches), files,
    reasons and answers."""
    assert [(r.path, r.digest, r.times, r.duration) for r in got.rows] == [
        (r.path, r.digest, r.times, r.duration) for r in whole.rows
    ]
    a, b = got.store.snapshot, whole.store.snapshot
    assert np.array_equal(a.live, b.live)
    for one, other in zip((a.folded, *a.gather(a.live)), (b.folded, *b.gather(b.live)), strict=True):
        assert np.allclose(one, other, atol=1e-3)
    tables = [{(f.path, f.size, f.mtime, f.digest, f.reason) for f in s.files()} for s in (a, b)]
    assert tables[0] == tables[1]
    for query in ("a dog runs", "a small bird", "two people on a stage"):
        found, expected = got.search(query, 12), whole.search(query, 12)
        assert [(m.path, m.moment) for m in found] == [(m.path, m.moment) for m in expected]
        assert [m.score for m in found] == pytest.approx([m.score for m in expected], abs=1e-3)
    got.store.verify()


def test_each_file_is_in_one_part_and_stays_there(tmp_path: Path):
    def names(folder: Path, number: int) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in look_for(folder, part=Part(number, 3)).videos}

    for folder in ("here", "elsewhere"):
        (tmp_path / folder / "a").mkdir(parents=True)
        for n in range(60):
            (tmp_path / folder / "a" / f"{n}.mp4").touch()
    parts = [names(tmp_path / "here", k) for k in (1, 2, 3)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60 and all(len(part) > 10 for part in parts)
    assert parts == [names(tmp_path / "elsewhere", k) for k in (1, 2, 3)]
    (tmp_path / "here" / "0.mp4").touch()
    assert all(part <= names(tmp_path / "here", k) for k, part in enumerate(parts, 1))
    assert {f"a/{n}.mp4" for n in (2, 3)} <= parts[0]  # also in an index of which an earlier version has made parts
    assert len(look_for(f"{tmp_path}/here/*/*.mp4", part=Part(1, 1)).videos) == 60
    taken = [len(look_for(sorted(map(str, (tmp_path / "here/a").iterdir())), part=Part(k, 2)).videos) for k in (1, 2)]
    assert sum(taken) == 60 and min(taken) > 15


@pytest.mark.parametrize("part", ["0/8", "9/8", "x", "2", "1/0", "-1/2", ""])
def test_a_wrong_part_is_an_error(suma: Suma, tmp_path: Path, place: Path, capsys, part: str):
    assert suma("index", place / "videos", "-o", tmp_path / "index", f"--part={part}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no part ") and part in error and "such as 2/8" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "environ", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2"}]
)
def test_a_wrong_rank_is_an_error(environ: dict[str, str]):
    with pytest.raises(ValueError, match="WORLD_SIZE"):
        Part.of_process(environ)


def test_milvus_is_told_to_come_after_the_merge(suma: Suma, place: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (("index", place / "videos", "--part", "1/2"), ("merge", tmp_path / "a.part-1-of-2")):
        assert suma(*command, "-o", "milvus:lite.db/videos") == 2
        assert "VideoIndex.load(FOLDER).save('milvus:lite.db/videos')" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_merged_parts_are_the_index_of_one_process(suma: Suma, place, whole, tiny_model, tmp_path, capsys, monkeypatch):
    output, options = tmp_path / "an index", ("--captions", place / "captions.txt", "--hubness")
    assert suma("index", place / "videos", "-o", output, "--part", "1/2", *options) == 0
    first = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert suma("index", place / "videos", "-o", output, *options) == 0
    second = capsys.readouterr().out.splitlines()
    assert (
        first[-1]
        == second[-1]
        == f"when all 2 parts are done: python -m suma merge '{output}'.part-*-of-2 -o '{output}'"
    )
    counts = [
        [int(n) for n in re.findall(r"(\d+) (?:added|failed|duplicates)", lines[-2])] for lines in (first, second)
    ]
    assert sum(map(sum, counts)) == 14 and min(map(sum, counts)) > 2
    folders = sorted(glob.glob(f"{glob.escape(str(output))}.part-*-of-2"))
    assert folders == [f"{output}.part-1-of-2", f"{output}.part-2-of-2"]
    assert suma("merge", *folders[:1], "-o", output) == 0
    assert f"not merged: {folders[1]}: index this part" in capsys.readouterr().err
    shutil.rmtree(output)
    assert suma("merge", *folders, "-o", output) == 0
    out, err = capsys.readouterr()
    assert "12 added, 0 unchanged, 1 failed, 1 duplicates; 12 videos in" in out
    assert err.count("failed: ") == 1 and "broken.mp4" in err and "not merged" not in err
    got = VideoIndex.load(output, tiny_model)
    assert_same(got, whole)
    assert got.caption_list == ["a dog runs", "a cat sits"] and is_kept(got.store)
    assert suma("index", place / "videos", "-o", output, "--part", "1/2", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["added"] == [] and "python -m suma merge" in err
    assert suma("merge", *folders, "-o", output, "--json") == 0
    assert json.loads(capsys.readouterr().out)["added"] == []


def test_a_part_without_videos_is_no_error(suma: Suma, place: Path, tmp_path: Path, capsys):
    (tmp_path / "videos").mkdir()
    for name in ("one.mp4", "two.mp4"):
        shutil.copy(place / "videos" / "1" / "broken.mp4", tmp_path / "videos" / name)
    args = ("index", tmp_path / "videos", "-o", tmp_path / "index")
    assert [suma(*args, "--part", f"{k}/5") for k in range(1, 6)] == [0] * 5 and suma(*args) == 1
    parts = [tmp_path / f"index.part-{k}-of-5" for k in range(1, 6)]
    capsys.readouterr()
    assert suma("merge", *parts, "-o", tmp_path / "merged") == 1
    assert capsys.readouterr().out.startswith("0 added, 0 unchanged, 2 failed; 0 videos")
    shutil.copy(place / "videos" / "0" / "0.mp4", tmp_path / "videos" / "one.mp4")
    assert [suma(*args, "--part", f"{k}/5") for k in range(1, 6)] == [0] * 5
    assert suma("merge", *parts, "-o", tmp_path / "merged") == 0  # the readable file counts
    assert suma("index", tmp_path / "nothing", "-o", tmp_path / "index", "--part", "1/5") == 2


def test_what_vanished_is_missing_in_its_part_alone(place: Path, tiny_model: SUMA, tmp_path: Path):
    shutil.copytree(place / "videos", tmp_path / "videos")
    parts = [VideoIndex.load(f, tiny_model) for f in add_parts(tiny_model, tmp_path / "videos", tmp_path / "index", 6)]
    gone = tmp_path / "videos" / "0" / "3.mp4"  # may be the only one of its part in this folder
    gone.unlink()
    (tmp_path / "videos" / "1").rename(tmp_path / "away")  # a drive that is not connected
    (tmp_path / "videos" / "1").mkdir()
    numbered = [(index, Part(k, 6)) for k, index in enumerate(parts, 1)]
    reports = [index.add(tmp_path / "videos", workers=1, part=part, prune=True) for index, part in numbered]
    assert [path for report in reports for path in report.pruned] == [str(gone)]
    assert sum(len(report.out_of_reach) for report in reports) == 5
    (tmp_path / "videos" / "1").rmdir()
    (tmp_path / "away").rename(tmp_path / "videos" / "1")
    one = VideoIndex(tiny_model)
    one.add(tmp_path / "videos", workers=1)
    folders = [index.folder for index in parts]
    merge_folders(tiny_model, folders, tmp_path / "index")
    assert_same(VideoIndex.load(tmp_path / "index", tiny_model), one)


def test_later_changes_come_in_and_one_process_may_go_on(place: Path, tiny_model: SUMA, tmp_path: Path):
    videos, output = tmp_path / "videos", tmp_path / "index"
    shutil.copytree(place / "videos", videos)
    merge_folders(tiny_model, add_parts(tiny_model, videos, output), output)
    index = VideoIndex.load(output, tiny_model)
    index.remove([videos / "0" / "6.mp4"], for_good=True)
    write_video(videos / "new.mp4", frames=30, size=(64, 48))
    write_video(videos / "0" / "0.mp4", frames=9, size=(64, 48))
    os.utime(videos / "0" / "0.mp4", (1, 1))  # restored from an old copy
    (videos / "0" / "3.mp4").rename(videos / "moved.mp4")
    report, count = merge_folders(tiny_model, add_parts(tiny_model, videos, output), output)
    assert sorted(report.added) == [str(videos / "0" / "0.mp4"), str(videos / "new.mp4")] and count == 13
    assert len(report.skipped) == 10 and list(report.duplicates) == [str(videos / "moved.mp4")]
    index = VideoIndex.load(output, tiny_model)
    paths = {row.path for row in index.rows}
    assert str(videos / "moved.mp4") in paths and not paths & {str(videos / "0" / f"{n}.mp4") for n in (3, 6)}
    report = index.add(videos, workers=1, prune=True)
    assert not report.added and report.pruned == [str(videos / "0" / "3.mp4")]


def test_parts_of_long_videos_come_together_and_lengths_do_not_mix(suma: Suma, place, tiny_model, tmp_path, capsys):
    one = VideoIndex(tiny_model, segment=0.7)
    one.add(place / "videos", workers=1)
    assert len(one) > one.num_videos == 12
    index = ("index", place / "videos", "-o", tmp_path / "index", "--part")
    assert suma(*index, "1/2", "--segment", "0.7") == 0
    assert suma("merge", tmp_path / "index.part-1-of-2", "-o", tmp_path / "index") == 0
    assert suma(*index, "2/2") == 0  # takes the length from the index
    assert suma("merge", tmp_path / "index.part-2-of-2", "-o", tmp_path / "index") == 0
    got = VideoIndex.load(tmp_path / "index", tiny_model)
    expected = [(r.path, r.start, r.end) for r in one.rows]
    assert sorted((r.path, r.start, r.end) for r in got.rows) == sorted(expected)
    assert suma(*index, "2/2", "--segment", "0") == 2
    assert suma("index", place / "videos" / "2", "-o", tmp_path / "other", "--segment", "0") == 0
    capsys.readouterr()
    assert suma("merge", tmp_path / "other", "-o", tmp_path / "index") == 2
    assert "0.7" in capsys.readouterr().err


def die_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at this commit, as Ctrl-C does."""
    commits, commit = [], Store.commit

    def die(self: Store, *args: object, **options: object) -> None:
        commits.append(1)
        if len(commits) == call:
            raise KeyboardInterrupt
        commit(self, *args, **options)

    monkeypatch.setattr(Store, "commit", die)


def test_a_merge_that_is_killed_continues(
    place: Path, whole: VideoIndex, tiny_model: SUMA, tmp_path: Path, monkeypatch
):
    parts = add_parts(tiny_model, place / "videos", tmp_path / "index")
    monkeypatch.setattr(merge, "BLOCK", 3)
    with monkeypatch.context() as patch:
        die_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            merge_folders(tiny_model, parts, tmp_path / "index")
    assert 0 < len(VideoIndex.load(tmp_path / "index", tiny_model)) < 12
    merge_folders(tiny_model, parts, tmp_path / "index")
    assert_same(VideoIndex.load(tmp_path / "index", tiny_model), whole)


def test_indexes_of_machines_that_share_nothing_are_merged(
    suma: Suma, place: Path, whole, tiny_model, tmp_path, capsys
):
    for n, folders in enumerate([("0", "1"), ("2",)]):
        videos, captions = [place / "videos" / folder for folder in folders], tmp_path / f"{n}.txt"
        captions.write_text(f"a dog runs\ncaption {n}\n")
        assert suma("index", *videos, "-o", tmp_path / f"{n}.index", "--captions", captions) == 0
    indexes, output = [tmp_path / f"{n}.index" for n in (1, 0)], tmp_path / "both"
    capsys.readouterr()
    assert suma("merge", *indexes, "-o", output) == 0
    assert "12 added, 0 unchanged, 1 failed, 1 duplicates; 12 videos" in capsys.readouterr().out
    both = VideoIndex.load(output, tiny_model)
    assert_same(both, whole)
    assert both.caption_list == ["a dog runs", "caption 1", "caption 0"]
    assert suma("merge", *indexes, "-o", output) == 0  # again: nothing comes twice
    assert "0 added, 13 unchanged, 1 failed; 12 videos" in capsys.readouterr().out
    assert suma("merge", indexes[0], "-o", indexes[0]) == 2
    assert "into itself" in capsys.readouterr().err
    assert suma("merge", tmp_path, "-o", output) == 2


def test_of_two_indexes_the_one_that_saw_the_file_as_it_is_now_is_believed(tmp_path: Path):
    file = tmp_path / "film.mp4"
    file.write_bytes(b"overwritten")
    (before, made), now = clip(1), replace(describe(file), reason="no video")
    sources = [Store.create(tmp_path / name, "model", DIM) for name in ("early", "late")]
    sources[0].commit([replace(before, path=str(file))], [made])
    sources[1].commit([now])
    for n, order in enumerate((sources, sources[::-1])):
        report = merge.merge(Store.create(tmp_path / f"both {n}", "model", DIM), order)
        assert report.failed == {str(file): "no video"} and report.added == []


# Real processes, started by accelerate


COMMITTING_OFTEN = """
import sys
from suma import progress
from suma.index import ingest
from suma.__main__ import main
progress.EVERY, ingest.COMMIT_SECONDS, ingest.COMMIT_SHARE = 1.0, 0.1, 1.0
sys.exit(main())
"""


def launch(place: Path, output: Path, program: Sequence[str] = ("-m", "suma")) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    command += [*program, "index", str(place / "videos"), "-o", str(output), "--model", str(place / "model")]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True)


def merged(out: str, model: SUMA, output: Path) -> VideoIndex:
    """The index that the printed command makes."""
    (command,) = {
        line.partition(": ")[2] for line in out.splitlines() if line.startswith("when all 2 parts are done: ")
    }
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, cwd=ROOT, check=True, capture_output=True)
    return VideoIndex.load(output, model)


@pytest.mark.slow
def test_accelerate_launch_with_two_processes_makes_the_index_of_one(place, whole, tiny_model, tmp_path):
    done = launch(place, tmp_path / "index")
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0, err
    assert_same(merged(out, tiny_model, tmp_path / "index"), whole)


@pytest.mark.slow
def test_a_part_that_is_killed_continues(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    for n in range(100):
        picture = lambda i, w, h, n=n: noise_picture(1000 * n + i, w, h)  # noqa: E731
        write_video(tmp_path / "videos" / f"{n:03}.mp4", frames=12, size=(64, 48), picture=picture)
    (tmp_path / "often.py").write_text(COMMITTING_OFTEN)
    output, folders = tmp_path / "index", [tmp_path / f"index.part-{k}-of-2" for k in (1, 2)]

    def done() -> list[int]:
        return [len(VideoIndex.load(f, tiny_model)) if newest(f) else 0 for f in folders]

    running, deadline = launch(tmp_path, output, [str(tmp_path / "often.py")]), time.monotonic() + 200
    while done()[0] < 3:
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.01)
    os.kill(json.loads((folders[0] / "writer.json").read_text())["pid"], signal.SIGKILL)
    _, err = running.communicate(timeout=100)
    assert running.returncode != 0, err
    kept = done()
    assert kept[0] >= 3 and sum(kept) < 100
    again = launch(tmp_path, output)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert sum(int(n) for n in re.findall(r"(\d+) added", out)) == 100 - sum(kept)
    one = VideoIndex(tiny_model)
    one.add(tmp_path / "videos")
    assert_same(merged(out, tiny_model, output), one)
