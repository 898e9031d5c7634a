"""What the rest asks of the place where an index is kept: a folder (store.py) or Milvus (milvus.py).

A folder gives snapshots, complete states that later commits do not change, and takes commits that come in whole or not
at all; Milvus gives the present state, and takes commits file by file. Clips have positions, whole numbers that mean
something to their snapshot only.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from suma.index.catalog import Row
from suma.index.store import NewClip


class StoreError(RuntimeError):
    """The place where an index is kept does not answer."""


class Known(Protocol):
    """What a run of `add` asks: the files that are known."""

    def file(self, path: str | Path) -> Row | None:
        """What is known of a file, without its frames."""

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """The files among these paths that are known."""

    def files_of(self, digest: str) -> list[Row]:
        """The files of a content, in the order in which they came in."""

    def copies(self) -> list[Row]:
        """Return the files of each content that has more than one."""

    def files_below(self, folder: str | Path) -> list[Row]:
        """The files below a folder."""

    def has_content(self, digest: str) -> bool:
        """Whether a content's clips are there."""

    def sizes(self) -> list[int]:
        """The sizes, each once, of the files that could be read."""


class State(Known, Protocol):
    """What a search asks of a snapshot."""

    @property
    def table(self) -> Any:
        """The `Known` of this state."""

    @property
    def live(self) -> np.ndarray:
        """Positions (N,) int64 of the clips that can be found, in the order in which they are listed."""

    @property
    def total(self) -> int:
        """N."""

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Any = None) -> list[Row]:
        """Return these clips, each with the first of its files that is there and that a filter, if given,
        lets through; with the first one let through where none is there; with an empty path where it has no file."""

    def positions_of(self, path: str | Path) -> list[int]:
        """The clips of a file, in the order of time."""

    def failed(self) -> list[Row]:
        """The files that could not be read, with reasons."""

    @property
    def cut(self) -> bool:
        """Whether a file has more than one clip."""

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """The contents that these clips belong to."""

    def allowed(self, chosen: Any) -> Any:
        """The clips with a file that a filter lets through, as the first stage takes it; None: all."""

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are valid
        (n, 1 + F); what follows a clip's last frame is anything."""

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The videos' features (n, D) float16, without their frames."""


class AnyStore(Protocol):
    """What is kept of an index."""

    @property
    def snapshot(self) -> Any:
        """The last complete `State`."""

    @property
    def place(self) -> str:
        """Where it is."""

    def refresh(self) -> None:
        """Take over what other processes have written."""

    def writing(self) -> AbstractContextManager[None]:
        """Write from the last complete state on. A folder has one writer: raises IndexBusyError naming who it is."""

    def commit(self, files: Sequence[Row] = (), clips: Sequence[NewClip] = (), forget: Sequence[str] = ()) -> None:
        """Add clips, add files or replace what is known of them, forget paths: all or nothing."""

    @property
    def segment(self) -> float | None:
        """Seconds of the parts into which longer videos are cut; 0: none is cut."""

    def captions(self) -> tuple[int, list[str]]:
        """The caption list, and where its vectors begin."""

    def caption_vectors(self, first: int, count: int) -> np.ndarray | None:
        """The folded vectors (count, 2D) of captions, where they are kept."""

    def set_captions(self, captions: Sequence[str], vectors: Iterable[np.ndarray]) -> None:
        """Replace the caption list; their folded vectors come in blocks (n, 2D), and are made as they are taken."""

    def verify(self) -> None:
        """Raises ValueError where features are damaged or missing."""


class FirstStage(Protocol):
    """The first stage of a search."""

    def search(self, store: Any, snapshot: Any, query: np.ndarray, number: int, allowed: Any = None) -> list[int]:
        """Positions of the best `number` clips for a query (2D,), best first; of those that the snapshot's
        `allowed` named, if given."""
