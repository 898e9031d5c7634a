"""The first stage of a search: the clips whose folded vectors have the largest inner product with a query's.

Shapes: N clips, D joint width; folded vectors have 2D.
"""

import threading
from typing import Any

import numpy as np

from suma.store import Snapshot


class Candidates:
    """Searches the folded vectors of a snapshot; takes in what a later one adds without starting again."""

    def __init__(self) -> None:
        self._index: Any = None  # faiss index of the positions so far
        self._table: Any = None  # of the generation that it holds
        self._mutex = threading.Lock()

    def search(
        self, snapshot: Snapshot, query: np.ndarray, number: int, allowed: np.ndarray | None = None
    ) -> list[int]:
        """Positions of the best `number` clips for a query (2D,), best first; of the `allowed` ones (n,) if given."""
        faiss: Any = __import__("faiss")

        self._take_in(snapshot)
        chosen = snapshot.live if allowed is None else allowed
        number = min(number, len(chosen))
        if not number:
            return []
        options = None
        if len(chosen) < len(snapshot.folded):
            bits = np.zeros(len(snapshot.folded), bool)
            bits[chosen] = True
            packed = np.packbits(bits, bitorder="little")
            options = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(packed))
        vector = np.ascontiguousarray(query[None], np.float32)
        found = self._index.search(vector, number, params=options)[1][0]
        return [int(position) for position in found if 0 <= position < len(snapshot.folded)]

    def _take_in(self, snapshot: Snapshot) -> None:
        """float16 codes: half the bytes of float32, so twice the speed; whoever asks scores the candidates exactly."""
        import faiss

        with self._mutex:
            if self._table is not snapshot.table:
                width = snapshot.folded.shape[1]
                flat = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
                self._index, self._table = flat, snapshot.table
            new = np.ascontiguousarray(snapshot.folded[self._index.ntotal :])
            if len(new):
                self._index.add_sa_codes(new.view(np.uint8))
