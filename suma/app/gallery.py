"""A VideoIndex as the app sees it: videos by name, with titles and posters, and where its concepts stand out.

Shapes: N videos, F frames, K concepts.
"""

import os
import threading
from collections import ChainMap, Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from suma import Match, VideoIndex
from suma.app.media import (
    Tile,
    captions_beside,
    examples_beside,
    forget,
    name_for,
    poster,
    readable,
    sprite_key,
    thumbnails,
)
from suma.index.query import Filter
from suma.index.search import nearest
from suma.index.storage import Row
from suma.model.encoder import Queries
from suma.model.vocabulary import fold, nfc, split_words

EXAMPLES = 6
RANKS = np.arange(1, EXAMPLES + 1)
SAMPLE = 512  # videos of which suggestions are made, evenly spaced
MOMENTS = 1000  # of one video that are ranked
MENU = 12  # folders and years to choose from
BEST = 8  # videos kept for each concept
STANDS_OUT = 2.0  # standard deviations above a concept's mean activation


@dataclass(frozen=True)
class ConceptUse:
    """Where each concept stands out in the gallery."""

    share: list[float]  # the share of all frames where its activation stands out (K)
    best: list[list[tuple[int, int]]]  # its strongest videos as (row, frame), best first (K, up to BEST)


class Gallery:
    """The videos of an index by their names: pages and API calls never give a path."""

    def __init__(self, index: VideoIndex):
        self.index = index
        self.lock = threading.RLock()  # held around every use of the index
        self.names: dict[str, str] = {}  # name -> path
        self.rows: dict[str, Row] = {}  # path -> row
        self.root = ""  # the folder that all videos lie in; paths above it must never be exposed
        self._name_of: dict[str, str] = {}
        self._copies: dict[str, Row] = {}  # path -> row of further files of a video, which only some searches show
        self._paths_of_copies: dict[str, str] = {}  # name -> path
        self._captions: dict[str, list[str]] = {}
        self._use: ConceptUse | None = None
        self._suggested: list[str] | None = None
        self.refresh()
        self.list_captions()

    def list_captions(self) -> None:
        """Let the captions in `captions.json` files be ranked where the index has no list of captions."""
        with self.lock:
            if not self.index.caption_list and self._captions:
                self.index.set_captions([caption for captions in self._captions.values() for caption in captions])

    def refresh(self) -> None:
        """Read what is in the index now; a video keeps its name as long as it stays."""
        with self.lock:
            rows: dict[str, Row] = {}
            for row in self.index.rows:
                rows.setdefault(row.path, row)  # the first part of a long video
            copies = {row.path: row for row in self.index.store.snapshot.copies() if row.path not in rows}
            names = {name: path for name, path in self.names.items() if path in rows}
            name_of = {path: name for name, path in names.items()}
            for path in rows:
                if path not in name_of:
                    name_of[path] = name_for(path, names)
                    names[name_of[path]] = path
            paths_of_copies: dict[str, str] = {}
            for path in copies:
                name_of[path] = name_for(path, ChainMap(names, paths_of_copies))
                paths_of_copies[name_of[path]] = path
            self._captions |= captions_beside(path for path in [*rows, *copies] if path not in self.rows)
            self.names, self.rows, self._name_of = names, rows, name_of
            self._use = self._suggested = None
            self._copies, self._paths_of_copies = copies, paths_of_copies
            self.root = os.path.commonpath({os.path.dirname(path) for path in name_of}) if rows else ""

    def met(self, matches: list[Match]) -> list[Match]:
        """Return matches, with their videos in the gallery: another process may just have added one to Milvus."""
        if any(match.path not in self._name_of for match in matches):
            self.index.store.refresh()
            self.refresh()
        return matches

    def remove(self, name: str, own: Path | None) -> None:
        """Remove a video and its copies for good; delete the files among them that lie in `own`, the library."""
        with self.lock:
            row = self.row(name)
            paths = {row.path, *(copy.path for copy in self.index.store.snapshot.files_of(row.digest))}
            self.index.remove(paths, for_good=True)
            self.refresh()
        forget(row)
        for path in paths:
            if own is not None and Path(path).is_relative_to(own):
                Path(path).unlink(missing_ok=True)

    def forget(self, paths: Iterable[str]) -> None:
        """Let go of files that are gone; they come back when their files do."""
        with self.lock:
            self.index.remove(paths)
            self.refresh()

    def row(self, name: str) -> Row:
        """Return the video of this name. Raises ValueError for a name that is not in the gallery."""
        paths = ChainMap(self.names, self._paths_of_copies)
        known = next((n for n in (name, nfc(name)) if n in paths), "") if isinstance(name, str) else ""
        if not known:
            raise ValueError(f"no video {str(name)[:200]!r} in this gallery")
        return self._row_at(paths[known])

    def _row_at(self, path: str) -> Row:
        return self.rows.get(path) or self._copies[path]

    def name(self, path: str) -> str:
        """Return an indexed video's name."""
        return self._name_of[path]

    def title(self, path: str) -> str:
        """Return what to call a video: its caption, or its file's name."""
        captions = self._captions.get(path)
        return captions[0] if captions else readable(Path(path).stem)

    def examples(self) -> list[str]:
        """Return queries to click: those that came with the videos, else what their concepts show most."""
        return self.examples_given() or self._suggestions()

    def examples_given(self) -> list[str]:
        """Return those in `examples.json` beside the videos, else some short captions of the list."""
        for row in list(self.rows.values())[:1]:
            listed = examples_beside(row.path)
            if listed:
                return listed[:EXAMPLES]
        listed = [c for c in self.index.caption_list if len(c) <= 60]
        return listed[:: max(1, len(listed) // EXAMPLES)][:EXAMPLES]

    def _suggestions(self) -> list[str]:
        """Return the names of the concepts that are the strongest of most videos; the n-th strongest counts 1 / n."""
        with self.lock:
            if self._suggested is None:
                count, votes = len(self.index), np.zeros(self.index.model.space.num_concepts)
                for i in range(0, count, max(1, count // SAMPLE)):
                    activations = self.index.videos([i]).frames[0] @ self.index.scorer.concepts.T  # (F, K)
                    votes[np.argsort(-activations.max(0), kind="stable")[:EXAMPLES]] += 1 / RANKS[: len(votes)]
                most = np.argsort(-votes, kind="stable")[:EXAMPLES].tolist()
                self._suggested = [self.index.model.space.members(k)[0] for k in most if votes[k]]
            return self._suggested

    def folders(self) -> list[str]:
        """Return the folders with most videos, as `in:` takes them, in the order of their names."""
        inside = Counter(os.path.dirname(os.path.relpath(path, self.root)) for path in self.rows)
        common = [name for name, _ in inside.most_common(MENU) if name]
        return sorted(name for name in common if name.isprintable() and '"' not in name)

    def years(self) -> list[int]:
        """Return the last years that videos are of, the latest first."""
        return sorted({date.fromtimestamp(row.mtime).year for row in self.rows.values()}, reverse=True)[:MENU]

    def tiles(self, matches: list[Match]) -> list[Tile]:
        """Return matches as tiles with posters."""
        return self._tiles([(m.path, m.score, m.moment if m.duration else None) for m in matches])

    def distinct_moments(self, path: str, texts: Queries) -> list[Match]:
        """Return the moments of one video that a text (T = 1) means, best first, none in the span of a better one."""
        found: list[Match] = []
        for match in self.index.search(texts, MOMENTS, within=path):
            if not any(other.start <= match.moment <= other.end for other in found):
                found.append(match)
        return found

    def moments(self, matches: list[Match]) -> list[Tile]:
        """Return moments of one video as tiles that show their frames."""
        shown = []
        for match in matches:
            row = self._row_at(match.path)
            rows = self.index.parts(match.path)[0]
            part = rows[nearest(rows, match.moment)]
            frames, aspect = thumbnails(part, self.index.model.config.num_frames)
            at = part.times.index(match.moment) if match.moment in part.times else len(frames)
            picture = frames[at] if at < len(frames) else poster(row)[0]
            shown.append(Tile(self.name(row.path), self.title(row.path), picture, aspect, match.score, match.moment))
        return shown

    def video_in(self, chosen: Filter) -> str:
        """Return the path of the video that a filter names in place of a folder, or ""."""
        return self.names.get(chosen.folder) or self._paths_of_copies.get(chosen.folder, "")

    def newest(self, chosen: Filter, limit: int) -> tuple[list[Tile], int]:
        """Return the newest videos that a filter lets through, and how many more there are."""
        if one := self.video_in(chosen):
            return self._listed([one], limit)
        found: dict[str, Row] = {}
        for row in sorted([*self.rows.values(), *self._copies.values()], key=lambda row: -row.mtime):
            if chosen.allows(row):
                found.setdefault(row.digest or row.path, row)
        return self._listed([row.path for row in found.values()], limit)

    def newest_first(self, matches: list[Match]) -> list[Match]:
        """Return matches in the order of their files' dates."""
        return sorted(matches, key=lambda match: -self._row_at(match.path).mtime)

    def page(self, words: str, limit: int) -> tuple[list[Tile], int]:
        """Return the first videos whose title or name has all the words, and how many more there are."""
        wanted = fold(words).split()
        found = [p for n, p in self.names.items() if all(w in fold(f"{n} {self.title(p)}") for w in wanted)]
        return self._listed(found, limit)

    def _listed(self, paths: list[str], limit: int) -> tuple[list[Tile], int]:
        return self._tiles([(path, None, None) for path in paths[:limit]]), max(0, len(paths) - limit)

    def _tiles(self, shown: list[tuple[str, float | None, float | None]]) -> list[Tile]:
        rows = [self._row_at(path) for path, *_ in shown]
        with ThreadPoolExecutor(4) as pool:
            posters = list(pool.map(poster, rows))
        return [
            Tile(
                self.name(row.path),
                self.title(row.path),
                picture,
                aspect,
                score,
                moment,
                date.fromtimestamp(row.mtime).isoformat(),
                sprite_key(row),
            )
            for row, (_, score, moment), (picture, aspect) in zip(rows, shown, posters, strict=True)
        ]

    # ---- concepts --------------------------------------------------------------------------------------------------

    def concept_use(self) -> ConceptUse:
        """Return where each concept stands out; computed once, 64 videos at a time."""
        with self.lock:
            if self._use is None:
                self._use = self._concept_use()
            return self._use

    def _concept_use(self) -> ConceptUse:
        concepts, count = self.index.scorer.concepts, len(self.index)
        mean, deviation = self.index.concept_statistics()
        standing, frames = np.zeros(len(concepts)), 0
        peaks, places = [], []
        for i in range(0, count, 64):
            videos = self.index.videos(range(i, min(i + 64, count)))
            activations = np.where(videos.mask[..., None], videos.frames @ concepts.T, -9.0)  # (N, F, K)
            standing += (activations > mean + STANDS_OUT * deviation).sum((0, 1))
            frames += int(videos.mask.sum())
            peaks.append(activations.max(1))
            places.append(activations.argmax(1).astype(np.int16))
        best: list[list[tuple[int, int]]] = [[] for _ in concepts]
        if count:
            snapshot = self.index.store.snapshot
            more = 4 if snapshot.cut else 1  # several parts of one video count once
            order = np.argsort(-np.concatenate(peaks), 0, kind="stable")[: more * BEST]  # (more * BEST, K)
            at = np.take_along_axis(np.concatenate(places), order, 0)
            video = snapshot.digests(snapshot.live) if snapshot.cut else list(map(str, range(count)))
            for kept, rows, where in zip(best, order.T.tolist(), at.T.tolist(), strict=True):
                first: dict[str, tuple[int, int]] = {}
                for row, frame in zip(rows, where, strict=True):
                    first.setdefault(video[row], (row, frame))
                kept += list(first.values())[:BEST]
        return ConceptUse((standing / max(1, frames)).tolist(), best)

    def find_concepts(self, text: str, limit: int = 80) -> list[tuple[int, str, str, float]]:
        """Return concepts (id, name, more words, share of frames where it stands out).

        First those that the words belong to, then those with such a word; without words the most frequent ones.
        """
        space, share = self.index.model.space, self.concept_use().share
        order = sorted(range(space.num_concepts), key=lambda k: -share[k])
        words = split_words(text[:500])
        if words:
            named = list(dict.fromkeys(space.concept_of(words, self.index.model.embed_words)))
            holding = [k for k in order if k not in named and any(w in m for w in words for m in space.members(k))]
            order = named + holding
        return [(k, space.name(k), ", ".join(space.members(k)[3:12]), share[k]) for k in order[:limit]]

    def concept_moments(self, concept: int) -> list[tuple[Row, int]]:
        """Return the videos where a concept is strongest, each with that frame, best first."""
        with self.lock:
            return [(self.index.rows[r], frame) for r, frame in self.concept_use().best[concept]]

    def concept_videos(self, concept: int) -> list[Tile]:
        """Return the same as tiles that show that frame."""
        found, out = self.concept_moments(concept), []
        for row, frame in found:
            frames, aspect = thumbnails(row, self.index.model.config.num_frames)
            picture = frames[frame] if frame < len(frames) else poster(row)[0]
            out.append(Tile(self.name(row.path), self.title(row.path), picture, aspect, None, row.times[frame]))
        return out
