"""One index from several: the parts of one collection (files.Part), or indexes made on machines that share nothing.

Each content is stored once, whatever the number of indexes that hold it, and a merge that was killed continues.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from suma.index.first_stage import keep_cache
from suma.index.hubness import is_kept
from suma.index.storage import REMOVED, NewClip, Report, Row, describe, is_server
from suma.index.store import Store, newest
from suma.index.video_index import VideoIndex
from suma.model.encoder import Encoder

BLOCK = 1000  # clips or files of one commit


def merge_folders(model: Encoder, folders: Sequence[str | Path], output: str | Path) -> tuple[Report, int]:
    """Merge indexes into the one in `output`, new or not, with their captions; nothing is forgotten there.

    Returns what was done and how many videos `output` then holds. Raises ValueError if `output` is among the folders,
    if one was made with another model or cut long videos into parts of another length, or for an index in Milvus;
    FileNotFoundError for a folder without an index.
    """
    if servers := [str(place) for place in (*folders, output) if is_server(place)]:
        raise ValueError(
            f"{servers[0]} cannot be merged: merge folders, then copy the result to Milvus "
            f"with VideoIndex.load(FOLDER).save({servers[0]!r})"
        )
    output = Path(output).resolve()
    if output in [Path(folder).resolve() for folder in folders]:
        raise ValueError(f"{output} cannot be merged into itself: leave it out of the list, or name a new folder")
    first = Store.open(Path(folders[0]).resolve(), model.fingerprint(), model.dim)
    sources = [first, *(Store.open(Path(f).resolve(), first.model, first.dim, first.segment) for f in folders[1:])]
    exists = newest(output) > 0
    index = VideoIndex.load(output, model, first.segment) if exists else VideoIndex(model, first.segment or 0.0)
    index.save(output)
    assert isinstance(index.store, Store)
    report = merge(index.store, sources)
    lists = [index.caption_list, *(source.captions()[1] for source in sources)]
    index.set_captions([caption for captions in lists for caption in captions])
    index.save(output)
    if any(map(is_kept, sources)):
        index.keep_hubness()
    return report, index.num_videos


def merge(target: Store, sources: Sequence[Store]) -> Report:
    """Add to a store what the sources hold, in the order of the paths, each content once; return what was done."""
    report = Report()
    files: list[Row] = []
    clips: dict[str, list[NewClip]] = {}  # by content

    def commit() -> None:
        target.commit(files, [clip for of_one in clips.values() for clip in of_one])
        files.clear()
        clips.clear()

    with target.writing():
        for source, row in _rows(sources):
            if max(len(files), sum(map(len, clips.values()))) >= BLOCK or row.digest in clips:
                commit()  # before a copy of a content, so that the content is found
            known = target.snapshot
            old = known.file(row.path)
            if old is not None and not _replaces(row, old):
                report.skipped += [] if old.reason else [row.path]
                continue
            files.append(row)
            if row.reason:
                continue
            if old is not None and old.digest == row.digest:
                report.skipped.append(row.path)
            elif twins := known.files_of(row.digest):
                report.duplicates[row.path] = twins[0].path
            else:
                clips[row.digest] = source.clips_of(row.digest)
                report.added.append(row.path)
        commit()
        keep_cache(target)
    failed = target.snapshot.files("reason NOT IN ('', ?)", [REMOVED])
    report.failed = {row.path: row.reason for row in failed}
    return report


def _rows(sources: Sequence[Store]) -> Iterator[tuple[Store, Row]]:
    """Yield each file once, from the source that knows it best, in the order in which a folder's videos are found."""
    paths = {path.replace(os.sep, "\0") for s in sources for path in s.snapshot.paths()}  # to sort a/b before a-b/c
    for path in sorted(paths):
        found = [source.snapshot.file(path.replace("\0", os.sep)) for source in sources]
        rows = [(source, row) for source, row in zip(sources, found, strict=True) if row is not None]
        yield functools.reduce(lambda best, pair: pair if _replaces(pair[1], best[1]) else best, rows)


def _replaces(row: Row, old: Row) -> bool:
    """Return True if `row` should stand for a path instead of `old`.

    The row that describes the file as it is now counts, if the file lies here; then a readable one; then the later one.
    A visitor's removal counts until the file changes.
    """
    if _is_same(row, old):
        return (row.reason == REMOVED, not row.reason) > (old.reason == REMOVED, not old.reason)
    now = describe(Path(row.path))
    return (_is_same(row, now), not row.reason, row.mtime) > (_is_same(old, now), not old.reason, old.mtime)


def _is_same(row: Row, other: Row) -> bool:
    return (row.size, row.mtime) == (other.size, other.mtime)
