"""Adding videos to the gallery in steps, so that the page can show the progress and searches go on."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
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
