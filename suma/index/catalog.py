"""What an index knows of each video, and the SQLite file that holds it with the features.

A clip belongs to a content (sha256), not to a path: copies of a file share their clips, and a moved file keeps them.
Rows are never deleted: a file that is forgotten or changed, and a clip without a file, keep the number of the commit in
which they died. So who opened the index before still reads the state of that moment, without holding SQLite's locks.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

import contextlib
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = """
CREATE TABLE meta (format INTEGER NOT NULL, model TEXT NOT NULL, source TEXT NOT NULL, dim INTEGER NOT NULL,
    segment REAL NOT NULL, commits INTEGER NOT NULL, captions INTEGER NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, path BLOB NOT NULL, size INTEGER NOT NULL, mtime REAL NOT NULL,
    digest TEXT NOT NULL, duration REAL NOT NULL, reason TEXT NOT NULL, born INTEGER NOT NULL, died INTEGER);
CREATE INDEX files_by_path ON files(path);
CREATE INDEX files_by_content ON files(digest);
CREATE INDEX files_by_size ON files(size);
CREATE INDEX files_failed ON files(id) WHERE reason != '';
CREATE TABLE clips (position INTEGER PRIMARY KEY, digest TEXT NOT NULL, start REAL NOT NULL, stop REAL NOT NULL,
    times BLOB NOT NULL, died INTEGER);
CREATE INDEX clips_by_content ON clips(digest);
CREATE INDEX clips_died ON clips(died) WHERE died IS NOT NULL;
CREATE INDEX clips_later ON clips(position) WHERE start > 0;
CREATE TABLE features (position INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, folded BLOB NOT NULL,
    video BLOB NOT NULL, scales BLOB NOT NULL, frames BLOB NOT NULL);
CREATE TABLE captions (position INTEGER PRIMARY KEY, caption TEXT NOT NULL);
CREATE TABLE caption_vectors (first INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, folded BLOB NOT NULL);
"""
FILE = "path, size, mtime, digest, duration, reason"
REMOVED = "removed by a visitor"  # the reason of a file that is not added again with its folder
Run = Callable[..., sqlite3.Cursor]


@dataclass
class Row:
    """One clip: a video file, or a part of a long one. A file that cannot be read keeps its `reason` and no frames."""

    path: str
    size: int  # bytes
    mtime: float  # seconds
    digest: str  # sha256 of the content
    duration: float = 0.0  # seconds, of the whole file
    times: list[float] = field(default_factory=list)  # of its frames, seconds on the player's clock
    reason: str = ""
    start: float = 0.0  # seconds: the part of the file that this row stands for
    end: float = 0.0


def key(path: str | Path, real_folder: Callable[[str], str] = os.path.realpath) -> str:
    """Return the one name of a file in an index: the real path of its folder, and the file's own name, which may be a
    link. `real_folder`: os.path.realpath, or a cache of it for many files."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.realpath(path) if name in ("", ".", "..") else os.path.join(real_folder(folder), name)


def describe(path: Path, real_folder: Callable[[str], str] = os.path.realpath) -> Row:
    """Return a file's size and time, without reading it."""
    name = key(path, real_folder)
    try:
        stat = path.stat()
    except OSError as error:
        return Row(name, 0, 0.0, "", reason=f"{error.strerror or error}: {path}")
    return Row(name, stat.st_size, stat.st_mtime, "")


def _composed(path: bytes) -> bytes:
    """Return a stored path as names are compared (Unicode's NFC): some systems store letters and accents apart."""
    return os.fsencode(unicodedata.normalize("NFC", os.fsdecode(path)))


class Database:
    """The SQLite file of an index. Files below the folder `above`, a real path, are named relative to it, so that all
    can move together."""

    def __init__(self, file: Path, above: Path, create: bool = False):
        self.file, self.above = file, str(above)
        self._inside = os.path.join(self.above, "")  # how the paths below it begin
        self._respelled = False
        self._mutex = threading.RLock()
        uri = f"{file.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"  # rw: only read what is write-protected
        self._database = sqlite3.connect(uri, timeout=60, check_same_thread=False, isolation_level=None, uri=True)
        self.close = self._database.close
        # no write-ahead log: it needs shared memory, which network file systems lack, and files beside a read-only one
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA cache_size = -65536")  # KiB; a commit that fits keeps readers waiting least
        self._database.execute("PRAGMA mmap_size = 2147418112")  # what is read is copied once less
        self._database.create_function("nfc", 1, _composed, deterministic=True)
        if create:
            self._database.executescript(f"BEGIN; {SCHEMA} COMMIT;")

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the answer to one query."""
        with self._mutex:
            return self._database.execute(sql, values).fetchall()

    def each(self, sql: str, positions: Sequence[int] | np.ndarray, more: Sequence[object] = ()) -> Iterator[Any]:
        """Yield the answers to a query about positions, of which it is given some at a time: `position IN ({})`."""
        for i in range(0, len(positions), 500):
            block = [int(p) for p in positions[i : i + 500]]
            yield from self.all(sql.format(",".join("?" * len(block))), [*block, *more])

    @contextlib.contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[Run]:
        """What is run inside comes in whole, or not at all; with a plain BEGIN, what is read is of one moment."""
        with self._mutex:
            self._database.execute(begin)
            try:
                yield self._database.execute
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    # ---- paths -----------------------------------------------------------------------------------------------------

    def stored(self, path: str) -> bytes:
        """Return an absolute path as it stands in the database; also one that is no text."""
        return os.fsencode(path.removeprefix(self._inside))

    def path(self, stored: bytes) -> str:
        """Return the absolute path of a stored one."""
        return os.path.join(self.above, os.fsdecode(stored))

    def respell(self) -> None:
        """Store all files under the one spelling of their paths (`key`), once for each opening: the index may have been
        moved beside its videos, or a folder became a link. A second row of a file dies."""
        if self._respelled:
            return
        changed = list(self._misspelled())
        with self.transaction() as run:
            for row, stored in changed:
                if not run("SELECT 1 FROM files WHERE path = ? AND died IS NULL", [stored]).fetchone():
                    run("UPDATE files SET path = ? WHERE id = ?", [stored, row])
                else:
                    run("UPDATE files SET died = 1 + (SELECT commits FROM meta) WHERE id = ?", [row])
                    remove_clips(run, *run("SELECT digest FROM files WHERE id = ?", [row]).fetchone())
            if changed:
                run("UPDATE meta SET commits = commits + 1")
        self._respelled = True

    def _misspelled(self) -> Iterator[tuple[int, bytes]]:
        """Yield the files that are stored under another path than `key` gives them: id, and the path to store."""
        right: dict[bytes, bytes] = {}  # by the folder as it is stored, with a slash at its end
        last, some = 0, "SELECT id, path FROM files WHERE died IS NULL AND id > ? ORDER BY id LIMIT 10000"
        while rows := self.all(some, [last]):
            for last, stored in rows:
                name = stored.rpartition(os.fsencode(os.sep))[2]
                folder = stored[: len(stored) - len(name)]
                if folder not in right:
                    real = os.path.realpath(os.path.join(self.above, os.fsdecode(folder)))
                    right[folder] = self.stored(os.path.join(real, ""))
                if right[folder] != folder:
                    yield last, right[folder] + name

    def below(self, folder: str | Path) -> tuple[str, list[object]]:
        """Return an SQL condition, with its values, that holds for the files below a folder."""
        folder, slash = os.path.realpath(folder), os.fsencode(os.sep)
        inside = os.fsencode(os.path.join(folder, ""))
        if self._inside.startswith(os.path.join(folder, "")):  # so is all that is named relative to it
            return "(substr(path, 1, 1) != ? OR substr(path, 1, ?) = ?)", [slash, len(inside), inside]
        starts = {inside, self.stored(folder) + slash}  # an index that was moved here has absolute paths
        ranges = [(start, start[:-1] + bytes([start[-1] + 1])) for start in sorted(starts)]
        return f"({' OR '.join(['path >= ? AND path < ?'] * len(ranges))})", [end for pair in ranges for end in pair]

    def within(self, folder: str, root: str = "") -> tuple[str, list[object]]:
        """Return an SQL condition for the files below an absolute folder; or in any folder of this name, or path, whose
        name begins below `root`; `folder` is in NFC."""
        if os.path.isabs(folder):
            return self.below(folder)
        slash, inside = os.fsencode(os.sep), os.fsencode(os.path.join(os.sep, os.path.normpath(folder), ""))
        start, above = len(os.fsencode(root.rstrip(os.sep))) + 1, os.fsencode(self._inside)
        whole = "CAST(CASE WHEN substr(path, 1, 1) = ? THEN path ELSE ? || path END AS BLOB)"
        return f"instr(nfc(substr({whole}, ?)), ?) > 0", [slash, above, start, inside]


def remove_clips(run: Run, digest: str) -> None:
    """Let the clips of a content die in the next commit, unless a file still has it."""
    run(
        "UPDATE clips SET died = 1 + (SELECT commits FROM meta) WHERE digest = ?1 AND died IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM files WHERE digest = ?1 AND died IS NULL)",
        [digest],
    )


def put_file(run: Run, row: Row, path: bytes, now: int) -> None:
    """Add a file in commit number `now`, or replace what is known of it; `path`: as it is stored."""
    reason = row.reason.encode(errors="backslashreplace").decode()  # it may quote a name that is no UTF-8
    values = (row.size, row.mtime, row.digest, row.duration, reason)
    same = f"UPDATE files SET ({FILE}) = (?, ?, ?, ?, ?, ?) WHERE path = ? AND digest = ? AND died IS NULL"
    if not run(same, (path, *values, path, row.digest)).rowcount:
        run("UPDATE files SET died = ? WHERE path = ? AND died IS NULL", [now, path])
        run(f"INSERT INTO files ({FILE}, born) VALUES (?, ?, ?, ?, ?, ?, ?)", (path, *values, now))
