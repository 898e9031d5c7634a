"""The captions that a video is given: lines with their folded vectors, searched in two stages like videos.

Shapes: N lines, V parts of a video, F frames, D joint width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from suma.index.first_stage import Candidates, keep_cache
from suma.index.scoring import Clips, Scorer
from suma.index.storage import AnyStore
from suma.index.store import Store
from suma.model.vocabulary import nfc
from suma.model.word_clusters import unit

Fold: TypeAlias = Callable[[Sequence[str]], np.ndarray]  # sentences -> folded vectors (n, 2D)
CANDIDATES = 700  # lines of the folded first stage that are scored exactly: few, and much alike
BATCH, BLOCK = 256, 4096  # lines encoded or scored at once, and written at once
SHOWN = 2000  # lines from which on a bar shows how far their encoding is


class CaptionList:
    """A list of captions, each once. The vectors of a list that is kept in an index lie memory-mapped in its folder;
    those of a new one are made when they are first needed, or kept by `save`."""

    def __init__(self, lines: Sequence[str], folded: np.ndarray | None = None, first: int = 0):
        stripped = (line.strip() for line in lines)
        self.lines = list(lines if folded is not None else dict.fromkeys(nfc(line) for line in stripped if line))
        self.live = np.arange(len(self.lines))  # for Candidates, as `origin` and `folded` below
        self.name = f"lines{first}"  # of its cache; `first`: the commit that brought it
        self._folded = folded  # (N, 2D) float16
        self._candidates = Candidates(self.name)

    @classmethod
    def load(cls, store: AnyStore) -> "CaptionList":
        """The list of an index, as it is kept."""
        first, lines = store.captions()
        return cls(lines, store.caption_vectors(first, len(lines)), first)

    def save(self, store: AnyStore, scorer: Scorer, fold: Fold) -> "CaptionList":
        """Keep the list in an index's folder, encoding the lines that the one before has not; the list as it is kept.
        Raises OSError as the store does, with the one before intact."""
        if (before := CaptionList.load(store)).lines == self.lines:
            return before
        with store.writing():
            before = CaptionList.load(store)
            store.set_captions(
                self.lines, [self._folded] if self._folded is not None else self._blocks(scorer, fold, before)
            )
            kept = CaptionList.load(store)
            if isinstance(store, Store):
                keep_cache(store, kept, kept.name)
        return kept

    def search(self, store: AnyStore, scorer: Scorer, fold: Fold, clips: Clips, top_k: int) -> list[tuple[str, float]]:
        """The lines that describe a video best, with their scores, best first; of several parts (V) the best counts."""
        if self._folded is None:
            self._folded = np.concatenate(list(self._blocks(scorer, fold)))
        number = max(CANDIDATES, 2 * top_k)
        found: dict[int, None] = {}
        for query in scorer.fold_videos(clips):
            found.update(dict.fromkeys(self._candidates.search(store, self, query, number)))
        positions, parts, dim = list(found), [], scorer.concepts.shape[1]
        for i in range(0, len(positions), BATCH):
            folded = self.folded[positions[i : i + BATCH]].astype(np.float32)
            folded[:, :dim] = unit(folded[:, :dim])
            parts.append(scorer.score(folded, clips).max(1))
        scores = np.concatenate(parts)  # (lines,)
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [(self.lines[positions[i]], round(float(scores[i]), 4)) for i in best]

    @property
    def origin(self) -> "CaptionList":
        """One list never changes."""
        return self

    @property
    def folded(self) -> np.ndarray:
        """(N, 2D) float16, once they are encoded."""
        assert self._folded is not None
        return self._folded

    def _blocks(self, scorer: Scorer, fold: Fold, before: "CaptionList | None" = None) -> Iterator[np.ndarray]:
        """The lines' vectors, in blocks (n, 2D); those of the list before are taken from there."""
        from suma.progress import Progress

        kept = before is not None and before._folded is not None
        known = {line: i for i, line in enumerate(before.lines)} if before is not None and kept else {}
        few = len(self.lines) < SHOWN
        with Progress(total=len(self.lines), desc="captions", unit="line", disable=few) as bar:
            for i in range(0, len(self.lines), BLOCK):
                lines = self.lines[i : i + BLOCK]
                block = np.empty((len(lines), 2 * scorer.concepts.shape[1]), np.float16)
                old = [n for n, line in enumerate(lines) if line in known]
                if before is not None and old:
                    block[old] = before.folded[[known[lines[n]] for n in old]]
                new = sorted((n for n, line in enumerate(lines) if line not in known), key=lambda n: len(lines[n]))
                for at in (new[k : k + BATCH] for k in range(0, len(new), BATCH)):  # of like length: less padding
                    block[at] = fold([lines[n] for n in at])
                bar.update(len(lines))
                yield block
