"""Talking to Milvus through pymilvus (`pip install pymilvus`): a server, or a milvus-lite file on this machine.

Every call has a time limit, waits while a server that was just started recovers, and ends in one clear line where there
is none.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from suma.index.storage import StoreError

PLACE = re.compile(
    r"(?P<place>milvus:(?://(?P<server>[^/]+)|(?P<file>.*\.db))/(?P<name>[A-Za-z_]\w{0,200}))(\?index=(?P<index>\w+))?"
)
INDEXES: dict[str, dict[str, int]] = {"FLAT": {}, "HNSW": {"M": 32, "efConstruction": 200}}  # exact / for millions
CALL_SECONDS = 20.0  # that one call may take
PATIENCE = 120.0  # seconds for a server that recovers from a crash
REFUSED, NOT_LOADED, UNEXPECTED = 2, 101, 65535
PASSING = {1, 4, 8, NOT_LOADED, 103, 106, *range(400, 700), *range(900, 1000)}  # Milvus' codes for what will pass
ROWS_AT_ONCE = 500  # that are sent


class Client:
    """The collections of one index, NAME and NAME_..., at one place."""

    def __init__(self, place: str):
        found = PLACE.fullmatch(place)
        if found is None or (found["index"] or "FLAT") not in INDEXES:
            raise ValueError(
                f"{place} is no place in Milvus: write milvus://HOST:PORT/NAME or milvus:FILE.db/NAME, and behind it"
                " ?index=HNSW to make an index for millions of videos"
            )
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it tells of every connection that is closed
        try:
            import pymilvus

            if found["file"]:
                import milvus_lite  # noqa: F401
        except ImportError as error:
            packages = "pymilvus milvus-lite" if found["file"] else "pymilvus"
            raise StoreError(f"{place} needs a package that is not installed: pip install {packages}") from error
        self.place, self.name, self.index = found["place"], found["name"], found["index"] or "FLAT"
        self.address = found["file"] or found["server"] + ":19530" * (":" not in found["server"])
        self.is_file = bool(found["file"])
        self.types = pymilvus.DataType
        for name in ("pymilvus", "grpc._server"):  # they print all that they raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        uri = self.address if self.is_file else f"http://{self.address}"
        self._api: Any = self._patiently(lambda: pymilvus.MilvusClient(uri, timeout=CALL_SECONDS))
        version = re.match(r"v?(\d+)\.(\d+)", self._call("get_server_version"))
        self.has_float16 = version is not None and (int(version[1]), int(version[2])) >= (2, 4)

    # ---- calls -----------------------------------------------------------------------------------------------------

    def _call(self, what: str, **options: Any) -> Any:
        return self._patiently(lambda: getattr(self._api, what)(timeout=CALL_SECONDS, **options), options)

    def _patiently(self, call: Callable[[], Any], options: dict[str, Any] | None = None) -> Any:
        """What a call answers; repeated while the server recovers. Raises StoreError where it does not answer."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except Exception as error:  # pymilvus' own, grpc's, and others
                code, said = _code(error), " ".join(str(getattr(error, "message", error)).split())
                if code == "refused" and not self.is_file:
                    raise StoreError(
                        f"no Milvus server answers at {self.address}: start it, then run this again"
                    ) from error
                if code != "passing" or time.monotonic() > end:
                    raise StoreError(f"Milvus at {self.address} does not do what it should: {said[:300]}") from error
                if options and getattr(error, "code", None) == NOT_LOADED:  # it was killed while it loaded it
                    with contextlib.suppress(Exception):
                        self._api.load_collection(options["collection_name"], timeout=CALL_SECONDS)
                time.sleep(0.5)

    def _named(self, part: str) -> str:
        return f"{self.name}_{part}" if part else self.name

    def exists(self, part: str) -> bool:
        """Whether there is a collection."""
        return self._call("has_collection", collection_name=self._named(part))

    def drop(self, part: str) -> None:
        """Remove a collection."""
        self._call("drop_collection", collection_name=self._named(part))

    def create(self, part: str, fields: dict[str, Any], width: int, index: str, half: bool) -> None:
        """A collection with these fields (the first is its key; a number is a text's longest length) and vectors
        (width,), ready to be searched."""
        types = self.types
        schema = self._api.create_schema(auto_id=False, enable_dynamic_field=False)
        for i, (name, kind) in enumerate(fields.items()):
            if isinstance(kind, int):
                schema.add_field(name, types.VARCHAR, max_length=kind, is_primary=not i)
            else:
                schema.add_field(name, types.DOUBLE if kind is float else types.INT64, is_primary=not i)
        vectors = types.FLOAT16_VECTOR if half else types.FLOAT_VECTOR
        schema.add_field("vector", vectors, dim=width)
        indexes = self._api.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=INDEXES[index])
        self._call("create_collection", collection_name=self._named(part), schema=schema, index_params=indexes)

    def put(self, part: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, or replace those with the same key."""
        for i in range(0, len(rows), ROWS_AT_ONCE):
            self._call("upsert", collection_name=self._named(part), data=list(rows[i : i + ROWS_AT_ONCE]))

    def delete(self, part: str, keys: Sequence[Any]) -> None:
        """Remove the rows with these keys."""
        for i in range(0, len(keys), 1000):
            self._call("delete", collection_name=self._named(part), ids=list(keys[i : i + 1000]))

    def flush(self, *parts: str) -> None:
        """Have all that was put written to the disk: a server that is killed before may lose it (seen with 2.3)."""
        if not self.is_file:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(lambda part: self._call("flush", collection_name=self._named(part)), parts))

    def count(self, part: str, condition: str, level: str = "Strong") -> int:
        """How many rows there are for which a boolean expression holds."""
        return int(self.query(part, condition, ["count(*)"], level)[0]["count(*)"])

    def query(self, part: str, condition: str, fields: Sequence[str], level: str = "Strong") -> list[dict[str, Any]]:
        """The rows for which a boolean expression holds."""
        return list(
            self._call(
                "query",
                collection_name=self._named(part),
                filter=condition,
                output_fields=list(fields),
                consistency_level=level,
            )
        )

    def query_in(
        self, part: str, field: str, values: Sequence[Any], more: str, fields: Sequence[str], level: str, at_once: int
    ) -> Iterator[dict[str, Any]]:
        """The rows whose field has one of these values and for which another expression holds."""
        for i in range(0, len(values), at_once):
            listed = ", ".join(_literal(value) for value in values[i : i + at_once])
            yield from self.query(part, f"{field} in [{listed}]{more}", fields, level)

    def search(self, vector: Any, number: int, condition: str, fields: Sequence[str], level: str) -> list[Any]:
        """The `number` rows with the largest inner products, of those for which a boolean expression holds."""
        options = {"ef": max(400, 2 * number)} if self.index == "HNSW" else {}
        found = self._call(
            "search",
            collection_name=self.name,
            data=[vector],
            filter=condition,
            limit=number,
            output_fields=list(fields),
            search_params={"metric_type": "IP", "params": options},
            consistency_level=level,
        )
        return [{**hit["entity"], "id": hit["id"]} for hit in found[0]]


def _code(error: Exception) -> str:
    """What kind of failure it is: "refused", "passing", or another."""
    code = getattr(error, "code", None)
    status = getattr(code() if callable(code) else code, "name", "")  # grpc's
    if status == "UNAVAILABLE" or (code == REFUSED and "connect" in str(error)):
        return "refused"
    if code == UNEXPECTED and ("context" in str(error) or "Retry timeout" in str(error)):
        return "passing"  # a server that recovers lets a call wait until its time is over
    return "passing" if status in ("DEADLINE_EXCEEDED", "UNKNOWN") or code in PASSING else "other"


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
