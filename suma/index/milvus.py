"""An index kept in Milvus instead of a folder: `milvus://HOST:PORT/NAME`, or `milvus:FILE.db/NAME` with milvus-lite.

| collection | holds |
|---|---|
| `NAME` | of each file and part one row: what is known of the file, the part's times, the searched vector (2D) |
| `NAME_features` | of each content and part the video's feature (D), its frames' and their scales (base64) |
| `NAME_log` | markers of the commits, the caption list, the folders, and who writes |

Milvus has no transactions. So a row says by which commit it was born and by which it died, and a reader asks only for
rows that are alive at the newest marker it saw. A commit writes features, which are named by their content, then rows,
then marks the dead, and its marker last; all of it is upserted under keys that follow from the state before. What a
killed commit left behind is taken back when the next writer begins; the dead of an hour ago are removed then, too. One
writer at a time: it holds a lease in the log.

A server that is killed may lose what it has not yet written to its disk, so a commit has its rows and features written
before its marker, and the marker before it ends. The marker counts the rows: readers never take a part for the whole.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from suma.atomic_io import IndexBusyError
from suma.index.catalog import Row
from suma.index.milvus_client import Client
from suma.index.milvus_state import (
    CAPTIONS,
    COPY,
    FAILED,
    FEATURE_FIELDS,
    FIRST,
    FOLDER,
    FOREVER,
    LEASE,
    LOG_FIELDS,
    MARKER,
    PATHS_AT_ONCE,
    ROW_FIELDS,
    State,
    about,
    quoted,
)
from suma.index.storage import StoreError
from suma.index.store import NewClip
from suma.video.frames import SEGMENT

FORMAT_VERSION = 2
CHUNK = 65_532  # characters of base64 in one row
HISTORY_SECONDS = 3600.0  # for which readers can go on in the state that they opened
LEASE_SECONDS = 600.0  # after which a writer of another machine that did not commit counts as dead


def is_server(place: str | Path) -> bool:
    """Whether an index's place is Milvus; else it is a folder."""
    return str(place).startswith("milvus:")


class MilvusStore:
    """One index in Milvus. Reading is safe from several threads and processes, also while one writes."""

    snapshot: State

    def __init__(self, client: Client, model: str, dim: int, segment: float | None):
        self.client, self.model, self.dim = client, model, dim
        self.segment = segment  # seconds of a part of a long video; 0: none is cut; None: as the marker says
        self._mutex, self._depth = threading.RLock(), 0
        self._lease, self._since, self._renewed = 0, "", 0.0  # of the writer
        self._folders: set[str] = set()  # that it has told of

    @property
    def place(self) -> str:
        """Where it is."""
        return self.client.place

    @classmethod
    def open(
        cls, place: str, model: str, dim: int, segment: float | None = None, create: bool = False, source: str = ""
    ) -> "MilvusStore":
        """The index at a place; with `create` made where there is none; source: what its model was loaded by. Raises
        FileNotFoundError where there is none, ValueError for collections of other things and an index made with another
        model or with parts of another length than `segment`, if given, StoreError where Milvus does not answer."""
        store = cls(Client(place), model, dim, segment)
        if not store.client.exists("log") or store._marker() is None:
            if not create:
                raise FileNotFoundError(f"{store.place} holds no index: make one with `index FOLDER -o {store.place}`")
            store._make(source)
        store.refresh()
        return store

    def _make(self, source: str) -> None:
        """Empty collections; without the first marker they are no index yet, and are made anew."""
        client = self.client
        if client.exists("") and not client.exists("log"):
            raise ValueError(f"{self.place} holds other things than an index: choose a new name")
        for part in ("", "features", "log"):  # the log last: with it goes the sign that they are ours
            if client.exists(part):
                client.drop(part)
        client.create("log", LOG_FIELDS, 2, "FLAT", False)
        with ThreadPoolExecutor(2) as pool:
            rows = pool.submit(client.create, "", ROW_FIELDS, 2 * self.dim, client.index, client.has_float16)
            client.create("features", FEATURE_FIELDS, self.dim, "FLAT", False)
            rows.result()
        first = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "dim": self.dim,
            "commit": 0,
            "next": 0,
            "rows": 0,
            "captions": 0,
            "cut": False,
            "segment": SEGMENT if self.segment is None else self.segment,
            "source": source,
        }
        self._log([(0, MARKER, {**first, "written": time.time()})])

    @classmethod
    def remembered_model(cls, place: str) -> str:
        """Return the string that the model of the index at a place was loaded by; "" where there is no index."""
        store = cls(Client(place), "", 0, None)
        marker = store._marker() if store.client.exists("log") else None
        return str((marker or {}).get("source", ""))

    def refresh(self) -> None:
        """Take over the last complete state."""
        self._take_over(self._marker())

    def _take_over(self, marker: dict[str, Any] | None) -> None:
        if marker is None:
            raise FileNotFoundError(f"{self.place} holds no index any more")
        if marker["format_version"] != FORMAT_VERSION:
            told = f"has index format {marker['format_version']}, this SUMA reads {FORMAT_VERSION}"
            raise ValueError(f"{self.place} {told}: index the videos again, under a new name")
        if (marker["model"], marker["dim"]) != (self.model, self.dim):
            raise ValueError(
                f"{self.place} was made with model {marker['model']}, not {self.model}: load that model, or index under"
                " another name with this one"
            )
        if self.segment not in (None, marker["segment"]):
            raise ValueError(
                f"{self.place} was made with parts of {marker['segment']:g} s, not {self.segment:g}: leave that out, or"
                " index under another name"
            )
        self.segment = marker["segment"]
        self.snapshot = State(self.client, marker, bool(self._lease))

    def search(
        self, store: object, snapshot: State, query: np.ndarray, number: int, allowed: str | None = None
    ) -> list[int]:
        """The first stage of a search, as first_stage.py has it for folders: positions of the best `number` clips
        for a query (2D,), best first; of those for which the expression `allowed` holds, if given."""
        return snapshot.search(query, number, allowed)

    def verify(self) -> None:
        """Read all features. Raises ValueError where some are missing or damaged."""
        for i in range(0, self.snapshot.total, 500):
            try:
                self.snapshot.gather(self.snapshot.live[i : i + 500])
            except (StoreError, ValueError) as error:
                raise ValueError(f"{self.place} is damaged: {error}") from error

    # ---- the log ---------------------------------------------------------------------------------------------------

    def _marker(self, since: int = 0) -> dict[str, Any] | None:
        """The newest marker, not older than commit `since`."""
        found = self.client.query("log", f"what == {MARKER} and id >= {since}", ["id", "text"])
        return json.loads(max(found, key=lambda row: row["id"])["text"]) if found else None

    def _log(self, lines: Sequence[tuple[int, int, Any]]) -> None:
        """Write lines: identity, kind, content."""
        self.client.put("log", [{"id": i, "what": w, "text": json.dumps(c), "vector": [0.0, 0.0]} for i, w, c in lines])

    def _write_lease(self) -> None:
        until = time.time() + LEASE_SECONDS
        lease = {"pid": os.getpid(), "host": socket.gethostname(), "since": self._since, "until": until}
        self._log([(self._lease, LEASE, lease)])
        self._renewed = time.monotonic()

    def _alone(self, since: int = 0) -> dict[int, dict[str, Any]]:
        """The markers from commit `since` on. Raises IndexBusyError where another writer is at work, or has taken this
        one for dead."""
        lines = self.client.query("log", f"what == {LEASE} or (what == {MARKER} and id >= {since})", ["id", "text"])
        content = {row["id"]: json.loads(row["text"]) for row in lines}
        dead = [i for i, line in content.items() if i < 0 and not _at_work(line)]
        self.client.delete("log", dead)
        for i, line in content.items():
            if i < 0 and i != self._lease and i not in dead:
                who = f"process {line['pid']} on {line['host']} (since {line['since']})"
                raise IndexBusyError(f"{self.place} is being written by {who}: wait for it, or stop it")
        if self._lease not in content:
            raise IndexBusyError(f"{self.place} was given to another process meanwhile: run this again")
        return {i: line for i, line in content.items() if i >= 0}

    # ---- writing ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer meanwhile, from the last complete state on. Raises IndexBusyError naming the process that
        is, and StoreError, with what was committed kept, where Milvus does not answer any more."""
        with self._mutex:
            if self._depth:
                yield
                return
            self._lease, self._since = -random.getrandbits(62) - 1, time.strftime("%Y-%m-%d %H:%M:%S")
            self._depth += 1
            try:
                self._write_lease()
                markers = self._alone()  # of two who came at the same time none goes on
                self._take_over(markers[max(markers)] if markers else None)
                if (there := self.snapshot.rows_there) != (rows := self.snapshot.marker["rows"]):
                    warnings.warn(f"Milvus has only {there} of the {rows} rows of {self.place}", stacklevel=2)
                self._take_back(markers)
                yield
            except StoreError as error:
                raise StoreError(f"{error}; what was committed is kept") from error
            finally:
                self._depth -= 1
                with contextlib.suppress(StoreError):
                    self.client.delete("log", [self._lease])
                self._lease = 0

    def _take_back(self, markers: dict[int, dict[str, Any]]) -> None:
        """Remove what a killed commit left, and the long dead, for whom hardly a reader asks any more."""
        n, client, long_ago = self.snapshot.number, self.client, time.time() - HISTORY_SECONDS
        horizon = max((i for i, marker in markers.items() if marker["written"] < long_ago), default=-1)
        changed = client.query("", f"born > {n} or died < {FOREVER}", ["id", "digest", "born", "died"])
        dying = [row["id"] for row in changed if row["born"] <= n < row["died"]]
        whole = client.query_in("", "id", dying, "", [*ROW_FIELDS, "vector"], "Strong", PATHS_AT_ONCE)
        client.put("", [{**row, "died": FOREVER} for row in whole])
        gone = [row for row in changed if row["born"] > n or row["died"] <= horizon]
        client.delete("", [row["id"] for row in gone])
        digests = {row["digest"] for row in gone if row["digest"]}
        left = client.query_in("", "digest", sorted(digests), "", ["id", "digest"], "Strong", PATHS_AT_ONCE)
        digests -= {row["digest"] for row in left}
        features = client.query_in("features", "digest", sorted(digests), "", ["id"], "Strong", PATHS_AT_ONCE)
        client.delete("features", [row["id"] for row in features])
        client.delete("log", [i for i in markers if i < horizon])

    def _begin(self) -> int:
        """The number of the next commit. Raises IndexBusyError where another writer has taken over meanwhile."""
        if time.monotonic() - self._renewed > LEASE_SECONDS / 4:
            self._write_lease()
        if max(self._alone(self.snapshot.number), default=-1) != self.snapshot.number:
            raise IndexBusyError(f"{self.place} was written by another process meanwhile: run this again")
        return self.snapshot.number + 1

    def _publish(self, *parts: str, more_rows: int = 0, **changed: Any) -> None:
        """Make the next commit the last one: what was written for it to these collections can be seen from now on."""
        number, rows = self.snapshot.number + 1, self.snapshot.rows_there + more_rows
        marker = {**self.snapshot.marker, **changed, "commit": number, "rows": rows, "written": time.time()}
        self.client.flush(*parts)
        self._log([(number, MARKER, marker)])
        self.client.flush("log")
        self.snapshot = State(self.client, marker, writer=True)
        self.snapshot.rows_there = rows

    def commit(self, files: Sequence[Row] = (), clips: Sequence[NewClip] = (), forget: Sequence[str] = ()) -> None:
        """Add clips, add files or replace what is known of them, forget paths: all or nothing. Clips of contents that
        no file has any more are removed. Raises StoreError, with the state before kept, where Milvus does not answer.
        """
        with self.writing():
            number = self._begin()
            born, dying = self._changes(files, clips, forget)
            folders = {os.path.dirname(row["path"]).rstrip("/") + "/" for row in born} - self._folders
            self._log([(_folder_id(folder), FOLDER, folder) for folder in sorted(folders)])
            self._folders |= folders
            self.client.put("features", [row for clip in _in_parts(clips) for row in _feature_rows(*clip)])
            self.client.put("", [{**row, "born": number, "died": FOREVER} for row in born])
            self.client.put("", [{**row, "died": number} for row in dying])
            cut = self.snapshot.cut or any(row["part"] for row in born)
            more = len(born) - len(dying)
            self._publish("", "features", "log", more_rows=more, next=self.snapshot.next + len(born), cut=cut)

    def _changes(
        self, files: Sequence[Row], clips: Sequence[NewClip], forget: Sequence[str]
    ) -> tuple[list[dict], list[dict]]:
        """Rows to be born and rows to die."""
        files = list({file.path: file for file in files}.values())
        state, whole = self.snapshot, [*ROW_FIELDS, "vector"]
        paths = dict.fromkeys(quoted(path) for path in [*forget, *(row.path for row in files)])
        dying = state.find("path", list(paths), fields=whole)
        digests = sorted({row["digest"] for row in dying} | {row.digest for row in files} - {""})
        staying = [row for row in state.find("digest", digests, fields=whole) if row["path"] not in paths]
        sources: dict[str, dict[int, dict]] = {}  # of each content the parts and where their vectors come from
        for row in dying + staying:
            if row["kind"] != FAILED:
                sources.setdefault(row["digest"], {})[row["part"]] = row
        sources.update((clip.digest, {}) for clip in clips)
        for clip, part in _in_parts(clips):
            sources[clip.digest][part] = self._row_of(clip, part)
        has_first = {(row["digest"], row["part"]) for row in staying if row["kind"] == FIRST}
        born: list[dict] = []
        for row in staying:  # a copy becomes the first when that one goes
            if row["kind"] == COPY and (row["digest"], row["part"]) not in has_first:
                has_first.add((row["digest"], row["part"]))
                dying.append(row)
                born.append({**row, "kind": FIRST})
        for file in files:
            told = about(file)
            if file.reason:
                born.append({**self._row_of(None, 0), **told, "kind": FAILED})
            for part, source in sorted(sources.get(file.digest, {}).items()) if not file.reason else ():
                kind = COPY if (file.digest, part) in has_first else FIRST
                has_first.add((file.digest, part))
                born.append({**source, **told, "kind": kind})
        for i, row in enumerate(born):
            row["id"] = state.next + i
        return born, dying

    def _row_of(self, clip: NewClip | None, part: int) -> dict[str, Any]:
        """What a row tells of a clip; of None that there is none."""
        folded = np.zeros(2 * self.dim) if clip is None else clip.folded
        vector = np.asarray(folded, np.float16)
        return {
            "part": part,
            "start": float(clip.start) if clip else 0.0,
            "stop": float(clip.end) if clip else 0.0,
            "times": json.dumps([float(t) for t in clip.times] if clip else []),
            "vector": vector if self.client.has_float16 else vector.astype(np.float32),
        }

    # ---- captions --------------------------------------------------------------------------------------------------

    def captions(self) -> tuple[int, list[str]]:
        """The caption list, and the commit that brought it."""
        number: int = self.snapshot.marker["captions"]
        lines: list[str] = []
        found = self.client.query("log", f"what == {CAPTIONS}", ["id", "text"])
        for row in sorted(found, key=lambda row: row["id"]):
            lines += json.loads(row["text"]) if row["id"] >> 20 == FOREVER >> 20 | number else []
        return number, lines

    def caption_vectors(self, first: int, count: int) -> None:
        """They are not kept here: made when they are needed."""

    def set_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray] = ()) -> None:
        """Replace the caption list."""
        with self.writing():
            number, blocks, size = self._begin(), [[]], 0  # type: ignore[var-annotated]
            for caption in captions:
                size += len(json.dumps(caption)) + 2
                if size > CHUNK:
                    blocks.append([])
                    size = len(json.dumps(caption)) + 2
                blocks[-1].append(caption)
            kept = FOREVER >> 20 | self.snapshot.marker["captions"]  # readers may still ask for these
            old = self.client.query("log", f"what == {CAPTIONS}", ["id"])
            self.client.delete("log", [row["id"] for row in old if row["id"] >> 20 != kept])
            self._log([(FOREVER | number << 20 | i, CAPTIONS, block) for i, block in enumerate(blocks)])
            self._publish("log", captions=number)


def _at_work(lease: dict[str, Any]) -> bool:
    if lease["host"] == socket.gethostname():
        try:
            os.kill(lease["pid"], 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
    return lease["until"] > time.time()


def _folder_id(folder: str) -> int:
    """The place of a folder in the log, behind the markers and before the captions."""
    return 1 << 61 | int.from_bytes(hashlib.sha256(folder.encode()).digest()[:7])


def _in_parts(clips: Sequence[NewClip]) -> Iterator[tuple[NewClip, int]]:
    """Clips, each with its number among those of its content, by time."""
    counted: dict[str, int] = {}
    for clip in sorted(clips, key=lambda clip: clip.start):
        counted[clip.digest] = counted.get(clip.digest, -1) + 1
        yield clip, counted[clip.digest]


def _feature_rows(clip: NewClip, part: int) -> Iterator[dict[str, Any]]:
    scales, features = np.asarray(clip.scales, np.float32), np.asarray(clip.features, np.float16)
    text = base64.b64encode(scales.tobytes() + features[1:].tobytes()).decode()
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    for i, chunk in enumerate(chunks):
        yield {
            "id": f"{clip.digest}.{part}.{i}",
            "digest": clip.digest,
            "chunks": len(chunks),
            "content": chunk,
            "vector": features[0].astype(np.float32),
        }
