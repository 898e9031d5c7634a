"""What a VideoIndex keeps on disk: one SQLite file in a folder, and what can be made anew from it.

| file | holds |
|---|---|
| `index-G.sqlite` | all that is known: files, clips, features, captions (suma/index/catalog.py); G: its generation |
| `folded-G.f16` | of a large index the vectors that the first stage of a search scans (2D each), memory-mapped |
| `first-*.faiss`, `lines*.faiss` | codes of these, for very large indexes (suma/index/first_stage.py) |
| `hubness-*.f32` | what is taken from each clip's score, on request (suma/index/hubness.py) |
| `lock`, `writer.json` | held by the one process that writes, and who that is |

A commit is one transaction; vectors are written to their file before it ends, so that the file has all that readers
look for, and what a killed commit left behind is overwritten. Once half of the clips have died, the others are copied
into a new generation. Who has the one before open goes on reading it.

Shapes: N clips, F frames, D joint width.
"""

import contextlib
import functools
import shlex
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from suma.atomic_io import LOCK, WRITER, append, clear_errors, rename, writer_lock
from suma.index.catalog import Database, Snapshot, put_file, remove_clips
from suma.index.storage import NewClip, Row

FORMAT_VERSION = 4
MAPPED = 2000  # vectors from which on they are kept in a file of their own, too
VERIFY_BYTES = 1 << 28  # a larger index is checked by `verify` only, not at every opening
DAMAGE = ("SQLITE_CORRUPT", "SQLITE_ERROR", "SQLITE_NOTADB")
COMPACT_SHARE = 0.5  # of the clips; when more have died the others are copied into a new file


class Store:
    """One index folder: `create` or `open` it. Reading is safe from several threads, also while one writes."""

    snapshot: Snapshot

    def __init__(self, folder: Path, model: str, dim: int, segment: float | None = None, source: str = ""):
        self.folder, self.model, self.dim, self.generation = folder.resolve(), model, dim, 0
        self.place = str(self.folder)
        self.segment = segment  # seconds of a part of a long video; 0: none is cut; None: as the index says
        self.source = source  # the string that its model was loaded by
        self._mutex, self._depth = threading.RLock(), 0  # of the writers

    # ---- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, model: str, dim: int, segment: float = 0.0, source: str = "") -> "Store":
        """A new, empty index; source: the string that its model was loaded by. Raises ValueError for a folder that
        holds other things or an index already."""
        _prepare(folder)
        with writer_lock(folder), clear_errors(folder):
            if newest(folder):
                raise ValueError(f"{folder} holds an index already: open it")
            new = cls(folder, model, dim, segment, source)
            new._start(1)
            new._publish()
        return cls.open(folder, model, dim, segment)

    @classmethod
    def open(cls, folder: Path, model: str, dim: int, segment: float | None = None) -> "Store":
        """An existing index. Raises FileNotFoundError where there is none, ValueError for a damaged or foreign one, or
        one made with another model or with parts of another length than `segment`, if given (naming both)."""
        store = cls(folder, model, dim, segment)
        store.refresh()
        size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        if store.snapshot.origin.all(size)[0][0] <= VERIFY_BYTES:
            store.verify()
        return store

    def refresh(self) -> None:
        """Take over the last complete state on disk."""
        for attempt in range(5):  # a writer may bring in a new generation meanwhile
            if not (generation := newest(self.folder)):
                raise FileNotFoundError(f"{self.folder} holds no index (index-*.sqlite is missing)")
            try:
                same = generation == self.generation
                origin = self.snapshot.origin if same else Database(self._file(generation), self.folder.parent)
                self._check(origin.all("SELECT format, model, dim, segment, source FROM meta")[0])
                self.snapshot = self._look(origin, generation)
                self.generation = generation
                return
            except (OSError, IndexError, sqlite3.Error) as error:
                if attempt == 4 and getattr(error, "sqlite_errorname", "SQLITE_ERROR") in DAMAGE:
                    raise ValueError(f"{self._file(generation)} is damaged: {error}; index the videos again") from error
                if attempt == 4:  # a lock, rights, a network
                    raise OSError(f"{self._file(generation)} cannot be read: {error}") from error

    def _check(self, meta: tuple[int, str, int, float, str]) -> None:
        """Take over what an index says of itself. Raises ValueError as `open` says."""
        version, model, dim, segment, source = meta
        if version != FORMAT_VERSION:
            raise ValueError(_refusal(self.folder, version))
        if (model, dim) != (self.model, self.dim):
            raise ValueError(
                f"{self.folder} was made with model {model}, not {self.model}: load that model, or index again with "
                "this one"
            )
        if self.segment not in (None, segment):
            raise ValueError(
                f"{self.folder} has parts of {segment:g} s, not {self.segment:g} s: leave that as it is, or make "
                "another index"
            )
        self.segment, self.source = segment, source

    def _look(self, origin: Database, generation: int) -> Snapshot:
        """The last complete state of a generation."""
        before = self.snapshot if generation == self.generation else None
        return Snapshot.last(origin, self._file(generation, "folded"), self.dim, before)

    def _file(self, generation: int, name: str = "index") -> Path:
        return self.folder / f"{name}-{generation}.{'sqlite' if name == 'index' else 'f16'}"

    def verify(self) -> None:
        """Compare all features with their checksums. Raises ValueError naming the file that is damaged."""
        snapshot, origin = self.snapshot, self.snapshot.origin
        damaged = f"{origin.file} is damaged ({{}}): index the videos again"
        columns = "position, checksum, folded, video, scales, frames"
        try:
            if (told := origin.all("PRAGMA quick_check(1)")) != [("ok",)]:
                raise ValueError(damaged.format(told[0][0]))
            for i in range(0, len(snapshot.folded), 500):
                block = range(i, min(i + 500, len(snapshot.folded)))
                found = list(origin.each(f"SELECT {columns} FROM features WHERE position IN ({{}})", block))
                if len(found) < len(block) or any(_checksum(*parts) != told for _, told, *parts in found):
                    raise ValueError(damaged.format("a checksum differs"))
                if any(snapshot.folded[position].tobytes() != folded for position, _, folded, *_ in found):
                    raise ValueError(f"{self._file(self.generation, 'folded')} is damaged: delete it")
            for told, folded in origin.all("SELECT checksum, folded FROM caption_vectors"):
                if _checksum(folded) != told:
                    raise ValueError(damaged.format("the checksum of its captions differs"))
        except sqlite3.Error as error:
            raise ValueError(damaged.format(error)) from error

    # ---- writing ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer meanwhile, from the last complete state on. Raises IndexBusyError naming the process that
        is, and OSError where the folder cannot be written to."""
        with self._mutex:
            if self._depth:
                yield
                return
            with writer_lock(self.folder):
                self._depth += 1
                try:
                    self.refresh()
                    self.snapshot.origin.respell()
                    self.refresh()
                    yield
                finally:
                    self._depth -= 1

    def commit(self, files: Sequence[Row] = (), clips: Sequence[NewClip] = (), forget: Sequence[str] = ()) -> None:
        """Add clips, add files or replace what is known of them, forget paths: all or nothing. Clips of contents that
        no file has any more are removed. Raises OSError, with the state before intact, where there is no space."""
        with self.writing(), clear_errors(self.folder):
            self._write(files, clips, forget)
            gone = len(self.snapshot.folded) - len(self.snapshot.live)
            if gone > 64 + COMPACT_SHARE * len(self.snapshot.folded):
                self.copy_to(self.folder)
                self.refresh()

    def _write(self, files: Sequence[Row], clips: Sequence[NewClip], forget: Sequence[str] = ()) -> None:
        origin, now, first = self.snapshot.origin, self.snapshot.commit + 1, len(self.snapshot.folded)
        with origin.transaction() as run:
            touched: set[tuple[str]] = set()
            for path in map(origin.stored, [*forget, *(row.path for row in files)]):
                touched.update(run("SELECT digest FROM files WHERE path = ? AND died IS NULL", [path]))
            for path in map(origin.stored, forget):
                run("UPDATE files SET died = ? WHERE path = ? AND died IS NULL", [now, path])
            for row in files:
                put_file(run, row, origin.stored(row.path), now)
            for position, clip in enumerate(clips, first):
                times = np.asarray(clip.times, np.float64).tobytes()
                clip_row = (position, clip.digest, clip.start, clip.end, times)
                run("INSERT INTO clips VALUES (?, ?, ?, ?, ?, NULL)", clip_row)
                features, scales = np.asarray(clip.features, np.float16), np.asarray(clip.scales, np.float32)
                rows = np.asarray(clip.folded, np.float16), features[0], scales, features[1:]
                parts = [part.tobytes() for part in rows]
                run("INSERT INTO features VALUES (?, ?, ?, ?, ?, ?)", (position, _checksum(*parts), *parts))
            for digest in touched:
                remove_clips(run, *digest)
            run("UPDATE meta SET commits = ?", [now])
            if clips and first + len(clips) >= MAPPED:
                held = first if isinstance(self.snapshot.folded.base, np.memmap) else 0
                rest = run("SELECT folded FROM features WHERE position >= ? ORDER BY position", [held])
                append(self._file(self.generation, "folded"), 4 * self.dim * held, (vector for (vector,) in rest))
        self.snapshot = self._look(origin, self.generation)

    def captions(self) -> tuple[int, list[str]]:
        """The caption list, and the number of the commit that brought it."""
        with self.snapshot.origin.transaction("BEGIN") as run:
            (number,) = run("SELECT captions FROM meta").fetchone()
            return number, [line for (line,) in run("SELECT caption FROM captions ORDER BY position")]

    def caption_vectors(self, number: int, count: int) -> np.ndarray | None:
        """The folded vectors (count, 2D) of the list that a commit brought, float16; None where it was replaced."""
        sql = "SELECT folded FROM caption_vectors WHERE ? = (SELECT captions FROM meta) ORDER BY first"
        found = np.frombuffer(b"".join(block for (block,) in self.snapshot.origin.all(sql, [number])), np.float16)
        return found.reshape(count, 2 * self.dim) if found.size == count * 2 * self.dim else None

    def set_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
        """Replace the caption list; their folded vectors come in blocks (n, 2D), and all or none are kept."""
        with self.writing(), clear_errors(self.folder):
            self._write_captions(captions, [np.asarray(block, np.float16).tobytes() for block in vectors])

    def _write_captions(self, captions: Sequence[str], blocks: Sequence[bytes]) -> None:
        with self.snapshot.origin.transaction() as run:
            run("DELETE FROM captions")
            run("DELETE FROM caption_vectors")
            for values in enumerate(captions):
                run("INSERT INTO captions VALUES (?, ?)", values)
            first = 0
            for block in blocks:
                run("INSERT INTO caption_vectors VALUES (?, ?, ?)", (first, _checksum(block), block))
                first += len(block) // (4 * self.dim)
            run("UPDATE meta SET commits = commits + 1, captions = commits + 1")
        self.snapshot = self._look(self.snapshot.origin, self.generation)

    # ---- copies ----------------------------------------------------------------------------------------------------

    def copy_to(self, folder: Path) -> None:
        """Write the clips that can be found as a new generation of the index in `folder`, which is its last one as soon
        as it is complete. Raises ValueError for a folder that holds other things."""
        _prepare(folder)
        with self.writing() if folder.resolve() == self.folder else writer_lock(folder), clear_errors(folder):
            new = Store(folder, self.model, self.dim, self.segment, self.source)
            new._start(1 + newest(folder))
            for files, clips in self.blocks():
                new._write(files, clips)
            vectors = self.snapshot.origin.all("SELECT folded FROM caption_vectors ORDER BY first")
            new._write_captions(self.captions()[1], [block for (block,) in vectors])
            new._publish()

    def clips_of(self, digest: str) -> list[NewClip]:
        """The clips of a content, with their features."""
        return self._read_block(self.snapshot.clips_of(digest))[1]

    def blocks(self) -> Iterator[tuple[list[Row], list[NewClip]]]:
        """All that the last complete state holds, in commits of a fitting size."""
        for i in range(0, len(self.snapshot.live), 512):
            yield self._read_block(self.snapshot.live[i : i + 512])
        yield self.snapshot.failed(), []

    def _read_block(self, positions: Sequence[int] | np.ndarray) -> tuple[list[Row], list[NewClip]]:
        """These clips, and the files they belong to."""
        snapshot, clips = self.snapshot, []
        files: dict[str, Row] = {}
        found = zip(positions, snapshot.rows(positions), *snapshot.gather(positions), strict=True)
        for position, row, features, scales, valid in found:
            folded = snapshot.folded[position]
            clips.append(NewClip(row.digest, row.start, row.end, row.times, features[valid], folded, scales[valid]))
            files.update((file.path, file) for file in snapshot.files_of(row.digest))
        return list(files.values()), clips

    def _start(self, generation: int) -> None:
        """An empty generation, under a name that no reader looks for yet."""
        for file in (*self.folder.glob("index-*.partial*"), self._file(generation, "folded")):
            file.unlink(missing_ok=True)
        file = self._file(generation)
        origin = Database(file.with_name(file.name + ".partial"), self.folder.parent, create=True)
        with origin.transaction() as run:
            meta = (FORMAT_VERSION, self.model, self.source, self.dim, self.segment)
            run("INSERT INTO meta VALUES (?, ?, ?, ?, ?, 0, 0)", meta)
        self.snapshot, self.generation = self._look(origin, generation), generation

    def _publish(self) -> None:
        """Make this generation the index, and delete the others."""
        file = self.snapshot.origin.file
        self.snapshot.origin.close()
        rename(file, self._file(self.generation))
        for other in self.folder.iterdir():
            if _is_ours(other) and other.name not in (LOCK, WRITER) and f"-{self.generation}-" not in f"{other.stem}-":
                other.unlink(missing_ok=True)


def _checksum(*parts: bytes) -> int:
    return functools.reduce(lambda sum, part: zlib.crc32(part, sum), parts, 0)


def newest(folder: Path) -> int:
    """The last complete generation of the index in a folder; 0: there is none. Raises ValueError for one of an earlier
    format."""
    found = max((int(file.stem.partition("-")[2]) for file in folder.glob("index-*.sqlite")), default=0)
    if not found and (folder / "manifest.json").is_file():
        raise ValueError(_refusal(folder, "3 or earlier"))
    return found


def _refusal(folder: Path, version: int | str) -> str:
    place = shlex.quote(str(folder))
    return (
        f"{folder} has index format {version}, this SUMA reads {FORMAT_VERSION}: make it anew with "
        f"`rm -r {place} && python -m suma index VIDEOS -o {place}`"
    )


def remembered_model(folder: Path) -> str:
    """Return the string that an index's model was loaded by; "" where there is no index, or it has none."""
    with contextlib.suppress(OSError, ValueError, IndexError, sqlite3.Error):
        origin = Database(folder / f"index-{newest(folder)}.sqlite", folder.parent)
        return str(origin.all("SELECT source FROM meta")[0][0])
    return ""


def _is_ours(file: Path) -> bool:
    made = ("index-*.sqlite*", "folded-*.f16", "first-*.faiss*", "lines*.faiss*", "hubness-*.f32*")
    return any(file.match(pattern) for pattern in (LOCK, WRITER, *made))


def refuse_other_things(folder: Path) -> None:
    """Raises ValueError for a folder with files that no index makes: nothing of yours is overwritten."""
    newest(folder)  # raises ValueError
    if folder.is_dir() and not all(map(_is_ours, folder.iterdir())):
        raise ValueError(f"{folder} holds other things than an index: choose a new folder")


def _prepare(folder: Path) -> None:
    refuse_other_things(folder)
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
