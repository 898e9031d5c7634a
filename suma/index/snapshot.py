"""What an index in a folder (suma/index/store.py) holds at one moment: files, clips, and their features.

Shapes: N clips, F frames, D joint width; folded vectors have 2D.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from suma.index.catalog import FILE, Database, Row, key


class Snapshot(NamedTuple):
    """The state that a commit left; later ones do not change it."""

    origin: Database  # the same object as long as clips are only added
    commit: int  # its number
    live: np.ndarray  # (N,) int64: positions of the clips that can be found, ascending
    folded: np.ndarray  # (all positions, 2D) float16; of a large index memory-mapped
    cut: bool  # whether a file has more than one clip

    @classmethod
    def last(cls, origin: Database, file: Path, dim: int, before: "Snapshot | None" = None) -> "Snapshot":
        """The last complete state of a database. `file` has the folded vectors, if all of them lie in it; else they are
        read from the database, from where those of the state `before` end."""
        with origin.transaction("BEGIN") as run:
            commit, count, cut = run(
                "SELECT commits, (SELECT coalesce(max(position) + 1, 0) FROM clips),"
                " EXISTS (SELECT 1 FROM clips WHERE start > 0) FROM meta"
            ).fetchone()
            if before and before.commit == commit:
                return before
            died = [position for (position,) in run("SELECT position FROM clips WHERE died IS NOT NULL")]
            newest = run("SELECT folded FROM features WHERE position = ? - 1", [count]).fetchone()
        folded = _mapped(file, count, newest[0]) if newest else None
        if folded is None:
            known = before.folded if before else np.zeros((0, 2 * dim), np.float16)
            rest = "SELECT folded FROM features WHERE position >= ? AND position < ? ORDER BY position"
            content = b"".join(vector for (vector,) in origin.all(rest, [len(known), count]))
            folded = np.concatenate([known, np.frombuffer(content, np.float16).reshape(-1, 2 * dim)])
        return cls(origin, commit, np.delete(np.arange(count), died), folded, bool(cut))

    @property
    def table(self) -> "Snapshot":
        """What is known of the files."""
        return self

    @property
    def total(self) -> int:
        """N."""
        return len(self.live)

    # ---- files -----------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> str:
        return f"files.born <= {self.commit} AND (files.died IS NULL OR files.died > {self.commit})"

    def files(self, condition: str = "1", values: Sequence[object] = ()) -> list[Row]:
        """The files that an SQL condition names, in the order in which they came in."""
        sql = f"SELECT {FILE} FROM files WHERE ({condition}) AND {self._alive} ORDER BY id"
        return [Row(self.origin.path(f[0]), f[1], f[2], f[3], f[4], [], f[5]) for f in self.origin.all(sql, values)]

    def file(self, path: str | Path) -> Row | None:
        """What is known of a file, by any spelling of its path, without its frames."""
        for name in dict.fromkeys((key(path), os.path.abspath(path))):  # the second: of an index not yet respelled
            for stored in dict.fromkeys((self.origin.stored(name), os.fsencode(name))):
                if found := self.files("path = ?", [stored]):
                    return found[0]
        return None

    def files_at(self, paths: Sequence[str]) -> dict[str, Row]:
        """The files among these paths, as `key` names them, that are known."""
        found = {path: self.files("path = ?", [self.origin.stored(path)]) for path in paths}
        return {path: rows[0] for path, rows in found.items() if rows}

    def paths(self) -> list[str]:
        """The paths of all files."""
        return [self.origin.path(p) for (p,) in self.origin.all(f"SELECT path FROM files WHERE {self._alive}")]

    def files_of(self, digest: str) -> list[Row]:
        """The files of a content, in the order in which they came in."""
        return self.files("digest = ?", [digest])

    def copies(self) -> list[Row]:
        """The files of each content that has more than one."""
        several = f"SELECT digest FROM files WHERE digest != '' AND {self._alive} GROUP BY digest HAVING count(*) > 1"
        return self.files(f"digest IN ({several})")

    def files_below(self, folder: str | Path) -> list[Row]:
        """The files below a folder."""
        return self.files(*self.origin.below(folder))

    def sizes(self) -> list[int]:
        """The sizes, each once, of the files that could be read, also of those that were forgotten."""
        return [size for (size,) in self.origin.all("SELECT DISTINCT size FROM files WHERE reason = ''")]

    def failed(self) -> list[Row]:
        """The files that could not be read, with reasons."""
        return self.files("reason != ''")

    # ---- clips -----------------------------------------------------------------------------------------------------

    def rows(self, positions: Sequence[int] | np.ndarray, chosen: Any = None) -> list[Row]:
        """These clips, each with the first of its files that is there and that a filter (query.Filter), if given, lets
        through; with the first one let through where none is there; with an empty path where it has no file."""
        condition, values = chosen.condition(self.origin) if chosen else ("", [])
        found: dict[int, list[tuple[Any, ...]]] = {}
        sql = (
            "SELECT position, path, size, mtime, clips.digest, duration, times, start, stop FROM clips"
            f" JOIN files ON files.digest = clips.digest WHERE position IN ({{}}) AND ({condition or 1})"
            f" AND {self._alive} ORDER BY files.id"
        )
        for position, path, *more in self.origin.each(sql, positions, values):
            found.setdefault(position, []).append((self.origin.path(path), *more))
        rows = []
        for position in positions:
            copies = found.get(int(position), [("", 0, 0.0, "", 0.0, b"", 0.0, 0.0)])
            there = (copy for copy in copies if len(copies) == 1 or os.path.exists(copy[0]))
            path, size, mtime, digest, duration, times, start, stop = next(there, copies[0])
            when, reason = np.frombuffer(times, np.float64).tolist(), "" if path else "removed"
            rows.append(Row(path, size, mtime, digest, duration, when, reason, start, stop))
        return rows

    def digests(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """The contents that these clips belong to."""
        found = dict(self.origin.each("SELECT position, digest FROM clips WHERE position IN ({})", positions))
        return [found[int(p)] for p in positions]

    def clips_of(self, digest: str) -> list[int]:
        """The clips of a content, in the order of time."""
        sql = (
            f"SELECT position FROM clips WHERE digest = ? AND position < {len(self.folded)}"
            f" AND (died IS NULL OR died > {self.commit}) ORDER BY start, position"
        )
        return [position for (position,) in self.origin.all(sql, [digest])] if digest else []

    def positions_of(self, path: str | Path) -> list[int]:
        """The clips of a file, in the order of time."""
        known = self.file(path)
        return self.clips_of(known.digest) if known else []

    def has_content(self, digest: str) -> bool:
        """Whether a content's clips are there."""
        return bool(self.clips_of(digest))

    def allowed(self, chosen: Any) -> np.ndarray | None:
        """Positions (n,) int64, ascending, of the clips with a file that a filter (query.Filter) lets through;
        None: all."""
        condition, values = chosen.condition(self.origin)
        if not condition:
            return None
        condition += f" AND {self._alive}"
        sql = f"SELECT position FROM clips JOIN files ON files.digest = clips.digest WHERE {condition}"
        found = np.array([position for (position,) in self.origin.all(sql, values)], np.int64)
        return np.intersect1d(found, self.live)

    def gather(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, 1 + F, D) float16, the videos' first, their scales (n, 1 + F) float32, and which are valid
        (n, 1 + F); what follows a clip's last frame is 0."""
        sql = "SELECT position, video, frames, scales FROM features WHERE position IN ({})"
        found = {position: parts for position, *parts in self.origin.each(sql, positions)}
        chosen = [found[int(p)] for p in positions]
        counts = np.array([len(scales) // 4 for *_, scales in chosen], np.int64)
        valid = np.arange(counts.max(initial=1)) < counts[:, None]
        features = np.zeros((*valid.shape, self.folded.shape[1] // 2), np.float16)
        all_scales = np.zeros(valid.shape, np.float32)
        content = b"".join(part for video, frames, _ in chosen for part in (video, frames))
        features[valid] = np.frombuffer(content, np.float16).reshape(-1, features.shape[2])
        all_scales[valid] = np.frombuffer(b"".join(scales for *_, scales in chosen), np.float32)
        return features, all_scales, valid

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The videos' features (n, D) float16, without their frames."""
        found = dict(self.origin.each("SELECT position, video FROM features WHERE position IN ({})", positions))
        content = b"".join(found[int(p)] for p in positions)
        return np.frombuffer(content, np.float16).reshape(len(positions), self.folded.shape[1] // 2)


def _mapped(file: Path, count: int, last: bytes) -> np.ndarray | None:
    """The first vectors (count, 2D) of a file, memory-mapped; None where it has fewer, or another `last` one."""
    with contextlib.suppress(OSError):
        if file.stat().st_size >= count * len(last):
            found = np.memmap(file, np.float16, "r", shape=(count, len(last) // 2)).view(np.ndarray)  # sliced faster
            return found if found[-1].tobytes() == last else None
    return None
