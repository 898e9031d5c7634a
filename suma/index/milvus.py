"""An index kept in Milvus instead of a folder: `milvus://HOST:PORT/NAME`, or `milvus:FILE.db/NAME` with milvus-lite.

| collection | holds |
|---|---|
| `NAME` | of each file and part one row: the searched vector (2D), and the part with what is known of the file |
| `NAME_files` | what is known of each file |
| `NAME_features` | of each content and part the video's feature (D), and a text: its frames' and their scales |

Milvus has no transactions. So every key follows from what the row is about, writing a row again changes nothing, and a
commit marks its files as unfinished, writes features and rows, removes old rows, and calls the files finished last. If
it is killed, those files look changed to the next `index`, which writes the same rows again. Readers see what is there
now, maybe a video before its neighbours. So two writers need no lock: each video is there once, whoever comes last.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

import base64
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from suma.index.milvus_client import (
    FILE,
    FOLDERS,
    MANIFEST,
    PART,
    TEXT,
    Client,
    Rows,
    below,
    features_of,
    hashed,
    loaded,
    order,
    part_of,
    quoted,
    read_manifest,
    stored,
    text_rows,
    unquoted,
)
from suma.index.query import Filter
from suma.index.storage import NewClip, Row, StoreError, key
from suma.model.vocabulary import nfc

FORMAT_VERSION, UNFINISHED = 3, -1  # the second: the size of a file that is being written
RECOVERY_SECONDS = 10  # for which a server that was just started is asked again for what it lacks
MOST_HITS = 16_000  # that Milvus can be asked for


class State:
    """What the collections hold now; `live`, `cut` and `folders` as they were when they were first asked for."""

    def __init__(self, client: Client, dim: int):
        self.client, self.dim = client, dim
        self.digest_of: dict[int, str] = {}  # of the clips that were found

    def file(self, path: str | Path) -> Row | None:
        """Return what is known of a file, without its frames; else None."""
        return self.files_at([key(path)]).get(key(path))

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """Return the files among these paths that are known."""
        found = self.client.query_in("files", "id", [hashed(path) for path in paths], FILE)
        return {row.path: row for row in loaded(found)}

    def files_of(self, *digests: str) -> list[Row]:
        """Return the files of a content, or of several."""
        return loaded(self.client.query_in("files", "digest", [digest for digest in digests if digest], FILE))

    def copies(self) -> list[Row]:
        """Return the files of each content that has more than one."""
        counted = Counter(row["digest"] for row in self.client.scan("files", ["digest"], 'digest != ""'))
        return self.files_of(*(digest for digest, count in counted.items() if count > 1))

    def files_below(self, folder: str | Path) -> list[Row]:
        """Return the files below a folder."""
        return loaded(self.client.scan("files", FILE, below(os.path.realpath(folder))))

    def has_content(self, digest: str) -> bool:
        """Return True if a content's clips are there."""
        return bool(self.files_of(digest))

    def sizes(self) -> list[int]:
        """Return the sizes, each once, of the files that could be read."""
        return list({row["size"] for row in self.client.scan("files", ["size"], 'digest != ""')})

    def failed(self) -> list[Row]:
        """Return the files that could not be read, with reasons."""
        return loaded(self.client.scan("files", FILE, 'reason != ""'))

    @cached_property
    def live(self) -> np.ndarray:
        """Positions (N,) int64 of the clips that can be found, in the order of the paths and of time."""
        rows = sorted(self.client.scan("", ["clip", "digest", "path", "start"]), key=order)
        self.digest_of |= {row["clip"]: row["digest"] for row in rows}
        return np.array(list(dict.fromkeys(row["clip"] for row in rows)), np.int64)

    @cached_property
    def cut(self) -> bool:
        """Whether a file has more than one clip."""
        return bool(self.client.query("", "start > 0", ["id"], limit=1))

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Filter | None = None) -> list[Row]:
        """Return these clips, each with the first of its files that is there and that a filter, if given, lets through;
        with the first one let through where none is there; with an empty path where it has no file."""
        places, allowed = np.asarray(positions, np.int64).tolist(), self.allowed(chosen) if chosen else None
        copies: dict[int, Rows] = {}
        for row in self.client.query_in("", "clip", places, [*FILE, *PART], allowed or ""):
            copies.setdefault(row["clip"], []).append(row)
        found = [loaded(copies.get(place, [])) or [Row("", 0, 0.0, "", reason="removed")] for place in places]
        return [next((r for r in rows if len(rows) == 1 or os.path.exists(r.path)), rows[0]) for rows in found]

    def positions_of(self, path: str | Path) -> list[int]:
        """Return the clips of a file, in the order of time."""
        digests = [known.digest] if (known := self.file(path)) and known.digest else []
        rows = self.client.query_in("", "digest", digests, ["clip", "path", "start"])
        return list(dict.fromkeys(row["clip"] for row in sorted(rows, key=order)))

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """Return the contents that clips belong to, which are in `live` or were found by `search`."""
        return [self.digest_of[int(position)] for position in positions]

    def allowed(self, chosen: Filter) -> str | None:
        """Return the expression that holds for the files that a filter lets through; None: for all."""
        parts = [name.format(repr(value)) for name, value in chosen.limits.items()]
        if chosen.folder and os.path.isabs(chosen.folder):
            parts.append(below(os.path.realpath(chosen.folder)))
        elif chosen.folder:
            end, root = f"/{os.path.normpath(chosen.folder)}/", len(chosen.root.rstrip("/"))
            named = [below(folder) for folder in self.folders if nfc(folder[root:]).endswith(end)]
            parts.append("(" + " or ".join(f"({condition})" for condition in named) + ")" if named else "id < 0")
        return " and ".join(parts) or None

    @cached_property
    def folders(self) -> list[str]:
        """The folders below which files are or were, each with a slash at its end."""
        rows = self.client.query("features", f"owner == {FOLDERS}", ["text"])
        return sorted(unquoted(row["text"]) for row in rows)

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are
        valid (n, 1 + F). Raise StoreError where some are missing, ValueError where they are damaged."""
        found = self.texts(positions, ["text", "vector"])
        contents = [base64.b64decode("".join(row["text"] for row in chunks)) for chunks in found]
        counts = np.array([len(content) // (4 + 2 * self.dim) + 1 for content in contents], np.int64)  # 1 + F
        valid = np.arange(counts.max(initial=1)) < counts[:, None]
        features, scales = np.zeros((*valid.shape, self.dim), np.float16), np.zeros(valid.shape, np.float32)
        for i, (chunks, content, count) in enumerate(zip(found, contents, counts, strict=True)):
            scales[i, :count] = np.frombuffer(content, np.float32, count)
            features[i, 0] = chunks[0]["vector"]
            features[i, 1:count] = np.frombuffer(content, np.float16, offset=4 * count).reshape(-1, self.dim)
        return features, scales, valid

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the videos' features (n, D) float16, without their frames."""
        found = self.texts(positions, ["vector"], "chunk == 0")
        return np.array([rows[0]["vector"] for rows in found], np.float16).reshape(-1, self.dim)

    def texts(self, owners: Sequence[int] | np.ndarray, fields: Iterable[str], more: str = "") -> list[Rows]:
        """Return for each owner the rows of its text in order. Raise StoreError where one has none."""
        owners, found = np.asarray(owners, np.int64).tolist(), dict[int, Rows]()
        for attempt in range(1 + RECOVERY_SECONDS):
            if lost := [owner for owner in dict.fromkeys(owners) if owner not in found]:
                time.sleep(min(attempt, 1))
                rows = self.client.query_in("features", "owner", lost, ["owner", "chunk", *fields], more)
                for row in sorted(rows, key=lambda row: row["chunk"]):
                    found.setdefault(row["owner"], []).append(row)
        if lost := [owner for owner in owners if owner not in found]:
            path = self.rows(lost[:1])[0].path or "a removed video"
            told = "it was changed meanwhile, or is damaged: then remove it, and index it again"
            raise StoreError(f"{self.client.place} has no features of {path}: {told}")
        return [found[owner] for owner in owners]


class MilvusStore:
    """One index in Milvus. Reading and writing are safe from several threads and processes."""

    snapshot: State
    folder, generation = None, 0  # nothing is kept on this machine

    def __init__(self, client: Client, model: str, dim: int, segment: float | None):
        self.client, self.model, self.dim, self.place = client, model, dim, client.place
        self.segment = segment  # seconds of a part of a long video; 0: none is cut; None: as the manifest says

    @classmethod
    def open(
        cls, place: str, model: str, dim: int, segment: float | None = None, create: bool = False, source: str = ""
    ) -> "MilvusStore":
        """Return the index at a place; with `create` made where there is none; source: what its model was loaded by.

        Raise FileNotFoundError where there is none, StoreError where Milvus does not answer, ValueError for collections
        of other things or of an older format, or made with another model or parts of another length than `segment`."""
        store = cls(Client(place), model, dim, segment)
        if create and read_manifest(store.client) is None:
            store._make(source)
        store.refresh()
        return store

    def _make(self, source: str) -> None:
        """Make empty collections; without a manifest they are no index yet, and are made anew."""
        client, ours = self.client, self.client.call("has_collection", "features")
        if client.call("has_collection", "") and not ours:
            raise ValueError(f"{self.place} holds other things than an index: choose a new name")
        for part in ("", "files", "features"):  # the features last: they are the sign that these are ours
            client.call("drop_collection", part)
        client.create("features", TEXT, self.dim)
        client.create("files", FILE, 2)
        client.create("", {**FILE, **PART}, 2 * self.dim, client.index)
        made = {"format_version": FORMAT_VERSION, "model": self.model, "dim": self.dim, "segment": self.segment}
        self._put_manifest({**made, "source": source, "captions": 0})

    @classmethod
    def remembered_model(cls, place: str) -> str:
        """Return the string that the model of the index at a place was loaded by; "" where there is no index."""
        return str((read_manifest(Client(place)) or {}).get("source", ""))

    def refresh(self) -> None:
        """Take over what other processes have written."""
        self.client.catch_up()
        if (manifest := read_manifest(self.client)) is None:
            raise FileNotFoundError(f"{self.place} holds no index: make one with `index FOLDER -o {self.place}`")
        wanted = {"format_version": FORMAT_VERSION, "model": self.model, "segment": self.segment}
        for what, value in wanted.items():
            if value not in (None, manifest[what]):
                made = f"{self.place} was made with {what} {manifest[what]}, not {value}"
                raise ValueError(f"{made}: keep to that, or index under another name")
        self.segment, self.snapshot = manifest["segment"], State(self.client, self.dim)

    def search(self, store: object, snapshot: State, query: np.ndarray, number: int, allowed: Any = None) -> list[int]:
        """Return positions of the best clips for a query (2D,), best first; of those that are `allowed`, if given."""
        limit = number
        while True:
            hits = self.client.search(np.asarray(query, np.float32), limit, allowed or "", ["clip", "digest"])
            best = {hit["clip"]: hit["digest"] for hit in hits}  # copies share their clips
            if len(best) >= number or len(hits) < limit or limit >= MOST_HITS:
                snapshot.digest_of |= best
                return list(best)[:number]
            limit = min(2 * limit, MOST_HITS)

    def verify(self) -> None:
        """Read all features. Raise ValueError where some are missing or damaged."""
        for i in range(0, len(self.snapshot.live), 500):
            try:
                self.snapshot.gather(self.snapshot.live[i : i + 500])
            except (StoreError, ValueError) as error:
                raise ValueError(f"{self.place} is damaged: {error}") from error

    # ---- writing ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write from the present state on; another writer does no harm. Raise StoreError, with what was committed kept,
        where Milvus does not answer any more."""
        try:
            self.refresh()
            yield
        except StoreError as error:
            raise StoreError(f"{error}; what was committed is kept") from error

    def commit(self, files: Sequence[Row] = (), clips: Sequence[NewClip] = (), forget: Sequence[str] = ()) -> None:
        """Add clips, add files or replace what is known of them, forget paths: each file wholly, or the next run of
        `index` does. Clips of contents that no file has any more are removed."""
        client, new = self.client, {file.path: file for file in files}
        paths = list(dict.fromkeys([*new, *forget]))
        if not paths:
            return
        old = list(client.query_in("", "path", list(map(quoted, paths)), ["id", "path", "digest", "clip"]))
        parts = self._parts_of(new.values(), clips)
        folders = {os.path.join(parent, "") for path in new for parent in Path(path).parents}
        nothing = np.zeros(self.dim)
        texts = [row for folder in folders for row in text_rows(FOLDERS, quoted(folder), nothing, hashed(folder))]
        texts += [row for clip in clips for row in features_of(clip)]
        client.put("files", [{**stored(Row(path, UNFINISHED, 0.0, "")), "vector": [0.0, 0.0]} for path in paths])
        client.put("features", texts)
        client.put("", parts)
        kept = {(quoted(file.path), file.digest) for file in new.values()}
        stale = {row["id"] for row in old if (row["path"], row["digest"]) not in kept} - {row["id"] for row in parts}
        client.delete("", sorted(stale))
        client.flush("", "features")
        client.put("files", [{**stored(file), "vector": [0.0, 0.0]} for file in new.values()])
        client.delete("files", [hashed(path) for path in paths if path not in new])
        client.flush("files")
        digests = sorted({row["digest"] for row in old} - {file.digest for file in files})
        left = {row["digest"] for row in client.query_in("", "digest", digests, ["digest"])}
        self._drop_texts({row["clip"] for row in old if row["digest"] in digests and row["digest"] not in left})
        self.snapshot = State(client, self.dim)

    def _parts_of(self, files: Iterable[Row], clips: Sequence[NewClip]) -> Rows:
        """Return the rows of these files' clips: new ones, or those of other files with the same content."""
        parts: dict[str, dict[float, dict[str, Any]]] = {clip.digest: {} for clip in clips}
        others = sorted({file.digest for file in files} - {"", *parts})
        for part in self.client.query_in("", "digest", others, [*PART, "vector", "digest"]):
            parts.setdefault(part["digest"], {})[part["start"]] = part
        for clip in clips:
            parts[clip.digest][clip.start] = part_of(clip)
        return [
            {**stored(file), **part, "digest": file.digest, "id": hashed(file.path, part["start"])}
            for file in files
            for part in parts.get(file.digest, {}).values()
        ]

    def _drop_texts(self, owners: Iterable[int]) -> None:
        rows = self.client.query_in("features", "owner", sorted(owners), ["id"])
        self.client.delete("features", [row["id"] for row in rows])

    def _put_manifest(self, manifest: dict[str, Any]) -> None:
        self.client.put("features", text_rows(MANIFEST, json.dumps(manifest), np.zeros(self.dim)))
        self.client.flush("features")

    def captions(self) -> tuple[int, list[str]]:
        """Return 0, for vectors that are not kept, and the caption list."""
        number = (read_manifest(self.client) or {}).get("captions")
        chunks = self.snapshot.texts([number], ["text"])[0] if number else []
        return 0, json.loads("".join(row["text"] for row in chunks) or "[]")

    def caption_vectors(self, first: int, count: int) -> None:
        """Return None: they are made when they are needed."""

    def set_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray] = ()) -> None:
        """Replace the caption list."""
        text, manifest = json.dumps(list(captions)), read_manifest(self.client) or {}
        self.client.put("features", text_rows(hashed(text), text, np.zeros(self.dim)))
        self._put_manifest({**manifest, "captions": hashed(text)})
        self._drop_texts({manifest["captions"]} - {hashed(text), 0})
