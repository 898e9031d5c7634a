"""VideoIndex: a gallery of videos, searched by text, by captions and by video.

Shapes: N videos, F frames, D joint width, K concepts.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from suma import store
from suma.model import SUMA
from suma.similarity import Texts, Videos, concept_parts, concept_scale, fold_texts, fold_videos, frame_scores
from suma.store import Contents, Row, describe, digest_of, key
from suma.video import find_videos, read_frames, resize_frames

SAVE_SECONDS = 30.0
CANDIDATES = 100  # videos of the folded first stage that are scored exactly


@dataclass(frozen=True)
class Match:
    """A video that answers a query."""

    path: str
    score: float
    moment: float  # seconds: where the best frame is
    concepts: tuple[tuple[str, float], ...]  # concepts that made it match: name, part of the score
    duration: float  # seconds


@dataclass
class Report:
    """What `add` did, by path; `failed` says why."""

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class VideoIndex:
    """Videos of a gallery, encoded once by one model.

    All features are kept in float16. A search first ranks all videos by one inner product (the folded score, exact for
    `mean` aggregation), then scores the best candidates with all their frames.
    """

    def __init__(self, model: SUMA):
        self.model = model.eval()
        self.rows: list[Row] = []  # videos that can be found
        self.failed: list[Row] = []  # files that could not be read, with reasons
        self.folder: Path | None = None  # where `add` and `save` write
        self.caption_list: list[str] = []
        self._videos: list[np.ndarray] = []  # of each row (D,)
        self._frames: list[np.ndarray] = []  # of each row (F, D)
        self._statistics: tuple[Tensor, Tensor] | None = None  # of the concepts, over all frames
        self._folded: Any = None  # faiss index of the rows, made at the first search
        self._recent: dict[str, tuple[Row, Videos]] = {}  # files that are not in the index
        self._captions: Tensor | None = None  # the captions' folded vectors (captions, 2D)

    def __len__(self) -> int:
        return len(self.rows)

    # ---- adding and removing ---------------------------------------------------------------------------------------

    def add(self, paths: str | Path | Iterable[str | Path], workers: int = 2) -> Report:
        """Add files, folders (recursively) and globs. Unchanged files are skipped, changed ones encoded again.

        An unreadable video is kept with its reason in `failed`, never an error. With a folder (after `save` or
        `load`) the index is saved now and then, so a stopped run goes on where it was. Raises FileNotFoundError or
        ValueError where there is nothing to add.
        """
        report = Report()
        known = {row.path: row for row in self.rows}
        todo: list[Row] = []
        for path in find_videos(paths):
            row = describe(path)
            old = known.get(row.path)
            if old is not None and (old.size, old.mtime) == (row.size, row.mtime):
                report.skipped.append(row.path)
                continue
            if old is not None and old.size == row.size and old.digest == digest_of(row.path):
                old.mtime = row.mtime
                report.skipped.append(row.path)
                continue
            todo.append(row)
        bar = tqdm(total=len(todo), desc="index", unit="video", disable=None)
        saved, pause = time.monotonic(), SAVE_SECONDS
        for row, pixels in self._decode(todo, workers):
            self._insert(row, pixels)
            if row.reason:
                report.failed[row.path] = row.reason
            else:
                report.added.append(row.path)
            bar.set_postfix(failed=len(report.failed))
            bar.update()
            if self.folder is not None and time.monotonic() - saved > pause:
                began = time.monotonic()
                self.save(self.folder)
                saved = time.monotonic()
                pause = max(SAVE_SECONDS, 20 * (saved - began))  # saving takes at most a twentieth of the time
        bar.close()
        if self.folder is not None:
            self.save(self.folder)
        return report

    def _decode(self, rows: Sequence[Row], workers: int) -> Iterator[tuple[Row, Tensor | None]]:
        """Rows with their pixels (F, 3, S, S), decoded ahead by threads; None with a reason where unreadable."""
        image, num_frames = self.model.config.image, self.model.config.num_frames

        def decode(row: Row) -> Tensor | None:
            try:
                frames = read_frames(row.path, num_frames)
                row.digest = row.digest or digest_of(row.path)
                row.duration, row.times = float(frames.duration), [round(float(t), 3) for t in frames.times]
                return resize_frames(frames.frames, image["size"], image["resize_mode"], image["interpolation"])
            except (ValueError, OSError) as error:
                row.reason = str(error)
                return None

        with ThreadPoolExecutor(workers) as pool:
            for i in range(0, len(rows), 4 * workers):  # bounds the frames in memory
                block = rows[i : i + 4 * workers]
                yield from zip(block, pool.map(decode, block), strict=True)

    @torch.no_grad()
    def _insert(self, row: Row, pixels: Tensor | None) -> None:
        self._drop({row.path})
        if pixels is None:
            self.failed.append(row)
            return
        video, frames = self.model.encode_video(pixels[None].to(self.model.device))
        self.rows.append(row)
        self._videos.append(video[0].cpu().numpy().astype(np.float16))
        self._frames.append(frames[0].cpu().numpy().astype(np.float16))
        self._folded = self._statistics = None

    def remove(self, paths: Iterable[str | Path]) -> int:
        """Forget these videos (their files stay); returns how many were in the index."""
        before = len(self.rows) + len(self.failed)
        self._drop({key(path) for path in paths})
        return before - len(self.rows) - len(self.failed)

    def _drop(self, paths: set[str]) -> None:
        self.failed = [row for row in self.failed if row.path not in paths]
        keep = [i for i, row in enumerate(self.rows) if row.path not in paths]
        if len(keep) < len(self.rows):
            self.rows = [self.rows[i] for i in keep]
            self._videos, self._frames = [self._videos[i] for i in keep], [self._frames[i] for i in keep]
            self._folded = self._statistics = None

    def _features(self, rows: Sequence[int]) -> Tensor:
        """Unit video features (n, D) of these rows, float32."""
        stacked = np.stack([self._videos[i] for i in rows]).astype(np.float32)
        return F.normalize(torch.from_numpy(stacked).to(self.model.device), dim=-1)

    # ---- searching -------------------------------------------------------------------------------------------------

    def videos(self, rows: Sequence[int]) -> Videos:
        """These rows' features (N, D), frames (N, F, D) padded with zeros, mask, and places in the concept space."""
        frames = [self._frames[i] for i in rows]
        longest = max((len(f) for f in frames), default=0)
        padded = np.zeros((len(rows), longest, self.model.dim), np.float32)
        mask = np.zeros((len(rows), longest), bool)
        for kept, valid, f in zip(padded, mask, frames, strict=True):
            kept[: len(f)], valid[: len(f)] = f, True
        with torch.no_grad():
            unit = F.normalize(torch.from_numpy(padded).to(self.model.device), dim=-1)
            return self.model.videos(self._features(rows), unit, torch.from_numpy(mask).to(self.model.device))

    @torch.no_grad()
    def _candidates(self, texts: Texts, number: int) -> list[int]:
        """The rows that the folded score ranks first for one text."""
        import faiss

        if self._folded is None:
            folded = faiss.IndexFlatIP(2 * self.model.dim)
            for i in range(0, len(self), 1024):
                folded.add(self._fold(self.videos(range(i, min(i + 1024, len(self))))).cpu().numpy())
            self._folded = folded
        query = fold_texts(texts.features, texts.anchors, self.model.space.concepts()).cpu().numpy()
        return self._folded.search(np.ascontiguousarray(query), min(number, len(self)))[1][0].tolist()

    def _fold(self, v: Videos) -> Tensor:
        share = self.model.config.concept_share
        return fold_videos(v.features, v.frames, v.mask, self.model.space.concepts(), share)

    @torch.no_grad()
    def search(self, query: str | Texts, top_k: int = 10) -> list[Match]:
        """The videos that a text (or one that is encoded already, T = 1) describes best, best first. Raises ValueError
        for an empty query or top_k < 1."""
        texts = query if isinstance(query, Texts) else self.model.texts([_checked(query)])
        rows = self._candidates(texts, max(CANDIDATES, _positive(top_k))) if len(self) else []
        if not rows:
            return []
        videos = self.videos(rows)
        scores = self.model.score(texts, videos)[0]
        best = scores.topk(min(top_k, len(rows))).indices.tolist()
        return [self._match(texts, rows[i], Videos(*(x[i : i + 1] for x in videos)), float(scores[i])) for i in best]

    def _match(self, texts: Texts, row: int, video: Videos, score: float) -> Match:
        c, times = self.model.config, self.rows[row].times
        heat = frame_scores(texts, video, c.concept_share)[0]
        parts = concept_parts(texts, video, c.concept_share, c.aggregation, c.aggregation_temperature)
        strongest = parts.topk(min(3, len(parts)))
        named = zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
        concepts = tuple((self.model.space.name(k), round(value, 4)) for k, value in named if value > 0)
        moment = times[int(heat.argmax())]
        return Match(self.rows[row].path, round(score, 4), moment, concepts, self.rows[row].duration)

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
        """The videos most like a video or an image (indexed or not; the same path left out), best first.

        Score: the cosine of the video features in both spaces, in the shares of the text score.
        """
        _positive(top_k)
        query, share = self.read(path)[1].features, self.model.config.concept_share
        rows = [i for i, row in enumerate(self.rows) if row.path != key(path)]
        if not rows:
            return []
        features = self._features(rows)
        concepts = self.model.space.concepts()
        gram = concepts.T @ concepts
        aligned = (query * concept_scale(query, concepts)) @ gram @ (features * concept_scale(features, concepts)).T
        scores = ((1 - share) * (query @ features.T) + share * aligned)[0]
        matches = []
        for i in scores.topk(min(top_k, len(rows))).indices.tolist():
            row = self.rows[rows[i]]
            frames = torch.from_numpy(self._frames[rows[i]].astype(np.float32)).to(query.device)
            moment = row.times[int((frames @ query[0]).argmax())]
            matches.append(Match(row.path, round(float(scores[i]), 4), moment, (), row.duration))
        return matches

    def row_of(self, path: str | Path) -> int:
        """The row of an indexed video. Raises KeyError naming a path that is not in the index."""
        for i, row in enumerate(self.rows):
            if row.path == key(path):
                return i
        raise KeyError(f"{path} is not in the index")

    @torch.no_grad()
    def concept_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (K,) of every concept's activation over all frames of the gallery."""
        if self._statistics is None:
            total, squares, count = torch.zeros(self.model.dim), torch.zeros(self.model.dim, self.model.dim), 0
            for frames in self._frames:
                x = F.normalize(torch.from_numpy(frames.astype(np.float32)), dim=-1)
                total, squares, count = total + x.sum(0), squares + x.T @ x, count + len(x)
            concepts = self.model.space.concepts().cpu()
            mean = total / max(1, count)
            covariance = squares / max(1, count) - mean[:, None] * mean
            variance = ((concepts @ covariance) * concepts).sum(1)
            self._statistics = (concepts @ mean, variance.clamp_min(1e-6).sqrt())
        mean, deviation = self._statistics
        return mean.to(self.model.device), deviation.to(self.model.device)

    @torch.no_grad()
    def read(self, path: str | Path) -> tuple[Row, Videos]:
        """One video's (or image's) row and features: out of the index, or read and encoded now (the last few are
        kept). Raises FileNotFoundError or ValueError where it cannot be read."""
        try:
            i = self.row_of(path)
            return self.rows[i], self.videos([i])
        except KeyError:
            row = describe(Path(path))
            row.digest = digest_of(row.path)
        if row.digest not in self._recent:
            if not Path(path).exists():
                raise FileNotFoundError(f"no video {path}")
            (_, pixels), *_ = self._decode([row], 1)
            if pixels is None:
                raise ValueError(row.reason)
            features, frames = self.model.encode_video(pixels[None].to(self.model.device))
            mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
            while len(self._recent) >= 8:
                self._recent.pop(next(iter(self._recent)))
            self._recent[row.digest] = (row, self.model.videos(features, frames, mask))
        return self._recent[row.digest]

    # ---- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the index; a kill at any moment leaves the state before. Raises ValueError for a folder of other
        things."""
        folder = Path(folder).absolute()
        contents = Contents(self.rows, self.failed, self._videos, self._frames, self.caption_list)
        store.save(folder, self.model.fingerprint(), contents, self.model.dim)
        self.folder = folder

    @classmethod
    def load(cls, folder: str | Path, model: SUMA) -> "VideoIndex":
        """Open a saved index. Raises FileNotFoundError where there is none, and ValueError for a damaged or foreign
        one, or one made with another model (naming both)."""
        index = cls(model)
        index.folder = Path(folder).absolute()
        found = store.load(index.folder, model.fingerprint(), model.dim)
        index.rows, index.failed, index._videos, index._frames = found.rows, found.failed, found.videos, found.frames
        index.set_captions(found.captions)
        return index


def _checked(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is empty: type what happens in the video")
    return query.strip()


def _positive(top_k: int) -> int:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    return top_k
