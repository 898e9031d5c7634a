"""VideoIndex: a gallery of videos, searched by text, by captions and by video.

Shapes: N videos, F frames, D joint width, K concepts.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from suma.build import Builder, Report
from suma.candidates import Candidates
from suma.decoder import TIME_LIMIT, Decoder
from suma.disk import digest_of
from suma.milvus import MilvusStore, is_server
from suma.model import SUMA
from suma.pixels import resize_frames
from suma.rows import Row, describe, key
from suma.similarity import (
    Texts,
    Videos,
    concept_parts,
    concept_scale,
    fold_texts,
    fold_videos,
    frame_scores,
    score_by_scale,
)
from suma.store import MANIFEST, Store
from suma.stores import AnyStore, FirstStage, State

CANDIDATES = 100  # videos of the folded first stage that are scored exactly
SIMILAR_CANDIDATES = 1000
STATISTICS_ROWS = 20_000  # of which the concepts' statistics are taken, evenly spaced


@dataclass(frozen=True)
class Match:
    """A video that answers a query."""

    path: str
    score: float
    moment: float  # seconds: where the best frame is
    concepts: tuple[tuple[str, float], ...]  # concepts that made it match: name, part of the score
    duration: float  # seconds


class Rows(Sequence[Row]):
    """The rows of an index, read from the disk when they are asked for."""

    def __init__(self, snapshot: State):
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot.live)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        positions = self._snapshot.live[i]
        if isinstance(i, slice):
            return self._snapshot.rows(positions)
        return self._snapshot.rows([int(positions)])[0]

    def __iter__(self) -> Iterator[Row]:
        for i in range(0, len(self), 1000):
            yield from self[i : i + 1000]


class VideoIndex:
    """Videos of a gallery, encoded once by one model, kept in a folder (a temporary one until `save` names another).

    All features are kept in float16. A search first ranks all videos by one inner product (the folded score, exact for
    `mean` aggregation), then scores the best candidates with all their frames.
    """

    def __init__(self, model: SUMA):
        self.model = model.eval()
        self.folder: Path | None = None  # where the index is kept
        self.caption_list: list[str] = []
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._store: AnyStore | None = None  # made when it is needed
        self._candidates: FirstStage = Candidates()
        self._statistics: tuple[State, Tensor, Tensor] | None = None  # of the concepts, over all frames
        self._recent: dict[str, tuple[Row, Videos]] = {}  # files that are not in the index
        self._captions: Tensor | None = None  # the captions' folded vectors (captions, 2D)

    @property
    def store(self) -> AnyStore:
        """What is kept, on disk or in Milvus."""
        if self._store is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="suma-")
            self._store = Store.create(Path(self._temporary.name, "index"), self.model.fingerprint(), self.model.dim)
        return self._store

    @property
    def rows(self) -> Rows:
        """Videos that can be found."""
        return Rows(self.store.snapshot)

    @property
    def failed(self) -> list[Row]:
        """Files that could not be read, with reasons."""
        return self.store.snapshot.failed()

    def __len__(self) -> int:
        return self.store.snapshot.total

    # ---- adding and removing ---------------------------------------------------------------------------------------

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        workers: int = 2,
        prune: bool = False,
        retry: bool = False,
        time_limit: float = TIME_LIMIT,
        bf16: bool = False,
    ) -> Report:
        """Add files, folders (recursively) and globs. Unchanged files are skipped, changed ones encoded again; a moved
        file keeps its features, copies of a file share them.

        What is done is on disk every few seconds: a stopped or killed run goes on where it was. An unreadable video is
        kept with its reason in `failed`, never an error, and read again when it changed, or with `retry`.

        Args:
            workers: processes that decode ahead.
            prune: also remove what is no longer there from the folders that are given.
            time_limit: seconds without a decoded part after which a video counts as unreadable.
            bf16: encode frames in bfloat16: about twice as fast, cosines off by less than 1e-3.

        Raises FileNotFoundError or ValueError where there is nothing to add, IndexBusyError (an OSError) while another
        process writes to the index, and OSError where it cannot be written.
        """
        return Builder(self.model, self.store, workers, time_limit, bf16).run(paths, prune, retry)

    def remove(self, paths: Iterable[str | Path]) -> int:
        """Forget these videos (their files stay); returns how many were in the index."""
        with self.store.writing():
            known = list(self.store.snapshot.table.files_at(list(dict.fromkeys(map(key, paths)))))
            self.store.commit(forget=known)
        return len(known)

    # ---- searching -------------------------------------------------------------------------------------------------

    def videos(self, rows: Sequence[int]) -> Videos:
        """These rows' features (N, D), frames (N, F, D) padded with zeros, mask, and places in the concept space."""
        snapshot = self.store.snapshot
        return self._videos(snapshot, [int(snapshot.live[i]) for i in rows])

    def _gather(self, snapshot: State, positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit rows (n, 1 + F, D), the videos' first and padded with zeros, their scales (n, 1 + F), mask (n, F)."""
        features, scales, valid = snapshot.gather(positions)
        device, mask = self.model.device, torch.from_numpy(valid)
        rows = torch.from_numpy(features).float()
        if not valid.all():
            rows.masked_fill_(~mask[..., None], 0)
        return F.normalize(rows.to(device), dim=-1), torch.from_numpy(scales).to(device), mask[:, 1:].to(device)

    @torch.no_grad()
    def _videos(self, snapshot: State, positions: Sequence[int]) -> Videos:
        unit, _, mask = self._gather(snapshot, positions)
        return self.model.videos(unit[:, 0], unit[:, 1:], mask)

    def _score(self, texts: Texts, named: Tensor, snapshot: State, positions: Sequence[int]) -> Tensor:
        """The score (T, n) of texts and clips; named (T, D): the anchors' concepts, summed."""
        c = self.model.config
        unit, scales, mask = self._gather(snapshot, positions)
        how = (c.concept_share, c.aggregation, c.aggregation_temperature)
        return score_by_scale(texts, named, unit, scales, mask, *how)

    def _fold(self, v: Videos) -> Tensor:
        share = self.model.config.concept_share
        return fold_videos(v.features, v.frames, v.mask, self.model.space.concepts(), share)

    @torch.no_grad()
    def search(self, query: str | Texts, top_k: int = 10) -> list[Match]:
        """The videos that a text (or one that is encoded already, T = 1) describes best, best first. Raises ValueError
        for an empty query or top_k < 1."""
        texts = query if isinstance(query, Texts) else self.model.texts([_checked(query)])
        snapshot, number = self.store.snapshot, max(CANDIDATES, _positive(top_k))
        folded = fold_texts(texts.features, texts.anchors, self.model.space.concepts())
        found = self._candidates.search(self.store, snapshot, folded[0].cpu().numpy(), number)
        if not found:
            return []
        scores = self._score(texts, folded[:, self.model.dim :], snapshot, found)[0]
        best = scores.topk(min(top_k, len(found)))
        positions = [found[i] for i in best.indices.tolist()]
        videos, rows = self._videos(snapshot, positions), snapshot.rows(positions)
        return [
            self._match(texts, row, Videos(*(x[i : i + 1] for x in videos)), float(best.values[i]))
            for i, row in enumerate(rows) if row.path
        ]  # fmt: skip

    def _match(self, texts: Texts, row: Row, video: Videos, score: float) -> Match:
        c = self.model.config
        heat = frame_scores(texts, video, c.concept_share)[0]
        parts = concept_parts(texts, video, c.concept_share, c.aggregation, c.aggregation_temperature)
        strongest = parts.topk(min(3, len(parts)))
        named = zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
        concepts = tuple((self.model.space.name(k), round(value, 4)) for k, value in named if value > 0)
        return Match(row.path, round(score, 4), row.times[int(heat.argmax())], concepts, row.duration)

    def set_captions(self, captions: Sequence[str]) -> None:
        """The list that `captions` searches; encoded here. Empty lines and repetitions are left out."""
        self.caption_list = list(dict.fromkeys(c.strip() for c in captions if c.strip()))
        self._captions = None

    @torch.no_grad()
    def captions(self, path: str | Path, top_k: int = 5) -> list[tuple[str, float]]:
        """The captions of the list that describe a video (indexed or not) best: (caption, score), best first."""
        if not self.caption_list:
            raise ValueError("the index has no captions: give it some with set_captions([...])")
        if self._captions is None:
            parts = [self.caption_list[i : i + 256] for i in range(0, len(self.caption_list), 256)]
            concepts = self.model.space.concepts()
            self._captions = torch.cat([fold_texts(*self.model.texts(part), concepts) for part in parts])
        number = min(max(CANDIDATES, _positive(top_k)), len(self.caption_list))
        video = self.read(path)[1]
        rows = (self._captions @ self._fold(video)[0]).topk(number).indices.tolist()
        features = self._captions[rows, : self.model.dim]
        scores = self.model.score(Texts(features, self.model.anchors([self.caption_list[i] for i in rows])), video)[
            :, 0
        ]
        best = scores.topk(min(top_k, len(scores))).indices.tolist()
        return [(self.caption_list[rows[i]], round(float(scores[i]), 4)) for i in best]

    @torch.no_grad()
    def similar(self, path: str | Path, top_k: int = 10) -> list[Match]:
        """The videos most like a video or an image (indexed or not; itself left out), best first.

        Score: the cosine of the video features in both spaces, in the shares of the text score.
        """
        _positive(top_k)
        query, share, snapshot = self.read(path)[1].features, self.model.config.concept_share, self.store.snapshot
        concepts = self.model.space.concepts()
        scaled = query * concept_scale(query, concepts) @ (concepts.T @ concepts)
        folded = torch.cat([query, scaled], dim=-1)[0].cpu().numpy()
        itself = set(snapshot.positions_of(path))
        found = self._candidates.search(self.store, snapshot, folded, SIMILAR_CANDIDATES + top_k + len(itself))
        found = [position for position in found if position not in itself]
        if not found:
            return []
        features = self._vectors(snapshot, found)
        aligned = scaled @ (features * concept_scale(features, concepts)).T
        scores = ((1 - share) * (query @ features.T) + share * aligned)[0]
        best = scores.topk(min(top_k, len(found))).indices.tolist()
        matches = []
        for i, row in zip(best, snapshot.rows([found[i] for i in best]), strict=True):
            if row.path:
                frames = self._videos(snapshot, [found[i]]).frames[0]
                moment = row.times[int((frames @ query[0]).argmax())]
                matches.append(Match(row.path, round(float(scores[i]), 4), moment, (), row.duration))
        return matches

    def _vectors(self, snapshot: State, positions: Sequence[int]) -> Tensor:
        """Unit video features (n, D) of these positions, without their frames."""
        return F.normalize(torch.from_numpy(snapshot.vectors(positions)).to(self.model.device).float(), dim=-1)

    def row_of(self, path: str | Path) -> int:
        """The (first) row of an indexed video. Raises KeyError naming a path that is not in the index."""
        snapshot = self.store.snapshot
        for position in snapshot.positions_of(path):
            i = int(np.searchsorted(snapshot.live, position))
            if i < len(snapshot.live) and snapshot.live[i] == position:
                return i
        raise KeyError(f"{path} is not in the index")

    @torch.no_grad()
    def concept_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (K,) of every concept's activation over all frames of the gallery (in a large
        one, of evenly spaced videos)."""
        snapshot = self.store.snapshot
        if self._statistics is None or self._statistics[0] is not snapshot:
            dim, device = self.model.dim, self.model.device
            total, squares, count = torch.zeros(dim), torch.zeros(dim, dim), 0
            chosen = snapshot.live[:: max(1, -(-len(snapshot.live) // STATISTICS_ROWS))].tolist()
            for i in range(0, len(chosen), 512):
                features, _, valid = snapshot.gather(chosen[i : i + 512])
                x = F.normalize(torch.from_numpy(features[:, 1:][valid[:, 1:]]).float(), dim=-1)
                total, squares, count = total + x.sum(0), squares + x.T @ x, count + len(x)
            concepts = self.model.space.concepts().cpu()
            mean = total / max(1, count)
            covariance = squares / max(1, count) - mean[:, None] * mean
            deviation = ((concepts @ covariance) * concepts).sum(1).clamp_min(1e-6).sqrt()
            self._statistics = (snapshot, (concepts @ mean).to(device), deviation.to(device))
        return self._statistics[1:]

    @torch.no_grad()
    def read(self, path: str | Path) -> tuple[Row, Videos]:
        """One video's (or image's) row and features: out of the index, or read and encoded now (the last few are
        kept). Raises FileNotFoundError or ValueError where it cannot be read."""
        snapshot = self.store.snapshot
        positions = snapshot.positions_of(path)[:1]
        if positions:
            return snapshot.rows(positions)[0], self._videos(snapshot, positions)
        row = describe(Path(path))
        row.digest = digest_of(row.path)
        if row.digest not in self._recent:
            if not Path(path).exists():
                raise FileNotFoundError(f"no video {path}")
            pixels = self._decode(row)
            features, frames = self.model.encode_video(pixels[None].to(self.model.device))
            mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
            while len(self._recent) >= 8:
                self._recent.pop(next(iter(self._recent)))
            self._recent[row.digest] = (row, self.model.videos(features, frames, mask))
        return self._recent[row.digest]

    def _decode(self, row: Row) -> Tensor:
        """Pixels (F, 3, S, S) of a file, decoded in a process of its own; sets the row's times."""
        image, decoder = self.model.config.image, Decoder()
        try:
            for part in decoder.read(row.path, self.model.config.num_frames):
                row.duration, row.times = part.duration, part.times
                return torch.cat(
                    [resize_frames(f, image["size"], image["resize_mode"], image["interpolation"]) for f in part.frames]
                )
        finally:
            decoder.close()
        raise ValueError(f"{row.path} has no frames")

    # ---- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Keep the index in a folder, or in Milvus (suma/milvus.py), from now on; a kill at any moment leaves a folder
        as it was. Raises ValueError for a place of other things."""
        if is_server(folder) or not isinstance(self.store, Store):
            self._save_to_server(str(folder))
            return
        folder = Path(folder).absolute()
        if folder != self.store.folder:
            self.store.copy_to(folder)
            self._store = Store.open(folder, self.model.fingerprint(), self.model.dim)
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None
        elif not (folder / MANIFEST).exists():
            raise FileNotFoundError(f"{folder} is gone: save to another folder")
        self.folder = folder
        self._save_captions()

    def _save_to_server(self, place: str) -> None:
        """Bring what is here, encoded already, into the index at a place in Milvus, made where there is none."""
        store = MilvusStore.open(place, self.model.fingerprint(), self.model.dim, create=True)
        if isinstance(self.store, Store):
            with store.writing():
                for files, clips in self.store.blocks():
                    store.commit(files, clips)
            self._store, self._candidates, self.folder = store, store, None
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None
        elif store.place != self.store.place:
            raise ValueError(f"{self.store.place} cannot be copied to {place}: index the videos there")
        self._save_captions()

    def _save_captions(self) -> None:
        if self.store.snapshot.captions() != self.caption_list:
            self.store.set_captions(self.caption_list)

    @classmethod
    def load(cls, folder: str | Path, model: SUMA) -> "VideoIndex":
        """Open a saved index, also one in Milvus (suma/milvus.py). Raises FileNotFoundError where there is none, and
        ValueError for a damaged or foreign one, or one made with another model (naming both)."""
        index = cls(model)
        if is_server(folder):
            index._store = index._candidates = MilvusStore.open(str(folder), model.fingerprint(), model.dim)
        else:
            index.folder = Path(folder).absolute()
            index._store = Store.open(index.folder, model.fingerprint(), model.dim)
        index.set_captions(index.store.snapshot.captions())
        return index


def _checked(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is empty: type what happens in the video")
    return query.strip()


def _positive(top_k: int) -> int:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    return top_k
