"""What an index knows of each video, in SQLite: files (path, size, time, content, reason) and the clips cut from them.

A clip belongs to a content (sha256), not to a path: copies of a file share their clips, and a moved file keeps them.
A file that is forgotten or changed keeps its old row, marked with the number of the commit that removed it, until a new
generation is written: so who opened the index before still reads the state of that moment.
"""

import contextlib
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY, path BLOB NOT NULL, size INTEGER NOT NULL, mtime REAL NOT NULL,
    digest TEXT NOT NULL, duration REAL NOT NULL, reason TEXT NOT NULL, removed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX files_by_path ON files(path);
CREATE INDEX files_removed ON files(removed) WHERE removed > 0;
CREATE INDEX files_by_content ON files(digest);
CREATE INDEX files_by_size ON files(size);
CREATE INDEX files_failed ON files(id) WHERE reason != '';
CREATE TABLE clips (position INTEGER PRIMARY KEY, digest TEXT NOT NULL, start REAL NOT NULL, stop REAL NOT NULL,
    times BLOB NOT NULL, first INTEGER NOT NULL, removed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX clips_by_content ON clips(digest);
CREATE INDEX clips_removed ON clips(position) WHERE removed;
CREATE INDEX clips_later ON clips(position) WHERE start > 0;
CREATE TABLE checksums (name TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE captions (position INTEGER PRIMARY KEY, caption TEXT NOT NULL);
"""
FILE = "path, size, mtime, digest, duration, reason"
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


class Moment(NamedTuple):
    """A state of the files: those with an id up to `last` that no commit up to number `commit` removed."""

    last: int
    commit: int


class Extent(NamedTuple):
    """How much of the index's arrays is in use."""

    clips: int  # positions, also of removed clips
    rows: int  # of features
    removed: list[int]  # positions
    captions: int  # rows of captions' vectors, also of lists that were replaced
    cut: bool  # whether a file has more than one part
    at: Moment


NOW = Moment(1 << 62, 1 << 62)  # whatever comes
REMOVED = "removed by a visitor"  # the reason of a file that is not added again with its folder
_NEXT_COMMIT = "(SELECT 1 + coalesce(max(removed), 0) FROM files WHERE removed > 0)"
_THERE = "files.id <= ? AND (files.removed = 0 OR files.removed > ?)"  # at a Moment


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


class RowTable:
    """The database of one index. Files below the folder `above`, a real path, are named relative to it, so that all can
    move together."""

    def __init__(self, file: Path, above: Path, create: bool = False):
        if not create and not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        self.above = str(above)
        self._inside = os.path.join(self.above, "")  # how the paths below it begin
        self._respelled = False
        self._mutex = threading.RLock()
        self._database = sqlite3.connect(file, timeout=60, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.create_function("nfc", 1, _composed, deterministic=True)
        if create:
            self._database.executescript(f"BEGIN; {SCHEMA} COMMIT;")

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The answer to one query."""
        with self._mutex:
            return self._database.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Run]:
        """What is run inside comes in whole, or not at all."""
        with self._mutex:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database.execute
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    def check(self) -> bool:
        """Whether the database's structure is sound."""
        return self.all("PRAGMA quick_check") == [("ok",)]

    # ---- paths -----------------------------------------------------------------------------------------------------

    def stored(self, path: str) -> bytes:
        """Return an absolute path as it stands in the database; also one that is no text."""
        return os.fsencode(path.removeprefix(self._inside))

    def path(self, stored: bytes) -> str:
        """Return the absolute path of a stored one."""
        return os.path.join(self.above, os.fsdecode(stored))

    def respell(self) -> bool:
        """Store all files under the one spelling of their paths (`key`), once for each opening; return True if some had
        another: the index was moved beside its videos, or a folder became a link. A second row of a file is removed."""
        if self._respelled:
            return False
        changed = list(self._misspelled())
        with self.transaction() as run:
            for row, stored in changed:
                if not run("SELECT 1 FROM files WHERE path = ? AND removed = 0", [stored]).fetchone():
                    run("UPDATE files SET path = ? WHERE id = ?", [stored, row])
                    continue
                run(f"UPDATE files SET removed = {_NEXT_COMMIT} WHERE id = ?", [row])
                self.remove_clips(run, run("SELECT digest FROM files WHERE id = ?", [row]).fetchone()[0])
        self._respelled = True
        return bool(changed)

    def _misspelled(self) -> Iterator[tuple[int, bytes]]:
        """Yield the files that are stored under another path than `key` gives them: id, and the path to store."""
        right: dict[bytes, bytes] = {}  # by the folder as it is stored, with a slash at its end
        last, some = 0, "SELECT id, path FROM files WHERE removed = 0 AND id > ? ORDER BY id LIMIT 10000"
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
        """An SQL condition for the files below an absolute folder; or in any folder of this name, or path, whose name
        begins below `root`; `folder` is in NFC."""
        if os.path.isabs(folder):
            return self.below(folder)
        slash, inside = os.fsencode(os.sep), os.fsencode(os.path.join(os.sep, os.path.normpath(folder), ""))
        start, above = len(os.fsencode(root.rstrip(os.sep))) + 1, os.fsencode(self._inside)
        whole = "CAST(CASE WHEN substr(path, 1, 1) = ? THEN path ELSE ? || path END AS BLOB)"
        return f"instr(nfc(substr({whole}, ?)), ?) > 0", [slash, above, start, inside]

    # ---- files -----------------------------------------------------------------------------------------------------

    def files(self, condition: str = "1", values: Sequence[object] = (), at: Moment = NOW) -> list[Row]:
        """The files that an SQL condition names, in the order in which they came in."""
        found = self.all(f"SELECT {FILE} FROM files WHERE ({condition}) AND {_THERE} ORDER BY id", [*values, *at])
        return [Row(self.path(f[0]), f[1], f[2], f[3], f[4], [], f[5]) for f in found]

    def file(self, path: str | Path, at: Moment = NOW) -> Row | None:
        """Return what is known of a file, by any spelling of its path, without its frames; else None."""
        for name in dict.fromkeys((key(path), os.path.abspath(path))):  # the second: of an index not yet respelled
            for stored in dict.fromkeys((self.stored(name), os.fsencode(name))):
                if found := self.files("path = ?", [stored], at):
                    return found[0]
        return None

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """Return the files among these paths, as `key` names them, that a writer knows."""
        found = {path: self.files("path = ?", [self.stored(path)]) for path in paths}
        return {path: rows[0] for path, rows in found.items() if rows}

    def paths(self, at: Moment = NOW) -> list[str]:
        """Return the paths of all files."""
        return [self.path(stored) for (stored,) in self.all(f"SELECT path FROM files WHERE {_THERE}", at)]

    def files_of(self, digest: str) -> list[Row]:
        """The files of a content, in the order in which they came in."""
        return self.files("digest = ?", [digest])

    def copies(self) -> list[Row]:
        """Return the files of each content that has more than one."""
        several = "SELECT digest FROM files WHERE removed = 0 AND digest != '' GROUP BY digest HAVING count(*) > 1"
        return self.files(f"digest IN ({several})")

    def files_below(self, folder: str | Path) -> list[Row]:
        """The files below a folder."""
        return self.files(*self.below(folder))

    def sizes(self) -> list[int]:
        """The sizes, each once, of the files that could be read."""
        return [size for (size,) in self.all("SELECT DISTINCT size FROM files WHERE reason = ''")]

    def put_file(self, run: Run, row: Row) -> None:
        """Add a file, or replace what is known of it."""
        reason = row.reason.encode(errors="backslashreplace").decode()  # it may quote a name that is no UTF-8
        path, values = self.stored(row.path), (row.size, row.mtime, row.digest, row.duration, reason)
        named = [f"{name} = ?" for name in FILE.split(", ")[1:]]
        same = "path = ? AND removed = 0 AND digest = ?"
        if run(f"UPDATE files SET {', '.join(named)} WHERE {same}", (*values, path, row.digest)).rowcount:
            return
        self.remove_file(run, row.path)
        run(f"INSERT INTO files ({FILE}) VALUES (?, ?, ?, ?, ?, ?)", (path, *values))

    def remove_file(self, run: Run, path: str) -> None:
        """Mark a file as removed by the next commit."""
        run(f"UPDATE files SET removed = {_NEXT_COMMIT} WHERE path = ? AND removed = 0", [self.stored(path)])

    def remove_clips(self, run: Run, digest: str) -> None:
        """Mark the clips of a content as removed, unless a file still has it."""
        if not run("SELECT 1 FROM files WHERE digest = ? AND NOT removed", [digest]).fetchone():
            run("UPDATE clips SET removed = 1 WHERE digest = ?", [digest])

    # ---- clips -----------------------------------------------------------------------------------------------------

    def rows(
        self,
        positions: Sequence[int] | np.ndarray,
        at: Moment = NOW,
        condition: str = "",
        values: Sequence[object] = (),
    ) -> list[Row]:
        """Return the clips at these positions, each with one of its files for which an SQL condition holds: the first
        that is there, else the first. A removed clip has an empty path."""
        found: dict[int, list[tuple[Any, ...]]] = {}
        sql = (
            "SELECT position, path, size, mtime, clips.digest, duration, times, start, stop FROM clips"
            f" JOIN files ON files.digest = clips.digest WHERE position IN ({{}}) AND ({condition or 1}) AND {_THERE}"
            " ORDER BY files.id"
        )
        for position, path, *more in self._each(sql, positions, [*values, *at]):
            found.setdefault(position, []).append((self.path(path), *more))
        rows = []
        for position in positions:
            copies = found.get(int(position), [("", 0, 0.0, "", 0.0, b"", 0.0, 0.0)])
            there = (copy for copy in copies[1:] if os.path.exists(copy[0]))
            chosen = copies[0] if len(copies) == 1 or os.path.exists(copies[0][0]) else next(there, copies[0])
            path, size, mtime, digest, duration, times, start, stop = chosen
            when, reason = np.frombuffer(times, np.float64).tolist(), "" if path else "removed"
            rows.append(Row(path, size, mtime, digest, duration, when, reason, start, stop))
        return rows

    def spans(self, positions: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
        """Where the features of these clips lie: the video's own row, and the number of frames that follow it."""
        sql = "SELECT position, first, length(times) / 8 FROM clips WHERE position IN ({})"
        found = {position: (first, count) for position, first, count in self._each(sql, positions)}
        return [found[int(p)] for p in positions]

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """The contents that these clips belong to."""
        found = dict(self._each("SELECT position, digest FROM clips WHERE position IN ({})", positions))
        return [found[int(p)] for p in positions]

    def _each(
        self, sql: str, positions: Sequence[int] | np.ndarray, more: Sequence[object] = ()
    ) -> Iterator[tuple[Any, ...]]:
        for i in range(0, len(positions), 500):
            block = [int(p) for p in positions[i : i + 500]]
            yield from self.all(sql.format(",".join("?" * len(block))), [*block, *more])

    def positions_of(self, digest: str) -> list[int]:
        """The clips of a content, in the order of time."""
        sql = "SELECT position FROM clips WHERE digest = ? AND NOT removed ORDER BY start"
        return [position for (position,) in self.all(sql, [digest])] if digest else []

    def has_content(self, digest: str) -> bool:
        """Whether a content's clips are there."""
        return bool(self.positions_of(digest))

    def select(self, condition: str, values: Sequence[object], at: Moment = NOW) -> np.ndarray:
        """Positions (n,) int64, ascending, of the clips, also removed ones, with a file of which an SQL condition
        holds."""
        sql = (
            "SELECT DISTINCT position FROM clips JOIN files ON files.digest = clips.digest"
            f" WHERE ({condition}) AND {_THERE} ORDER BY position"
        )
        return np.array([position for (position,) in self.all(sql, [*values, *at])], np.int64)

    def extent(self) -> Extent:
        """What is in use, all of one moment."""
        with self._mutex:
            self._database.execute("BEGIN")
            try:
                sql = "SELECT position + 1, first + 1 + length(times) / 8 FROM clips ORDER BY position DESC LIMIT 1"
                clips, rows = (self.all(sql) or [(0, 0)])[0]
                removed = [position for (position,) in self.all("SELECT position FROM clips WHERE removed")]
                lines = "(SELECT max(stop) FROM checksums WHERE name = 'captions')"
                last = "(SELECT max(id) FROM files)"
                commit = "(SELECT max(removed) FROM files WHERE removed > 0)"
                cut = "(SELECT 1 FROM clips WHERE start > 0 LIMIT 1)"
                found = self.all(f"SELECT {', '.join(f'coalesce({x}, 0)' for x in (lines, cut, last, commit))}")[0]
            finally:
                self._database.execute("COMMIT")
        return Extent(clips, rows, removed, found[0], bool(found[1]), Moment(*found[2:]))

    def captions(self) -> tuple[int, list[str]]:
        """The caption list, and the row of the first one's vector; the others follow."""
        found = self.all("SELECT position, caption FROM captions ORDER BY position")
        return (found[0][0] if found else 0), [caption for _, caption in found]
