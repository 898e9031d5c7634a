"""Two codes of many vectors, by which those nearest to a query are named without reading the vectors.

Vectors are turned to the directions in which most of them differ: of a folded vector fewer than half, because its
halves nearly repeat each other. A product quantiser of one bit for each direction (faiss's fast scan) names a hundredth
of all; a second code, of four bits for each, names of these a few more than are wanted.

Shapes: N vectors of width W, n directions.
"""

from typing import Any

import numpy as np

FIRST, FIRST_SHARE = 2000, 0.01  # vectors that the first code names: at least so many, and this share of all
SECOND, SECOND_TIMES = 300, 3  # that the second one names: at least so many, and as often as many as are wanted
TRAINING = 30_000  # vectors, evenly spaced, from which both learn
UNKEPT = 0.1  # share of the vectors' variance that the directions may leave out
BLOCK = 50_000  # vectors read at once


class Codes:
    """The codes of N vectors."""

    def __init__(self, index: Any):
        """Of a faiss index: a turn to n directions, and what is turned in a first code, refined by a second."""
        faiss: Any = __import__("faiss")
        self._index = index  # it owns what follows
        turn, refined = faiss.downcast_VectorTransform(index.chain.at(0)), faiss.downcast_index(index.index)
        self._turn = faiss.vector_to_array(turn.A).reshape(turn.d_out, turn.d_in)
        self._first, self._second = (faiss.downcast_index(x) for x in (refined.base_index, refined.refine_index))
        codes = self._second.codes
        self._codes = faiss.rev_swig_ptr(codes.data(), codes.size()).reshape(len(self), -1)  # (N, n / 2) bytes

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Codes":
        """Those of vectors (N, W), which are read in blocks."""
        faiss: Any = __import__("faiss")
        count, width = vectors.shape
        sample = np.ascontiguousarray(vectors[:: max(1, count // TRAINING)][:TRAINING], np.float32)
        variances, directions = np.linalg.eigh(np.cov(sample.T))  # ascending
        missing = np.cumsum(variances) / max(variances.sum(), 1e-12)
        number = min(width // 8 * 8, -(-int((missing > UNKEPT).sum()) // 32) * 32)
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(number, number)))[0]  # all bits to say as much
        turn = faiss.LinearTransform(width, number, False)
        faiss.copy_array_to_vector((rotation @ directions[:, -number:].T).astype(np.float32).ravel(), turn.A)
        turn.is_trained = True
        kinds = (f"PQ{number // 4}x4fs", "SQ4")
        first, second = (faiss.index_factory(number, kind, faiss.METRIC_INNER_PRODUCT) for kind in kinds)
        index = faiss.IndexPreTransform(turn, faiss.IndexRefine(first, second))
        index.train(sample)
        for i in range(0, count, BLOCK):
            index.add(np.ascontiguousarray(vectors[i : i + BLOCK], np.float32))
        return cls(index)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Codes":
        """Those that `to_bytes` wrote. Raises ValueError for those of another version."""
        faiss: Any = __import__("faiss")
        index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else None
        if not isinstance(inner, faiss.IndexRefine):
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
        """What one vector's codes take in memory."""
        return self._first.code_size + self._codes.shape[1]

    def name(
        self, query: np.ndarray, number: int, below: int, permitted: np.ndarray | None = None, share: float = 1.0
    ) -> np.ndarray:
        """Positions less than `below`, in no order, of more than `number` vectors that are likely to have the largest
        inner products with a query (W,): of the permitted ones (at least `below`,) bool, if given, which are a `share`
        of all."""
        faiss: Any = __import__("faiss")
        turned = np.ascontiguousarray(self._turn @ query, np.float32)[None]
        first = min(len(self), int(max(FIRST, FIRST_SHARE * len(self), number) / share))
        found = np.sort(self._first.search(turned, first)[1][0])  # sorted, they are read faster
        found = found[(found >= 0) & (found < below)]
        found = found if permitted is None else found[permitted[found]]
        wanted = int(max(SECOND, SECOND_TIMES * number) / share)
        if len(found) <= wanted:
            return found
        some = faiss.IndexScalarQuantizer(turned.shape[1], self._second.sq.qtype, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(faiss.vector_to_array(self._second.sq.trained), some.sq.trained)
        some.is_trained = True
        some.add_sa_codes(np.take(self._codes, found, axis=0))
        return found[some.search(turned, wanted)[1][0]]
