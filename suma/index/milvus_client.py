"""Talking to Milvus through pymilvus (`pip install pymilvus`), a server or a milvus-lite file, and what its rows hold.

Every call has a time limit, waits while a server that was just started recovers, and ends in one clear line where there
is none.
"""

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from suma.index.storage import NewClip, Row, StoreError, without_token

PLACE = re.compile(
    r"milvus:(?://(?:(?P<token>[^/]+)@)?(?P<server>[^/@]+)|(?P<file>.*\.db))/(?P<name>[A-Za-z_]\w{0,200})"
    r"(\?index=(?P<index>FLAT|HNSW))?"
)
INDEXES: dict[str, dict[str, int]] = {"FLAT": {}, "HNSW": {"M": 32, "efConstruction": 200}}  # exact / for millions
CALL_SECONDS = 20.0  # that one call may take
PATIENCE = 120.0  # seconds for a server that recovers from a crash
REFUSED, NOT_LOADED, UNEXPECTED = 2, 101, 65535
PASSING = {1, 4, 8, NOT_LOADED, 103, 106, *range(400, 700), *range(900, 1000)}  # Milvus' codes for what will pass
ROWS_SENT, VALUES_ASKED, ROWS_READ = 500, 200, 8000  # in one call
KEYS = 1 << 62  # rows have whole numbers below it as keys, evenly spread: hashes
Rows = list[dict[str, Any]]
FILE = {"id": int, "path": 16_384, "size": int, "mtime": float, "digest": 64, "duration": float, "reason": 8192}
PART = {"clip": int, "times": 65_535, "start": float, "end": float}
TEXT = {"id": int, "owner": int, "chunk": int, "text": 65_535}
MANIFEST, FOLDERS = -1, -2  # owners of texts; the others are clips and caption lists
CHUNK = 65_532  # characters of a text in one row: whole bytes in base64
_SAFE = "".join(chr(c) for c in range(32, 127) if chr(c) not in '%"\\')


class Client:
    """The collections of one index at one place: "" is NAME, "files" is NAME_files."""

    def __init__(self, place: str):
        self.place, found = without_token(place), PLACE.fullmatch(place)
        if found is None:
            raise ValueError(
                f"{self.place} is no place in Milvus: write milvus://HOST:PORT/NAME or milvus:FILE.db/NAME, and behind"
                " it ?index=HNSW to make an index for millions of videos"
            )
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it tells of every connection that is closed
        try:
            import pymilvus

            if found["file"]:
                import milvus_lite  # noqa: F401
        except ImportError as error:
            packages = "pymilvus milvus-lite" if found["file"] else "pymilvus"
            raise StoreError(f"{self.place} needs a package that is not installed: pip install {packages}") from error
        self.name, self.index, self.is_file = found["name"], found["index"] or "FLAT", bool(found["file"])
        self.address = found["file"] or found["server"] + ":19530" * (":" not in found["server"])
        self._types, self._fresh = pymilvus.DataType, frozenset[str]()  # `_fresh`: collections that were caught up with
        for name in ("pymilvus", "grpc._server"):  # they print all that they raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = {"uri": self.address if self.is_file else f"http://{self.address}", "token": found["token"] or ""}
        self._api: Any = self._patiently(lambda: pymilvus.MilvusClient(**options, timeout=CALL_SECONDS))

    def call(self, what: str, part: str, **options: Any) -> Any:
        """Call one of pymilvus' methods that take the name of a collection."""
        name = f"{self.name}_{part}" if part else self.name
        return self._patiently(lambda: getattr(self._api, what)(name, timeout=CALL_SECONDS, **options), name)

    def _patiently(self, call: Callable[[], Any], collection: str = "") -> Any:
        """Return what a call answers, repeated while the server recovers. Raise StoreError if it does not answer."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except Exception as error:  # pymilvus' own, grpc's, and others
                self.catch_up()  # a server that recovers may still lack some of what it has
                code, said = _code(error), " ".join(str(getattr(error, "message", error)).split())
                if code == "refused" and not self.is_file:
                    gone = f"no Milvus server answers at {self.address}: start it, then run this again"
                    raise StoreError(gone) from error
                if code != "passing" or time.monotonic() > end:
                    raise StoreError(f"Milvus at {self.address} does not do what it should: {said[:300]}") from error
                if getattr(error, "code", None) == NOT_LOADED:  # it was killed while it loaded it
                    with contextlib.suppress(Exception):
                        self._api.load_collection(collection, timeout=CALL_SECONDS)
                time.sleep(0.5)

    def create(self, part: str, fields: Mapping[str, Any], width: int, index: str = "FLAT") -> None:
        """Make a collection with these fields (the first is its key; a number is a text's longest length) and vectors
        (width,), ready to be searched."""
        types, schema = self._types, self._api.create_schema(auto_id=False, enable_dynamic_field=False)
        for i, (name, kind) in enumerate(fields.items()):
            of_text = {"datatype": types.VARCHAR, "max_length": kind}
            options = {"datatype": {int: types.INT64, float: types.DOUBLE}[kind]} if kind in (int, float) else of_text
            schema.add_field(name, **options, is_primary=not i)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=width)
        indexes = self._api.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=INDEXES[index])
        self.call("create_collection", part, schema=schema, index_params=indexes)

    def put(self, part: str, rows: Rows) -> None:
        """Add rows, or replace those with the same key."""
        for i in range(0, len(rows), ROWS_SENT):
            self.call("upsert", part, data=rows[i : i + ROWS_SENT])
            self._fresh -= {part}

    def delete(self, part: str, keys: Sequence[int]) -> None:
        """Remove the rows with these keys."""
        for i in range(0, len(keys), ROWS_SENT):
            self.call("delete", part, ids=list(keys[i : i + ROWS_SENT]))
            self._fresh -= {part}

    def flush(self, *parts: str) -> None:
        """Have all that was written brought to the disk: a server that is killed before may lose it (seen with 2.3)."""
        if not self.is_file:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(lambda part: self.call("flush", part), parts))

    def catch_up(self) -> None:
        """Let the next read of each collection wait, some tenths of a second, for all that was written until then."""
        self._fresh = frozenset()

    def _level(self, part: str) -> str:
        """Return how fresh an answer must be: after `catch_up`, and after a write of this process, as fresh as can be;
        else it may lack the last seconds of what others wrote."""
        level, self._fresh = "Bounded" if part in self._fresh else "Strong", self._fresh | {part}
        return level

    def query(self, part: str, condition: str, fields: Iterable[str], **more: Any) -> Rows:
        """Return the rows for which a boolean expression holds; more: `limit`, at most so many."""
        options = {"output_fields": list(fields), "consistency_level": self._level(part), **more}
        return list(self.call("query", part, filter=condition, **options))

    def query_in(
        self, part: str, field: str, values: Sequence[Any], fields: Iterable[str], more: str = ""
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows whose field has one of these values and for which another expression, if given, holds."""
        for i in range(0, len(values), VALUES_ASKED):
            listed = ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in values[i : i + VALUES_ASKED])
            yield from self.query(part, f"{field} in [{listed}]" + f" and {more}" * bool(more), fields)

    def scan(self, part: str, fields: Iterable[str], condition: str = "id >= 0") -> Iterator[dict[str, Any]]:
        """Yield all rows for which an expression holds, some thousands of them at once."""
        count = int(self.query(part, condition, ["count(*)"])[0]["count(*)"])
        step = KEYS // (1 + count // ROWS_READ) + 1
        for i in range(0, KEYS, step):
            yield from self.query(part, f"id >= {i} and id < {i + step} and {condition}", fields)

    def search(self, vector: Any, number: int, condition: str, fields: Iterable[str]) -> Rows:
        """Return the `number` rows of NAME with the largest inner products, best first; of those for which an
        expression, if given, holds."""
        options = {"search_params": {"metric_type": "IP", "params": {"ef": max(400, 2 * number)}}, "limit": number}
        level = {"output_fields": list(fields), "consistency_level": self._level("")}
        found = self.call("search", "", data=[vector], filter=condition, **options, **level)
        return [hit["entity"] for hit in found[0]]


def _code(error: Exception) -> str:
    """Return what kind of failure it is: "refused", "passing", or another."""
    code = getattr(error, "code", None)
    status = getattr(code() if callable(code) else code, "name", "")  # grpc's
    if status == "UNAVAILABLE" or (code == REFUSED and "connect" in str(error)):
        return "refused"
    if code == UNEXPECTED and ("context" in str(error) or "Retry timeout" in str(error)):
        return "passing"  # a server that recovers lets a call wait until its time is over
    return "passing" if status in ("DEADLINE_EXCEEDED", "UNKNOWN") or code in PASSING else "other"


def hashed(*what: object) -> int:
    """Return the key of the row about this."""
    return int.from_bytes(hashlib.sha256(ascii(what).encode()).digest()[:8]) % KEYS


def quoted(path: str | Path) -> str:
    """Return a path as text that keeps prefixes and needs no escape in an expression, also one that is no text."""
    return quote(os.fsencode(path), safe=_SAFE)


def unquoted(text: str) -> str:
    """Return the path that was quoted."""
    return os.fsdecode(unquote_to_bytes(text))


def below(folder: str) -> str:
    """Return the expression that holds for the files below a folder, given by its real path."""
    inside = quoted(folder).rstrip("/") + "/"
    return f'path >= "{inside}" and path < "{inside[:-1]}0"'  # 0 follows / in ASCII


def stored(file: Row) -> dict[str, Any]:
    """Return the row in Milvus of a file."""
    reason = file.reason.encode("utf-8", "backslashreplace")[:8000].decode("utf-8", "ignore")
    told = {"size": int(file.size), "mtime": float(file.mtime), "digest": file.digest, "duration": float(file.duration)}
    return {"id": hashed(file.path), "path": quoted(file.path), **told, "reason": reason}


def loaded(rows: Iterable[dict[str, Any]]) -> list[Row]:
    """Return files or clips from their rows in Milvus, in order."""
    known = [
        {name: value for name, value in row.items() if name not in ("id", "clip")} for row in sorted(rows, key=order)
    ]
    return [Row(**{**k, "path": unquoted(k["path"]), "times": json.loads(k.get("times", "[]"))}) for k in known]


def text_rows(owner: int, text: str, vector: np.ndarray, first: int = 0) -> Rows:
    """Return the rows in Milvus of a text, whose chunks are counted from `first`, with a vector (D,)."""
    chunks = [(first + i, text[i : i + CHUNK]) for i in range(0, len(text), CHUNK)]
    kept = {"owner": owner, "vector": vector.astype(np.float32)}
    return [{"id": hashed(owner, number), "chunk": number, "text": chunk, **kept} for number, chunk in chunks]


def part_of(clip: NewClip) -> dict[str, Any]:
    """Return what a row in Milvus holds of a new clip; its position is the same in all files of that content."""
    times, folded = json.dumps([float(t) for t in clip.times]), np.asarray(clip.folded, np.float16)
    place = {"clip": hashed(clip.digest, float(clip.start)), "start": float(clip.start), "end": float(clip.end)}
    return {**place, "times": times, "vector": folded.astype(np.float32)}


def features_of(clip: NewClip) -> Rows:
    """Return the rows in Milvus of a clip's features."""
    scales, features = np.asarray(clip.scales, np.float32), np.asarray(clip.features, np.float16)
    text = base64.b64encode(scales.tobytes() + features[1:].tobytes()).decode()
    return text_rows(hashed(clip.digest, float(clip.start)), text, features[0])


def order(row: dict[str, Any]) -> tuple[str, float]:
    """Return what rows are sorted by: path, a/b before a-b/c as folders are read, and time."""
    return row["path"].replace("/", "\0"), row.get("start", 0.0)


def read_manifest(client: Client) -> dict[str, Any] | None:
    """Return what an index says of itself; None where there is none. Raise ValueError for one of an older format."""
    if client.call("has_collection", "log"):
        command = f"python -m suma index FOLDER --store {client.place}_new"
        raise ValueError(f"{client.place} was made by an older SUMA: index the videos again, with {command}")
    ours = client.call("has_collection", "features")
    rows = client.query("features", f"owner == {MANIFEST}", ["text"]) if ours else []
    return json.loads(rows[0]["text"]) if rows else None
