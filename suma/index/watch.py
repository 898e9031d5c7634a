"""Follow folders: which files are new or changed and complete, and which are gone.

They are looked through every few seconds, which works on network drives, too, where the system tells of no changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from suma.index.files import find_videos, sort_missing
from suma.index.storage import describe
from suma.index.video_index import VideoIndex

PAUSE = 2.0  # seconds between two looks, at least
REST = 4  # times as long as a look takes, at least


def watch(
    index: VideoIndex, paths: Sequence[str | Path], exclude: Sequence[str] = (), photos: bool = False
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield, for ever, which files to add to an index and which are gone.

    A file is to be added when it is new or has changed, and two looks find it the same: half-copied ones grow. What is
    out of reach (suma.index.files.sort_missing) is not gone. A folder without videos may get some later.
    """
    table, before = index.store.snapshot, dict[str, tuple[int, float]]()
    known = {row.path: (row.size, row.mtime) for path in paths for row in table.files_below(path)}
    while True:
        began, now = monotonic(), dict[str, tuple[int, float]]()
        for path in paths:
            with suppress(ValueError, OSError):  # nothing there, or the drive is away
                found = map(describe, find_videos(path, exclude, photos))
                now |= {row.path: (row.size, row.mtime) for row in found if not row.reason}
        ready = [path for path, state in now.items() if known.get(path) != state == before.get(path)]
        lost = known.keys() - now.keys() - before.keys()
        gone = [path for path in sort_missing(known)[0] if path in lost] if lost else []
        before, took = now, monotonic() - began
        known = {path: state for path, state in known.items() if path not in gone} | {path: now[path] for path in ready}
        if ready or gone:
            yield ready, gone
        sleep(max(PAUSE, REST * took))
