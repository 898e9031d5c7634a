"""Add videos to an index: find the new files, decode ahead in worker processes, encode in batches, commit.

Shapes: F frames, S pixels of a side, D joint width.
"""

import functools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from suma.atomic_io import digest_of, interrupts_wait
from suma.index.files import Found, Part, look_for, sort_missing
from suma.index.first_stage import keep_cache
from suma.index.scoring import Scorer
from suma.index.storage import REMOVED, AnyStore, NewClip, Report, Row, State, StoreError, describe, key
from suma.model.encoder import Encoder
from suma.model.vocabulary import unit
from suma.progress import Progress
from suma.video.preprocess import prepare
from suma.video.worker import Decoder, refuse_sparse

COMMIT_SECONDS = 5.0  # between two commits: what a kill costs
COMMIT_CLIPS = 2000
COMMIT_SHARE = 0.05  # at most, of the time is spent on commits
PARTS_AHEAD = 4  # of each video that are decoded and wait for the model


@dataclass
class _DecodedPart:
    """A decoded part of a video: pixels (F, 3, S, S) uint8, and later its features."""

    start: float
    end: float
    times: list[float]
    pixels: np.ndarray
    exact: bool  # not key frames near the wanted times
    clip: NewClip | None = None


@dataclass
class _Job:
    """A file that is being indexed. None ends `parts`; `row` then has the digest, or the reason of a failure."""

    row: Row
    parts: "queue.Queue[_DecodedPart | None]" = field(default_factory=lambda: queue.Queue(PARTS_AHEAD))
    encoded: list[_DecodedPart] = field(default_factory=list)
    error: StoreError | None = None  # ends the run
    known: bool = False  # the content is indexed or in progress


def encode_file(model: Encoder, row: Row, segment: float) -> tuple[list[Row], list[np.ndarray]]:
    """Return the parts of a file that is not in the index, and their features, decoded in another process."""
    rows, encoded, decoder = [], [], Decoder()
    try:
        for part in decoder.read(row.path, model.config.num_frames, segment):
            encoded += model.encode_videos([prepare(part.frames, model.config.image)])
            rows.append(replace(row, duration=part.duration, times=part.times, start=part.start, end=part.end))
    finally:
        decoder.close()
    if not rows:
        raise ValueError(f"{row.path} has no frames")
    return rows, encoded


class Builder:
    """One run of `add` over a store."""

    def __init__(
        self,
        model: Encoder,
        scorer: Scorer,
        store: AnyStore,
        workers: int,
        time_limit: float,
        bf16: bool = False,
        exact: bool = False,
    ):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.model, self.store, self.workers, self.time_limit = model, store, workers, time_limit
        self.bf16, self.exact, self.report, self._title, self._scorer = bf16, exact, Report(), "index", scorer
        self._batch_frames = 1  # encoded at once
        self._claimed: set[str] = set()  # contents that are in progress
        self._unreadable: dict[str, bool] = {}  # contents that could not be read, and whether to try them again
        self._later: list[Row] = []  # copies of files that are in progress
        self._claiming = threading.Lock()
        self._stopping = threading.Event()
        self._real_folder = functools.cache(os.path.realpath)

    @property
    def indexed(self) -> State:
        """The files and contents that are indexed so far."""
        return self.store.snapshot

    def run(
        self,
        paths: str | Path | Iterable[str | Path],
        prune: bool,
        retry: bool,
        exclude: Sequence[str] = (),
        part: Part | None = None,
        photos: bool = False,
    ) -> Report:
        """Add what `paths` name; see `VideoIndex.add`."""
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self._title += f" part {part}" if part else ""
        found = look_for(given, exclude, part, photos)
        self.report.unreadable = found.unreadable
        folders = [path for path in given if Path(path).is_dir()]
        asked = {key(path) for path in given if path not in folders}
        with self.store.writing(), self.model.encoding(self.bf16) as self._batch_frames:
            now = [describe(path, self._real_folder) for path in found.videos]
            self._add(self._new(now, asked, retry))
            self._look_for_missing(folders, found, {row.path for row in now}, prune)
            keep_cache(self.store)
        return self.report

    # ---- which files -----------------------------------------------------------------------------------------------

    def _new(self, now: Sequence[Row], asked: set[str], retry: bool) -> list[Row]:
        """Return the files that are new, changed since they were indexed, or to be tried again (`retry`).

        `asked`: files named one by one, which brings back those that a visitor removed.
        """
        todo = []
        known = self.indexed.files_at([row.path for row in now])
        for row in now:
            old = known.get(row.path)
            again = old and old.reason and (retry or (old.reason == REMOVED and row.path in asked))
            if again or old is None or (old.size, old.mtime) != (row.size, row.mtime) or row.reason:
                todo.append(row)
            elif old.reason and old.reason != REMOVED:
                self.report.failed[row.path] = old.reason
            else:
                self.report.skipped.append(row.path)
        return todo

    def _look_for_missing(self, folders: Sequence[str | Path], found: Found, now: set[str], prune: bool) -> None:
        """Report which known files below these folders are gone, out of reach, or left out by a pattern."""
        known = {row.path: row for folder in folders for row in self.indexed.files_below(folder)}
        gone, self.report.out_of_reach = sort_missing(known, found.other_folders)
        excluded = [path for path in known.keys() - now if found.leaves_out(path)]
        if prune:
            self.report.pruned = sorted({*gone, *excluded})
            self.store.commit(forget=self.report.pruned)
        else:
            self.report.missing = gone
            self.report.excluded = excluded

    def _same_content(self, row: Row) -> Row | None:
        """Link a path to content that is already indexed. Return the old row if the file was moved, else None."""
        others = [other for other in self.indexed.files_of(row.digest) if other.path != row.path]
        old = self.indexed.file(row.path)
        if old is not None and old.digest == row.digest:
            self.report.skipped.append(row.path)
            return None
        moved = next((o for o in others if not os.path.lexists(o.path) or key(o.path) == row.path), None)
        if moved is not None:
            self.report.moved[row.path] = moved.path
            return moved
        self.report.duplicates[row.path] = others[0].path
        return None

    # ---- decoding, ahead of the model ------------------------------------------------------------------------------

    def _jobs(self, rows: Sequence[Row]) -> Generator[_Job, None, None]:
        """Yield jobs in the order of the rows while workers decode ahead; each keeps at most PARTS_AHEAD in memory."""
        counted: dict[int, int] = dict.fromkeys(self.indexed.sizes() if rows else (), 1)
        for row in rows:
            counted[row.size] = counted.get(row.size, 0) + 1
        shared = {size for size, count in counted.items() if count > 1}
        local, decoders = threading.local(), []

        def work(job: _Job) -> None:
            if not hasattr(local, "decoder"):
                local.decoder = Decoder(self.time_limit)
                decoders.append(local.decoder)
            try:
                self._decode(job, local.decoder, job.row.size in shared)
            except StoreError as error:
                job.error = error
            except Exception as error:  # a bug of ours costs one video, too
                job.row.reason = job.row.reason or f"{type(error).__name__}: {error}"
            self._put(job, None)

        waiting: deque[_Job] = deque()
        coming = iter(rows)
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while True:
                    while len(waiting) < 2 * self.workers + 2 and (new := next(coming, None)) is not None:
                        waiting.append(_Job(new))
                        pool.submit(work, waiting[-1])
                    if not waiting:
                        return
                    yield waiting.popleft()
            finally:
                self._stopping.set()
                for decoder in decoders:
                    decoder.close()
                pool.shutdown(cancel_futures=True)

    def _decode(self, job: _Job, decoder: Decoder, maybe_known: bool) -> None:
        row = job.row
        if row.reason:  # its size and time could not be read
            return
        try:
            refuse_sparse(row.path)
            if maybe_known and self._claim(row):
                job.known = True
                return
            for part in decoder.read(row.path, self.model.config.num_frames, self.store.segment or 0.0, self.exact):
                pixels = prepare(part.frames, self.model.config.image)
                row.duration = part.duration
                self._put(job, _DecodedPart(part.start, part.end, part.times, pixels, part.exact))
            row.digest = decoder.digest
        except (ValueError, OSError) as error:
            self._unreadable[row.digest] = isinstance(error, OSError)
            row.reason, row.digest = str(error) or repr(error), ""
            if isinstance(error, OSError):
                row.mtime = 0.0  # the disk's fault, not the content's: tried again next time

    def _claim(self, row: Row) -> bool:
        """Return True if this content is indexed or in progress; otherwise mark it as in progress."""
        row.digest = digest_of(row.path)
        with self._claiming:
            known = row.digest in self._claimed or self.indexed.has_content(row.digest)
            self._claimed.add(row.digest)
        return known and bool(row.digest)

    def _put(self, job: _Job, part: _DecodedPart | None) -> None:
        while not self._stopping.is_set():
            try:
                return job.parts.put(part, timeout=1)
            except queue.Full:
                continue

    # ---- encoding and committing -----------------------------------------------------------------------------------

    def _add(self, rows: Sequence[Row]) -> None:
        self._stopping.clear()
        batch: list[_DecodedPart] = []
        done: list[_Job] = []
        committed, pause = time.monotonic(), COMMIT_SECONDS
        with Progress(total=len(rows), desc=self._title, unit="video") as bar:

            def commit() -> None:
                self._encode(batch)
                with interrupts_wait():  # a commit that is cut short cannot be told from a complete one
                    self._commit(done)
                    done.clear()
                bar.set_postfix(failed=len(self.report.failed))

            jobs = self._jobs(rows)
            try:
                for job in jobs:
                    while (part := job.parts.get()) is not None:
                        batch.append(part)
                        job.encoded.append(part)
                        if sum(len(p.pixels) for p in batch) >= self._batch_frames:
                            self._encode(batch)
                    if job.error is not None:
                        raise job.error
                    done.append(job)
                    bar.update()
                    if time.monotonic() - committed > pause or len(done) >= COMMIT_CLIPS:
                        began = time.monotonic()
                        commit()
                        committed = time.monotonic()
                        pause = max(COMMIT_SECONDS, (committed - began) / COMMIT_SHARE)
            except KeyboardInterrupt:
                commit()
                raise
            finally:
                jobs.close()
            commit()
        self._settle_copies()

    def _settle_copies(self) -> None:
        """Fail the copies of files that could not be read; add the copies of files that changed during the run."""
        lost, self._later = self._later, []
        for row in lost:
            if row.digest in self._unreadable:
                row.reason = "another file with the same content could not be read"
                row.mtime *= not self._unreadable[row.digest]
                self.report.failed[row.path] = row.reason
        if failed := [replace(row, digest="") for row in lost if row.reason]:
            self.store.commit(failed)
        if again := [row for row in lost if not row.reason]:  # the other file changed meanwhile
            self._claimed -= {row.digest for row in again}
            self._add([replace(row, digest="") for row in again])

    def _encode(self, batch: list[_DecodedPart]) -> None:
        """Encode all frames of these parts in one batch, set each part's `clip`, and empty the list."""
        new = [part for part in batch if part.clip is None]  # the others: encoded before an interrupt
        if not new:
            return batch.clear()
        encoded = self.model.encode_videos([part.pixels for part in new])
        folded = self._scorer.fold_videos(self._scorer.clips(encoded)).astype(np.float16)
        for part, rows, vector in zip(new, encoded, folded, strict=True):
            kept = rows.astype(np.float16)
            scales = self._scorer.inverse_norms(unit(kept.astype(np.float32)))  # from the rows as they are stored
            part.clip = NewClip("", part.start, part.end, part.times, kept, vector, scales)
            part.pixels = part.pixels[:0]
        batch.clear()

    def _commit(self, jobs: Sequence[_Job]) -> None:
        """Write what these jobs have read to the store, and add it to the report."""
        files: list[Row] = []
        clips: list[NewClip] = []
        added = []
        for job in jobs:
            if job.known:
                self._later.append(job.row)
                continue
            files.append(job.row)
            if job.row.reason:
                self.report.failed[job.row.path] = job.row.reason
                continue
            added.append(job.row.path)
            self.report.exact += sum(part.exact for part in job.encoded)
            self.report.by_key_frames += sum(not part.exact for part in job.encoded)
            clips += [part.clip._replace(digest=job.row.digest) for part in job.encoded if part.clip]
        if files:
            self.store.commit(files, clips)
        self.report.added += added
        self._commit_known()

    def _commit_known(self) -> None:
        """Write the copies whose content is indexed by now; the others stay in `_later`."""
        files, forget = [], []
        for row in self._later:
            twin = next(iter(self.indexed.files_of(row.digest)), None)
            if twin is not None:
                row.duration = twin.duration
                moved = self._same_content(row)
                forget += [moved.path] if moved else []
                files.append(row)
        if files:
            self.store.commit(files, forget=forget)
        self._later = [row for row in self._later if not row.duration]
