"""What an index in a folder (suma/index/store.py) holds at one moment: files, clips, and their features, memory-mapped.

Shapes: N clips, M feature rows, F frames, D joint width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from suma.index.catalog import Moment, Row, RowTable


class Snapshot(NamedTuple):
    """The last complete state at some moment; a writer that goes on does not change it."""

    table: RowTable
    live: np.ndarray  # (N,) int64: positions of the clips that can be found, ascending
    features: np.ndarray  # (M, D) float16, memory-mapped
    folded: np.ndarray  # (all positions, 2D) float16, memory-mapped
    scales: np.ndarray  # (M,) float32, memory-mapped
    captions: np.ndarray  # (lines, 2D) float16, memory-mapped
    cut: bool  # whether a file has more than one clip
    at: Moment  # the state of the files

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Any = None) -> list[Row]:
        """Return these clips, each with the first of its files that is there and that a filter (query.Filter), if
        given, lets through; with the first one let through where none is there."""
        condition, values = chosen.condition(self.table) if chosen else ("", [])
        return self.table.rows(positions, self.at, condition, values)

    def file(self, path: str | Path) -> Row | None:
        """What is known of a file, without its frames."""
        return self.table.file(path, self.at)

    def positions_of(self, path: str | Path) -> list[int]:
        """The clips of a file, in the order of time."""
        known = self.file(path)
        sql = "SELECT position FROM clips WHERE digest = ? ORDER BY start, position"
        found = self.table.all(sql, [known.digest]) if known and known.digest else []
        return [position for (position,) in found if self.is_live(position)]

    @property
    def total(self) -> int:
        """N."""
        return len(self.live)

    def failed(self) -> list[Row]:
        """The files that could not be read, with reasons."""
        return self.table.files("reason != ''", at=self.at)

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """The contents that these clips belong to."""
        return self.table.digests(positions)

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are valid
        (n, 1 + F); what follows a clip's last frame is anything."""
        spans = np.array(self.table.spans(positions), np.int64).reshape(-1, 2)
        order = np.arange(1 + spans[:, 1].max(initial=0))
        valid = order <= spans[:, 1:]
        at = np.where(valid, spans[:, :1] + order, 0)
        features = np.take(self.features, at.ravel(), axis=0).reshape(*at.shape, self.features.shape[1])
        return features, np.take(self.scales, at), valid

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The videos' features (n, D) float16, without their frames."""
        return self.features[[first for first, _ in self.table.spans(positions)]]

    def is_live(self, position: int) -> bool:
        """Whether a clip can be found."""
        at = int(np.searchsorted(self.live, position))
        return at < len(self.live) and int(self.live[at]) == position

    def allowed(self, chosen: Any) -> np.ndarray | None:
        """Positions (n,) int64, ascending, of the clips with a file that a filter (query.Filter) lets through;
        None: all."""
        condition, values = chosen.condition(self.table)
        return self.select(condition, values) if condition else None

    def select(self, condition: str, values: Sequence[object]) -> np.ndarray:
        """Positions (n,) int64, ascending, of the clips with a file of which an SQL condition holds."""
        return np.intersect1d(self.table.select(condition, values, self.at), self.live, assume_unique=True)
