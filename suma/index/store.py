"""What a VideoIndex keeps on disk: one folder, whole after a kill at any moment, growing by appending.

| file | holds |
|---|---|
| `manifest.json` | format version, the model's fingerprint and name, length of parts, generation G of the others |
| `rows-G.sqlite` | what is known of each file and clip (suma/index/catalog.py) |
| `features-G.f16` | of each clip the video's feature, then those of its frames (D each), float16 |
| `scales-G.f32` | 1 / |C f| of each of these rows: what brings them into the concept space (suma/similarity.py) |
| `folded-G.f16` | of each clip the vector that the first stage of a search scans (2D), float16 |
| `captions-G.f16` | of each caption the folded vector (2D), float16; a list that was replaced leaves its rows |
| `first-*.faiss`, `lines*.faiss` | caches of the first stage, for large indexes (suma/index/first_stage.py) |
| `hubness-*.f32` | a cache of what is taken from each clip's score, on request (suma/index/hubness.py) |
| `lock`, `writer.json` | held by the one process that writes, and who that is |

A commit appends to the feature files, flushes them, and then ends the database transaction that names the new rows:
what lies behind the last named row is left from a killed run, and is overwritten. Removing marks clips and files; once
half of the clips are, a new generation without them is written beside the old one. So readers see the whole state that
they opened, and never wait for a writer's work.

Shapes: N clips, M feature rows, F frames, D joint width.
"""

import contextlib
import json
import math
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from suma.atomic_io import LOCK, WRITER, append, clear_errors, replace, sha256, writer_lock
from suma.index.catalog import Row, RowTable
from suma.index.snapshot import Snapshot
from suma.video.frames import SEGMENT

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
ARRAYS = {"features": "float16", "folded": "float16", "scales": "float32", "captions": "float16"}
VERIFY_BYTES = 1 << 28  # a larger index is checked by `verify` only, not at every opening
COMPACT_SHARE = 0.5  # of the clips; when more are removed the files are written anew without them


class NewClip(NamedTuple):
    """A clip to be added: the content it belongs to, its part of the file in seconds, and its features."""

    digest: str
    start: float
    end: float
    times: list[float]  # of its frames, seconds, F
    features: np.ndarray  # (1 + F, D): the video's, then the frames'
    folded: np.ndarray  # (2D,)
    scales: np.ndarray  # (1 + F,) float32


class Store:
    """One index folder: `create` or `open` it. Reading is safe from several threads, also while one writes."""

    snapshot: Snapshot

    def __init__(self, folder: Path, model: str, dim: int, segment: float | None = SEGMENT):
        self.folder, self.model, self.dim, self.generation = folder.resolve(), model, dim, 0
        self.segment = segment  # seconds of a part of a long video; 0: none is cut; None: as the manifest says
        self.source = ""  # the string that its model was loaded by
        self._mutex, self._depth = threading.RLock(), 0  # of the writers

    @property
    def place(self) -> str:
        """Where it is."""
        return str(self.folder)

    # ---- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, model: str, dim: int, segment: float = SEGMENT, source: str = "") -> "Store":
        """A new, empty index; source: the string that its model was loaded by. Raises ValueError for a folder that
        holds other things or an index already."""
        refuse_other_things(folder)
        with clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, model, dim, segment)
        store.source = source
        with writer_lock(folder), clear_errors(folder):
            if (folder / MANIFEST).exists():
                raise ValueError(f"{folder} holds an index already: open it")
            store._start(1)
            store._publish()
        return store

    @classmethod
    def open(cls, folder: Path, model: str, dim: int, segment: float | None = None) -> "Store":
        """An existing index. Raises FileNotFoundError where there is none, ValueError for a damaged or foreign one, or
        one made with another model or with parts of another length than `segment`, if given (naming both)."""
        store = cls(folder, model, dim, segment)
        store.refresh()
        if store.snapshot.features.nbytes + store.snapshot.folded.nbytes <= VERIFY_BYTES:
            store.verify()
        return store

    def refresh(self) -> None:
        """Take over the last complete state on disk."""
        for attempt in range(5):  # a writer may bring in a new generation between the two reads
            generation, self.segment, self.source = _read_manifest(self.folder, self.model, self.dim, self.segment)
            try:
                same = generation == self.generation
                table = self.snapshot.table if same else RowTable(self._rows_file(generation), self.folder.parent)
                self.snapshot, self.generation = self._take_snapshot(table, generation), generation
                return
            except (OSError, sqlite3.Error) as error:
                if attempt == 4:
                    raise ValueError(f"{self.folder} is damaged: {error}; index the videos again") from error

    def _take_snapshot(self, table: RowTable, generation: int) -> Snapshot:
        used = table.extent()
        shapes = {
            "features": (used.rows, self.dim),
            "folded": (used.clips, 2 * self.dim),
            "scales": (used.rows,),
            "captions": (used.captions, 2 * self.dim),
        }
        arrays = {name: self._map(name, generation, shape) for name, shape in shapes.items()}
        live = np.delete(np.arange(used.clips), used.removed)
        return Snapshot(table, live, **arrays, cut=used.cut, at=used.at)

    def _map(self, name: str, generation: int, shape: tuple[int, ...]) -> np.ndarray:
        file, kind = self._file(name, generation), np.dtype(ARRAYS[name])
        needed = kind.itemsize * math.prod(shape)
        if (size := file.stat().st_size) < needed:
            raise ValueError(f"{file} is damaged ({size} of {needed} bytes): index the videos again")
        if not needed:
            return np.zeros(shape, kind)
        return np.memmap(file, kind, "r", shape=shape).view(np.ndarray)  # a plain view: its slices cost less

    def _file(self, name: str, generation: int) -> Path:
        return self.folder / f"{name}-{generation}.{'f32' if ARRAYS[name] == 'float32' else 'f16'}"

    def _rows_file(self, generation: int) -> Path:
        return self.folder / f"rows-{generation}.sqlite"

    def verify(self) -> None:
        """Compare all features with their checksums. Raises ValueError naming the file that differs."""
        table, arrays = self.snapshot.table, self.snapshot._asdict()
        try:
            sound = table.check()
            spans = table.all("SELECT name, start, stop, sha256 FROM checksums ORDER BY name, start")
        except sqlite3.Error:
            sound, spans = False, []
        if not sound:
            raise ValueError(f"{self._rows_file(self.generation)} is damaged: index the videos again")
        reached = dict.fromkeys(ARRAYS, 0)
        for name, start, stop, digest in spans:
            if start < len(arrays[name]):  # what came in after the snapshot lies behind it
                if start != reached[name] or sha256(arrays[name][start:stop]) != digest:
                    damaged = self._file(name, self.generation)
                    raise ValueError(f"{damaged} is damaged (its checksum differs): index the videos again")
                reached[name] = stop
        if any(stop != len(arrays[name]) for name, stop in reached.items()):
            raise ValueError(f"{self.folder} is damaged (features without a checksum): index the videos again")

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
                    if self.snapshot.table.respell():
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
        table, position, first = self.snapshot.table, len(self.snapshot.folded), len(self.snapshot.features)
        sums = self._append(clips)
        with table.transaction() as run:
            touched = set()
            for path in [*forget, *(row.path for row in files)]:
                there = "SELECT digest FROM files WHERE path = ? AND NOT removed"
                touched.update(run(there, [table.stored(path)]).fetchall())
            for path in forget:
                table.remove_file(run, path)
            for row in files:
                table.put_file(run, row)
            for c in clips:
                times = np.asarray(c.times, np.float64).tobytes()
                run(
                    "INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, 0)", (position, c.digest, c.start, c.end, times, first)
                )
                position, first = position + 1, first + len(c.features)
            for values in sums:
                run("INSERT INTO checksums VALUES (?, ?, ?, ?)", values)
            for (digest,) in touched:
                table.remove_clips(run, digest)
        self.snapshot = self._take_snapshot(table, self.generation)

    def _append(self, clips: Sequence[NewClip]) -> list[tuple[str, int, int, str]]:
        """Write the features; the lines of `checksums` about them."""
        if not clips:
            return []
        return [
            self._extend("features", np.concatenate([c.features for c in clips]), len(self.snapshot.features)),
            self._extend("folded", np.stack([c.folded for c in clips]), len(self.snapshot.folded)),
            self._extend("scales", np.concatenate([c.scales for c in clips]), len(self.snapshot.scales)),
        ]

    def _extend(self, name: str, part: np.ndarray, before: int) -> tuple[str, int, int, str]:
        """Write rows behind the first `before` ones of an array; their line of `checksums`."""
        part = part.astype(ARRAYS[name])
        digest = append(self._file(name, self.generation), before * part[0].nbytes, part)
        return name, before, before + len(part), digest

    def captions(self) -> tuple[int, list[str]]:
        """The caption list, and the row of `snapshot.captions` where its vectors begin."""
        first, lines = self.snapshot.table.captions()
        if first + len(lines) > len(self.snapshot.captions):  # another process has replaced it
            self.refresh()
            first, lines = self.snapshot.table.captions()
        return first, lines

    def caption_vectors(self, first: int, count: int) -> np.ndarray:
        """The folded vectors (count, 2D) of captions, float16, memory-mapped."""
        return self.snapshot.captions[first : first + count]

    def set_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
        """Replace the caption list; their folded vectors come in blocks (n, 2D), and all or none are kept."""
        with self.writing(), clear_errors(self.folder):
            self._write_captions(captions, vectors)

    def _write_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
        first, table = len(self.snapshot.captions), self.snapshot.table
        sums: list[tuple[str, int, int, str]] = []
        for block in vectors:
            sums.append(self._extend("captions", block, sums[-1][2] if sums else first))
        with table.transaction() as run:
            run("DELETE FROM captions")
            for values in enumerate(captions, first):
                run("INSERT INTO captions VALUES (?, ?)", values)
            for line in sums:
                run("INSERT INTO checksums VALUES (?, ?, ?, ?)", line)
        self.snapshot = self._take_snapshot(table, self.generation)

    def copy_to(self, folder: Path) -> None:
        """Write the clips that can be found as a new generation of the index in `folder`; its manifest comes last.

        Raises ValueError for a folder that holds other things."""
        refuse_other_things(folder)
        with clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with self.writing() if folder.resolve() == self.folder else writer_lock(folder), clear_errors(folder):
            new = Store(folder, self.model, self.dim, self.segment)
            new.source = self.source
            new._start(1 + max((int(file.stem.split("-")[1]) for file in folder.glob("rows-*.sqlite")), default=0))
            for files, clips in self.blocks():
                new._write(files, clips)
            first, lines = self.captions()
            vectors = self.snapshot.captions[first : first + len(lines)]
            new._write_captions(lines, (vectors[i : i + 4096] for i in range(0, len(lines), 4096)))
            new._publish()

    def clips_of(self, digest: str) -> list[NewClip]:
        """The clips of a content, with their features."""
        return self._read_block(np.array(self.snapshot.table.positions_of(digest), np.int64))[1]

    def blocks(self) -> Iterator[tuple[list[Row], list[NewClip]]]:
        """All that the last complete state holds, in commits of a fitting size."""
        for i in range(0, len(self.snapshot.live), 512):
            yield self._read_block(self.snapshot.live[i : i + 512])
        yield self.snapshot.failed(), []

    def _read_block(self, positions: np.ndarray) -> tuple[list[Row], list[NewClip]]:
        """These clips, and the files they belong to."""
        table, clips = self.snapshot.table, []
        files: dict[str, Row] = {}
        rows, spans = table.rows(positions), table.spans(positions)
        for position, row, (first, count) in zip(positions, rows, spans, strict=True):
            features = self.snapshot.features[first : first + 1 + count]
            folded, scales = self.snapshot.folded[position], self.snapshot.scales[first : first + 1 + count]
            clips.append(NewClip(row.digest, row.start, row.end, row.times, features, folded, scales))
            files.update((file.path, file) for file in table.files("digest = ?", [row.digest]))
        return list(files.values()), clips

    def _start(self, generation: int) -> None:
        """Empty files of a generation that no manifest names yet."""
        self.generation = generation
        self._rows_file(generation).unlink(missing_ok=True)
        for name in ARRAYS:
            self._file(name, generation).write_bytes(b"")
        table = RowTable(self._rows_file(generation), self.folder.parent, create=True)
        self.snapshot = self._take_snapshot(table, generation)

    def _publish(self) -> None:
        """Make this generation the index, and delete the others."""
        manifest = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "source": self.source,
            "dim": self.dim,
            "segment": self.segment,
            "generation": self.generation,
        }
        replace(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        for file in self.folder.iterdir():
            if _is_ours(file) and file.name not in (MANIFEST, LOCK, WRITER) and f"-{self.generation}." not in file.name:
                file.unlink(missing_ok=True)


def _is_ours(file: Path) -> bool:
    made = (
        "rows-*.sqlite*",
        "features-*.f16",
        "folded-*.f16",
        "scales-*.f32",
        "captions-*.f16",
        "first-*.faiss*",
        "hubness-*.f32*",
        "lines*.faiss*",
    )
    of_format_1 = ("videos-*.npy*", "frames-*.npy*")
    return any(file.match(pattern) for pattern in (MANIFEST + "*", LOCK, WRITER, *made, *of_format_1))


def refuse_other_things(folder: Path) -> None:
    """Raises ValueError for a folder with files that no index makes: nothing of yours is overwritten."""
    if folder.is_dir() and not all(map(_is_ours, folder.iterdir())):
        raise ValueError(f"{folder} holds other things than an index: choose a new folder")


def remembered_model(folder: Path) -> str:
    """Return the string that an index's model was loaded by; "" where there is no index, or it has none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("source", ""))
    return ""


def _read_manifest(folder: Path, model: str, dim: int, segment: float | None) -> tuple[int, float, str]:
    """The generation in use, the length of a part, and the model's string. Raises FileNotFoundError or ValueError as
    `open` says."""
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no index ({MANIFEST} is missing)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version, made_with = manifest["format_version"], manifest["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged or no index manifest: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has index format {version}, this SUMA reads {FORMAT_VERSION}: index the videos again"
        )
    if made_with != model:
        raise ValueError(
            f"{folder} was made with model {made_with}, not {model}: load that model, or index again with this one"
        )
    generation, cut = manifest.get("generation"), manifest.get("segment")
    if manifest.get("dim") != dim or not isinstance(generation, int) or not isinstance(cut, int | float):
        raise ValueError(f"{file} is damaged: dim {manifest.get('dim')}, generation {generation}, segment {cut}")
    if segment is not None and segment != cut:
        raise ValueError(
            f"{folder} has parts of {cut:g} s, not {segment:g} s: leave that as it is, or make another index"
        )
    return generation, float(cut), str(manifest.get("source", ""))
