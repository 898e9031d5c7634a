"""Share the files of one index among processes or machines: each indexes its part into a folder of its own.

A hash of a file's path below the given folder says which part the file belongs to. So the parts need not talk to each
other, new files leave the others where they are, and machines may see the folder under different names. A part is an
ordinary index; merge.py makes one of all.
"""

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

NOTATION = "write K/N with K from 1 to N, such as 2/8 for the second of eight parts"


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, counted from 1. Raises ValueError unless 1 <= number <= count."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"there is no part {self}: {NOTATION}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Return the part that a text like 2/8 names. Raises ValueError for any other text."""
        if found := re.fullmatch(r"([0-9]+)/([0-9]+)", text):
            return cls(int(found[1]), int(found[2]))
        raise ValueError(f"there is no part {text!r}: {NOTATION}")

    @classmethod
    def of_process(cls, environ: Mapping[str, str]) -> "Part | None":
        """Return this process's part under `accelerate launch` or `torchrun`, which set RANK and WORLD_SIZE.

        None for a single process. Raises ValueError for values that no launcher sets.

        >>> print(Part.of_process({"RANK": "1", "WORLD_SIZE": "4"}), Part.of_process({}))
        2/4 None
        """
        world = environ.get("WORLD_SIZE", "1")
        rank = environ.get("RANK", "0" if world == "1" else "missing")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ValueError(f"RANK={rank} and WORLD_SIZE={world} must be numbers, RANK less than WORLD_SIZE")
        return cls(int(rank) + 1, int(world)) if int(world) > 1 else None

    def holds(self, path: str | Path) -> bool:
        """Return True if a file belongs to this part; `path`: below the folder that was given."""
        name = unicodedata.normalize("NFC", Path(path).as_posix())  # some systems store letters and accents apart
        return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) % self.count == self.number - 1

    def folder(self, output: str | Path) -> Path:
        """Return where the part of an index is kept: beside it."""
        return Path(f"{os.path.abspath(output)}.part-{self.number}-of-{self.count}")

    def merge_command(self, output: str | Path) -> str:
        """Return the command that makes the index of its parts."""
        output = shlex.quote(os.path.abspath(output))
        return f"python -m suma merge {output}.part-*-of-{self.count} -o {output}"


def missing_parts(folders: Iterable[str | Path]) -> list[str]:
    """Return the folders of the parts that are missing among these.

    >>> missing_parts(["a.index", "b.part-1-of-3", "b.part-3-of-3"])
    ['b.part-2-of-3']
    """
    names = [str(folder).rstrip(os.sep) for folder in folders]
    found = [match for name in names if (match := re.fullmatch(r"(.*\.part-)[0-9]+-of-([0-9]+)", name))]
    wanted = [
        f"{start}{k}-of-{n}" for start, n in dict.fromkeys(m.groups() for m in found) for k in range(1, int(n) + 1)
    ]
    return [name for name in wanted if name not in names]
