"""What is on disk is whole: after a kill, without space, without permission, with damage, while another one writes."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import noise_picture, write_video
from stored import DIM, clip, fill, held

from suma import SUMA, VideoIndex, atomic_io
from suma.atomic_io import IndexBusyError
from suma.index import ingest
from suma.index import store as on_disk
from suma.index.query import Filter
from suma.index.storage import Row
from suma.index.store import Store
from suma.model.suma import BATCH_FRAMES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A small index whose vectors are kept in a file, as those of a large one."""
    monkeypatch.setattr(on_disk, "MAPPED", 2)
    store = Store.create(tmp_path / "index", "model", DIM)
    fill(store, 1, 2)
    return store


def reopened(store: Store) -> Store:
    return Store.open(store.folder, "model", DIM)


def test_what_is_committed_is_there_again(store: Store):
    fill(store, 3, 4)
    assert held(store) == held(reopened(store)) == [1, 2, 3, 4]
    assert {file.name for file in store.folder.glob("*-*")} == {"index-1.sqlite", "folded-1.f16"}


def vectors(store: Store) -> Path:
    return store.folder / "folded-1.f16"


def test_the_file_of_vectors_only_grows_and_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_disk, "MAPPED", 3)
    store = Store.create(tmp_path / "index", "model", DIM)
    fill(store, 1, 2)
    assert not vectors(store).exists() and held(reopened(store)) == [1, 2]  # few: read into memory
    fill(store, 3)
    before, inode = vectors(store).read_bytes(), vectors(store).stat().st_ino
    fill(store, 4, 5)
    for some in (store, reopened(store)):
        assert isinstance(some.snapshot.folded.base, np.memmap)
    assert vectors(store).read_bytes()[: len(before)] == before and vectors(store).stat().st_ino == inode
    assert vectors(store).read_bytes() == store.snapshot.folded.tobytes() and len(store.snapshot.folded) == 5


@pytest.mark.parametrize("damage", ["longer", "shorter", "empty", "gone", "of another index"])
def test_vectors_in_a_file_that_is_not_the_index_s_are_read_from_the_index(store: Store, damage: str):
    fill(store, 3)
    content = vectors(store).read_bytes()
    if damage == "gone":
        vectors(store).unlink()
    else:
        other = np.full((3, 2 * DIM), 7, np.float16).tobytes()
        changed = {"longer": content + b"\xff" * 1001, "shorter": content[:-1], "empty": b"", "of another index": other}
        vectors(store).unlink()
        vectors(store).write_bytes(changed[damage])
    reader = reopened(store)
    assert held(reader) == [1, 2, 3]
    assert isinstance(reader.snapshot.folded.base, np.memmap) == (damage == "longer")
    fill(reopened(store), 4)  # and it is made anew
    assert held(reader) == [1, 2, 3] and held(reopened(store)) == [1, 2, 3, 4]
    assert vectors(store).read_bytes() == reopened(store).snapshot.folded.tobytes()


def test_a_failure_at_each_step_of_a_commit_leaves_the_state_before(store: Store, monkeypatch: pytest.MonkeyPatch):
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    append = on_disk.append

    def write_and_die(*args: object) -> None:
        append(*args)
        raise KeyboardInterrupt

    for name, step in (("put_file", die), ("_checksum", die), ("append", die), ("append", write_and_die)):
        with monkeypatch.context() as patch:
            patch.setattr(on_disk, name, step)
            with pytest.raises(KeyboardInterrupt):
                fill(store, 3)
        assert held(store) == held(reopened(store)) == [1, 2]
    fill(store, 4)
    assert held(reopened(store)) == [1, 2, 4]


def test_forgotten_clips_are_gone_also_from_the_disk_when_they_are_most(store: Store):
    fill(store, *range(3, 203))
    store.commit(forget=[f"/videos/{n}.mp4" for n in range(1, 100)])
    assert held(reopened(store)) == list(range(100, 203)) and store.generation == 1
    reader, before = reopened(store), (store.folder / "index-1.sqlite").stat().st_size
    store.commit(forget=[f"/videos/{n}.mp4" for n in range(100, 200)])
    assert store.generation == 2 and len(store.snapshot.folded) == 3
    assert held(store) == held(reopened(store)) == [200, 201, 202]
    left = {file.name for file in store.folder.glob("*-*")}
    assert left == {"index-2.sqlite", "folded-2.f16"}
    assert (store.folder / "index-2.sqlite").stat().st_size < before
    assert held(reader) == list(range(100, 203))  # a reader of before goes on
    reader.refresh()
    assert held(reader) == [200, 201, 202]


def test_a_compaction_that_dies_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(on_disk, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            store.copy_to(store.folder)
    assert held(reopened(store)) == [1, 2]
    again = reopened(store)
    again.copy_to(again.folder)
    assert held(reopened(store)) == [1, 2] and len(list(store.folder.glob("index-*"))) == 1


def test_a_content_is_kept_while_a_file_has_it(store: Store):
    copy = Row("/elsewhere/1.mp4", 101, 2.0, "digest 1", 4.0)
    store.commit([copy])
    store.commit(forget=["/videos/1.mp4"])
    assert len(store.snapshot.live) == 2
    assert [row.path for row in store.snapshot.rows([0])] == ["/elsewhere/1.mp4"]
    store.commit(forget=["/elsewhere/1.mp4"])
    assert held(reopened(store)) == [2]


def edited(store: Store, sql: str) -> None:
    database = sqlite3.connect(store.folder / "index-1.sqlite")
    with database:
        database.execute(sql)
    database.close()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("cut", "index-1.sqlite is damaged"),
        ("no database", "index-1.sqlite is damaged: file is not a database"),
        ("DROP TABLE meta", "index-1.sqlite is damaged: no such table"),
        ("DELETE FROM meta", "index-1.sqlite is damaged"),
        ("DELETE FROM features WHERE position = 0", "index-1.sqlite is damaged .a checksum differs"),
        ("UPDATE features SET frames = zeroblob(48)", "index-1.sqlite is damaged .a checksum differs"),
        ("UPDATE features SET folded = zeroblob(32)", "index-1.sqlite is damaged .a checksum differs"),
        ("UPDATE meta SET format = 5", "index format 5, this SUMA reads 4: make it anew with `rm -r .*suma index"),
        ("UPDATE meta SET model = 'another'", "made with model another, not model"),
    ],
)
def test_a_damaged_index_is_an_error_that_says_what(store: Store, damage: str, told: str):
    file = store.folder / "index-1.sqlite"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:9000])
    elif damage == "no database":
        file.write_bytes(b"\xff" * 5000)
    else:
        edited(store, damage)
    with pytest.raises(ValueError, match=told) as error:
        reopened(store)
    assert str(store.folder) in str(error.value)


def test_a_damaged_file_of_vectors_is_told(store: Store):
    fill(store, 3)
    content = bytearray(vectors(store).read_bytes())
    content[9] ^= 255
    vectors(store).write_bytes(content)
    with pytest.raises(ValueError, match=r"folded-1\.f16 is damaged: delete it"):
        reopened(store)
    vectors(store).unlink()
    assert held(reopened(store)) == [1, 2, 3]


def test_an_index_of_an_earlier_format_is_refused_with_what_makes_it_anew(tmp_path: Path, store: Store):
    folder = tmp_path / "my index"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"format_version": 3}')
    (folder / "rows-1.sqlite").touch()
    told = rf"index format 3 or earlier, .*`rm -r '{folder}' && python -m suma index VIDEOS -o '{folder}'`"
    for use in (
        lambda: Store.open(folder, "model", DIM),
        lambda: Store.create(folder, "model", DIM),
        lambda: store.copy_to(folder),
    ):
        with pytest.raises(ValueError, match=told):
            use()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("at", [0, 16, 100, 1000, 4096, 5000, 9000])
def test_damaged_rows_never_crash(store: Store, at: int):
    fill(store, *range(3, 60))
    rows = store.folder / "index-1.sqlite"
    content = bytearray(rows.read_bytes())
    content[at : at + 64] = os.urandom(64)
    rows.write_bytes(content)
    try:
        reopened(store)
    except ValueError as error:
        assert str(store.folder) in str(error)


def test_folders_of_other_things_are_left_alone(tmp_path: Path, store: Store):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear reader")
    for write in (
        lambda: Store.create(tmp_path / "letters", "model", DIM),
        lambda: store.copy_to(tmp_path / "letters"),
    ):
        with pytest.raises(ValueError, match="other things"):
            write()
    assert [file.name for file in (tmp_path / "letters").iterdir()] == ["letter.txt"]
    with pytest.raises(FileNotFoundError, match="no index"):
        Store.open(tmp_path / "letters", "model", DIM)
    with pytest.raises(ValueError, match="already"):
        Store.create(store.folder, "model", DIM)


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, steps = tmp_path / "file", []
    file.write_bytes(b"old")

    def sync(descriptor: int) -> None:
        stat = os.fstat(descriptor)
        steps.append("folder" if stat.st_ino == tmp_path.stat().st_ino else f"{stat.st_size} bytes")
        steps.append(file.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    atomic_io.replace(file, b"newer")
    assert steps[:2] == ["5 bytes", b"old"]  # all of it, while the old one still has the name
    assert steps[2:] == (["folder", b"newer"] if os.name == "posix" else [])  # then the name
    del steps[:]
    atomic_io.append(file, 3, [b"ro", b"ws"])
    assert steps == ["7 bytes", b"newrows"]


# One writer, many readers


def test_a_second_writer_is_refused_with_who_writes(store: Store):
    program = (
        "import sys; from pathlib import Path; from suma.index.store import Store\n"
        f"store = Store.open(Path({str(store.folder)!r}), 'model', {DIM})\n"
        "with store.writing(): print('writing', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "writing\n"
        with pytest.raises(IndexBusyError, match=f"being written by process {other.pid} on "):
            fill(store, 3)
        assert held(reopened(store)) == [1, 2]  # reading is free
    finally:
        other.kill()
        other.communicate()
    fill(store, 3)  # the lock ended with its process
    assert held(reopened(store)) == [1, 2, 3]


def test_two_opened_stores_write_in_turn_and_see_each_other(store: Store):
    other = reopened(store)
    fill(store, 3)
    fill(other, 4)
    fill(store, 5)
    assert held(store) == held(reopened(store)) == [1, 2, 3, 4, 5] and held(other) == [1, 2, 3, 4]
    with store.writing(), pytest.raises(IndexBusyError):
        fill(other, 6)


def test_readers_see_whole_states_while_a_writer_works(store: Store):
    stop, seen, errors = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(len(held(reopened(store))))
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(3, 60, 3):
        fill(store, n, n + 1, n + 2)
    store.commit(forget=[f"/videos/{n}.mp4" for n in range(1, 40, 2)])
    store.copy_to(store.folder)
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert set(seen) <= {*range(2, 60, 3), 39} and len(set(seen)) > 2, seen


def test_a_reader_keeps_the_state_that_it_opened(store: Store):
    fill(store, 3, 4, 5)
    reader, other = reopened(store), reopened(store)
    changed, moved = clip(6)[1]._replace(digest="digest 2b"), Row("/moved/3.mp4", 103, 1.5, "digest 3", 4.0)
    other.commit([Row("/videos/2.mp4", 7, 9.0, "digest 2b", 4.0)], [changed])
    other.commit([moved], forget=["/videos/3.mp4"])
    other.commit(forget=["/videos/1.mp4", "/videos/4.mp4"])
    fill(other, 4)  # comes back
    paths = ["/videos/5.mp4", "/videos/2.mp4", "/moved/3.mp4", "/videos/4.mp4"]
    for later in (other, reopened(store)):
        snapshot = later.snapshot
        assert sorted(row.path for row in snapshot.rows(snapshot.live)) == sorted(paths)
        assert [row.path for row in snapshot.files()] == paths
        assert snapshot.positions_of("/videos/3.mp4") == snapshot.positions_of("/videos/1.mp4") == []
        assert [row.digest for row in snapshot.rows(snapshot.positions_of("/videos/2.mp4"))] == ["digest 2b"]
        others = sorted(p for path in paths if path != "/videos/2.mp4" for p in snapshot.positions_of(path))
        assert snapshot.allowed(Filter(before="1970-01-01T00:00:05")).tolist() == others
    assert held(reader) == [1, 2, 3, 4, 5] and reader.snapshot.allowed(Filter(longer=1)).tolist() == [0, 1, 2, 3, 4]
    other.copy_to(other.folder)
    assert len(reopened(store).snapshot.origin.all("SELECT 1 FROM files")) == 4  # the marked ones are gone
    assert held(reader) == [1, 2, 3, 4, 5]


# Without space, without permission


def run_limited(program: str, *arguments: object, seconds: float = 100) -> str:
    """What a process with `store`, `fill` and `held` at hand prints; its working folder is the tests'."""
    head = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from pathlib import Path; from suma.index.store import Store; from stored import DIM, fill, held\n"
        "import os, resource, signal\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + program, *map(str, arguments)], capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL = """
store = Store.open(Path(sys.argv[1]), "model", DIM)
LIMIT
count = 2
try:
    while True:
        fill(store, *range(count + 1, count + 51))
        count += 50
except OSError as error:
    print(count, error)
assert held(Store.open(store.folder, "model", DIM)) == list(range(1, count + 1))
try:
    fill(store, count + 1, *range(count + 2, count + 300))
except OSError: print("still full")
"""


@pytest.mark.parametrize("limit", ["file size", "small disk"])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(store: Store, tmp_path: Path, limit: str):
    folder = store.folder
    if limit == "small disk":
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("may not mount a small disk here")
        shutil.copytree(store.folder, folder := disk / "index")
        program = FULL.replace("LIMIT", "")
    else:
        program = FULL.replace("LIMIT", "resource.setrlimit(resource.RLIMIT_FSIZE, (120000, resource.RLIM_INFINITY))")
    try:
        first, second = run_limited(program, folder).splitlines()
        count = int(first.split()[0])
        assert count > 2 and "no space left to write" in first and "intact" in first and second == "still full"
        assert held(Store.open(folder, "model", DIM)) == list(range(1, count + 1))
    finally:
        if limit == "small disk":
            subprocess.run(["umount", "--lazy", disk], check=True)
    if limit == "file size":
        fill(Store.open(folder, "model", DIM), count + 1)  # with space again it goes on
        assert held(reopened(store)) == list(range(1, count + 2))


@pytest.fixture
def public_store() -> Iterator[Store]:
    """A store in a folder that everybody may read."""
    place = Path(tempfile.mkdtemp(prefix="suma-tests-"))
    place.chmod(0o755)
    store = Store.create(place / "index", "model", DIM)
    fill(store, 1, 2)
    yield store
    shutil.rmtree(place)


def test_a_folder_that_may_only_be_read_can_be_searched_and_says_so_when_written(public_store: Store):
    folder = public_store.folder
    for file in [*folder.iterdir(), folder]:
        file.chmod(0o555 if file == folder else 0o444)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    program = """
import filelock, mmap  # while Python's own folder can be read
if os.getuid() == 0: os.setuid(65534)
store = Store.open(Path(sys.argv[1]), "model", DIM)
print(held(store))
try: fill(store, 3)
except PermissionError as error: print(error)
"""
    try:
        seen, told = run_limited(program, folder).splitlines()
    finally:
        folder.chmod(0o755)
    assert seen == "[1, 2]"
    assert "cannot be written to" in told and str(folder) in told
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# Killed


KILLED = """
import random, time
import torch; torch.set_num_threads(1)
from suma import SUMA, VideoIndex
from suma.index import ingest
from suma.index.store import newest
from suma.model.suma import BATCH_FRAMES
ingest.COMMIT_SECONDS, ingest.COMMIT_SHARE, BATCH_FRAMES['cpu'] = 0.01, 1.0, 6
model_folder, videos, folder, kills = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
model = SUMA.from_pretrained(model_folder)

def run():
    new = not newest(folder)
    index = VideoIndex(model) if new else VideoIndex.load(folder, model)
    if new: index.save(folder)
    index.add(videos)

rng, killed, counts, longest = random.Random(0), 0, [], 0.75
while killed < kills:
    pid = os.fork()
    if not pid:
        sys.stderr = open(os.devnull, "w")
        run()
        os._exit(0)
    time.sleep(rng.uniform(0.0, longest))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    killed += os.WIFSIGNALED(status)
    if newest(folder):
        index = VideoIndex.load(folder, model)
        index.store.verify()
        counts.append(len(index))
    if len(counts) < 3 or counts[-1] == counts[-3]:  # a slow machine does little in that time
        longest = min(20.0, 1.3 * longest)
    elif counts[-1] == 100:
        longest = max(0.75, longest / 1.3)
    if counts and counts[-1] == 100 and killed < kills:  # done: forget some, so that there is more to do
        index.remove([row.path for row in index.rows[rng.randrange(40) :]])
        counts.pop()
run()
print(killed, sum(0 < count < 100 for count in counts))
"""


@pytest.mark.slow
def test_fifty_kills_while_indexing_end_in_the_same_index(tiny_model: SUMA, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for n in range(100):
        pictures = [noise_picture(100 * n + i, 64, 48) for i in range(6)]
        write_video(videos / f"{n:03}.mp4", frames=6, picture=lambda i, w, h, p=pictures: p[i])
    (videos / "broken.mp4").write_bytes(b"\0" * 100)
    tiny_model.save_pretrained(tmp_path / "model")
    printed = run_limited(KILLED, tmp_path / "model", videos, tmp_path / "index", 50, seconds=900)
    killed, midway = map(int, printed.split())
    assert killed == 50 and midway >= 20
    model = SUMA.from_pretrained(tmp_path / "model")
    whole, pieced = VideoIndex(model), VideoIndex.load(tmp_path / "index", model)
    whole.add(videos)
    assert sorted(row.path for row in pieced.rows) == sorted(row.path for row in whole.rows)
    assert [row.path for row in pieced.failed] == [row.path for row in whole.failed]
    for i, row in enumerate(whole.rows):
        j = pieced.row_of(row.path)
        twin = pieced.rows[j]
        assert (twin.digest, twin.size, twin.mtime, twin.times) == (row.digest, row.size, row.mtime, row.times)
        one, other = whole.videos([i]), pieced.videos([j])
        np.testing.assert_allclose(one.features, other.features, atol=1e-3)
        np.testing.assert_allclose(one.frames, other.frames, atol=1e-3)
    assert [m.path for m in whole.search("a dog", 20)] == [m.path for m in pieced.search("a dog", 20)]
    assert not list(tmp_path.glob("index/*.partial"))


def test_a_stopped_run_keeps_what_is_done(tiny_model: SUMA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for n in range(12):
        write_video(tmp_path / f"{n:02}.mp4", frames=2 + n, picture=noise_picture)
    index, encode, calls = VideoIndex(tiny_model), ingest.Builder._encode, []
    monkeypatch.setitem(BATCH_FRAMES, "cpu", 10)

    def stop_at_the_third(self: ingest.Builder, batch: list) -> None:
        calls.append(len(batch))
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        encode(self, batch)

    monkeypatch.setattr(ingest.Builder, "_encode", stop_at_the_third)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        index.add(tmp_path)
    signal.signal(signal.SIGINT, before)
    assert 2 <= len(index) < 12
    monkeypatch.undo()
    report = index.add(tmp_path)
    assert len(index) == 12 and len(report.added) + len(report.skipped) == 12 and len(report.skipped) >= 2
