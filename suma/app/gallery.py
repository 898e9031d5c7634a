"""A VideoIndex as the app sees it: videos by name, with titles and posters, and where its concepts stand out.

Shapes: N videos, F frames, K concepts.
"""

import os
import sys
import threading
import time
from collections import ChainMap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from suma import Match, VideoIndex
from suma.app.media import (
    Tile,
    by_name,
    captions_beside,
    examples_beside,
    forget,
    name_for,
    poster,
    readable,
    thumbnails,
)
from suma.index.storage import Row
from suma.model.vocabulary import fold, nfc, split_words

EXAMPLES = 6
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
            self.names, self.rows, self._name_of, self._use = names, rows, name_of, None
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
        """Return queries to click: those in `examples.json` beside the videos, else some short captions of the list."""
        for row in list(self.rows.values())[:1]:
            listed = examples_beside(row.path)
            if listed:
                return listed[:EXAMPLES]
        listed = [c for c in self.index.caption_list if len(c) <= 60]
        return listed[:: max(1, len(listed) // EXAMPLES)][:EXAMPLES]

    def tiles(self, matches: list[Match]) -> list[Tile]:
        """Return matches as tiles with posters."""
        return self._tiles([(m.path, m.score, m.moment if m.duration else None) for m in matches])

    def page(self, words: str, limit: int) -> tuple[list[Tile], int]:
        """Return the first videos whose title or name has all the words, and how many more there are."""
        wanted = fold(words).split()
        found = [p for n, p in self.names.items() if all(w in fold(f"{n} {self.title(p)}") for w in wanted)]
        return self._tiles([(path, None, None) for path in found[:limit]]), max(0, len(found) - limit)

    def _tiles(self, shown: list[tuple[str, float | None, float | None]]) -> list[Tile]:
        with ThreadPoolExecutor(4) as pool:
            posters = list(pool.map(lambda item: poster(self._row_at(item[0])), shown))
        return [
            Tile(self.name(path), self.title(path), picture, aspect, score, moment)
            for (path, score, moment), (picture, aspect) in zip(shown, posters, strict=True)
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


PATIENCE = 1.0  # seconds that one step should take, since a search may have to wait for it


@dataclass
class Progress:
    """How far an addition of `total` videos is."""

    total: int
    done: int = 0
    added: list[str] = field(default_factory=list)  # names
    skipped: int = 0  # in the index already
    failed: dict[str, str] = field(default_factory=dict)  # file name -> reason
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Return the videos per second so far."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float:
        """Return the seconds left at this rate."""
        return (self.total - self.done) / self.rate if self.rate else 0.0


def add_paths(gallery: Gallery, paths: Sequence[Path], failed: dict[str, str] | None = None) -> Iterator[Progress]:
    """Add files in steps, with time for searches in between; yield the progress.

    Files that cannot be read are counted with their reasons; `failed` has those that were refused before.
    """
    progress = Progress(len(paths) + len(failed or {}), len(failed or {}), failed=dict(failed or {}))
    began, step = time.monotonic(), 1
    yield progress
    at = 0
    while at < len(paths):
        step_began = time.monotonic()
        with gallery.lock:
            report = gallery.index.add(paths[at : at + step])
            gallery.refresh()
        progress.added += [gallery.name(path) for path in report.added]
        progress.skipped += len(report.skipped) + len(report.moved) + len(report.duplicates)
        progress.failed |= by_name(report.failed.items())
        progress.done += min(step, len(paths) - at)
        progress.seconds = time.monotonic() - began
        at += step
        took = time.monotonic() - step_began
        step = max(1, min(256, round(step * min(2.0, PATIENCE / max(took, 1e-3)))))
        yield progress


class Filling:
    """Add videos to the gallery in a thread, while those that are done can be searched."""

    def __init__(self, gallery: Gallery, steps: Iterator[Progress]):
        """Start with the steps of `add_paths`, none of which was taken yet."""
        self.gallery, self.progress, self.error = gallery, next(steps), ""
        self.thread = threading.Thread(target=self._run, args=(steps,), daemon=True)
        self.thread.start()

    def _run(self, steps: Iterator[Progress]) -> None:
        try:
            for self.progress in steps:
                pass
            self.gallery.list_captions()
        except (ValueError, OSError, RuntimeError) as error:  # a full disk, another process that writes
            self.error = str(error)
            print(f"error: indexing ended early: {error}", file=sys.stderr)
        for name, reason in self.progress.failed.items():
            print(f"skipped {name}: {reason}", file=sys.stderr)
