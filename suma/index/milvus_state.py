"""What Milvus holds of an index at one commit, as suma/index/milvus.py lays it down: rows and features.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

import base64
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from suma.index.catalog import Row, key
from suma.index.milvus_client import Client
from suma.index.query import Filter
from suma.index.storage import StoreError
from suma.model.vocabulary import nfc

ROW_FIELDS: dict[str, Any] = {
    "id": int,
    "path": 16_384,
    "size": int,
    "mtime": float,
    "digest": 64,
    "duration": float,
    "reason": 8192,
    "part": int,
    "start": float,
    "stop": float,
    "times": 65_535,
    "kind": int,
    "born": int,
    "died": int,
}
FEATURE_FIELDS: dict[str, Any] = {"id": 100, "digest": 64, "chunks": int, "content": 65_535}
LOG_FIELDS: dict[str, Any] = {"id": int, "what": int, "text": 65_535}
FIRST, COPY, FAILED = 0, 1, 2  # kinds of rows: a clip, the same in another file, a file that cannot be read
MARKER, CAPTIONS, LEASE, FOLDER = 0, 1, 2, 3  # kinds of lines of the log
FOREVER = 1 << 62
FRESH_SECONDS = 60.0  # after a commit, in which readers wait until all parts of a server have heard of it
RECOVERY_SECONDS = 10  # for which rows and features that should be there are asked for again
SCANNED = 16_000  # positions asked for at once
PATHS_AT_ONCE = 500
_SAFE = "".join(chr(c) for c in range(32, 127) if chr(c) not in '%"\\')


def quoted(path: str | Path) -> str:
    """A path as text that keeps prefixes and needs no escape in an expression, also one that is no text itself."""
    return quote(os.fsencode(path), safe=_SAFE)


def _up_to(name: str, folder: str, root: str) -> str:
    """Return a folder, or the one above it, whose name (in NFC) is this, or which ends with this path, below `root`;
    "" if there is none."""
    inside, later = os.path.join(os.sep, os.path.normpath(name), ""), folder[len(root) :]
    before, found, _ = nfc(later).partition(inside)
    depth = (before + found).count(os.sep)
    return folder[: len(root)] + os.sep.join(later.split(os.sep)[:depth]) + os.sep if found else ""


def below(folder: str) -> str:
    """The expression that holds for the files below a folder, given by its real path."""
    inside = quoted(folder).rstrip("/") + "/"
    return f'path >= "{inside}" and path < "{inside[:-1]}0"'  # 0 follows / in ASCII


class State:
    """The index as one commit left it."""

    def __init__(self, client: Client, marker: dict[str, Any], writer: bool = False):
        self.client, self.marker, self.number, self.next = client, marker, marker["commit"], marker["next"]
        self.alive = f"born <= {self.number} and died > {self.number}"
        self._writer = writer
        self._known: dict[int, dict[str, Any]] = {}  # rows that a search has just brought

    @property
    def _level(self) -> str:
        """How surely a read must see what was committed: a server's parts may be some seconds behind each other."""
        if self._writer:
            return "Session"
        return "Strong" if time.time() - self.marker["written"] < FRESH_SECONDS else "Bounded"

    @cached_property
    def rows_there(self) -> int:
        """How many of the commit's rows there are. A server that was just started is waited for."""
        for attempt in range(1 + RECOVERY_SECONDS):
            if attempt:
                time.sleep(1)
            if (there := self.client.count("", self.alive)) == self.marker["rows"]:
                break
        return there

    def _ask_whole(self) -> None:
        """Raises StoreError where rows are missing: no search takes a part for the whole."""
        if (there := self.rows_there) != (rows := self.marker["rows"]):
            del self.rows_there  # the next search looks again
            raise StoreError(
                f"Milvus has only {there} of the {rows} rows of {self.client.place}: index the same videos once more,"
                " which adds what was lost"
            )

    # ---- files -----------------------------------------------------------------------------------------------------

    @property
    def table(self) -> "State":
        """What is known of the files."""
        return self

    def find(self, field: str, values: Sequence[Any], more: str = "", fields: Sequence[str] = ()) -> list[dict]:
        """Living rows of which a field has one of these values, in the order in which they came in."""
        fields, more = fields or list(ROW_FIELDS), f" and {self.alive}{more}"
        found = self.client.query_in("", field, values, more, fields, self._level, PATHS_AT_ONCE)
        return sorted(found, key=lambda row: row["id"])

    def scan(self, condition: str, fields: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """All living rows for which an expression holds, in the order in which they came in."""
        for i in range(0, self.next, SCANNED):
            where = f"id >= {i} and id < {i + SCANNED} and {self.alive} and {condition}"
            rows = self.client.query("", where, fields or list(ROW_FIELDS), self._level)
            yield from sorted(rows, key=lambda row: row["id"])

    def file(self, path: str | Path) -> Row | None:
        """What is known of a file, without its frames."""
        return self.files_at([key(path)]).get(key(path))

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """The files among these paths that are known."""
        rows = map(file_of, self.find("path", [quoted(path) for path in paths], " and part == 0"))
        return {row.path: row for row in rows}

    def files_of(self, digest: str) -> list[Row]:
        """The files of a content, in the order in which they came in."""
        return [file_of(row) for row in self.find("digest", [digest], " and part == 0")] if digest else []

    def copies(self) -> list[Row]:
        """Return the files of each content that has more than one."""
        digests = sorted({row["digest"] for row in self.scan(f"kind == {COPY} and part == 0", ["digest", "id"])})
        return [file_of(row) for row in self.find("digest", digests, " and part == 0")]

    def files_below(self, folder: str | Path) -> list[Row]:
        """The files below a folder."""
        return [file_of(row) for row in self.scan(f"part == 0 and {below(os.path.realpath(folder))}")]

    def has_content(self, digest: str) -> bool:
        """Whether a content's clips are there."""
        return bool(digest) and bool(self.find("digest", [digest], f" and kind == {FIRST}", ["id"]))

    def sizes(self) -> list[int]:
        """The sizes, each once, of the files that could be read."""
        return list({row["size"] for row in self.scan(f"kind != {FAILED} and part == 0", ["size", "id"])})

    def failed(self) -> list[Row]:
        """The files that could not be read, with reasons."""
        return [file_of(row) for row in self.scan(f"kind == {FAILED}")]

    @cached_property
    def folders(self) -> list[bytes]:
        """The folders in which files are or were, each with a slash at its end."""
        found = self.client.query("log", f"what == {FOLDER}", ["text"])
        return [unquote_to_bytes(json.loads(row["text"])) for row in found]

    # ---- clips -----------------------------------------------------------------------------------------------------

    @cached_property
    def live(self) -> np.ndarray:
        """Positions (N,) int64 of the clips that can be found, ascending."""
        self._ask_whole()
        return np.array([row["id"] for row in self.scan(f"kind == {FIRST}", ["id"])], np.int64)

    @cached_property
    def total(self) -> int:
        """N."""
        self._ask_whole()
        return self.client.count("", f"kind == {FIRST} and {self.alive}", self._level)

    def _rows(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        missing = [int(p) for p in positions if int(p) not in self._known]
        if missing:
            self._known.update((row["id"], row) for row in self.find("id", missing))
        return [self._known.get(int(p), {}) for p in positions]

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Filter | None = None) -> list[Row]:
        """Return these clips, each with the first of its files that is there and that a filter, if given, lets through;
        with the one that stands for the clip where none is there; with an empty path where it has no file."""
        rows = [clip_of(row) if row else Row("", 0, 0.0, "", reason="removed") for row in self._rows(positions)]
        lost = {row.digest for row in rows if row.path and not os.path.exists(row.path)}
        allowed = self.allowed(chosen) if chosen and lost else None
        more = f" and kind < {FAILED}" + (f" and {allowed}" if allowed else "")
        there: dict[str, Row] = {}
        for row in map(file_of, self.find("digest", sorted(lost), f"{more} and part == 0")) if lost else ():
            if row.digest not in there and os.path.exists(row.path):
                there[row.digest] = row
        for row in rows:
            if twin := there.get(row.digest):
                row.path, row.mtime = twin.path, twin.mtime
        return rows

    def positions_of(self, path: str | Path) -> list[int]:
        """The clips of a file, in the order of time."""
        known = self.file(path)
        rows = self.find("digest", [known.digest], f" and kind == {FIRST}") if known and known.digest else []
        return [row["id"] for row in sorted(rows, key=lambda row: row["part"])]

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """The contents that these clips belong to."""
        return [row["digest"] for row in self._rows(positions)]

    @property
    def cut(self) -> bool:
        """Whether a file has more than one clip."""
        return self.marker["cut"]

    def allowed(self, chosen: Filter) -> str | None:
        """The expression that holds for the files that a filter lets through; None: all."""
        parts = [f"duration >= {chosen.longer!r}"] if chosen.longer > 0 else []
        parts += [f"duration <= {chosen.shorter!r}"] if 0 < chosen.shorter < math.inf else []
        since, until = chosen.times
        parts += [f"mtime >= {since!r}"] if chosen.after else []
        parts += [f"mtime < {until!r}"] if chosen.before else []
        if chosen.folder and os.path.isabs(chosen.folder):
            parts.append(below(os.path.realpath(chosen.folder)))
        elif chosen.folder:
            ends = (_up_to(chosen.folder, os.fsdecode(folder), chosen.root.rstrip(os.sep)) for folder in self.folders)
            named = sorted({folder for folder in ends if folder})
            parts.append("(" + " or ".join(f"({below(folder)})" for folder in named) + ")" if named else "id < 0")
        return " and ".join(parts) or None

    def search(self, query: np.ndarray, number: int, allowed: str | None) -> list[int]:
        """Positions of the best clips for a query (2D,), best first; of those for which an expression holds, if any."""
        self._ask_whole()
        where = f"{self.alive} and " + (f"kind < {FAILED} and {allowed}" if allowed else f"kind == {FIRST}")
        dtype = np.float16 if self.client.has_float16 else np.float32
        limit = number
        while True:
            hits = self.client.search(np.asarray(query, dtype), limit, where, list(ROW_FIELDS), self._level)
            if len(self._known) > 20_000:
                self._known.clear()
            self._known.update((row["id"], row) for row in hits)
            best = {(row["digest"], row["part"]): row["id"] for row in reversed(hits)}  # copies share their clips
            if len(best) >= number or len(hits) < limit or limit >= SCANNED:
                return list(reversed(best.values()))[:number]
            limit = min(2 * limit, SCANNED)

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are valid
        (n, 1 + F)."""
        names, dim = [name_of(row) for row in self._rows(positions)], self.marker["dim"]
        found = self._features(names, ["id", "chunks", "content", "vector"])
        more = [f"{n}.{i}" for n, row in found.items() for i in range(1, row["chunks"])]
        rest = (
            {row["id"]: row["content"] for row in self._query_features(more, ["id", "content"], "Strong")}
            if more
            else {}
        )
        parts = []
        for name in names:
            row = found[name]
            text = row["content"] + "".join(rest[f"{name}.{i}"] for i in range(1, row["chunks"]))
            content = base64.b64decode(text)
            count = (len(content) - 4) // (4 + 2 * dim)
            scales = np.frombuffer(content, np.float32, 1 + count)
            parts.append((row["vector"], np.frombuffer(content, np.float16, offset=4 * (1 + count)), scales))
        width = max((len(scales) for *_, scales in parts), default=1)
        features = np.zeros((len(names), width, dim), np.float16)
        all_scales, valid = np.zeros((len(names), width), np.float32), np.zeros((len(names), width), bool)
        for i, (video, frames, scales) in enumerate(parts):
            features[i, 0], features[i, 1 : len(scales)] = video, frames.reshape(-1, dim)
            all_scales[i, : len(scales)], valid[i, : len(scales)] = scales, True
        return features, all_scales, valid

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The videos' features (n, D) float16, without their frames."""
        names = [name_of(row) for row in self._rows(positions)]
        found = self._features(names, ["id", "vector"])
        return np.array([found[name]["vector"] for name in names], np.float16).reshape(len(names), -1)

    def _features(self, names: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The features' first rows, by name."""
        found: dict[str, dict[str, Any]] = {}
        for attempt, level in enumerate((self._level, *["Strong"] * RECOVERY_SECONDS)):
            lost = [f"{name}.0" for name in dict.fromkeys(names) if name not in found]
            if not lost or "" in names:
                break
            if attempt > 1:  # a server that was just started may not have all its parts yet
                time.sleep(1)
            found.update((row["id"][:-2], row) for row in self._query_features(lost, fields, level))
        if lost := [name or "removed" for name in names if name not in found]:
            raise StoreError(
                f"{self.client.place} has no features of {lost[0]}: it was changed meanwhile, or is damaged"
            )
        return found

    def _query_features(self, keys: Sequence[str], fields: Sequence[str], level: str) -> Iterator[dict[str, Any]]:
        return self.client.query_in("features", "id", keys, "", fields, level, 200)


def name_of(row: dict[str, Any]) -> str:
    """How a row's features are called."""
    return f"{row['digest']}.{row['part']}" if row else ""


def about(file: Row) -> dict[str, Any]:
    """What a row tells of a file."""
    reason = file.reason.encode("utf-8", "backslashreplace")[:8000].decode("utf-8", "ignore")
    return {
        "path": quoted(file.path),
        "size": int(file.size),
        "mtime": float(file.mtime),
        "digest": file.digest,
        "duration": float(file.duration),
        "reason": reason,
    }


def file_of(row: dict[str, Any]) -> Row:
    """The file of a row, without its frames."""
    path = os.fsdecode(unquote_to_bytes(row["path"]))
    return Row(path, row["size"], row["mtime"], row["digest"], row["duration"], [], row["reason"])


def clip_of(row: dict[str, Any]) -> Row:
    """The clip of a row."""
    clip = file_of(row)
    clip.times, clip.start, clip.end = json.loads(row["times"]), row["start"], row["stop"]
    return clip
