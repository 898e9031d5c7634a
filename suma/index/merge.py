"""Several indexes into one: shards that ranks have filled, or indexes made on machines that share nothing.

Each content is stored once, whatever the number of indexes that hold it, and a merge that was killed goes on.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from suma.atomic_io import digest_of
from suma.index.catalog import REMOVED, Row, describe
from suma.index.ingest import Report
from suma.index.store import MANIFEST, NewClip, Store
from suma.index.video_index import VideoIndex
from suma.model.suma import SUMA

BLOCK = 1000  # clips or files of one commit


def is_same(one: Row, other: Row) -> bool:
    """Whether a file is as it was."""
    return (one.size, one.mtime) == (other.size, other.mtime)


def merge(target: Store, sources: Sequence[Store], found: Sequence[Path] | None = None) -> Report:
    """Bring what the sources hold into a store; each content is stored once, and the same call goes on after a kill.

    `found`: files that lie here, brought in first and in this order, as they are now. None: the files lie elsewhere;
    everything comes in the order of the sources, and of two rows of one path the later file counts.
    """
    report, here = Report(), found is not None
    files: dict[str, Row] = {}  # by path
    clips: dict[str, list[NewClip]] = {}  # by content
    forget: list[str] = []

    def commit() -> None:
        target.commit([*files.values()], [clip for of_one in clips.values() for clip in of_one], forget)
        files.clear()
        clips.clear()
        forget.clear()

    with target.writing():
        for source, row in _rows(target, sources, found or []):
            full = max(len(files), sum(map(len, clips.values()))) >= BLOCK
            if full or row.path in files or row.digest in clips:
                commit()  # so that a copy finds its twin
            table = target.snapshot.table
            old = table.file(row.path)
            if old is not None and _rank_of(old, here) >= _rank_of(row, here):
                continue
            files[row.path] = row
            if row.reason or (old is not None and old.digest == row.digest):
                continue
            if not table.positions_of(row.digest):
                clips[row.digest] = source.clips_of(row.digest)
                report.added.append(row.path)
                continue
            twins = [twin.path for twin in table.files("digest = ?", [row.digest]) if twin.path != row.path]
            gone = [path for path in twins if here and not os.path.lexists(path)][:1]
            forget += gone
            (report.moved if gone else report.duplicates)[row.path] = [*gone, *twins][0]
        commit()
    failed = target.snapshot.table.files("reason NOT IN ('', ?)", [REMOVED])
    report.failed = {row.path: row.reason for row in failed}
    return report


def _rank_of(row: Row, here: bool) -> tuple[bool, bool, float]:
    """Which of two rows of one path counts: the one that is as the file now is, then a readable one, then the later."""
    return here and is_same(row, describe(Path(row.path))), not row.reason, row.mtime


def _rows(target: Store, sources: Sequence[Store], found: Sequence[Path]) -> Iterator[tuple[Store, Row]]:
    """The sources' files: those found, in that order, each from the source that has it as it is, or has its content by
    another path (a rank leaves that to the one that had it first); then all."""
    sizes = {size for source in sources for (size,) in source.snapshot.table.all("SELECT DISTINCT size FROM files")}
    for path in found:
        rows = [(source, row) for source in sources if (row := source.snapshot.table.file(path)) is not None]
        if rows:
            yield max(rows, key=lambda pair: _rank_of(pair[1], True))
            continue
        row, old = describe(path), target.snapshot.table.file(path)
        if row.size not in sizes or (old is not None and is_same(old, row)):
            continue
        row.digest = digest_of(path)
        for source in sources:
            twins = source.snapshot.table.files("digest = ?", [row.digest]) if row.digest else []
            if twins:
                row.duration = twins[0].duration
                yield source, row
                break
    for source in sources:
        table = source.snapshot.table
        ((last,),) = table.all("SELECT max(id) FROM files")
        for start in range(0, last or 0, BLOCK):
            for row in table.files("id > ? AND id <= ?", [start, start + BLOCK]):
                yield source, row


def merge_folders(model: SUMA, folders: Sequence[str], output: str | Path) -> tuple[Report, int]:
    """Merge saved indexes, made on machines that share nothing, into one, new or not; also their captions. What was
    done, and how many videos the index then holds. Raises ValueError where an index is to be merged into itself, or
    long videos were cut into parts of different lengths."""
    output = Path(output).resolve()
    if output in [Path(folder).resolve() for folder in folders]:
        raise ValueError(f"{output} cannot be merged into itself: leave it out of the list, or name a new folder")
    first = Store.open(Path(folders[0]).resolve(), model.fingerprint(), model.dim)
    sources = [first, *(Store.open(Path(f).resolve(), first.model, first.dim, first.segment) for f in folders[1:])]
    there = (output / MANIFEST).is_file()
    index = VideoIndex.load(output, model, first.segment) if there else VideoIndex(model, first.segment or 0.0)
    index.save(output)
    report = merge(index.folder_store, sources)
    lists = [index.caption_list, *(source.captions()[1] for source in sources)]
    index.set_captions([caption for captions in lists for caption in captions])
    index.save(output)
    return report, index.num_videos
