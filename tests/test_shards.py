"""Several ranks make the index of one process; what dies is told, kept, and gone on with."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from clips import noise_picture, write_video

from suma import SUMA, VideoIndex
from suma.__main__ import main
from suma.index import merge, shards
from suma.index.ingest import Report
from suma.index.store import MANIFEST, Store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def place(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 12 videos of 3 folders, a copy of one, and a broken one."""
    place = tmp_path_factory.mktemp("shards")
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


def add(index: VideoIndex, paths: list, whole: bool) -> Report:
    return index.add(paths, workers=1)


def two_ranks(model: SUMA, place: Path, output: Path, ranks: tuple[int, ...] = (0, 1)) -> list[Exception]:
    """The parts of two ranks up to the merge, in threads; what they raised."""
    errors: list[Exception] = []

    def fill(rank: int) -> None:
        try:
            shards.fill(model, output, [str(place / "videos")], (rank, 2), add)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fill, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def gathered(model: SUMA, place: Path, output: Path) -> tuple[VideoIndex, Report]:
    index = VideoIndex.load(output, model) if output.is_dir() else VideoIndex(model)
    index.save(output)
    return index, shards.gather(index, [str(place / "videos")], add)


def assert_same(got: VideoIndex, whole: VideoIndex) -> None:
    """The same clips in the same order, with the same features (but for the last bit of float16: other batches), files,
    reasons and answers."""
    assert [(r.path, r.digest, r.times, r.duration) for r in got.rows] == [
        (r.path, r.digest, r.times, r.duration) for r in whole.rows
    ]
    a, b = got.store.snapshot, whole.store.snapshot
    assert np.array_equal(a.live, b.live)
    for name in ("features", "folded", "scales"):
        assert np.allclose(getattr(a, name), getattr(b, name), atol=1e-3)
    tables = [{(f.path, f.size, f.mtime, f.digest, f.reason) for f in s.table.files()} for s in (a, b)]
    assert tables[0] == tables[1]
    for query in ("a dog runs", "a small bird", "two people on a stage"):
        found, expected = got.search(query, 12), whole.search(query, 12)
        assert [m.path for m in found] == [m.path for m in expected]
        assert [m.score for m in found] == pytest.approx([m.score for m in expected], abs=1e-3)
    got.store.verify()


def test_the_shares_are_disjoint_and_whole_and_stay_when_files_are_added():
    paths = [f"/videos/{n}.mp4" for n in range(1000)]
    owners = [shards.owner(path, 3) for path in paths]
    assert all(owners.count(rank) > 250 for rank in range(3)) and set(owners) == {0, 1, 2}
    assert [shards.owner(path, 3) for path in [*paths[::2], "/videos/new.mp4"]][:-1] == owners[::2]


def test_two_ranks_make_the_index_of_one_process(place: Path, whole: VideoIndex, tiny_model: SUMA, tmp_path: Path):
    output = tmp_path / "index"
    assert two_ranks(tiny_model, place, output) == []
    parts = [Store.open(f.parent, tiny_model.fingerprint(), 64) for f in shards.folder_of(output).glob(f"*/{MANIFEST}")]
    assert len(parts) == 2 and all(2 <= len(part.snapshot.live) <= 11 for part in parts)
    got, report = gathered(tiny_model, place, output)
    assert_same(got, whole)
    assert len(report.added) == 12 and len(report.duplicates) == 1 and len(report.failed) == 1 and not report.skipped
    assert not shards.folder_of(output).exists()


def test_only_what_is_new_is_encoded_the_next_time(place: Path, tiny_model: SUMA, tmp_path: Path):
    shutil.copytree(place / "videos", tmp_path / "videos")
    assert two_ranks(tiny_model, tmp_path, tmp_path / "index") == []
    gathered(tiny_model, tmp_path, tmp_path / "index")
    write_video(tmp_path / "videos" / "new.mp4", frames=30, size=(64, 48))
    (tmp_path / "videos" / "0" / "3.mp4").rename(tmp_path / "videos" / "moved.mp4")
    assert two_ranks(tiny_model, tmp_path, tmp_path / "index") == []
    encoded = [VideoIndex.load(tmp_path / "index.shards" / f"rank-{r}", tiny_model) for r in range(2)]
    assert sum(len(index) for index in encoded) == 1
    got, report = gathered(tiny_model, tmp_path, tmp_path / "index")
    assert report.added == [str(tmp_path / "videos" / "new.mp4")] and len(got) == 13
    assert report.moved == {str(tmp_path / "videos" / "moved.mp4"): str(tmp_path / "videos" / "0" / "3.mp4")}
    assert len(report.skipped) == 12


def test_parts_of_long_videos_come_together_and_lengths_do_not_mix(place, tiny_model, tmp_path, capsys):
    one = VideoIndex(tiny_model, segment=0.7)
    one.add(place / "videos", workers=1)
    assert len(one) > one.num_videos == 12
    options = ["--model", str(place / "model"), "--workers", "1"]
    for folder in ("0", "1", "2"):
        output = str(tmp_path / f"{folder}.index")
        videos = str(place / "videos" / folder)
        assert main(["index", videos, "-o", output, "--segment", "0" if folder == "2" else "0.7", *options]) == 0
    merge = ["merge", "-o", str(tmp_path / "all"), *options[:2]]
    assert main([*merge, str(tmp_path / "0.index"), str(tmp_path / "1.index")]) == 0
    got = VideoIndex.load(tmp_path / "all", tiny_model)
    expected = [(r.path, r.start, r.end) for r in one.rows if Path(r.path).parent.name != "2"]
    assert sorted((r.path, r.start, r.end) for r in got.rows) == sorted(expected)
    assert main([*merge, str(tmp_path / "2.index")]) == 2
    assert "0.7" in capsys.readouterr().err


def test_a_rank_that_is_silent_is_told_and_its_share_is_gone_on_with(
    place: Path, whole: VideoIndex, tiny_model: SUMA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "BEAT", 0.1)
    monkeypatch.setattr(shards, "PATIENCE", 1.0)
    output = tmp_path / "index"
    for rank, other in ((0, "rank 1 of 2"), (1, "rank 0")):
        (error,) = two_ranks(tiny_model, place, output, (rank,))
        assert other in str(error) and "no sign of life" in str(error) and "same command again" in str(error)
    # the files of both earlier ranks lie there, and are no sign of life
    assert len(two_ranks(tiny_model, place, output, (0,))) == 1
    made_anew: list[int] = []

    def count(index: VideoIndex, paths: list, whole: bool) -> Report:
        report = index.add(paths, workers=1)
        made_anew.append(len(report.added))
        return report

    monkeypatch.setattr(sys.modules[__name__], "add", count)
    assert two_ranks(tiny_model, place, output) == []
    assert made_anew == [0, 0]
    assert_same(gathered(tiny_model, place, output)[0], whole)


def test_a_rank_that_fails_is_told_with_its_reason(place: Path, tiny_model: SUMA, tmp_path: Path, monkeypatch):
    def fail(index: VideoIndex, paths: list, whole: bool) -> Report:
        if index.folder is not None and index.folder.name == "rank-1":
            raise OSError("no space left")
        return index.add(paths, workers=1)

    monkeypatch.setattr(sys.modules[__name__], "add", fail)
    errors = sorted(map(str, two_ranks(tiny_model, place, tmp_path / "index")), key=len)
    assert errors[0] == "no space left" and "rank 1 of 2" in errors[1] and "OSError: no space left" in errors[1]


def test_one_process_alone_takes_up_what_ranks_left(
    place: Path, whole: VideoIndex, tmp_path: Path, capsys, monkeypatch
):
    model = SUMA.from_pretrained(place / "model")
    monkeypatch.setattr(shards, "PATIENCE", 0.5)
    assert len(two_ranks(model, place, tmp_path / "index", (1,))) == 1
    options = ["-o", str(tmp_path / "index"), "--model", str(place / "model"), "--workers", "1", "--json"]
    assert main(["index", str(place / "videos"), *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["added"]) == 12
    assert_same(VideoIndex.load(tmp_path / "index", model), whole)
    assert not shards.folder_of(tmp_path / "index").exists()


def test_a_merge_that_is_killed_goes_on(place: Path, whole: VideoIndex, tiny_model: SUMA, tmp_path: Path, monkeypatch):
    assert two_ranks(tiny_model, place, tmp_path / "index") == []
    commits: list[int] = []
    commit = Store.commit

    def die(self: Store, *args: object, **options: object) -> None:
        commits.append(1)
        if len(commits) == 3:
            raise KeyboardInterrupt
        commit(self, *args, **options)

    monkeypatch.setattr(merge, "BLOCK", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            gathered(tiny_model, place, tmp_path / "index")
    assert 0 < len(VideoIndex.load(tmp_path / "index", tiny_model)) < 12
    assert_same(gathered(tiny_model, place, tmp_path / "index")[0], whole)


def test_indexes_of_machines_that_share_nothing_are_merged(place: Path, whole: VideoIndex, tmp_path: Path, capsys):
    model, options = str(place / "model"), ["--model", str(place / "model")]
    for n, folders in enumerate([("0", "1"), ("2",)]):
        videos = [str(place / "videos" / folder) for folder in folders]
        captions = tmp_path / f"{n}.txt"
        captions.write_text(f"a dog runs\ncaption {n}\n")
        output = str(tmp_path / f"{n}.index")
        assert main(["index", *videos, "-o", output, "--captions", str(captions), "--workers", "1", *options]) == 0
    indexes, output = [str(tmp_path / f"{n}.index") for n in range(2)], str(tmp_path / "both")
    capsys.readouterr()
    assert main(["merge", *indexes, "-o", output, *options]) == 0
    assert "12 added, 1 duplicates; 12 videos" in capsys.readouterr().out
    both = VideoIndex.load(output, SUMA.from_pretrained(model))
    assert_same(both, whole)
    assert both.caption_list == ["a dog runs", "caption 0", "caption 1"]
    assert main(["merge", *indexes, "-o", output, *options]) == 0  # again: nothing comes twice
    assert "0 added, 0 duplicates; 12 videos" in capsys.readouterr().out
    assert main(["merge", indexes[0], "-o", indexes[0], *options]) == 2
    assert "into itself" in capsys.readouterr().err
    assert main(["merge", str(tmp_path), "-o", output, *options]) == 2


@pytest.mark.parametrize("environ", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}])
def test_a_wrong_place_is_an_error(environ: dict[str, str]):
    with pytest.raises(ValueError, match="WORLD_SIZE"):
        shards.place(environ)


# Real processes, started by accelerate


COMMITTING_OFTEN = """
import sys
from suma.index import ingest
from suma.__main__ import main
ingest.COMMIT_SECONDS, ingest.COMMIT_SHARE = 0.1, 1.0
sys.exit(main())
"""


def launch(place: Path, output: Path, *options: str, program: Sequence[str] = ("-m", "suma")) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    command += [*program, "index", str(place / "videos"), "-o", str(output), "--model", str(place / "model")]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, "--workers", "1", *options], cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
def test_accelerate_launch_with_two_processes_makes_the_index_of_one(place, whole, tiny_model, tmp_path):
    done = launch(place, tmp_path / "index", "--captions", str(place / "captions.txt"))
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0, err
    assert out.count("12 added, 0 unchanged, 1 failed, 1 duplicates; 12 videos in") == 1
    got = VideoIndex.load(tmp_path / "index", tiny_model)
    assert_same(got, whole)
    assert got.caption_list == ["a dog runs", "a cat sits"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def done_by(model: SUMA, output: Path, rank: int) -> int:
    """How many clips a rank's shard holds."""
    shard = shards.folder_of(output) / f"rank-{rank}"
    return len(VideoIndex.load(shard, model)) if (shard / MANIFEST).exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_in_the_middle_costs_nothing_that_was_done(tiny_model, tmp_path, victim):
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    for n in range(300):
        picture = lambda i, w, h, n=n: noise_picture(1000 * n + i, w, h)  # noqa: E731
        write_video(tmp_path / "videos" / f"{n:03}.mp4", frames=12, size=(64, 48), picture=picture)
    (tmp_path / "often.py").write_text(COMMITTING_OFTEN)
    output = tmp_path / "index"
    running = launch(tmp_path, output, program=[str(tmp_path / "often.py")])
    deadline = time.monotonic() + 100
    while done_by(tiny_model, output, victim) < 5 or not done_by(tiny_model, output, 1 - victim):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.01)
    said = json.loads((shards.folder_of(output) / f"rank-{victim}.json").read_text())
    assert said["state"] == "working"
    os.kill(int(said["who"].split()[1]), signal.SIGKILL)
    _, err = running.communicate(timeout=100)
    assert running.returncode != 0 and f"rank {1 - victim} was told to stop" in err and "same command again" in err
    assert not (output / MANIFEST).exists()
    assert 5 <= done_by(tiny_model, output, victim) < 300 and done_by(tiny_model, output, 1 - victim)
    again = launch(tmp_path, output)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert "300 added" in out
    one = VideoIndex(tiny_model)
    one.add(tmp_path / "videos")
    assert_same(VideoIndex.load(output, tiny_model), one)
