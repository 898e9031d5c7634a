"""The first stage of a search: the clips whose folded vectors have the largest inner product with a query's.

Up to EXACT_LIMIT clips all vectors are compared, in float16. Beyond, a quantiser (faiss's RaBitQ, a bit for each of the
D or so principal directions) names three in a thousand, which are compared exactly. The quantiser is kept in a
cache beside the index, whose name carries its checksum: faiss would load a damaged file without a word.

Shapes: N clips, D joint width; folded vectors have 2D.
"""

import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from suma.disk import replace
from suma.store import Store

EXACT_LIMIT = 200_000  # clips
RESCORED, RESCORED_SHARE = 1000, 0.003  # clips that the quantiser names: at least so many, and this share of all
TRAINING = 30_000  # vectors, evenly spaced, that the quantiser learns from
UNKEPT = 0.01  # share of the vectors' variance that it may leave out
CACHE_SHARE = 0.8  # of the clips that a cache holds at least; below, it is made anew
BLOCK = 50_000  # vectors read at once
MORE = 16  # dimensions for `less`, so that rows stay aligned; all but one are 0
SHARD = 16_384  # vectors that one thread compares
SMALL = 20_000  # clips that the first search compares without faiss, whose import takes longer


class Vectors(Protocol):
    """What is searched: a snapshot of a store, or a caption list."""

    @property
    def table(self) -> Any:
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
        self._table: Any = None  # of the generation that is held
        self._coarse: Any = None  # faiss index of the first positions, or None
        self._exact: list[Any] = []  # faiss indexes of the positions that follow, SHARD to each
        self._mutex = threading.Lock()
        self._asked = False

    def search(
        self, store: Any, snapshot: Any, query: np.ndarray, number: int, allowed: np.ndarray | None = None,
        less: np.ndarray | None = None,
    ) -> list[int]:  # fmt: skip
        """Positions of the best `number` clips for a query (2D,), best first; of the `allowed` ones (n,) if given.
        less (all positions,): what the inner product of each is lessened by."""
        chosen = snapshot.live if allowed is None else allowed
        if not self._asked and len(chosen) <= SMALL:
            self._asked = True
            return [position for _, position in _best(snapshot, chosen, np.asarray(query, np.float32), number, less)]
        with self._mutex:
            self._take_in(store, snapshot, less)
            coarse, exact = self._coarse, list(self._exact)
        if not len(chosen):
            return []
        vector, total = np.ascontiguousarray(query[None], np.float32), len(snapshot.folded)
        permitted = None
        if len(chosen) < total:
            permitted = np.zeros(total, bool)
            permitted[chosen] = True
        start = coarse.ntotal if coarse is not None else 0
        found = []
        if coarse is not None and len(chosen) <= BLOCK:
            found.append(_best(snapshot, chosen[chosen < start], vector[0], number, less))
        elif coarse is not None:
            asked = min(start, int(max(RESCORED, RESCORED_SHARE * total, number) * total / len(chosen)))
            named = coarse.search(vector, asked)[1][0]
            named = named[(named >= 0) & (named < total)]
            named = named if permitted is None else named[permitted[named]]
            found.append(_best(snapshot, named, vector[0], number, less))
        if exact:
            if less is not None:
                vector = np.pad(vector, [(0, 0), (0, MORE)], constant_values=1)
            found.append(_scan(exact, start, vector, number, permitted))
        scored = [pair for part in found for pair in part]
        return [position for _, position in sorted(scored, key=lambda pair: -pair[0])[:number]]

    def _take_in(self, store: Any, snapshot: Vectors, less: np.ndarray | None) -> None:
        import faiss

        width = snapshot.folded.shape[1] + (MORE if less is not None else 0)
        if self._table is not snapshot.table:
            self._coarse = _cached(store, snapshot, self._name) if len(snapshot.folded) > EXACT_LIMIT else None
            if self._coarse is None and len(snapshot.folded) > EXACT_LIMIT:
                self._coarse = _quantised(snapshot)
            self._exact, self._table = [], snapshot.table
        start = self._coarse.ntotal if self._coarse is not None else 0
        i = start + sum(shard.ntotal for shard in self._exact)
        while i < len(snapshot.folded):
            if not self._exact or self._exact[-1].ntotal == SHARD:
                kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
                self._exact.append(faiss.IndexScalarQuantizer(width, kind, metric))
            end = i + SHARD - self._exact[-1].ntotal
            codes = np.ascontiguousarray(snapshot.folded[i:end])
            if less is not None:
                codes = np.pad(codes, [(0, 0), (0, MORE)])
                codes[:, -1] = -less[i:end]
            self._exact[-1].add_sa_codes(codes.view(np.uint8))
            i += len(codes)


def keep_cache(store: Store, vectors: Vectors | None = None, name: str = "first") -> None:
    """Make the cache of many vectors (the store's clips, if not others are given) where there is none that holds most
    of them; the store is being written."""
    import faiss

    snapshot = store.snapshot if vectors is None else vectors
    if len(snapshot.folded) <= EXACT_LIMIT or _cached(store, snapshot, name) is not None:
        return
    content = faiss.serialize_index(_quantised(snapshot)).tobytes()
    file_name = f"{name}-{store.generation}-{len(snapshot.folded)}-{hashlib.sha256(content).hexdigest()[:32]}.faiss"
    old = list(store.folder.glob(f"{name.rstrip('0123456789')}*.faiss"))
    replace(store.folder / file_name, content)
    for file in old:
        file.unlink(missing_ok=True)


def _cached(store: Any, snapshot: Vectors, name: str) -> Any:
    """The quantiser on disk, if it is whole and holds most of the clips."""
    import faiss

    if not isinstance(store, Store):
        return None
    for file in store.folder.glob(f"{name}-{store.generation}-*.faiss"):
        count, digest = file.stem.split("-")[2:]
        if CACHE_SHARE * len(snapshot.folded) <= int(count) <= len(snapshot.folded):
            with contextlib.suppress(OSError):
                content = Path(file).read_bytes()
                if hashlib.sha256(content).hexdigest()[:32] == digest:
                    return faiss.deserialize_index(np.frombuffer(content, np.uint8))
    return None


def _quantised(snapshot: Vectors) -> Any:
    """A binary quantiser over all vectors of a snapshot, of the directions in which they differ: the halves of a folded
    vector nearly repeat each other, so half as many as it has dimensions are enough."""
    import faiss

    count, width = snapshot.folded.shape
    sample = np.ascontiguousarray(snapshot.folded[:: max(1, count // TRAINING)][:TRAINING], np.float32)
    variances, directions = np.linalg.eigh(np.cov(sample.T))  # ascending
    missing = np.cumsum(variances) / max(variances.sum(), 1e-12)
    number = min(width, -(-int((missing > UNKEPT).sum()) // 32) * 32)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(number, number)))[0]  # all bits to say as much
    turn = faiss.LinearTransform(width, number, False)
    faiss.copy_array_to_vector((rotation @ directions[:, -number:].T).astype(np.float32).ravel(), turn.A)
    turn.is_trained = True
    bits = faiss.index_factory(number, "RaBitQfs", faiss.METRIC_INNER_PRODUCT)
    coarse = faiss.IndexPreTransform(turn, bits)
    coarse.train(sample)
    for i in range(0, count, BLOCK):
        coarse.add(np.ascontiguousarray(snapshot.folded[i : i + BLOCK], np.float32))
    return coarse


def _best(
    snapshot: Vectors, positions: np.ndarray, query: np.ndarray, number: int, less: np.ndarray | None
) -> list[tuple[float, int]]:
    """The best of these positions by the exact inner product, lessened by `less`."""
    positions = np.sort(positions)
    if not len(positions):
        return []
    vector = torch.from_numpy(query)
    blocks = [positions[i : i + 512] for i in range(0, len(positions), 512)]  # small ones stay in the processor's cache
    scores = torch.cat([torch.from_numpy(snapshot.folded[block]).float() @ vector for block in blocks]).numpy()
    if less is not None:
        scores = scores - less[positions]
    best = np.argsort(-scores)[:number]
    return list(zip(scores[best].tolist(), positions[best].tolist(), strict=True))


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
