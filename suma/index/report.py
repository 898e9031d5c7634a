"""What adding or merging did, by path, and the lines that tell it."""

from collections import Counter
from dataclasses import dataclass, field


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

    def summary(self) -> str:
        """Return the counts as one line.

        >>> Report(added=["a.mp4", "b.mp4"], moved={"c.mp4": "d.mp4"}).summary()
        '2 added, 0 unchanged, 0 failed, 1 moved'
        """
        line = f"{len(self.added)} added, {len(self.skipped)} unchanged, {len(self.failed)} failed"
        for name in ("moved", "duplicates", "missing", "excluded", "pruned", "out_of_reach"):
            count = len(getattr(self, name))
            line += f", {count} {name.replace('_', ' ')}" * bool(count)
        return line

    def notes(self) -> list[str]:
        """Return a line for each folder that could not be read, or whose videos are out of reach."""
        lines = [f"not read: {path}: {reason}" for path, reason in self.unreadable.items()]
        counts = Counter(self.out_of_reach.values())
        return lines + [f"out of reach, and kept in the index: {n} videos of {why}" for why, n in counts.items()]
