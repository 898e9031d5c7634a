"""The first stage of a search: the clips whose folded vectors have the largest inner product with a query's.

Up to EXACT_LIMIT clips all vectors are compared, in float16. Beyond, two codes of the directions in which they differ
name few of them, which are compared exactly (quantizer.py). The codes are kept in a cache beside the index, whose name
carries its checksum: faiss would load a damaged file without a word.

Shapes: N clips, D joint width; folded vectors have 2D.
"""

import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from suma.atomic_io import replace
from suma.index.quantizer import BLOCK, Codes
from suma.index.store import Store

EXACT_LIMIT = 200_000  # clips
CACHE_SHARE = 0.8  # of the clips that a cache holds at least; below, it is made anew
MORE = 16  # dimensions for `less`, so that rows stay aligned; all but one are 0
SHARD = 16_384  # vectors that one thread compares
AT_ONCE = 2048  # vectors that are copied and compared, so that they stay in the processor's cache
SMALL = 20_000  # clips that the first search compares without faiss, whose import takes longer


class Vectors(Protocol):
    """What is searched: a snapshot of a store, or a caption list."""

    @property
    def origin(self) -> Any:
        """The same object as long as vectors are only added."""

    @property
    def live(self) -> np.ndarray:
        """(N,) int64: positions that can be found, ascending."""

    @property
    def folded(self) -> np.ndarray:
        """(all positions, 2D) float16."""


class Candidates:
    """Searches folded vectors, and takes in what a later snapshot adds; `name`: of the cache's files. Always with
    `less`, or never: it lies in the vectors, as one dimension more."""

    def __init__(self, name: str = "first") -> None:
        self._name = name
        self._origin: Any = None  # of the vectors that are held
        self._coarse: Codes | None = None  # of the first positions
        self._exact: list[Any] = []  # faiss indexes of the positions that follow, SHARD to each
        self._mutex = threading.Lock()
        self._asked = False

    def search(
        self,
        store: Any,
        snapshot: Any,
        query: np.ndarray,
        number: int,
        allowed: np.ndarray | None = None,
        less: np.ndarray | None = None,
    ) -> list[int]:
        """Positions of the best `number` clips for a query (2D,), best first; of the `allowed` ones (n,) if given.
        less (all positions,): what the inner product of each is lessened by."""
        chosen = snapshot.live if allowed is None else allowed
        if not self._asked and len(chosen) <= SMALL:
            self._asked = True
            return [position for _, position in _best_of_few(snapshot, chosen, query, number, less)]
        with self._mutex:
            self._take_in(store, snapshot, less)
            coarse, exact = self._coarse, list(self._exact)
        if not len(chosen):
            return []
        vector, total = np.ascontiguousarray(query[None], np.float32), len(snapshot.folded)
        start, permitted, found = len(coarse or ()), None, []
        held = start + sum(shard.ntotal for shard in exact)  # also of a later snapshot that another thread asked with
        if len(chosen) < max(total, held):
            permitted = np.zeros(max(total, held), bool)
            permitted[chosen] = True
        wide = vector if less is None else np.pad(vector, [(0, 0), (0, MORE)], constant_values=1)
        if coarse is not None and len(chosen) <= BLOCK:
            found.append(_best(snapshot, chosen[chosen < start], wide, number, less))
        elif coarse is not None:
            named = coarse.name(vector[0], number, total, permitted, len(chosen) / total, less)
            found.append(_best(snapshot, named, wide, number, less))
        if exact:
            found.append(_scan(exact, start, wide, number, permitted))
        scored = [pair for part in found for pair in part]
        return [position for _, position in sorted(scored, key=lambda pair: -pair[0])[:number]]

    def _take_in(self, store: Any, snapshot: Vectors, less: np.ndarray | None) -> None:
        width = snapshot.folded.shape[1] + (MORE if less is not None else 0)
        if self._origin is not snapshot.origin:
            self._coarse = _cached(store, snapshot, self._name) if len(snapshot.folded) > EXACT_LIMIT else None
            if self._coarse is None and len(snapshot.folded) > EXACT_LIMIT:
                self._coarse = Codes.of(snapshot.folded)
            self._exact, self._origin = [], snapshot.origin
        start, held = len(self._coarse or ()), sum(shard.ntotal for shard in self._exact)
        if start + held >= len(snapshot.folded):
            return
        full = held // SHARD  # the others are made anew, not added to: another thread may be reading them
        shards = self._exact[:full]
        for i in range(start + full * SHARD, len(snapshot.folded), SHARD):
            positions = np.arange(i, min(i + SHARD, len(snapshot.folded)))
            shards.append(_half(width))
            shards[-1].add_sa_codes(_rows(snapshot, positions, less).view(np.uint8))
        self._exact = shards


def keep_cache(store: Store, vectors: Vectors | None = None, name: str = "first") -> None:
    """Make the cache of many vectors (the store's clips, if not others are given) where there is none that holds most
    of them; the store is being written."""
    snapshot = store.snapshot if vectors is None else vectors
    if len(snapshot.folded) <= EXACT_LIMIT or _cached(store, snapshot, name) is not None:
        return
    content = Codes.of(snapshot.folded).to_bytes()
    file_name = f"{name}-{store.generation}-{len(snapshot.folded)}-{hashlib.sha256(content).hexdigest()[:32]}.faiss"
    old = list(store.folder.glob(f"{name.rstrip('0123456789')}*.faiss"))
    replace(store.folder / file_name, content)
    for file in old:
        file.unlink(missing_ok=True)


def _cached(store: Any, snapshot: Vectors, name: str) -> Codes | None:
    """The codes on disk, if they are whole and of most of the clips."""
    if not isinstance(store, Store):
        return None
    for file in store.folder.glob(f"{name}-{store.generation}-*.faiss"):
        count, digest = file.stem.split("-")[2:]
        if CACHE_SHARE * len(snapshot.folded) <= int(count) <= len(snapshot.folded):
            with contextlib.suppress(OSError):
                content = Path(file).read_bytes()
                if hashlib.sha256(content).hexdigest()[:32] == digest:
                    with contextlib.suppress(ValueError):  # of another version
                        return Codes.from_bytes(content)
    return None


def _half(width: int) -> Any:
    """An empty faiss index of float16 vectors, compared by inner product."""
    faiss: Any = __import__("faiss")
    return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _rows(snapshot: Vectors, positions: np.ndarray, less: np.ndarray | None) -> np.ndarray:
    """The vectors at these positions, ascending, (n, 2D) float16, with what they are lessened by, if given, behind."""
    rows = np.take(snapshot.folded, positions, axis=0)
    if less is not None:
        rows = np.pad(rows, [(0, 0), (0, MORE)])
        rows[:, -1] = -less[positions]
    return rows


def _best(
    snapshot: Vectors, positions: np.ndarray, query: np.ndarray, number: int, less: np.ndarray | None
) -> list[tuple[float, int]]:
    """The best of these positions by the exact inner product with a query (1, 2D); lessened by `less`, if given, for
    which the query has MORE dimensions of 1."""
    positions = np.sort(positions)
    found: list[tuple[float, int]] = []
    for i in range(0, len(positions), AT_ONCE):
        block, some = positions[i : i + AT_ONCE], _half(query.shape[1])
        some.add_sa_codes(_rows(snapshot, block, less).view(np.uint8))
        scores, order = some.search(query, min(number, len(block)))
        found += zip(scores[0].tolist(), block[order[0]].tolist(), strict=True)
    return sorted(found, key=lambda pair: -pair[0])[:number]


def _best_of_few(
    snapshot: Vectors, positions: np.ndarray, query: np.ndarray, number: int, less: np.ndarray | None
) -> list[tuple[float, int]]:
    """The same for a query (2D,), without faiss."""
    blocks = (positions[i : i + 512] for i in range(0, len(positions), 512))
    scores = [np.take(snapshot.folded, block, axis=0).astype(np.float32) @ query for block in blocks]
    values = np.concatenate([*scores, np.zeros(0, np.float32)]) - (0 if less is None else less[positions])
    best = np.argsort(-values, kind="stable")[:number]
    return list(zip(values[best].tolist(), positions[best].tolist(), strict=True))


def _scan(
    exact: list[Any], start: int, vector: np.ndarray, number: int, permitted: np.ndarray | None
) -> list[tuple[float, int]]:
    """The best of the positions from `start` on, all compared, by all threads that faiss may use."""
    faiss: Any = __import__("faiss")

    def best(first: int) -> list[tuple[float, int]]:
        shard, options = exact[first // SHARD], None
        if permitted is not None:
            bits = np.packbits(permitted[start + first :][: shard.ntotal], bitorder="little")
            options = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        scores, found = shard.search(vector, min(number, shard.ntotal), params=options)
        pairs = zip(scores[0].tolist(), found[0].tolist(), strict=True)
        return [(score, start + first + position) for score, position in pairs if position >= 0]

    firsts, threads = range(0, SHARD * len(exact), SHARD), min(faiss.omp_get_max_threads(), len(exact))
    if threads == 1:
        return [pair for first in firsts for pair in best(first)]
    with ThreadPoolExecutor(threads) as pool:
        return [pair for found in pool.map(best, firsts) for pair in found]
