"""Read Flash videos that were appended to one another as one; FFmpeg stops at the second header."""

import os
import re
from bisect import bisect_right

HEADER = re.compile(rb"FLV\x01[\x00-\x05]\0\0\0\x09\0\0\0\0")  # of a file, with the size of no tag before it
SIZE, BLOCK = 13, 1 << 20  # bytes: of a header; searched at once


class Joined:
    """A file without the headers in its middle, which begin at `places` (bytes). It can be read and sought."""

    def __init__(self, path: str, places: list[int]):
        self._path, self._at = path, 0
        self._starts = [place - SIZE * n for n, place in enumerate(places)]  # what follows each header begins there
        self._size = os.path.getsize(path) - SIZE * len(places)

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, up to the next header."""
        n = bisect_right(self._starts, self._at)
        with open(self._path, "rb") as file:
            file.seek(self._at + SIZE * n)
            data = file.read(max(0, min(size, (*self._starts, self._size)[n] - self._at)))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place and return it."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._at


def joined(path: str) -> Joined | None:
    """Return the file as one recording, or None if it is no Flash video, or only a single one."""
    places, at, kept = [], 0, b""
    with open(path, "rb") as file:
        if file.peek(3)[:3] != b"FLV":
            return None
        while block := kept + file.read(BLOCK):
            places += [at + found.start() for found in HEADER.finditer(block)]
            if len(block) < SIZE:
                break
            kept = block[1 - SIZE :]
            at += len(block) - len(kept)
    return Joined(path, places[1:]) if len(places) > 1 else None
