"""Videos that come into the gallery while the page is in use: in steps, in a thread, and as their folder changes."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suma.app.gallery import Gallery
from suma.app.media import by_name

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
            report = gallery.index.add(path for path in paths[at : at + step] if path.exists())
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


Changes = Iterable[tuple[list[str], list[str]]]  # files that are ready, and files that are gone


class Filling:
    """Add videos to the gallery in a thread, while those that are done can be searched; then follow their folder."""

    def __init__(
        self,
        gallery: Gallery,
        add: Callable[[list[Path]], Iterator[Progress]],
        paths: Sequence[Path],
        changes: Changes = (),
    ):
        """Start to `add` the paths, in the steps of `add_paths`, and then take up the changes (suma.index.watch)."""
        self.gallery, self._add, self._changes, self.error = gallery, add, changes, ""
        self.follows, self.busy, steps = bool(changes), True, add(list(paths))
        self.progress = next(steps)
        self.thread = threading.Thread(target=self._run, args=(steps,), daemon=True)
        self.thread.start()

    def _run(self, steps: Iterator[Progress]) -> None:
        try:
            self._take(steps)
            for ready, gone in self._changes:
                self._take(self._add([Path(path) for path in ready]))
                self.gallery.forget(gone)
        except (ValueError, OSError, RuntimeError) as error:  # a full disk, another process that writes
            self.error = str(error)
            print(f"error: indexing ended early: {error}", file=sys.stderr)
        self.busy = self.follows = False

    def _take(self, steps: Iterator[Progress]) -> None:
        self.busy = True
        for self.progress in steps:
            pass
        self.gallery.list_captions()
        self.busy = False
        for name, reason in self.progress.failed.items():
            print(f"skipped {name}: {reason}", file=sys.stderr)
