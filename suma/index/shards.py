"""Several processes or machines fill one index: each rank encodes its share into a shard, then rank 0 merges them.

A file belongs to the rank that a hash of its path names: the shares need no talking, and stay when files are added.
A shard, `OUTPUT.shards/rank-R`, is an ordinary index, as safe and as incremental. What the index or any shard holds
already is not encoded again, so the same command goes on after a death, also with another number of ranks. The merge
brings the clips in, in the order in which one process would have (each content once), then runs an ordinary `add`,
which finds hardly anything to do, and deletes the shards.

Ranks tell of themselves by a small file each, beside the shards (a folder that all machines see under the same name):
it changes every second while the rank lives. Nothing else is needed, no port and no process group.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from suma.atomic_io import digest_of
from suma.index.catalog import RowTable, describe, key
from suma.index.files import find_videos
from suma.index.ingest import Report
from suma.index.merge import is_same, merge
from suma.index.store import MANIFEST, Store, refuse_other_things
from suma.index.video_index import VideoIndex
from suma.model.suma import SUMA
from suma.video.frames import SEGMENT

BEAT = 1.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one after which a rank counts as dead
Add = Callable[[VideoIndex, Sequence[Path], bool], Report]  # `VideoIndex.add` with its options; True: finish the whole


def place(environ: Mapping[str, str]) -> tuple[int, int]:
    """This process's rank and the number of ranks, as `accelerate launch` and `torchrun` set them; (0, 1) without one.

    >>> place({"RANK": "1", "WORLD_SIZE": "4"}), place({})
    ((1, 4), (0, 1))
    """
    try:
        rank, world = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE must be numbers: {error}") from error
    if not 0 <= rank < world:
        raise ValueError(f"RANK={rank} must be at least 0 and less than WORLD_SIZE={world}")
    return rank, world


def device(environ: Mapping[str, str]) -> torch.device:
    """The rank's own GPU, where there are any and the launcher was not told to leave them."""
    if environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def owner(path: str | Path, world: int) -> int:
    """The rank whose share a file is in."""
    return int.from_bytes(hashlib.sha256(os.fsencode(key(path))).digest()[:8]) % world


def folder_of(output: str | Path) -> Path:
    """Where the shards of an index lie."""
    output = Path(output).resolve()
    return output.with_name(output.name + ".shards")


# ---- every rank's part ---------------------------------------------------------------------------------------------


def fill(
    model: SUMA,
    output: str | Path,
    videos: Sequence[str],
    place: tuple[int, int],
    add: Add,
    retry: bool = False,
    segment: float | None = None,
    exclude: Sequence[str] = (),
) -> None:
    """Encode this rank's share into its shard; rank 0 then waits for the others, and they until it has heard of them.

    retry: try again what could not be read; segment: seconds of a part of a long video (None: the index's, or
    SEGMENT). Raises RuntimeError where another rank fails or dies, or this one is told to stop; what was encoded
    is kept.
    """
    (rank, world), folder = place, folder_of(output)
    refuse_other_things(Path(output))
    folder.mkdir(parents=True, exist_ok=True)
    left = {other: _read(folder, other) for other in range(world) if other != rank}  # maybe by an earlier run
    with _Sign(folder, rank) as sign, _stoppable(rank, folder):
        try:
            mine = [path for path in find_videos(videos, exclude) if owner(path, world) == rank]
            shard = folder / f"rank-{rank}"
            if segment is None and (Path(output) / MANIFEST).is_file():
                segment = Store.open(Path(output).resolve(), model.fingerprint(), model.dim).segment
            length = SEGMENT if segment is None else segment
            has_one = (shard / MANIFEST).is_file()
            index = VideoIndex.load(shard, model, length) if has_one else VideoIndex(model, length)
            index.save(shard)
            _fill(index, Path(output).resolve(), mine, add, retry)
        except BaseException as error:
            sign.say(state="failed", error=f"{type(error).__name__}: {error}")
            raise
        sign.say(state="done")
        if rank:
            _wait_for_the_first(folder, sign)
        else:
            _wait_for_the_others(folder, sign, left)


def _fill(index: VideoIndex, output: Path, share: Sequence[Path], add: Add, retry: bool) -> None:
    mine, store = index.folder_store.folder, index.folder_store
    others = [file.parent for file in [output / MANIFEST, *mine.parent.glob(f"rank-*/{MANIFEST}")] if file.is_file()]
    tables = [
        Store.open(folder, store.model, store.dim, store.segment).snapshot.table for folder in others if folder != mine
    ]
    sizes = {size for table in tables for (size,) in table.all("SELECT DISTINCT size FROM files WHERE reason = ''")}
    add(index, [path for path in share if not _is_known(path, tables, sizes, retry)], False)


def _is_known(path: Path, tables: Sequence[RowTable], sizes: set[int], retry: bool) -> bool:
    """Whether one of the tables has this file as it is, or its content by another path."""
    row, digest = describe(path), ""
    for table in tables:
        old = table.file(path)
        if old is not None and is_same(old, row) and not (retry and old.reason):
            return True
    if row.size in sizes:
        digest = digest_of(path)
    return any(table.positions_of(digest) for table in tables)


class _Sign:
    """A rank's file in the folder of shards, written anew every second by a thread of its own."""

    def __init__(self, folder: Path, rank: int):
        self.file, self.token = folder / f"rank-{rank}.json", uuid.uuid4().hex
        self._said: dict[str, Any] = {"token": self.token, "state": "working", "beat": 0, "heard": []}
        self._said["who"] = f"process {os.getpid()} on {socket.gethostname()}"
        self._mutex, self._ending = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "_Sign":
        self.say()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()

    def say(self, **what: Any) -> None:
        with self._mutex, contextlib.suppress(OSError):  # a sign that cannot be written is one that is missing
            self._said.update(what, beat=self._said["beat"] + 1)
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(self._said))
            partial.replace(self.file)

    def _beat(self) -> None:
        while not self._ending.wait(BEAT):
            self.say()


def _read(folder: Path, rank: int) -> dict[str, Any]:
    try:
        return json.loads((folder / f"rank-{rank}.json").read_text())
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def _stoppable(rank: int, folder: Path) -> Iterator[None]:
    """A launcher's SIGTERM, sent when another rank dies, ends the work like Ctrl-C: what is encoded is committed."""
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt as error:
        if not told:
            raise
        raise RuntimeError(
            f"rank {rank} was told to stop (a launcher does so when another rank has died): "
            f"what is encoded is kept in {folder}; run the same command again to go on"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _wait_for_the_others(folder: Path, sign: _Sign, left: dict[int, dict[str, Any]]) -> None:
    """Until all are done. What a file says counts once it differs from what was `left` when this rank began."""
    kept = f"the shards are kept in {folder}; run the same command again to go on"
    said, since = dict(left), dict.fromkeys(left, time.monotonic())
    waiting, heard = set(left), []
    while waiting:
        for rank in sorted(waiting):
            now = _read(folder, rank)
            if now and now != said[rank]:
                said[rank], since[rank] = now, time.monotonic()
            alive, name = said[rank] != left[rank], f"rank {rank} of {1 + len(left)}"
            if alive and said[rank]["state"] == "failed":
                raise RuntimeError(f"{name} ({said[rank]['who']}) failed: {said[rank]['error']}; {kept}")
            if alive and said[rank]["state"] == "done":
                waiting.discard(rank)
                heard.append(said[rank]["token"])
                sign.say(heard=heard)
            elif time.monotonic() - since[rank] > PATIENCE:
                who = f" ({said[rank]['who']})" if alive else ""
                raise RuntimeError(f"{name}{who} gave no sign of life for {PATIENCE:.0f} s: {kept}")
        time.sleep(BEAT / 10)


def _wait_for_the_first(folder: Path, sign: _Sign) -> None:
    """Until rank 0 has heard that this one is done."""
    before, since = _read(folder, 0), time.monotonic()
    while folder.is_dir():  # it is deleted in the end
        said = _read(folder, 0)
        if sign.token in said.get("heard", []):
            return
        if said != before:
            before, since = said, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise RuntimeError(
                f"rank 0 gave no sign of life for {PATIENCE:.0f} s: this rank's share is kept in {folder}; "
                "run the same command again to merge it"
            )
        time.sleep(BEAT / 10)


# ---- the first rank's part -----------------------------------------------------------------------------------------


def gather(index: VideoIndex, videos: Sequence[str], add: Add, exclude: Sequence[str] = ()) -> Report:
    """Bring all shards of a saved index into it, finish what they left (`add` of everything), and delete them."""
    assert index.folder is not None
    folder = folder_of(index.folder)
    manifests = sorted(folder.glob(f"rank-*/{MANIFEST}"), key=lambda file: int(file.parent.name.split("-")[1]))
    store = index.folder_store
    sources = [Store.open(file.parent, store.model, store.dim, store.segment) for file in manifests]
    report = merge(index.folder_store, sources, find_videos(videos, exclude))
    rest = add(index, [Path(video) for video in videos], True)
    merged = {*report.added, *report.duplicates, *report.moved}
    report.skipped = [path for path in rest.skipped if path not in merged]
    for name in ("failed", "missing", "excluded", "pruned", "out_of_reach", "unreadable"):
        setattr(report, name, getattr(rest, name))
    report.added += rest.added
    report.moved |= rest.moved
    report.duplicates |= rest.duplicates
    for file in manifests:  # without it a folder is no shard: a kill in the middle leaves nothing that looks like one
        file.unlink()
    while folder.exists():  # another rank may say something for the last time
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(BEAT / 100)
    return report
