"""VideoIndex: a gallery of videos, searched by text, by captions and by video.

Shapes: N videos, F frames, D joint width, K concepts.
"""

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from suma.atomic_io import digest_of, on_disk
from suma.index.captions import CaptionList
from suma.index.duplicates import groups
from suma.index.files import Part
from suma.index.hubness import Popularity, evenly, is_kept, word_bundles
from suma.index.milvus import MilvusStore
from suma.index.query import ALL, Filter, Query, parse
from suma.index.scoring import Clips
from suma.index.search import Match, Page, Searcher, nearest
from suma.index.storage import REMOVED, AnyStore, Report, Row, Rows, describe, is_server, key, without_token
from suma.index.store import Store, newest, remembered_model
from suma.model.checkpoint import BUNDLED
from suma.model.encoder import Encoder, Queries
from suma.model.text_encoder import load_for_search
from suma.video.frames import SEGMENT
from suma.video.worker import TIME_LIMIT


def model_of(place: str | Path) -> str:
    """Return the string that loads an index's model. Raise FileNotFoundError where the folder that it names is gone."""
    source = MilvusStore.remembered_model(str(place)) if is_server(place) else remembered_model(Path(place))
    if os.path.isabs(source) and not os.path.isdir(source):
        raise FileNotFoundError(
            f"{place} was made with the model in {source}, which is gone: say by --model where it is now"
        )
    return source or str(BUNDLED)


class VideoIndex:
    """Videos of a gallery, encoded once by one model, kept in a folder (a temporary one until `save` names another).

    A video of more than `segment` seconds is cut into parts (0: none is cut), each of them a row, and a search answers
    with its best one. A search first ranks all rows by one inner product (the folded score, exact for `mean`
    aggregation), then scores the best with all their frames.
    """

    def __init__(self, model: Encoder, segment: float = SEGMENT):
        if model.config.activation != "cosine":
            raise ValueError(f'searches need concepts by plain cosines, this model has "{model.config.activation}"')
        if not segment >= 0:
            raise ValueError(f"segment is a length in seconds, or 0, got {segment}")
        self.model, self._segment = model.eval(), float(segment)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._store: AnyStore | None = None  # made when it is needed
        self._searcher = Searcher(self.model)
        self.scorer = self._searcher.scorer
        self._recent: dict[str, tuple[list[Row], Clips]] = {}  # files that are not in the index
        self._captions: CaptionList | None = None  # None: as the store has them
        self._popular: Popularity | None = None  # the clips', with texts at large

    @property
    def store(self) -> AnyStore:
        """What is kept, on disk or in Milvus."""
        if self._store is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="suma-")
            folder, made_with = Path(self._temporary.name, "index"), (self.model.fingerprint(), self.model.dim)
            self._store = Store.create(folder, *made_with, self._segment, self.model.source)
        return self._store

    @property
    def folder(self) -> Path | None:
        """Where the index is kept; None: nowhere yet, or in Milvus."""
        return None if self._temporary or self._store is None else self._store.folder

    @property
    def rows(self) -> Rows:
        """Videos that can be found; of those that were cut, each part."""
        return Rows(self.store.snapshot)

    @property
    def failed(self) -> list[Row]:
        """Files that could not be read, with reasons."""
        return [row for row in self.store.snapshot.failed() if row.reason != REMOVED]

    def __len__(self) -> int:
        return len(self.store.snapshot.live)

    @property
    def num_videos(self) -> int:
        """How many videos can be found, whatever the number of their parts."""
        snapshot = self.store.snapshot
        return len(set(snapshot.digests(snapshot.live))) if snapshot.cut else len(snapshot.live)

    # ---- adding and removing ---------------------------------------------------------------------------------------

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        workers: int = 2,
        prune: bool = False,
        retry: bool = False,
        time_limit: float = TIME_LIMIT,
        bf16: bool = False,
        exclude: Sequence[str] = (),
        part: Part | None = None,
        photos: bool = False,
        exact: bool = False,
    ) -> Report:
        """Add files, folders (recursively) and globs. Unchanged files are skipped, changed ones encoded again; a moved
        file keeps its features, copies of a file share them.

        What is done is on disk every few seconds: a stopped or killed run goes on where it was. An unreadable video is
        kept with its reason in `failed`, and read again when it changed, or with `retry`.

        Args:
            workers: processes that decode ahead.
            prune: also remove what is gone from the given folders, or excluded now, but not what is out of reach.
            time_limit: seconds without progress after which a video is given up, until the next run.
            bf16: encode in bfloat16, where the processor has it: cosines off by less than 1e-3, twice as fast.
            exclude: patterns of names below the folders to leave out (suma.index.files.IGNORE_HELP).
            part: add only the files of this part, such as Part(2, 8), for suma.index.merge.merge_folders.
            exact: decode every frame where it is wanted; else key frames stand for them where these are near
                (suma.video.frames.NEAR), which is many times faster on a phone's videos.
            photos: take photographs below the folders too (suma.index.files.PHOTO_EXTENSIONS).

        Raise FileNotFoundError or ValueError where there is nothing to add, IndexBusyError (an OSError) while another
        process writes to the index, and OSError where it cannot be written.
        """
        from suma.index.ingest import Builder  # with PyAV

        kept = is_kept(self.store)
        builder = Builder(self.model, self.scorer, self.store, workers, time_limit, bf16, exact)
        report = builder.run(paths, prune, retry, exclude, part, photos)
        if kept:
            self.keep_hubness()
        return report

    def remove(self, paths: Iterable[str | Path], for_good: bool = False) -> int:
        """Forget these videos; return how many were in the index. `for_good`: they are not added again with their
        folder, only by their own path, with `retry`, or when they changed."""
        with self.store.writing():
            found = self.store.snapshot.files_at([*{key(on_disk(path)): None for path in paths}])
            known = {path: row for path, row in found.items() if row.reason != REMOVED}
            kept = is_kept(self.store)
            if for_good:
                self.store.commit([replace(row, digest="", reason=REMOVED) for row in known.values()])
            else:
                self.store.commit(forget=list(found))
            if kept:  # where the files were written anew
                self.keep_hubness()
        return len(known)

    # ---- searching -------------------------------------------------------------------------------------------------

    def videos(self, rows: Sequence[int]) -> Clips:
        """These rows' features (N, D) and frames (N, F, D), padded with zeros."""
        snapshot = self.store.snapshot
        return self._searcher.clips(snapshot, [int(snapshot.live[i]) for i in rows])

    def search(
        self,
        query: str | Query | Queries,
        top_k: int = 10,
        *,
        offset: int = 0,
        min_score: float = -math.inf,
        min_confidence: float = 0.0,
        filter: Filter = ALL,
        within: str | Path | None = None,
        group: bool = True,
        hubness: bool = False,
        hide_doubles: bool = False,
    ) -> list[Match]:
        """The videos that a text describes best, best first.

        Args:
            query: in the language of suma/index/query.py, or encoded (T = 1).
            offset: answers to leave out, for the next page; pages fit together exactly for `mean` aggregation.
            min_score, min_confidence: the lowest of an answer.
            filter: which files may answer, beside what the query says.
            within: a video (indexed or not), of which the best moments answer.
            group: one answer for each video, rather than for each part of a long one.
            hubness: take from every score what the video scores with texts at large (hubness.py).
            hide_doubles: of videos that show the same (`duplicates`), answer with the best one.

        Raises ValueError for an empty query, one that cannot be read, or top_k < 1.
        """
        if isinstance(query, str):
            query = parse(query)
        if isinstance(query, Query):
            filter, min_score = query.filter & filter, max(min_score, query.min_score)
            query = query.texts(self.model)
        page = Page(top_k, offset, min_score, filter, group, hide_doubles, min_confidence)
        if within is None:
            return self._searcher.by_text(self.store, query, page, self._popularity() if hubness else None)
        if replace(filter, root="") != ALL or min_confidence > 0:
            raise ValueError("filters and min_confidence choose among videos: leave them out when searching within one")
        return self._searcher.moments(*self.parts(within), query, page)

    def _popularity(self) -> Popularity:
        if self.store.folder is None:
            raise ValueError(f"{self.store.place} is no folder: hubness needs an index in a folder")
        texts = evenly(self.caption_list) or word_bundles(self.model)
        if self._popular is None or self._popular.texts != texts:
            self._popular = Popularity(texts, self._fold)
        return self._popular

    def _fold(self, texts: Sequence[str]) -> np.ndarray:
        """Folded vectors (n, 2D) of texts."""
        parts = (texts[i : i + 256] for i in range(0, len(texts), 256))
        return np.concatenate([self.scorer.fold_texts(self.model.encode_queries(part)) for part in parts])

    def keep_hubness(self) -> None:
        """Keep what a search with `hubness` needs; from then on `add` and `save` bring it up to date."""
        with self.store.writing():
            self._popularity().keep(self.store)

    def similar(
        self,
        path: str | Path,
        top_k: int = 10,
        *,
        offset: int = 0,
        min_score: float = -math.inf,
        filter: Filter = ALL,
        group: bool = True,
    ) -> list[Match]:
        """Return the videos most like a video or an image (indexed or not; itself left out), by the cosine of the video
        features in both spaces, in the shares of the text score; see `search`."""
        page, itself = Page(top_k, offset, min_score, filter, group), self.store.snapshot.positions_of(on_disk(path))
        return self._searcher.by_video(self.store, self.parts(path)[1], itself, page)

    def duplicates(self) -> list[list[Row]]:
        """Return groups of files that show the same, copies among them, the longest and largest first."""
        return groups(self.store.snapshot)

    @property
    def caption_list(self) -> list[str]:
        """The captions that `captions` searches."""
        return self._listed.lines

    @property
    def _listed(self) -> CaptionList:
        if self._captions is None:
            self._captions = CaptionList.load(self.store)
        return self._captions

    def set_captions(self, captions: Sequence[str]) -> None:
        """Replace the list that `captions` searches, without empty lines and repetitions; `save` keeps it."""
        self._captions = CaptionList(captions)

    def captions(self, path: str | Path, top_k: int = 5) -> list[tuple[str, float]]:
        """The captions of the list that describe a video (indexed or not) best: (caption, score), best first."""
        if not self.caption_list:
            raise ValueError("the index has no captions: give it some with set_captions([...])")
        return self._listed.search(self.store, self.scorer, self._fold, self.parts(path)[1], Page(top_k).top_k)

    def row_of(self, path: str | Path) -> int:
        """The (first) row of an indexed video. Raises KeyError naming a path that is not in the index."""
        snapshot = self.store.snapshot
        positions = snapshot.positions_of(on_disk(path))
        if not positions:
            raise KeyError(f"{path} is not in the index")
        return int(np.flatnonzero(snapshot.live == positions[0])[0])

    def concept_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and standard deviation (K,) of every concept's activation over all frames of the gallery (in
        a large one, of evenly spaced videos)."""
        return self._searcher.statistics(self.store.snapshot)

    def read(self, path: str | Path, at: float = 0.0) -> tuple[Row, Clips]:
        """Return the row and features of a video or image, or of the part around `at` seconds of it; see `parts`."""
        rows, clips = self.parts(path)
        n = nearest(rows, at)
        return rows[n], clips.one(n)

    def parts(self, path: str | Path) -> tuple[list[Row], Clips]:
        """All parts (V) of a video, or the image, with their features: out of the index, or read and encoded now (the
        last few are kept). Raises FileNotFoundError or ValueError where it cannot be read."""
        path, snapshot = on_disk(path), self.store.snapshot
        known, positions = snapshot.file(path), snapshot.positions_of(path)
        if known and positions:  # the file that is asked for, whichever copies it has
            rows = [replace(row, path=known.path, mtime=known.mtime) for row in snapshot.rows(positions)]
            return rows, self._searcher.clips(snapshot, positions)
        row = describe(Path(path))
        row.digest = digest_of(row.path)
        if row.digest not in self._recent:
            if not Path(path).exists():
                raise FileNotFoundError(f"no video {path}")
            from suma.index.ingest import encode_file  # with PyAV

            rows, encoded = encode_file(self.model, row, self.store.segment or 0.0)
            while len(self._recent) >= 8:
                self._recent.pop(next(iter(self._recent)))
            self._recent[row.digest] = rows, self.scorer.clips(encoded)
        return self._recent[row.digest]

    # ---- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Keep the index in a folder, or in Milvus (milvus.py), from now on; a kill at any moment leaves a folder
        as it was. Raises ValueError for a place of other things."""
        listed, old = self._captions, self.store
        if not isinstance(old, Store):
            if old.place != without_token(str(folder)):
                raise ValueError(f"{old.place} cannot be copied: index the videos into {folder}")
        elif is_server(folder):
            listed = listed or CaptionList.load(old)
            made_with = (self.model.fingerprint(), self.model.dim, old.segment)
            new = MilvusStore.open(str(folder), *made_with, create=True, source=self.model.source)
            with new.writing():
                for files, clips in old.blocks():
                    new.commit(files, clips)
            self._keep(new)
        elif (folder := Path(folder).resolve()) != old.folder:
            old.copy_to(folder)
            self._keep(Store.open(folder, self.model.fingerprint(), self.model.dim))
        elif not newest(folder):
            raise FileNotFoundError(f"{folder} is gone: save to another folder")
        if listed is not None:
            self._captions = listed.save(self.store, self.scorer, self._fold)
        if is_kept(self.store):
            self.keep_hubness()

    def _keep(self, store: Store | MilvusStore) -> None:
        """Keep the index in another store from now on."""
        self._store, self._captions = store, None
        if isinstance(store, MilvusStore):
            self._searcher.candidates = store
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @classmethod
    def load(cls, folder: str | Path, model: Encoder | None = None, segment: float | None = None) -> "VideoIndex":
        """Open a saved index, also one in Milvus (milvus.py). Without `model` it loads the one that it remembers.

        Raises FileNotFoundError where there is none, and ValueError for a damaged or foreign one, or one made with
        another model, or with parts of another length than `segment`, if given (naming both)."""
        model = model or load_for_search(model_of(folder))
        index, made_with = cls(model), (model.fingerprint(), model.dim, segment)
        if is_server(folder):
            index._keep(MilvusStore.open(str(folder), *made_with))
        else:
            index._keep(Store.open(Path(folder).resolve(), *made_with))
        return index
