"""What the rooms of an index share: what is known of a file, a new clip, a report, and what a store promises.

A store is a folder (store.py) or Milvus (milvus.py). A folder gives snapshots, complete states that later commits do
not change, and takes commits that come in whole or not at all; Milvus gives the present state, and takes commits file
by file. Clips have positions, whole numbers that mean something to their snapshot only.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np

REMOVED = "removed by a visitor"  # the reason of a file that is not added again with its folder


class StoreError(RuntimeError):
    """The place where an index is kept does not answer."""


@dataclass
class Row:
    """One clip: a video file, or a part of a long one. A file that cannot be read keeps its `reason` and no frames."""

    path: str
    size: int  # bytes
    mtime: float  # seconds
    digest: str  # sha256 of the content
    duration: float = 0.0  # seconds, of the whole file
    times: list[float] = field(default_factory=list)  # of its frames, seconds on the player's clock
    reason: str = ""
    start: float = 0.0  # seconds: the part of the file that this row stands for
    end: float = 0.0


class NewClip(NamedTuple):
    """A clip to be added: the content it belongs to, its part of the file in seconds, and its features."""

    digest: str
    start: float
    end: float
    times: list[float]  # of its frames, seconds, F
    features: np.ndarray  # (1 + F, D): the video's, then the frames'
    folded: np.ndarray  # (2D,)
    scales: np.ndarray  # (1 + F,) float32


@dataclass
class Report:
    """What `add` or a merge did, by path."""

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # unchanged
    failed: dict[str, str] = field(default_factory=dict)  # with the reason; also those that failed before
    moved: dict[str, str] = field(default_factory=dict)  # new path: old path; not encoded again
    duplicates: dict[str, str] = field(default_factory=dict)  # path: another file of the same content
    missing: list[str] = field(default_factory=list)  # in the index, but known to be gone
    excluded: list[str] = field(default_factory=list)  # in the index, but left out by a pattern now
    pruned: list[str] = field(default_factory=list)  # missing and excluded ones that were removed from the index
    out_of_reach: dict[str, str] = field(default_factory=dict)  # kept in the index, not there now, with the reason
    unreadable: dict[str, str] = field(default_factory=dict)  # folders and files that were left out, with the reason
    exact: int = 0  # parts whose frames were decoded where they were wanted
    by_key_frames: int = 0  # parts read by the key frames near there

    def summary(self) -> str:
        """Return the counts as one line.

        >>> Report(added=["a.mp4", "b.mp4"], moved={"c.mp4": "d.mp4"}).summary()
        '2 added, 0 unchanged, 0 failed, 1 moved'
        """
        line = f"{len(self.added)} added, {len(self.skipped)} unchanged, {len(self.failed)} failed"
        for name in ("moved", "duplicates", "missing", "excluded", "pruned", "out_of_reach"):
            count = len(getattr(self, name))
            line += f", {count} {name.replace('_', ' ')}" * bool(count)
        return line + f"; {self.by_key_frames} parts read by key frames, {self.exact} exactly" * bool(
            self.by_key_frames
        )

    def notes(self) -> list[str]:
        """Return a line for each folder that could not be read, or whose videos are out of reach."""
        lines = [f"not read: {path}: {reason}" for path, reason in self.unreadable.items()]
        counts = Counter(self.out_of_reach.values())
        return lines + [f"out of reach, and kept in the index: {n} videos of {why}" for why, n in counts.items()]


def is_server(place: str | Path) -> bool:
    """Return True if an index's place is Milvus, not a folder."""
    return str(place).startswith("milvus:")


def without_token(place: str) -> str:
    """Return a place in Milvus as it is shown: without USER:PASSWORD@ and ?index=."""
    return re.sub(r"//[^/]*@", "//", place).partition("?")[0]


def key(path: str | Path, real_folder: Callable[[str], str] = os.path.realpath) -> str:
    """Return the one name of a file in an index: the real path of its folder, and the file's own name, which may be a
    link. `real_folder`: os.path.realpath, or a cache of it for many files."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.realpath(path) if name in ("", ".", "..") else os.path.join(real_folder(folder), name)


def describe(path: Path, real_folder: Callable[[str], str] = os.path.realpath) -> Row:
    """Return a file's size and time, without reading it."""
    name = key(path, real_folder)
    try:
        stat = path.stat()
    except OSError as error:
        return Row(name, 0, 0.0, "", reason=f"{error.strerror or error}: {path}")
    return Row(name, stat.st_size, stat.st_mtime, "")


class State(Protocol):
    """What a store holds at one moment."""

    @property
    def live(self) -> np.ndarray:
        """Positions (N,) int64 of the clips that can be found, in the order in which they are listed."""

    @property
    def cut(self) -> bool:
        """True if a file has more than one clip."""

    def file(self, path: str | Path) -> Row | None:
        """Return what is known of a file, by any spelling of its path, without its frames."""

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """Return the files among these paths, as `key` names them, that are known."""

    def files_of(self, digest: str) -> list[Row]:
        """Return the files of a content, in the order in which they came in."""

    def files_below(self, folder: str | Path) -> list[Row]:
        """Return the files below a folder."""

    def copies(self) -> list[Row]:
        """Return the files of each content that has more than one."""

    def failed(self) -> list[Row]:
        """Return the files that could not be read, with reasons."""

    def sizes(self) -> list[int]:
        """Return the sizes, each once, of the files that could be read."""

    def has_content(self, digest: str) -> bool:
        """Return True if a content's clips are there."""

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Any = None) -> list[Row]:
        """Return these clips, each with the first of its files that is there and that a filter (query.Filter), if
        given, lets through; else with the first one let through; with an empty path where it has no file."""

    def positions_of(self, path: str | Path) -> list[int]:
        """Return the clips of a file, in the order of time."""

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """Return the contents that these clips belong to."""

    def allowed(self, chosen: Any) -> Any:
        """Return the clips with a file that a filter lets through, as the first stage takes it; None: all."""

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are
        valid (n, 1 + F); what follows a clip's last frame is anything."""

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the videos' features (n, D) float16, without their frames."""


class Rows(Sequence[Row]):
    """The rows of an index, read when they are asked for."""

    def __init__(self, snapshot: State):
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot.live)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        if isinstance(i, slice):
            return self._snapshot.rows(self._snapshot.live[i])
        return self._snapshot.rows([int(self._snapshot.live[i])])[0]

    def __iter__(self) -> Iterator[Row]:
        for i in range(0, len(self), 1000):
            yield from self[i : i + 1000]


class Vectors(Protocol):
    """What the first stage of a search compares: a snapshot of a folder, or a caption list."""

    @property
    def origin(self) -> Any:
        """The same object as long as vectors are only added."""

    @property
    def live(self) -> np.ndarray:
        """Positions (N,) int64 that can be found, ascending."""

    @property
    def folded(self) -> np.ndarray:
        """(all positions, 2D) float16."""


class AnyStore(Protocol):
    """What is kept of an index."""

    @property
    def folder(self) -> Path | None:
        """Its folder; None: in Milvus, and nothing that can be made anew is kept."""

    @property
    def generation(self) -> int:
        """The generation of the positions in `folder`."""

    @property
    def snapshot(self) -> Any:
        """The last complete `State`."""

    @property
    def place(self) -> str:
        """Where it is."""

    @property
    def segment(self) -> float | None:
        """Seconds of the parts into which longer videos are cut; 0: none is cut."""

    def refresh(self) -> None:
        """Take over what other processes have written."""

    def writing(self) -> AbstractContextManager[None]:
        """Write from the last complete state on. A folder has one writer: raise IndexBusyError naming who it is."""

    def commit(self, files: Sequence[Row] = (), clips: Sequence[NewClip] = (), forget: Sequence[str] = ()) -> None:
        """Add clips, add files or replace what is known of them, forget paths. Remove the clips of contents that no
        file has any more."""

    def captions(self) -> tuple[int, list[str]]:
        """Return the caption list, and where its vectors begin."""

    def caption_vectors(self, first: int, count: int) -> np.ndarray | None:
        """Return the folded vectors (count, 2D) of captions, where they are kept."""

    def set_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
        """Replace the caption list; its folded vectors come in blocks (n, 2D), and are made as they are taken."""

    def verify(self) -> None:
        """Raise ValueError where features are damaged or missing."""


class FirstStage(Protocol):
    """The first stage of a search."""

    def search(self, store: Any, snapshot: Any, query: np.ndarray, number: int, allowed: Any = None) -> list[int]:
        """Return the positions of the best `number` clips for a query (2D,), best first; of those that the snapshot's
        `allowed` named, if given."""
