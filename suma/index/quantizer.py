"""Two codes of many vectors, by which those nearest to a query are named without reading the vectors.

Vectors are turned to the directions in which they differ most: fewer than half of a folded vector's say nearly all,
because its halves nearly repeat each other. A product quantiser (faiss's fast scan) of SUBSPACES half bytes names fewer
than a hundredth of all; a second code, a half byte for each direction, names of these some more than are wanted.

Chosen on a million synthetic videos (tests/bench/search.py) and 212,243 real captions (tests/bench/captions.py): one
bit for each direction by its sign (RaBitQ) was as good on the first, and found a fifth of the second's ten best.

Shapes: N vectors of width W.
"""

from typing import Any

import numpy as np

FIRST, FIRST_SHARE = 2000, 0.0075  # vectors that the first code names: at least so many, and this share of all
SECOND, SECOND_TIMES = 400, 4  # that the second one names: at least so many, and as often as many as are wanted
LESSENED = 4  # times as many that the first code names where it does not know what scores are lessened by
SUBSPACES = 80  # of the first code
UNKEPT = 0.05, 0.02  # share of the vectors' variance that the directions of either code may leave out
TRAINING = 30_000  # vectors, evenly spaced, from which both learn
BLOCK = 50_000  # vectors read at once


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
