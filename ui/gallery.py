"""A VideoIndex as the app sees it: videos by name, with titles and posters, and what its concepts do in it.

Shapes: N videos, F frames, K concepts.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from suma import Match, VideoIndex
from suma.concepts import split_words
from suma.store import Row
from ui.media import captions_beside, names_of, poster
from ui.tiles import Tile

BEST = 8  # videos kept for each concept
STANDS_OUT = 2.0  # standard deviations above a concept's mean activation


@dataclass(frozen=True)
class ConceptUse:
    """What the gallery does with each concept."""

    share: list[float]  # of all frames, where its activation stands out (K)
    best: list[list[tuple[int, int]]]  # its strongest videos: row and frame, best first (K, up to BEST)


class Gallery:
    """Names are the only way in: a page or an API call says which video by its name, never by a path."""

    def __init__(self, index: VideoIndex):
        self.index = index
        paths = [row.path for row in index.rows]
        self.names = names_of(paths)
        self.rows = {row.path: row for row in index.rows}
        self._name_of = {path: name for name, path in self.names.items()}
        self._captions = captions_beside(paths)
        if not index.caption_list and self._captions:
            index.set_captions([caption for captions in self._captions.values() for caption in captions])
        self._use: ConceptUse | None = None

    def row(self, name: str) -> Row:
        """The video of this name. Raises ValueError for another name."""
        if not isinstance(name, str) or name not in self.names:
            raise ValueError(f"no video {str(name)[:200]!r} in this gallery")
        return self.rows[self.names[name]]

    def name(self, path: str) -> str:
        """An indexed video's name."""
        return self._name_of[path]

    def title(self, path: str) -> str:
        """What to call a video: its caption, or its file's name."""
        captions = self._captions.get(path)
        return captions[0] if captions else Path(path).stem

    def examples(self, number: int = 5) -> list[str]:
        """Queries that this gallery can answer: short captions from all over its list."""
        listed = [c for c in self.index.caption_list if len(c) <= 60]
        return listed[:: max(1, len(listed) // number)][:number]

    def tiles(self, matches: list[Match]) -> list[Tile]:
        """Matches with their posters."""
        return self._tiles([(m.path, m.score, m.moment) for m in matches])

    def page(self, words: str, limit: int) -> tuple[list[Tile], int]:
        """The first videos whose title or name holds all the words, and how many more there are."""
        wanted = words.lower().split()
        found = [p for n, p in self.names.items() if all(w in f"{n} {self.title(p)}".lower() for w in wanted)]
        return self._tiles([(path, None, None) for path in found[:limit]]), max(0, len(found) - limit)

    def _tiles(self, shown: list[tuple[str, float | None, float | None]]) -> list[Tile]:
        with ThreadPoolExecutor(4) as pool:
            posters = list(pool.map(lambda item: poster(self.rows[item[0]]), shown))
        return [
            Tile(self.name(path), self.title(path), picture, aspect, score, moment)
            for (path, score, moment), (picture, aspect) in zip(shown, posters, strict=True)
        ]

    # ---- concepts --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def concept_use(self) -> ConceptUse:
        """Computed once, 64 videos at a time."""
        if self._use is None:
            space, count = self.index.model.space, len(self.index)
            mean, deviation = self.index.concept_statistics()
            standing, frames = torch.zeros(space.num_concepts), 0
            peaks, places = [], []
            for i in range(0, count, 64):
                videos = self.index.videos(range(i, min(i + 64, count)))
                activations = space.activations(videos.frames).masked_fill(~videos.mask[..., None], -9.0)  # (N, F, K)
                standing += (activations > mean + STANDS_OUT * deviation).sum((0, 1)).cpu()
                frames += int(videos.mask.sum())
                peak = activations.max(1)
                peaks.append(peak.values.cpu())
                places.append(peak.indices.to(torch.int16).cpu())
            best: list[list[tuple[int, int]]] = [[] for _ in range(space.num_concepts)]
            if count:
                order = torch.cat(peaks).topk(min(BEST, count), dim=0).indices  # (BEST, K)
                at = torch.cat(places).gather(0, order)
                best = [list(zip(r, f, strict=True)) for r, f in zip(order.T.tolist(), at.T.tolist(), strict=True)]
            self._use = ConceptUse((standing / max(1, frames)).tolist(), best)
        return self._use

    def find_concepts(self, text: str, limit: int = 80) -> list[tuple[int, str, str, float]]:
        """Concepts (id, name, more words, share of frames where it stands out): those that the words belong to, then
        those with such a word; without words the ones that stand out most often."""
        space, share = self.index.model.space, self.concept_use().share
        order = sorted(range(space.num_concepts), key=lambda k: -share[k])
        words = split_words(text[:500])
        if words:
            named = list(dict.fromkeys(space.concept_of(words, self.index.model.embed_words)))
            holding = [k for k in order if k not in named and any(w in m for w in words for m in space.members(k))]
            order = named + holding
        return [(k, space.name(k), ", ".join(space.members(k)[3:12]), share[k]) for k in order[:limit]]

    def concept_videos(self, concept: int) -> list[Tile]:
        """The videos where a concept is strongest, with that moment."""
        best = self.concept_use().best[concept]
        rows = [(self.index.rows[r], f) for r, f in best]
        return self._tiles([(row.path, None, row.times[f]) for row, f in rows])
