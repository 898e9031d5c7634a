"""From a query to matches: candidates by one inner product, exact scores with all frames, one answer for each video.

Shapes: Q queries, n clips, V parts of a video, F frames, D joint width.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from suma.index.confidence import SAMPLE, Calibration, features
from suma.index.duplicates import group_contents
from suma.index.first_stage import Candidates
from suma.index.hubness import Popularity
from suma.index.query import ALL, Filter
from suma.index.scoring import Clips, Scorer
from suma.index.storage import AnyStore, FirstStage, Row, State
from suma.model.encoder import Encoder, Queries
from suma.model.vocabulary import unit

CANDIDATES = 100  # clips of the folded first stage that are scored exactly
SIMILAR_CANDIDATES = 1000
NAMED = 3  # concepts of a match
NOTHING_FITS = "Nothing in this gallery fits"
STANDS_OUT = 0.4  # of the way from the lowest to the best frame; chosen on training clips of Scenes


@dataclass(frozen=True)
class Match:
    """A video that answers a query, or a moment in it; of a long video the best part."""

    path: str
    score: float
    moment: float  # seconds: where the best frame is
    concepts: tuple[tuple[str, float], ...]  # concepts that made it match: name, part of the score
    duration: float  # seconds
    start: float = 0.0  # seconds: the span around the moment that answers the query
    end: float = 0.0
    confidence: float | None = None  # how likely it is right (suma/index/confidence.py); None where no text was asked
    calibrated: bool = False  # whether that was fitted to this model
    fits: bool = True  # False, of the best match: the gallery seems to have no answer


def span_of(scores: np.ndarray, row: Row, best: int) -> tuple[float, float]:
    """Return start and end (seconds) of the moment around frame `best` of a part of a video, by its frames' scores.

    It is the run of frames whose scores stand out most, in sum, from a level between the lowest and the best one (our
    reading). It ends halfway between two frames.
    """
    low, high = float(scores.min()), float(scores[best])
    above = scores - (low + STANDS_OUT * (high - low))
    first = best - int(np.cumsum(above[best::-1]).argmax())
    last = best + int(np.cumsum(above[best:]).argmax())
    edges = [row.start, *((a + b) / 2 for a, b in itertools.pairwise(row.times)), row.end or row.duration]
    return (edges[first], edges[last + 1]) if high > low else (edges[0], edges[-1])


@dataclass(frozen=True)
class Page:
    """Which answers are wanted. Raises ValueError for a number out of range."""

    top_k: int = 10
    offset: int = 0  # answers that come before
    min_score: float = -math.inf
    filter: Filter = ALL
    group: bool = True  # one answer for each video, not for each part
    hide_doubles: bool = False  # one answer for each group of doubles
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.offset < 0:
            raise ValueError(f"offset must not be negative, got {self.offset}")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must lie in [0, 1], got {self.min_confidence}")

    def cut(self, ranked: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
        """The page of a ranking (score, what), best first."""
        page = ranked[self.offset : self.offset + self.top_k]
        return [(score, what) for score, what in page if round(score, 4) >= self.min_score]  # as it is shown


class Searcher:
    """Searches the clips of a store for one model."""

    def __init__(self, model: Encoder):
        self.scorer, self.space = Scorer(model.concepts(), model.config.scoring), model.space
        self.candidates: FirstStage = Candidates()
        self._corrected = Candidates()  # of hubness
        self._filtered: tuple[State, Filter, Any] | None = None  # the clips that the last filter lets through
        self._calibration = Calibration(model.config)
        self._sample: tuple[State, np.ndarray] | None = None  # of the gallery: folded vectors
        self._doubles: tuple[State, dict[str, str]] | None = None  # content -> the first of its group
        self._statistics: tuple[State, np.ndarray, np.ndarray] | None = None  # of the concepts, over all frames

    # ---- features --------------------------------------------------------------------------------------------------

    def clips(self, snapshot: State, positions: Sequence[int]) -> Clips:
        """Return the features of these clips, padded with zeros."""
        features, inverse_norms, valid = snapshot.gather(positions)
        features[~valid] = 0
        return Clips(unit(features.astype(np.float32)), inverse_norms, valid[:, 1:])

    def _allowed(self, snapshot: State, chosen: Filter) -> Any:
        """Which clips a filter lets through, as the first stage takes it; None: all."""
        if replace(chosen, root="") == ALL:
            return None
        if self._filtered is None or self._filtered[0] is not snapshot or self._filtered[1] != chosen:
            self._filtered = (snapshot, chosen, snapshot.allowed(chosen))
        return self._filtered[2]

    def _first_of_group(self, snapshot: State) -> dict[str, str]:
        """The first content of each content's group of doubles; computed once for a state of the index."""
        if self._doubles is None or self._doubles[0] is not snapshot:
            self._doubles = snapshot, {x: group[0] for group in group_contents(snapshot) for x in group}
        return self._doubles[1]

    def statistics(self, snapshot: State) -> tuple[np.ndarray, np.ndarray]:
        """Return `Scorer.statistics`, computed once for a state of the index."""
        if self._statistics is None or self._statistics[0] is not snapshot:
            self._statistics = (snapshot, *self.scorer.statistics(snapshot))
        return self._statistics[1:]

    def _sampled(self, snapshot: State) -> np.ndarray:
        """Return folded vectors (SAMPLE at most, 2D) of the gallery's clips, evenly spaced."""
        if self._sample is None or self._sample[0] is not snapshot:
            some = snapshot.live[:: -(-len(snapshot.live) // SAMPLE)].tolist()
            self._sample = snapshot, self.scorer.fold_videos(self.clips(snapshot, some))
        return self._sample[1]

    # ---- answers ---------------------------------------------------------------------------------------------------

    def by_text(self, store: AnyStore, texts: Queries, page: Page, popularity: Popularity | None = None) -> list[Match]:
        """Return the videos that a text (T = 1) describes best; popularity, if given, lowers scores, no confidence."""
        snapshot = store.snapshot
        less = popularity.of(store, snapshot) if popularity else None
        folded = self.scorer.fold_texts(texts)

        def score(found: list[int]) -> np.ndarray:
            scores = self.scorer.score(folded, self.clips(snapshot, found))[0]
            return scores if less is None else scores - less[found]

        best = self._ranked(store, snapshot, folded, score, page, CANDIDATES, less=less)
        positions = [position for _, position in best]
        if not positions:
            return []
        clips, rows = self.clips(snapshot, positions), snapshot.rows(positions, page.filter)
        scores, others = self.scorer.score(folded, clips)[0], (folded @ self._sampled(snapshot).T)[0]
        told = self._calibration(features(scores, others, len(snapshot.live), texts.known))
        sure, fits = told[0].round(4).tolist(), told[1].tolist()
        frames, matches = self.scorer.frame_scores(folded, clips)[0].round(6), []  # of equal frames the first
        for i, (row, (value, _)) in enumerate(zip(rows, best, strict=True)):
            parts = self.scorer.concept_parts(texts.anchors[0], clips.one(i))
            found = _as_match(row, value, frames[i], self._named(parts))
            if sure[i] >= page.min_confidence:
                matches.append(replace(found, confidence=sure[i], calibrated=self._calibration.fitted, fits=fits[i]))
        return matches

    def moments(self, rows: Sequence[Row], clips: Clips, texts: Queries, page: Page) -> list[Match]:
        """The moments of one video, given by its parts, that a text (T = 1) describes best: its frames, each once, with
        their own scores (`Scorer.frame_scores`)."""
        scorer = self.scorer
        scores = scorer.frame_scores(scorer.fold_texts(texts), clips)[0]
        best: dict[float, tuple[float, int]] = {}  # by time: parts overlap
        for v, row in enumerate(rows):
            for f, time in enumerate(row.times):
                best[time] = max(best.get(time, (-math.inf, 0)), (float(scores[v, f]), v * scores.shape[1] + f))
        matches = []
        for score, at in page.cut(sorted(best.values(), key=lambda pair: -pair[0])):
            v, f = divmod(at, scores.shape[1])
            activations = scorer.concepts @ clips.frames[v, f] * clips.inverse_norms[v, 1 + f]
            parts = scorer.how.concept_share * texts.anchors[0] * activations
            matches.append(_as_match(rows[v], score, scores[v], self._named(parts), f))
        return matches

    def by_video(self, store: AnyStore, clips: Clips, itself: Sequence[int], page: Page) -> list[Match]:
        """The videos most like one, given by its parts (V), leaving out its own clips; of long ones, on either side,
        the parts that are most alike count.

        Score: the cosine of the video features in both spaces, in the shares of the text score.
        """
        snapshot, scorer, query = store.snapshot, self.scorer, clips.features
        share = scorer.how.concept_share
        activations = query @ scorer.concepts.T * clips.inverse_norms[:, :1]  # (V, K), as a text's anchors
        folded = scorer.fold_texts(Queries(query, activations))
        aligned = folded[:, query.shape[1] :]

        def score(found: list[int]) -> np.ndarray:
            features = unit(snapshot.vectors(found).astype(np.float32))
            scaled = features * scorer.inverse_norms(features)[:, None]
            return ((1 - share) * (query @ features.T) + share * (aligned @ scaled.T)).max(0)

        number = max(CANDIDATES, SIMILAR_CANDIDATES // len(query))
        best = self._ranked(store, snapshot, folded, score, page, number, itself)
        matches = []
        for (value, position), row in zip(best, snapshot.rows([p for _, p in best], page.filter), strict=True):
            frames = self.clips(snapshot, [position]).frames[0]
            matches.append(_as_match(row, value, (query @ frames.T).max(0)))
        return matches

    def _ranked(
        self,
        store: AnyStore,
        snapshot: State,
        folded: np.ndarray,
        score: Callable[[list[int]], np.ndarray],
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
            for query in folded:
                if less is None:
                    best_ones = self.candidates.search(store, snapshot, query, number, allowed)
                else:
                    best_ones = self._corrected.search(store, snapshot, query, number, allowed, less)
                all_there &= len(best_ones) < number
                named.update(dict.fromkeys(best_ones))
            found = [position for position in named if position not in without]
            if not found:
                return []
            values = score(found)
            ranked = [(float(values[i]), found[i]) for i in np.argsort(-values, kind="stable").tolist()]
            if page.hide_doubles or (page.group and snapshot.cut):
                best: dict[str, tuple[float, int]] = {}
                first = self._first_of_group(snapshot) if page.hide_doubles else {}
                for pair, digest in zip(ranked, snapshot.digests([p for _, p in ranked]), strict=True):
                    best.setdefault(first.get(digest, digest), pair)
                ranked = list(best.values())
            if len(ranked) >= page.offset + page.top_k or all_there:
                return page.cut(ranked)
            number *= 4

    def _named(self, parts: np.ndarray) -> tuple[tuple[str, float], ...]:
        """The strongest concepts, by name, with what each adds to the score."""
        named = [(k, float(parts[k])) for k in np.argsort(-parts, kind="stable")[:NAMED].tolist()]
        return tuple((self.space.name(k), round(value, 4)) for k, value in named if value > 0)


def _as_match(
    row: Row, score: float, frames: np.ndarray, concepts: tuple[tuple[str, float], ...] = (), best: int | None = None
) -> Match:
    """Return a part of a video as an answer, by its frames' scores (F or more,)."""
    frames = frames[: len(row.times)]
    at = int(frames.argmax()) if best is None else best
    return Match(row.path, round(score, 4), row.times[at], concepts, row.duration, *span_of(frames, row, at))


def nearest(rows: Sequence[Row], at: float) -> int:
    """Which part of a video is about a moment (seconds): the one with the nearest frame, then the nearest middle."""

    def distance(n: int) -> tuple[float, float]:
        return min(abs(time - at) for time in rows[n].times), abs((rows[n].start + rows[n].end) / 2 - at)

    return min(range(len(rows)), key=distance)
