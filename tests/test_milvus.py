"""An index in Milvus, a real server or milvus-lite, holds and answers what one in a folder does, whatever is killed.

`pip install pymilvus milvus-lite milvus==2.3.5 && pytest -m server tests/test_milvus.py`; 2.3.5 is the server.
"""

import importlib.util
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clips import noise_picture, write_video
from milvus_server import MilvusServer

from suma import SUMA, VideoIndex
from suma.__main__ import main
from suma.app import gallery as app_gallery
from suma.index import milvus, milvus_client
from suma.index.first_stage import Candidates
from suma.index.milvus import MANIFEST, TEXT, MilvusStore
from suma.index.milvus_client import Client, read_manifest
from suma.index.query import Filter
from suma.index.storage import NewClip, Row, StoreError
from suma.index.store import Store

ROOT = Path(__file__).parents[1]
DIM = 8
QUERIES = ("a dog runs on the grass", "a cat plays with a ball", "two people dance", "rain at night")


def missing(*packages: str) -> str:
    gone = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(gone)}" if gone else ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    if reason := missing("pymilvus", "milvus"):
        pytest.skip(reason)
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    try:
        server.start()
    except RuntimeError as error:
        pytest.skip(str(error))
    yield server
    server.kill()


SERVER = pytest.param("server", marks=pytest.mark.server)


@pytest.fixture(scope="module")
def shared(server: MilvusServer) -> MilvusStore:
    """An index in the server, for one test after the other: making collections takes it long."""
    return MilvusStore.open(f"milvus://{server.address}/videos", "model", DIM, create=True)


@pytest.fixture(params=[SERVER, "lite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MilvusStore:
    """An empty index. Nobody kills the server here, so nobody waits for its disk, seconds per commit."""
    monkeypatch.setattr(Client, "flush", lambda *_: None)
    if request.param == "lite":
        if reason := missing("pymilvus", "milvus_lite"):
            pytest.skip(reason)
        return MilvusStore.open(f"milvus:{tmp_path}/lite.db/videos", "model", DIM, create=True)
    store = request.getfixturevalue("shared")
    for part, condition in (("", "id >= 0"), ("files", "id >= 0"), ("features", f"owner != {MANIFEST}")):
        store.client.delete(part, [row["id"] for row in store.client.query(part, condition, ["id"])])
    return reopened(store)


def reopened(store: MilvusStore) -> MilvusStore:
    return MilvusStore.open(store.place, "model", DIM)


def file(number: int, path: str = "", mtime: float = 1.5, duration: float = 4.0) -> Row:
    return Row(path or f"/videos/{number}.mp4", 100 + number, mtime, f"{number:064x}", duration)


def parts(number: int, count: int = 1, frames: int = 3) -> list[NewClip]:
    """Clips of a content, all of whose features are its number plus a tenth of the part's."""
    values = [number + part / 8 for part in range(count)]
    return [
        NewClip(
            f"{number:064x}",
            10.0 * part,
            10.0 * part + 9,
            [10 * part + 0.1 * f for f in range(frames)],
            np.full((1 + frames, DIM), value),
            np.full(2 * DIM, value),
            np.full(1 + frames, value),
        )
        for part, value in enumerate(values)
    ]


def fill(store: MilvusStore | Store, *numbers: int) -> None:
    store.commit([file(n) for n in numbers], [clip for n in numbers for clip in parts(n)])


def held(store: MilvusStore | Store) -> list[tuple]:
    """All that can be found, whichever store it is in: features, then rows, then files."""
    state = store.snapshot
    features, scales, valid = state.gather(state.live)
    clips = sorted(
        (row.digest, row.start, row.end, *row.times, *f[v].sum(1).tolist(), *s[v].tolist())
        for row, f, s, v in zip(state.rows(state.live), features, scales, valid, strict=True)
    )
    files = sorted((r.path, r.size, r.mtime, r.digest, r.duration, r.reason) for r in state.files_below("/"))
    shown = sorted({row.path for row in state.rows(state.live)})
    first = sorted({state.files_of(row.digest)[0].path for row in state.rows(state.live)})
    assert shown == first and len(state.live) == len(clips)
    return [*clips, *files, *sorted((r.path, r.reason) for r in state.failed())]


def stored(store: MilvusStore) -> tuple[int, int]:
    """How many rows of parts, and of features, the collections really hold."""
    captions = (read_manifest(store.client) or {})["captions"]
    features = store.client.query("features", f"owner > 0 and owner != {captions}", ["id"])
    return len(list(store.client.scan("", ["id"]))), len(features)


# What is kept


def test_random_commits_leave_the_same_in_milvus_as_in_a_folder(store: MilvusStore, tmp_path: Path):
    folder, choose = Store.create(tmp_path / "index", "model", DIM), random.Random(1)
    there: dict[str, int] = {}
    for step in range(15):
        files, clips, forget = [], [], []
        contents = set(there.values())
        for path in choose.sample([f"/v/{n % 3}/{n}.mp4" for n in range(9)], choose.randint(1, 3)):
            what = choose.choice(["new", "copy", "move", "forget", "fail", "touch"])
            old = there.get(path)
            if what == "new" or (what in ("copy", "move") and not contents):
                number = 100 + 10 * step + len(files)
                files.append(file(number, path, mtime=step))
                clips += parts(number, choose.randint(1, 3))
                there[path] = number
            elif what in ("copy", "move"):
                number = choose.choice(sorted(contents))
                files.append(file(number, path, mtime=step))
                others = [p for p, n in there.items() if n == number and p != path]
                there[path] = number
                if what == "move" and others and not any(row.path == others[0] for row in files):
                    forget.append(others[0])
                    there.pop(others[0])
            elif what == "forget" and old is not None and not any(row.path == path for row in files):
                forget.append(path)
                there.pop(path)
            elif what == "fail":
                files.append(Row(path, 1, float(step), "", reason=f"broken: {path}"))
                there.pop(path, None)
            elif what == "touch" and old is not None:
                files.append(file(old, path, mtime=step))
        forget = [path for path in dict.fromkeys(forget) if path not in {row.path for row in files}]
        for kept in (store, folder):
            kept.commit(files, clips, forget)
        assert held(store) == held(folder), step
    assert held(reopened(store)) == held(folder) and len(held(folder)) > 4
    rows = sum(len(store.snapshot.positions_of(path)) for path in there)
    assert stored(store) == (rows, len(store.snapshot.live))  # nothing is left of the past


def test_a_commit_that_dies_at_any_step_is_made_good_by_the_next_one(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
):
    call, before, step, died = Client.call, [], 0, True
    while died:  # at each call that writes, before or after it was heard
        n, writes = 100 * step, 0
        files = [file(n + 4), file(n + 5), file(n + 6, f"/videos/{n + 1}.mp4"), file(n + 3, f"/moved/{n}.mp4")]
        clips, forget = [*parts(n + 4, 2), *parts(n + 5), *parts(n + 6)], [f"/videos/{i}.mp4" for i in (n + 2, n + 3)]
        store.commit([file(n + i) for i in (1, 2, 3)], [c for i in (1, 2, 3) for c in parts(n + i, i)])

        def die(self: Client, what: str, part: str, step=step, **options: Any) -> Any:
            nonlocal writes
            writes += what in ("upsert", "delete")
            if writes != step // 2 + 1:
                return call(self, what, part, **options)
            if step % 2:
                call(self, what, part, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Client, "call", die)
            try:
                store.commit(files, clips, forget)
                died = False
            except KeyboardInterrupt:
                pass
        store = reopened(store)
        known = store.snapshot.files_at([row.path for row in files])
        for row in files if died else ():  # whatever is called finished has all its parts, with their features
            if (at := known.get(row.path)) and at.size == row.size:
                there = store.snapshot.positions_of(row.path)
                assert len(there) == {n + 4: 2, n + 3: 3}.get(int(row.digest, 16), 1)
                store.snapshot.gather(there)
        if step % 4 == 3:  # its files are gone: who prunes leaves nothing
            store.commit(forget=[*(row.path for row in files), *forget])
            assert not [row for row in store.snapshot.files_below("/") if row.size > 100 + n]
        else:
            store.commit(files, clips, forget)
            before += [row.digest for row in files]
        assert sorted(r.digest for r in reopened(store).snapshot.files_below("/")) == sorted(before)
        step += 1
    assert step > 12
    count = len(store.snapshot.live)
    assert count == sum(len(store.snapshot.positions_of(r.path)) for r in store.snapshot.files_below("/"))
    assert stored(store)[0] == count
    store.verify()


def test_two_writers_at_once_leave_each_video_once_and_a_reader_sees_no_half_ones(store: MilvusStore):
    work, numbers, errors = threading.Barrier(3), list(range(1, 9)), []

    def write(seed: int) -> None:
        mine, order = reopened(store), random.Random(seed).sample(numbers, len(numbers))
        work.wait()
        for n in order:
            with mine.writing():
                mine.commit([file(n), file(n, f"/copies/{n}.mp4")], parts(n, 2), [f"/gone/{seed}.mp4"])

    def read() -> None:
        work.wait()
        while any(writer.is_alive() for writer in threads[:2]):
            mine = reopened(store)
            state = mine.snapshot
            for row in state.rows(mine.search(mine, state, np.ones(2 * DIM), 50)):
                assert row.path and len(row.times) == 3
            state.gather(state.live)

    def run(what: Any, *arguments: int) -> None:
        try:
            what(*arguments)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=job) for job in ((write, 1), (write, 2), (read,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and stored(store) == (4 * len(numbers), 2 * len(numbers))
    state = reopened(store).snapshot
    assert [row.digest for row in state.rows(state.live)] == [f"{n:064x}" for n in numbers for _ in range(2)]


def test_long_frames_are_cut_into_rows_and_put_together_again(store: MilvusStore):
    frames = 5000
    random_features = np.random.default_rng(0).normal(size=(1 + frames, DIM)).astype(np.float16)
    clip = parts(1, frames=frames)[0]._replace(features=random_features, times=[0.0] * frames)
    store.commit([file(1), file(2)], [clip, *parts(2)])
    features, _, valid = reopened(store).snapshot.gather(store.snapshot.live)
    assert valid.sum(1).tolist() == [5001, 4] and (features[0] == random_features).all()
    assert (store.snapshot.vectors([store.snapshot.live[0]])[0] == random_features[0]).all()


def test_captions_are_replaced_whole(store: MilvusStore):
    many = [f'caption {i}, "so" \\ \n ü {"x" * 50}' for i in range(3000)]
    for captions in (["one", "two"], many, ["three"], []):
        before = store.captions()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MilvusStore, "_put_manifest", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.set_captions(many[::-1])
        assert reopened(store).captions() == before
        for _ in range(2):  # again: the same
            store.set_captions(captions)
            assert reopened(store).captions()[1] == store.captions()[1] == captions
    fill(store, 1)
    assert reopened(store).captions()[1] == []


def test_features_that_come_late_are_waited_for(store: MilvusStore, monkeypatch: pytest.MonkeyPatch):
    fill(store, 1)
    state, naps = reopened(store).snapshot, list[float]()
    before = held(store)
    row = store.client.query("features", "owner > 0", [*TEXT, "vector"])[0]

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            store.client.put("features", [row])
        if len(naps) >= 3:  # a server takes its time
            time.sleep(seconds)

    monkeypatch.setattr(milvus, "time", SimpleNamespace(sleep=nap))
    store.client.delete("features", [row["id"]])
    assert held(reopened(store)) == before and len(naps) >= 3
    store.client.delete("features", [row["id"]])  # now they stay away
    with pytest.raises(StoreError, match=r"no features of /videos/1\.mp4"):
        reopened(store).snapshot.gather(state.live)
    with pytest.raises(ValueError, match=r"is damaged: .*/videos/1.mp4"):
        reopened(store).verify()


def test_a_copy_answers_that_is_there(store: MilvusStore, tmp_path: Path):
    there, gone, other = (str(tmp_path / name) for name in ("b.mp4", "a.mp4", "c.mp4"))
    Path(there).touch()
    store.commit([file(1, gone), file(1, there, 9.0), file(1, other, 10.0)], parts(1, 2))
    state = store.snapshot
    for chosen in (None, Filter(longer=0.5)):
        rows = state.rows(state.live, chosen)
        assert [(row.path, row.mtime, row.start) for row in rows] == [(there, 9.0, 0.0), (there, 9.0, 10.0)]
    assert state.rows(state.live[:1], Filter(longer=5.0))[0].reason == "removed"
    Path(there).unlink()
    assert {row.path for row in state.rows(state.live)} == {gone}
    assert [row.path for row in state.copies()] == [gone, there, other]
    assert [row.path for row in state.rows([7])] == [""]


ODD = [
    "/a b/ü%_.mp4",
    '/a b/"q"\\.mp4',
    "/a b/new\nline.mp4",
    "/a b0/x.mp4",
    "/a b/\udcff.mp4",
    "/a b/😀/' or 1.mp4",
    "/a/y.mp4",
]


def test_odd_names_are_found_and_folders_hold_what_is_below_them(store: MilvusStore):
    store.commit([file(n, path) for n, path in enumerate(ODD)], [c for n in range(len(ODD)) for c in parts(n)])
    state = reopened(store).snapshot
    assert {row.path for row in state.rows(state.live)} == set(ODD)
    for number, path in enumerate(ODD):
        assert (known := state.file(path)) is not None and known.digest == f"{number:064x}"
    assert {row.path for row in state.files_below("/a b")} == {p for p in ODD if p.startswith("/a b/")}
    assert [row.path for row in state.files_below("/a b/😀")] == [ODD[5]]
    assert len(state.files_below("/")) == len(ODD) and not state.files_below("/a b/ü")


def test_a_filter_holds_for_some_file_of_a_content(store: MilvusStore):
    def day(n: int) -> str:
        return f"2024-01-{n:02}"

    times = {n: datetime.fromisoformat(day(n)).timestamp() for n in range(1, 9)}
    rows = [file(n, f"/{'even' if n % 2 == 0 else 'odd'}/{n}.mp4", times[n], 2.0 * n) for n in times]
    rows.append(file(7, "/even/copy of 7.mp4", 1.0, 14.0))
    store.commit(rows, [clip for n in range(1, 9) for clip in parts(n)])
    state, query = reopened(store).snapshot, np.ones(2 * DIM, np.float32)

    def found(number: int = 10, **wanted: Any) -> list[int]:
        rows = state.rows(store.search(store, state, query, number, state.allowed(Filter(**wanted))))
        return [int(row.digest, 16) for row in rows]

    assert found() == [8, 7, 6, 5, 4, 3, 2, 1] and found(2) == [8, 7]
    assert found(folder="/even") == [8, 7, 6, 4, 2] and found(folder="/odd") == [7, 5, 3, 1]
    assert found(longer=6.0, shorter=12.0) == [6, 5, 4, 3]
    assert found(after=day(7)) == [8, 7] and found(before=day(3)) == [7, 2, 1]
    assert found(folder="/odd", shorter=9.0) == [3, 1] and found(folder="/o") == [] == found(folder="o")
    assert found(3, folder="/") == [8, 7, 6]  # the copy of 7 takes no place


def test_filters_hold_as_in_a_folder(store: MilvusStore, tmp_path: Path):
    folder = Store.create(tmp_path / "index", "model", DIM)
    paths = [
        "/a/b/1.mp4",
        "/a/b c/2.mp4",
        "/b/a/3.mp4",
        "/a/x/b/4.mp4",
        "/a/b_/5.mp4",
        "/é/b/6.mp4",
        "/7.mp4",
        "/o/e\u0301/b/8.mp4",
    ]
    rows = [file(n, path, duration=10.0 * n) for n, path in enumerate(paths)]
    for kept in (store, folder):
        kept.commit(rows, [c for n in range(len(paths)) for c in parts(n)])
    for wanted in (
        Filter("b"),
        Filter("a/b"),
        Filter("a"),
        Filter("/a"),
        Filter("b", root="/a/b"),
        Filter("b", root="/a"),
        Filter("b c"),
        Filter("é"),
        Filter("e\u0301/b"),
        Filter("é", root="/o"),
        Filter("c"),
        Filter("/"),
        Filter("b", 10.0, 30.0),
        Filter(longer=20),
    ):
        names = []
        for kept in (store, folder):
            state = kept.snapshot
            first_stage = kept if kept is store else Candidates()
            found = first_stage.search(kept, state, np.ones(2 * DIM, np.float32), 20, state.allowed(wanted))
            names.append([row.path for row in state.rows(found)])
        assert names[0] == names[1], wanted


# Who may write, and to what


def test_another_model_another_thing_or_an_older_format_is_refused(store: MilvusStore):
    fill(store, 1)
    with pytest.raises(ValueError, match=r"model model, not another.*another name"):
        MilvusStore.open(store.place, "another", DIM)
    with pytest.raises(ValueError, match=r"segment .*, not 7\.0"):
        MilvusStore.open(store.place, "model", DIM, 7.0)
    with pytest.raises(FileNotFoundError, match="no index"):
        MilvusStore.open(store.place + "x", "model", DIM)
    for name in ("y", "old", "old_log"):
        Client(f"{store.place}_{name}").create("", {"id": int}, 2)
    with pytest.raises(ValueError, match="other things"):
        MilvusStore.open(store.place + "_y", "model", DIM, create=True)
    with pytest.raises(ValueError, match=r"older SUMA.*suma index FOLDER --store \S+_old_new"):
        MilvusStore.open(store.place + "_old", "model", DIM, create=True)
    with pytest.raises(ValueError, match=r"milvus://HOST:PORT/NAME"):
        MilvusStore.open("milvus:nothing", "model", DIM)


def test_a_password_is_shown_nowhere():
    with pytest.raises(ValueError, match=r"milvus://there:1 is no place") as error:
        Client("milvus://me:secret@there:1")
    assert "secret" not in str(error.value)
    pytest.importorskip("pymilvus")
    with pytest.raises(StoreError, match=r"no Milvus server answers at 127\.0\.0\.1:1: start it") as told:
        Client("milvus://me:secret@127.0.0.1:1/videos")
    assert "secret" not in str(told.value)


class MilvusError(Exception):
    """As pymilvus raises them."""

    def __init__(self, code: int, message: str):
        super().__init__(f"<MilvusException: (code={code}, message={message})>")
        self.code, self.message = code, message


def test_what_will_pass_is_asked_again_and_what_will_not_is_told(monkeypatch: pytest.MonkeyPatch):
    client = Client.__new__(Client)
    client.is_file, client.address = False, "there:19530"
    monkeypatch.setattr(milvus_client.time, "sleep", lambda _: None)
    for code, told in (
        (65535, "[query] Retry timeout: 20.0s, message=proxy TaskCondition context Done"),
        (65535, "context deadline exceeded"),
        (101, "collection not loaded"),
        (503, "channel not available"),
    ):
        outcomes: list[Any] = [MilvusError(code, told), MilvusError(code, told), "the answer"]

        def call(outcomes: list[Any] = outcomes) -> str:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        assert client._patiently(call) == "the answer" and not outcomes
    for code, told, said in (
        (65535, "cannot parse expression", "does not do what it should: cannot parse"),
        (2, "Fail connecting to server", "no Milvus server answers at there:19530: start it"),
    ):
        with pytest.raises(StoreError, match=said):
            client._patiently(lambda code=code, told=told: (_ for _ in ()).throw(MilvusError(code, told)))


def test_without_the_package_one_line_says_what_to_install(tiny_model: SUMA, tmp_path: Path):
    tiny_model.save_pretrained(tmp_path / "model")
    program = "import sys; sys.modules['pymilvus'] = None; from suma.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["search", "milvus://127.0.0.1:1/videos", "a dog", "--model", str(tmp_path / "model")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    error = done.stderr
    assert done.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "pip install pymilvus" in error


# The command line over a real server, which is killed


class Gallery:
    """Videos, a model, and their index in a folder."""

    def __init__(self, folder: Path, model: SUMA):
        self.model, self.videos, self.index = folder / "model", folder / "videos", folder / "index"
        model.save_pretrained(self.model)
        (self.videos / "more").mkdir(parents=True)
        for n in range(14):
            place = self.videos / "more" if n % 3 == 0 else self.videos
            write_video(place / f"{n:02}.mp4", 6 + n, picture=lambda i, w, h, n=n: noise_picture(100 * n + i, w, h))
        (self.videos / "broken.mp4").write_bytes(b"\0" * 100)
        (self.videos / "copy.mp4").write_bytes((self.videos / "01.mp4").read_bytes())
        (folder / "captions.txt").write_text("a dog runs\na cat sits\nit rains\n")
        self.captions = folder / "captions.txt"
        assert self.add(self.index) == 0

    def run(self, command: str, *arguments: object) -> int:
        return main([command, "--model", str(self.model), *map(str, arguments)])

    def add(self, place: str | Path) -> int:
        return self.run("index", self.videos, "--store", place, "--captions", self.captions, "--segment", 1)

    def process(self, place: str, writes: int) -> subprocess.Popen[str]:
        """The same in a process of its own, with a commit for every video; after so many writes to Milvus it says so,
        and waits for a line."""
        program = """if True:
            import sys, torch
            torch.set_num_threads(1)
            from suma.index import ingest
            from suma.__main__ import main
            from suma.index.milvus_client import Client
            from suma.model.suma import BATCH_FRAMES

            # a commit for every video, however long the last one took
            ingest.COMMIT_SECONDS, ingest.COMMIT_SHARE, BATCH_FRAMES["cpu"] = 0.0, float("inf"), 1
            call, left = Client.call, int(sys.argv.pop(1))

            def stop(self, what, part, **options):
                global left
                answer = call(self, what, part, **options)
                left -= what in ("upsert", "delete", "flush")
                if left == 0 and what in ("upsert", "delete", "flush"):
                    print("now", flush=True)
                    sys.stdin.readline()
                return answer

            Client.call = stop
            sys.exit(main(sys.argv[1:]))"""
        arguments = ["index", self.videos, "-o", place, "--captions", self.captions, "--segment", 1]
        command = [sys.executable, "-c", program, writes, *arguments, "--model", self.model]
        return subprocess.Popen([str(x) for x in command], cwd=ROOT, stdin=-1, stdout=-1, stderr=-1, text=True)

    def answers(self, place: str | Path, capsys: pytest.CaptureFixture) -> list[Any]:
        """What all commands say about an index."""
        capsys.readouterr()
        for query in (*QUERIES, "a dog in:more", "a cat longer:1.5", "rain -dog"):
            assert self.run("search", place, query, "-k", 10, "--json") == 0
        for video in ("01.mp4", "more/06.mp4"):
            assert self.run("similar", place, self.videos / video, "--json") == 0
            assert self.run("captions", place, self.videos / video, "--json") == 0
        assert self.run("info", place, "--json") == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def alike(a: Any, b: Any) -> bool:
    """Return whether two answers are the same, but for the last digit that is printed of a score."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    return a == b or (isinstance(a, float) and isinstance(b, float) and abs(a - b) < 1.5e-4)


@pytest.fixture(scope="module")
def gallery(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return Gallery(tmp_path_factory.mktemp("gallery"), tiny_model)


@pytest.fixture(scope="module", params=[SERVER, "lite"])
def filled(request: pytest.FixtureRequest, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The gallery's index in Milvus."""
    if request.param == "lite":
        if reason := missing("pymilvus", "milvus_lite"):
            pytest.skip(reason)
        place = f"milvus:{tmp_path_factory.mktemp('lite')}/lite.db/gallery"
    else:
        place = f"milvus://{request.getfixturevalue('server').address}/gallery"
    assert gallery.add(place) == 0
    return place


def opened(gallery: Gallery, place: str | Path) -> VideoIndex:
    return VideoIndex.load(place, SUMA.from_pretrained(str(gallery.model)))


def test_the_command_line_answers_as_from_a_folder(filled: str, gallery: Gallery, capsys: pytest.CaptureFixture):
    told = gallery.answers(filled, capsys)
    assert alike(told, gallery.answers(gallery.index, capsys))
    assert len(told[0]) == 10 and len(told[-1]["failed"]) == 1 and told[-1]["parts"] > told[-1]["videos"] == 14
    assert gallery.add(filled) == 0 and gallery.run("check", filled) == 0
    assert "0 added, 15 unchanged, 1 failed" in capsys.readouterr().out
    assert stored(opened(gallery, filled).store)[1] == told[-1]["parts"]


def test_the_page_shows_what_another_process_has_just_added(gallery: Gallery, tmp_path: Path):
    if reason := missing("pymilvus", "milvus_lite"):
        pytest.skip(reason)
    place, new = f"milvus:{tmp_path}/lite.db/shown", gallery.videos / "05.mp4"
    other = opened(gallery, gallery.index)
    other.save(place)
    other.remove([new])
    shown = app_gallery.Gallery(opened(gallery, place))
    assert str(new) not in shown.rows
    other.add(new)
    assert str(new) in {match.path for match in shown.met(shown.index.search(QUERIES[0], 20))}
    assert shown.row(shown.name(str(new))).path == str(new)


@pytest.mark.server
def test_a_folder_is_brought_into_the_server_and_an_index_for_millions_answers_with_most_of_the_same(
    server: MilvusServer, gallery: Gallery
):
    exact, near = opened(gallery, gallery.index), opened(gallery, gallery.index)
    near.save(f"milvus://{server.address}/near?index=HNSW")
    near = opened(gallery, f"milvus://{server.address}/near")
    assert held(near.store) == held(exact.store) and near.caption_list == exact.caption_list
    for query in QUERIES:
        best = {match.path for match in exact.search(query)}
        assert len(best & {match.path for match in near.search(query)}) >= 8


@pytest.mark.server
def test_what_is_killed_in_the_middle_of_an_add_loses_and_doubles_nothing(
    server: MilvusServer, gallery: Gallery, capsys: pytest.CaptureFixture
):
    place, kept = f"milvus://{server.address}/killed", [0]
    for dies in ("command", "server", "command"):
        writes = random.randint(8, 28)  # a commit has seven or eight of them
        command = gallery.process(place, writes)
        assert command.stdout is not None and command.stdout.readline() == "now\n", command.communicate()
        if dies == "server":
            server.kill()
            try:
                told = command.communicate("\n", timeout=300)[1]
                assert gallery.run("search", place, "a dog") == 2
            finally:
                command.kill()
                server.start()
            assert "start it" in capsys.readouterr().err
            last = told.splitlines()[-1]
            assert last.startswith(f"error: no Milvus server answers at {server.address}: start it"), told
            assert command.returncode == 2 and "what was committed is kept" in last and "Traceback" not in told
        else:
            command.kill()
            command.communicate()
        state = opened(gallery, place).store.snapshot
        finished = [row for row in state.files_below(gallery.videos) if row.digest]
        for row in finished:  # with all its parts, and their features
            assert state.gather(state.positions_of(row.path))[2][:, 1:].any(1).all(), (dies, writes)
        kept.append(len(finished))
    assert kept == sorted(kept) and 0 < kept[-1] < 15
    assert gallery.add(place) == 0
    index, right = opened(gallery, place), opened(gallery, gallery.index)
    assert held(index.store) == held(right.store)
    assert alike(gallery.answers(place, capsys), gallery.answers(gallery.index, capsys))
    copied = right.store.snapshot.positions_of(gallery.videos / "copy.mp4")
    assert stored(index.store) == (len(index) + len(copied), len(index))


@pytest.mark.parametrize("filled", [SERVER], indirect=True)
def test_a_search_ends_with_the_server_and_goes_on_with_it(filled: str, server: MilvusServer, gallery: Gallery):
    index, before = opened(gallery, filled), opened(gallery, gallery.index)
    answers = [before.search(query) for query in QUERIES]
    errors: list[Exception] = []
    done = threading.Event()

    def search() -> None:
        while not errors:
            try:
                assert index.search(QUERIES[0]) == answers[0]
                done.set()
            except Exception as error:
                errors.append(error)
                done.set()

    thread = threading.Thread(target=search)
    thread.start()
    assert done.wait(300) and not errors, errors
    server.kill()
    thread.join(300)
    assert isinstance(errors[0], StoreError) and "start it" in str(errors[0])
    server.start()
    assert [opened(gallery, filled).search(query) for query in QUERIES] == answers
    assert [index.search(query) for query in QUERIES] == answers  # also the one that was open all the time
