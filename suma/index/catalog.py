"""The SQLite file of an index, and what it holds at one moment: files, clips, and their features.

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from suma.index.storage import Row, key

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
Run = Callable[..., sqlite3.Cursor]


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


class Snapshot(NamedTuple):
    """The state that a commit left; later ones do not change it."""

    origin: Database  # the same object as long as clips are only added
    commit: int  # its number
    live: np.ndarray  # (N,) int64: positions of the clips that can be found, ascending
    folded: np.ndarray  # (all positions, 2D) float16; of a large index memory-mapped
    cut: bool  # whether a file has more than one clip

    @classmethod
    def last(cls, origin: Database, file: Path, dim: int, before: "Snapshot | None" = None) -> "Snapshot":
        """The last complete state of a database. `file` has the folded vectors, if all of them lie in it; else they are
        read from the database, from where those of the state `before` end."""
        with origin.transaction("BEGIN") as run:
            commit, count, cut = run(
                "SELECT commits, (SELECT coalesce(max(position) + 1, 0) FROM clips),"
                " EXISTS (SELECT 1 FROM clips WHERE start > 0) FROM meta"
            ).fetchone()
            if before and before.commit == commit:
                return before
            died = [position for (position,) in run("SELECT position FROM clips WHERE died IS NOT NULL")]
            newest = run("SELECT folded FROM features WHERE position = ? - 1", [count]).fetchone()
        folded = _mapped(file, count, newest[0]) if newest else None
        if folded is None:
            known = before.folded if before else np.zeros((0, 2 * dim), np.float16)
            rest = "SELECT folded FROM features WHERE position >= ? AND position < ? ORDER BY position"
            content = b"".join(vector for (vector,) in origin.all(rest, [len(known), count]))
            folded = np.concatenate([known, np.frombuffer(content, np.float16).reshape(-1, 2 * dim)])
        return cls(origin, commit, np.delete(np.arange(count), died), folded, bool(cut))

    # ---- files -----------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> str:
        return f"files.born <= {self.commit} AND (files.died IS NULL OR files.died > {self.commit})"

    def files(self, condition: str = "1", values: Sequence[object] = ()) -> list[Row]:
        """The files that an SQL condition names, in the order in which they came in."""
        sql = f"SELECT {FILE} FROM files WHERE ({condition}) AND {self._alive} ORDER BY id"
        return [Row(self.origin.path(f[0]), f[1], f[2], f[3], f[4], [], f[5]) for f in self.origin.all(sql, values)]

    def file(self, path: str | Path) -> Row | None:
        """What is known of a file, by any spelling of its path, without its frames."""
        for name in dict.fromkeys((key(path), os.path.abspath(path))):  # the second: of an index not yet respelled
            for stored in dict.fromkeys((self.origin.stored(name), os.fsencode(name))):
                if found := self.files("path = ?", [stored]):
                    return found[0]
        return None

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """The files among these paths, as `key` names them, that are known."""
        found = {path: self.files("path = ?", [self.origin.stored(path)]) for path in paths}
        return {path: rows[0] for path, rows in found.items() if rows}

    def paths(self) -> list[str]:
        """The paths of all files."""
        return [self.origin.path(p) for (p,) in self.origin.all(f"SELECT path FROM files WHERE {self._alive}")]

    def files_of(self, digest: str) -> list[Row]:
        """The files of a content, in the order in which they came in."""
        return self.files("digest = ?", [digest])

    def copies(self) -> list[Row]:
        """The files of each content that has more than one."""
        several = f"SELECT digest FROM files WHERE digest != '' AND {self._alive} GROUP BY digest HAVING count(*) > 1"
        return self.files(f"digest IN ({several})")

    def files_below(self, folder: str | Path) -> list[Row]:
        """The files below a folder."""
        return self.files(*self.origin.below(folder))

    def sizes(self) -> list[int]:
        """The sizes, each once, of the files that could be read, also of those that were forgotten."""
        return [size for (size,) in self.origin.all("SELECT DISTINCT size FROM files WHERE reason = ''")]

    def failed(self) -> list[Row]:
        """The files that could not be read, with reasons."""
        return self.files("reason != ''")

    # ---- clips -----------------------------------------------------------------------------------------------------

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Any = None) -> list[Row]:
        """These clips, each with the first of its files that is there and that a filter (query.Filter), if given, lets
        through; with the first one let through where none is there; with an empty path where it has no file."""
        condition, values = chosen.condition(self.origin.within) if chosen else ("", [])
        found: dict[int, list[tuple[Any, ...]]] = {}
        sql = (
            "SELECT position, path, size, mtime, clips.digest, duration, times, start, stop FROM clips"
            f" JOIN files ON files.digest = clips.digest WHERE position IN ({{}}) AND ({condition or 1})"
            f" AND {self._alive} ORDER BY files.id"
        )
        for position, path, *more in self.origin.each(sql, positions, values):
            found.setdefault(position, []).append((self.origin.path(path), *more))
        rows = []
        for position in positions:
            copies = found.get(int(position), [("", 0, 0.0, "", 0.0, b"", 0.0, 0.0)])
            there = (copy for copy in copies if len(copies) == 1 or os.path.exists(copy[0]))
            path, size, mtime, digest, duration, times, start, stop = next(there, copies[0])
            when, reason = np.frombuffer(times, np.float64).tolist(), "" if path else "removed"
            rows.append(Row(path, size, mtime, digest, duration, when, reason, start, stop))
        return rows

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """The contents that these clips belong to."""
        found = dict(self.origin.each("SELECT position, digest FROM clips WHERE position IN ({})", positions))
        return [found[int(p)] for p in positions]

    def clips_of(self, digest: str) -> list[int]:
        """The clips of a content, in the order of time."""
        sql = (
            f"SELECT position FROM clips WHERE digest = ? AND position < {len(self.folded)}"
            f" AND (died IS NULL OR died > {self.commit}) ORDER BY start, position"
        )
        return [position for (position,) in self.origin.all(sql, [digest])] if digest else []

    def positions_of(self, path: str | Path) -> list[int]:
        """The clips of a file, in the order of time."""
        known = self.file(path)
        return self.clips_of(known.digest) if known else []

    def has_content(self, digest: str) -> bool:
        """Whether a content's clips are there."""
        return bool(self.clips_of(digest))

    def allowed(self, chosen: Any) -> np.ndarray | None:
        """Positions (n,) int64, ascending, of the clips with a file that a filter (query.Filter) lets through;
        None: all."""
        condition, values = chosen.condition(self.origin.within)
        if not condition:
            return None
        condition += f" AND {self._alive}"
        sql = f"SELECT position FROM clips JOIN files ON files.digest = clips.digest WHERE {condition}"
        found = np.array([position for (position,) in self.origin.all(sql, values)], np.int64)
        return np.intersect1d(found, self.live)

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are valid
        (n, 1 + F); what follows a clip's last frame is 0."""
        sql = "SELECT position, video, frames, scales FROM features WHERE position IN ({})"
        found = {position: parts for position, *parts in self.origin.each(sql, positions)}
        chosen = [found[int(p)] for p in positions]
        counts = np.array([len(scales) // 4 for *_, scales in chosen], np.int64)
        valid = np.arange(counts.max(initial=1)) < counts[:, None]
        features = np.zeros((*valid.shape, self.folded.shape[1] // 2), np.float16)
        all_scales = np.zeros(valid.shape, np.float32)
        content = b"".join(part for video, frames, _ in chosen for part in (video, frames))
        features[valid] = np.frombuffer(content, np.float16).reshape(-1, features.shape[2])
        all_scales[valid] = np.frombuffer(b"".join(scales for *_, scales in chosen), np.float32)
        return features, all_scales, valid

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The videos' features (n, D) float16, without their frames."""
        found = dict(self.origin.each("SELECT position, video FROM features WHERE position IN ({})", positions))
        content = b"".join(found[int(p)] for p in positions)
        return np.frombuffer(content, np.float16).reshape(len(positions), self.folded.shape[1] // 2)


def _mapped(file: Path, count: int, last: bytes) -> np.ndarray | None:
    """The first vectors (count, 2D) of a file, memory-mapped; None where it has fewer, or another `last` one."""
    with contextlib.suppress(OSError):
        if file.stat().st_size >= count * len(last):
            found = np.memmap(file, np.float16, "r", shape=(count, len(last) // 2)).view(np.ndarray)  # sliced faster
            return found if found[-1].tobytes() == last else None
    return None
