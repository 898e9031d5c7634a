"""From a query to matches: candidates by one inner product, exact scores with all frames, one answer for each video.

Shapes: Q queries, n clips, V parts of a video, F frames, D joint width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from suma.arrays import Array, library, no_grad, to_numpy, unit
from suma.index.catalog import Row
from suma.index.first_stage import Candidates
from suma.index.hubness import Popularity
from suma.index.query import ALL, Filter
from suma.index.storage import AnyStore, FirstStage, State
from suma.model.text_encoder import AnyModel
from suma.similarity import Texts, Videos, concept_parts, concept_scale, fold_texts, frame_scores, score_by_scale

CANDIDATES = 100  # clips of the folded first stage that are scored exactly
SIMILAR_CANDIDATES = 1000
NAMED = 3  # concepts of a match


@dataclass(frozen=True)
class Match:
    """A video that answers a query, or a moment in it; of a long video the best part."""

    path: str
    score: float
    moment: float  # seconds: where the best frame is
    concepts: tuple[tuple[str, float], ...]  # concepts that made it match: name, part of the score
    duration: float  # seconds
    start: float = 0.0  # seconds: the part of the video
    end: float = 0.0


def span_around(moment: float, duration: float) -> tuple[float, float]:
    """Return start and end (seconds) of what is saved of a video for the answer at `moment`."""
    return max(0.0, moment - 2), min(duration, moment + 3)


@dataclass(frozen=True)
class Page:
    """Which answers are wanted. Raises ValueError for a top_k below 1 or a negative offset."""

    top_k: int = 10
    offset: int = 0  # answers that come before
    min_score: float = -math.inf
    filter: Filter = ALL
    group: bool = True  # one answer for each video, not for each part

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.offset < 0:
            raise ValueError(f"offset must not be negative, got {self.offset}")

    def cut(self, ranked: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
        """The page of a ranking (score, what), best first."""
        page = ranked[self.offset : self.offset + self.top_k]
        return [(score, what) for score, what in page if round(score, 4) >= self.min_score]  # as it is shown


class Searcher:
    """Searches the clips of a store for one model."""

    def __init__(self, model: AnyModel):
        self.model = model
        self.candidates: FirstStage = Candidates()
        self._corrected = Candidates()  # of hubness
        self._filtered: tuple[State, Filter, Any] | None = None  # the clips that the last filter lets through

    # ---- features --------------------------------------------------------------------------------------------------

    def _gather(self, snapshot: State, positions: Sequence[int]) -> tuple[Array, Array, Array]:
        """Unit rows (n, 1 + F, D), the videos' first and padded with zeros, their scales (n, 1 + F), mask (n, F)."""
        features, scales, valid = snapshot.gather(positions)
        features[~valid] = 0
        rows = self._wide(features)
        return unit(rows), self.model.array(scales), self.model.array(valid[:, 1:])

    def _wide(self, features: np.ndarray) -> Array:
        """float16 -> float32, as the model takes them."""
        x = self.model.array(features)
        return library(x).asarray(x, dtype=library(x).float32)

    @no_grad
    def videos(self, snapshot: State, positions: Sequence[int]) -> Videos:
        """Features of these clips (n, D), frames (n, F, D) padded with zeros, mask, and places in the concept space."""
        unit, _, mask = self._gather(snapshot, positions)
        return self.model.make_videos(unit[:, 0], unit[:, 1:], mask)

    def score(self, texts: Texts, named: Array, snapshot: State, positions: Sequence[int]) -> Array:
        """The score (T, n) of texts and clips; named (T, D): the anchors' concepts, summed."""
        unit, scales, mask = self._gather(snapshot, positions)
        return score_by_scale(texts, named, unit, scales, mask, self.model.config.scoring)

    def vectors(self, snapshot: State, positions: Sequence[int]) -> Array:
        """Unit video features (n, D) of these positions, without their frames."""
        return unit(self._wide(snapshot.vectors(positions)))

    def _allowed(self, snapshot: State, chosen: Filter) -> Any:
        """Which clips a filter lets through, as the first stage takes it; None: all."""
        if replace(chosen, root="") == ALL:
            return None
        if self._filtered is None or self._filtered[0] is not snapshot or self._filtered[1] != chosen:
            self._filtered = (snapshot, chosen, snapshot.allowed(chosen))
        return self._filtered[2]

    # ---- answers ---------------------------------------------------------------------------------------------------

    @no_grad
    def by_text(self, store: AnyStore, texts: Texts, page: Page, popularity: Popularity | None = None) -> list[Match]:
        """The videos that a text (T = 1) describes best; less their popularity, if it is given."""
        snapshot = store.snapshot
        less = popularity.of(store, snapshot) if popularity else None
        folded = fold_texts(texts.features, texts.anchors, self.model.space.concepts())
        named = folded[:, self.model.dim :]

        def score(found: list[int]) -> Array:
            scores = self.score(texts, named, snapshot, found)[0]
            return scores if less is None else scores - self.model.array(less[found])

        best = self._ranked(store, snapshot, folded, score, page, CANDIDATES, less=less)
        positions = [position for _, position in best]
        videos, rows = self.videos(snapshot, positions), snapshot.rows(positions, page.filter)
        return [
            self._match(texts, row, Videos(*(x[i : i + 1] for x in videos)), score)
            for i, (row, (score, _)) in enumerate(zip(rows, best, strict=True))
        ]

    @no_grad
    def moments(self, rows: Sequence[Row], videos: Videos, texts: Texts, page: Page) -> list[Match]:
        """The moments of one video, given by its parts, that a text (T = 1) describes best: its frames, each once, with
        their own scores (suma.similarity.frame_scores)."""
        share = self.model.config.concept_share
        scores = frame_scores(texts, videos, share)
        best: dict[float, tuple[float, int]] = {}  # by time: parts overlap
        for v, row in enumerate(rows):
            for f, time in enumerate(row.times):
                best[time] = max(best.get(time, (-math.inf, 0)), (float(scores[v, f]), v * scores.shape[1] + f))
        matches = []
        for score, at in page.cut(sorted(best.values(), key=lambda pair: -pair[0])):
            v, f = divmod(at, scores.shape[1])
            parts = share * texts.anchors[0] * videos.frame_concepts[v, f]
            matches.append(_as_match(rows[v], score, rows[v].times[f], self._named(parts)))
        return matches

    @no_grad
    def by_video(self, store: AnyStore, videos: Videos, itself: Sequence[int], page: Page) -> list[Match]:
        """The videos most like one, given by its parts (V), leaving out its own clips; of long ones, on either side,
        the parts that are most alike count.

        Score: the cosine of the video features in both spaces, in the shares of the text score.
        """
        snapshot, share = store.snapshot, self.model.config.concept_share
        query, concepts = videos.features, self.model.space.concepts()
        scaled = query * concept_scale(query, concepts) @ (concepts.T @ concepts)

        def score(found: list[int]) -> Array:
            features = self.vectors(snapshot, found)
            aligned = scaled @ (features * concept_scale(features, concepts)).T
            return library(query).amax((1 - share) * (query @ features.T) + share * aligned, 0)

        number = max(CANDIDATES, SIMILAR_CANDIDATES // len(query))
        folded = library(query).concatenate([query, scaled], -1)
        best = self._ranked(store, snapshot, folded, score, page, number, itself)
        matches = []
        for (value, position), row in zip(best, snapshot.rows([p for _, p in best], page.filter), strict=True):
            frames = self.videos(snapshot, [position]).frames[0]
            moment = row.times[int(to_numpy(query @ frames.T).max(0).argmax())]
            matches.append(_as_match(row, value, moment))
        return matches

    def _ranked(
        self,
        store: AnyStore,
        snapshot: State,
        folded: Array,
        score: Callable[[list[int]], Array],
        page: Page,
        candidates: int,
        left_out: Sequence[int] = (),
        less: np.ndarray | None = None,
    ) -> list[tuple[float, int]]:
        """The page's clips (score, position): the first stage's candidates for folded queries (Q, 2D), scored exactly.
        More of them are taken in while many belong to few videos."""
        allowed, without = self._allowed(snapshot, page.filter), set(left_out)
        number = max(candidates, 2 * (page.offset + page.top_k)) + len(without)
        while True:
            named: dict[int, None] = {}
            all_there = True  # that may answer
            for query in to_numpy(folded):
                if less is None:
                    best_ones = self.candidates.search(store, snapshot, query, number, allowed)
                else:
                    best_ones = self._corrected.search(store, snapshot, query, number, allowed, less)
                all_there &= len(best_ones) < number
                named.update(dict.fromkeys(best_ones))
            found = [position for position in named if position not in without]
            if not found:
                return []
            values = to_numpy(score(found))
            ranked = [(float(values[i]), found[i]) for i in np.argsort(-values, kind="stable").tolist()]
            if page.group and snapshot.cut:
                best: dict[str, tuple[float, int]] = {}
                for pair, digest in zip(ranked, snapshot.digests([p for _, p in ranked]), strict=True):
                    best.setdefault(digest, pair)
                ranked = list(best.values())
            if len(ranked) >= page.offset + page.top_k or all_there:
                return page.cut(ranked)
            number *= 4

    def _match(self, texts: Texts, row: Row, video: Videos, score: float) -> Match:
        c = self.model.config
        heat = frame_scores(texts, video, c.concept_share)[0]
        parts = concept_parts(texts, video, c.scoring)
        return _as_match(row, score, row.times[int(heat.argmax())], self._named(parts))

    def _named(self, parts: Array) -> tuple[tuple[str, float], ...]:
        """The strongest concepts, by name, with what each adds to the score."""
        values = to_numpy(parts)
        named = [(k, float(values[k])) for k in np.argsort(-values, kind="stable")[:NAMED].tolist()]
        return tuple((self.model.space.name(k), round(value, 4)) for k, value in named if value > 0)


def _as_match(row: Row, score: float, moment: float, concepts: tuple[tuple[str, float], ...] = ()) -> Match:
    return Match(row.path, round(score, 4), moment, concepts, row.duration, row.start, row.end)


def nearest(rows: Sequence[Row], at: float) -> int:
    """Which part of a video is about a moment (seconds): the one whose middle is nearest."""
    return int(np.argmin([abs((row.start + row.end) / 2 - at) for row in rows]))
