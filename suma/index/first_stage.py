"""The first stage of a search: the clips whose folded vectors have the largest inner product with a query's.

Up to EXACT_LIMIT clips all vectors are compared, in float16. Beyond, two codes of the directions in which they differ
name few of them, which are compared exactly. The codes are kept in a cache beside the index, whose name carries its
checksum: faiss would load a damaged file without a word.

Vectors are turned to the directions in which they differ most: fewer than half of a folded vector's say nearly all,
because its halves nearly repeat each other. A product quantiser (faiss's fast scan) of SUBSPACES half bytes names fewer
than a hundredth of all; a second code, a half byte for each direction, names of these some more than are wanted. Chosen
on a million synthetic videos (tests/bench/search.py) and 212,243 real captions (tests/bench/captions.py): one bit for
each direction by its sign (RaBitQ) was as good on the first, and found a fifth of the second's ten best.

Shapes: N clips, D joint width; folded vectors have 2D = W.
"""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from suma.atomic_io import keep_checked, read_checked
from suma.index.storage import AnyStore, Vectors

FIRST, FIRST_SHARE = 2000, 0.0075  # vectors that the first code names: at least so many, and this share of all
SECOND, SECOND_TIMES = 400, 4  # that the second one names: at least so many, and as often as many as are wanted
LESSENED = 4  # times as many that the first code names where it does not know what scores are lessened by
SUBSPACES = 80  # of the first code
UNKEPT = 0.05, 0.02  # share of the vectors' variance that the directions of either code may leave out
TRAINING = 30_000  # vectors, evenly spaced, from which both learn
BLOCK = 50_000  # vectors read at once
EXACT_LIMIT = 200_000  # clips
CACHE_SHARE = 0.8  # of the clips that a cache holds at least; below, it is made anew
MORE = 16  # dimensions for `less`, so that rows stay aligned; all but one are 0
SHARD = 16_384  # vectors that one thread compares
AT_ONCE = 2048  # vectors that are copied and compared, so that they stay in the processor's cache
SMALL = 20_000  # clips that the first search compares without faiss, whose import takes longer


def _in_balance(variances: np.ndarray, each: int, subspaces: int) -> np.ndarray:
    """The first each * subspaces of the directions, of descending variance, so ordered that all subspaces, `each` in a
    row, have like products of variances, and none wastes its bits (Ge et al., 2013, Optimized Product Quantization)."""
    logs, members = np.zeros(subspaces), np.zeros((subspaces, 0), np.int64)
    for n in range(each):
        least_first = np.argsort(logs, kind="stable")
        new = np.empty(subspaces, np.int64)
        new[least_first] = np.arange(n * subspaces, (n + 1) * subspaces)
        members, logs = np.column_stack([members, new]), logs + np.log(np.maximum(variances[new], 1e-12))
    return members.ravel()


def _turned(directions: np.ndarray, kind: str) -> Any:
    """An empty faiss index of this kind, of vectors (W,) along directions (n, W)."""
    faiss: Any = __import__("faiss")
    turn = faiss.LinearTransform(directions.shape[1], len(directions), False)
    faiss.copy_array_to_vector(np.ascontiguousarray(directions, np.float32).ravel(), turn.A)
    turn.is_trained = True
    return faiss.IndexPreTransform(turn, faiss.index_factory(len(directions), kind, faiss.METRIC_INNER_PRODUCT))


class Codes:
    """The codes of N vectors."""

    def __init__(self, index: Any):
        """Of a faiss index that is refined by another, each of turned vectors."""
        faiss: Any = __import__("faiss")
        self._index = index  # it owns what follows
        parts = [faiss.downcast_index(part) for part in (index.base_index, index.refine_index)]
        turns = [faiss.downcast_VectorTransform(part.chain.at(0)) for part in parts]
        self._turns = [faiss.vector_to_array(turn.A).reshape(turn.d_out, turn.d_in) for turn in turns]
        self._first, self._second = (faiss.downcast_index(part.index) for part in parts)
        codes = self._second.codes
        self._codes = faiss.rev_swig_ptr(codes.data(), codes.size()).reshape(len(self), -1)  # (N, bytes)

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Codes":
        """Those of vectors (N, W), which are read in blocks."""
        faiss: Any = __import__("faiss")
        count, width = vectors.shape
        sample = np.ascontiguousarray(vectors[:: max(1, count // TRAINING)][:TRAINING], np.float32)
        variances, directions = np.linalg.eigh(np.cov(sample.T))  # ascending
        missing = np.cumsum(variances) / max(variances.sum(), 1e-12)
        some, more = (max(1, int((missing > share).sum())) for share in UNKEPT)
        best, subspaces = np.arange(width)[::-1], min(SUBSPACES, width // 2 * 2)
        each = min(-(-some // subspaces), width // subspaces)  # directions of a subspace
        spread = best[_in_balance(variances[best], each, subspaces)]
        first = _turned(directions.T[spread], f"PQ{subspaces}x4fs")
        number = min(-(-more // 16) * 16, width // 2 * 2)
        mixed = np.linalg.qr(np.random.default_rng(0).normal(size=(number, number)))[0]  # all to say as much
        second = _turned(mixed @ directions.T[best[:number]], "SQ4")
        index = faiss.IndexRefine(first, second)
        index.train(sample)
        for i in range(0, count, BLOCK):
            index.add(np.ascontiguousarray(vectors[i : i + BLOCK], np.float32))
        return cls(index)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Codes":
        """Those that `to_bytes` wrote. Raises ValueError for those of another version."""
        faiss: Any = __import__("faiss")
        index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        if not isinstance(index, faiss.IndexRefine):
            raise ValueError("these are other codes")
        return cls(index)

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        faiss: Any = __import__("faiss")
        return faiss.serialize_index(self._index).tobytes()

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def bytes_each(self) -> int:
        """Return what one vector's codes take in memory."""
        return self._first.code_size + self._codes.shape[1]

    def name(
        self,
        query: np.ndarray,
        number: int,
        below: int,
        permitted: np.ndarray | None = None,
        share: float = 1.0,
        less: np.ndarray | None = None,
    ) -> np.ndarray:
        """Positions less than `below`, in no order, of more than `number` vectors that are likely to have the largest
        inner products with a query (W,): of the permitted ones (at least `below`,) bool, if given, which are a `share`
        of all; each lessened by `less` (at least `below`,), if given, which the first code knows nothing of."""
        faiss: Any = __import__("faiss")
        turned, finer = (np.ascontiguousarray(turn @ query, np.float32)[None] for turn in self._turns)
        times = 1 if less is None else LESSENED
        first = min(len(self), int(times * max(FIRST, FIRST_SHARE * len(self), number) / share))
        found = np.sort(self._first.search(turned, first)[1][0])  # sorted, they are read faster
        found = found[(found >= 0) & (found < below)]
        found = found if permitted is None else found[permitted[found]]
        wanted = int(max(SECOND, SECOND_TIMES * number) / share)
        if len(found) <= wanted:
            return found
        some = faiss.IndexScalarQuantizer(finer.shape[1], self._second.sq.qtype, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(faiss.vector_to_array(self._second.sq.trained), some.sq.trained)
        some.is_trained = True
        some.add_sa_codes(np.take(self._codes, found, axis=0))
        if less is None:
            return found[some.search(finer, wanted)[1][0]]
        scores, order = (x[0] for x in some.search(finer, len(found)))
        return found[order[np.argsort(less[found[order]] - scores)[:wanted]]]


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
        store: AnyStore,
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

    def _take_in(self, store: AnyStore, snapshot: Vectors, less: np.ndarray | None) -> None:
        width = snapshot.folded.shape[1] + (MORE if less is not None else 0)
        if self._origin is not snapshot.origin:
            self._coarse, self._exact, self._origin = None, [], snapshot.origin
            if (number := len(snapshot.folded)) > EXACT_LIMIT:
                self._coarse = _cached(store, number, self._name) or Codes.of(snapshot.folded)
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


def keep_cache(store: AnyStore, vectors: Vectors | None = None, name: str = "first") -> None:
    """Make the cache of many vectors (the store's clips, if not others are given) where there is none that holds most
    of them; the store is being written."""
    if store.folder is None:
        return
    found = (store.snapshot if vectors is None else vectors).folded
    if len(found) > EXACT_LIMIT and _cached(store, len(found), name) is None:
        file, old = f"{name}-{store.generation}-{len(found)}-{{}}.faiss", f"{name.rstrip('0123456789')}*.faiss"
        keep_checked(store.folder, file, Codes.of(found).to_bytes(), old)


def _cached(store: AnyStore, number: int, name: str) -> Codes | None:
    """Return the codes on disk, if they are whole and of most of so many vectors."""
    for file in store.folder.glob(f"{name}-{store.generation}-*.faiss") if store.folder else ():
        if CACHE_SHARE * number <= int(file.stem.split("-")[2]) <= number and (content := read_checked(file)):
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
