"""Join the tiles of a HEIC or AVIF picture: FFmpeg gives each tile as a stream, but PyAV does not tell their grid.

The boxes are those of ISO/IEC 23008-12.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from suma.video.upright import TURNS, Turn, check_size, turned, upright, view_of

MOST_META = 1 << 24  # bytes of the box that describes a picture
UPRIGHT = TURNS[1]
QUARTERS = (TURNS[1], TURNS[8], TURNS[3], TURNS[6])  # counter-clockwise


class Grid(NamedTuple):
    """A picture made of tiles of one size."""

    tiles: tuple[int, ...]  # items, which are FFmpeg's stream ids, row by row
    columns: int
    width: int  # pixels of the whole, before it is turned
    height: int
    turns: tuple[Turn, ...]  # to be applied in this order


def read_grid(path: str) -> Grid | None:
    """Return the grid of a file's main picture, or None if it is not made of tiles, or the file is no HEIF."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            meta = _meta_of(head + file.read(MOST_META)) if head[4:] == b"ftyp" else {}
            return _grid_of(meta, path)
    except (struct.error, IndexError, KeyError):  # damaged: as if there were none
        return None


def join_tiles(path: str, grid: Grid) -> np.ndarray:
    """Return the whole picture, uint8 (h, w, 3). Raises ValueError if a tile is missing or cannot be decoded."""
    import av

    check_size(grid.width, grid.height)
    tiles: dict[int, np.ndarray] = {}
    with av.open(path, metadata_errors="ignore") as container:
        streams = [stream for stream in container.streams.video if stream.id in grid.tiles]
        for stream in streams:
            stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        try:
            packet: Any
            for packet in container.demux(streams):
                for frame in packet.decode():
                    view = view_of(container, packet.stream)._replace(aspect=1.0, turn=UPRIGHT)
                    tiles[packet.stream.id] = upright(frame, view)
        except av.FFmpegError as error:
            raise ValueError(f"a tile of {path} cannot be decoded: {error}") from None
    missing = len(set(grid.tiles) - set(tiles))
    if missing or len({tile.shape for tile in tiles.values()}) != 1:
        raise ValueError(f"{missing} of the {len(grid.tiles)} tiles of {path} are missing, or their sizes differ")
    rows = [
        np.concatenate([tiles[item] for item in grid.tiles[first : first + grid.columns]], 1)
        for first in range(0, len(grid.tiles), grid.columns)
    ]
    picture = np.concatenate(rows)[: grid.height, : grid.width]
    for turn in grid.turns:
        picture = turned(picture, turn)
    return picture


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and content of each box in `data`."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        end = at + size if size else len(data)
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end


def _meta_of(data: bytes) -> dict[bytes, bytes]:
    """Return the boxes inside the file's `meta`."""
    meta = next((content for kind, content in _boxes(data) if kind == b"meta"), b"")
    return dict(_boxes(meta[4:]))


def _grid_of(meta: dict[bytes, bytes], path: str) -> Grid | None:
    """Return the grid that the `meta` boxes describe, or None if the main picture is no grid."""
    if b"pitm" not in meta:
        return None
    main = _number(meta[b"pitm"], 4, 4 if meta[b"pitm"][0] else 2)
    if _kinds(meta[b"iinf"]).get(main) != b"grid":
        return None
    described = _item_bytes(meta, main, path)
    rows, columns = described[2] + 1, described[3] + 1
    width, height = struct.unpack_from(">II" if described[1] & 1 else ">HH", described, 4)
    tiles = _tiles(meta[b"iref"], main)
    return Grid(tiles[: rows * columns], columns, width, height, tuple(_turns(meta[b"iprp"], main)))


def _number(data: bytes, at: int, size: int) -> int:
    """Return `size` bytes as a number. Raises IndexError if the data ends before."""
    if at + size > len(data):
        raise IndexError(f"{size} bytes at {at} of {len(data)}")
    return int.from_bytes(data[at : at + size], "big")


def _kinds(iinf: bytes) -> dict[int, bytes]:
    """Return each item's type."""
    kinds = {}
    for kind, entry in _boxes(iinf[8 if iinf[0] else 6 :]):
        if kind == b"infe" and entry[0] >= 2:
            wide = 4 if entry[0] > 2 else 2
            kinds[_number(entry, 4, wide)] = entry[6 + wide : 10 + wide]
    return kinds


def _tiles(iref: bytes, main: int) -> tuple[int, ...]:
    """Return the items that an item is derived from."""
    wide = 4 if iref[0] else 2
    for kind, entry in _boxes(iref[4:]):
        if kind == b"dimg" and _number(entry, 0, wide) == main:
            count = _number(entry, wide, 2)
            return tuple(_number(entry, wide + 2 + wide * n, wide) for n in range(count))
    return ()


def _turns(iprp: bytes, main: int) -> Iterator[Turn]:
    """Yield an item's rotations and mirrorings, in order."""
    inside = dict(_boxes(iprp))
    properties, owners = list(_boxes(inside[b"ipco"])), inside[b"ipma"]
    wide, index_size = 4 if owners[0] else 2, 2 if owners[3] & 1 else 1
    at = 8
    for _ in range(_number(owners, 4, 4)):
        item, count = _number(owners, at, wide), owners[at + wide]
        at += wide + 1
        for _ in range(count):
            index = _number(owners, at, index_size) & (0x7FFF if index_size == 2 else 0x7F)
            at += index_size
            kind, content = properties[index - 1]
            if item == main and kind == b"irot":
                yield QUARTERS[content[0] & 3]
            elif item == main and kind == b"imir":
                yield TURNS[2] if content[0] & 1 else TURNS[4]


def _item_bytes(meta: dict[bytes, bytes], item: int, path: str) -> bytes:
    """Return an item's own bytes, from the `idat` box or from the file."""
    iloc = meta[b"iloc"]
    version = iloc[0]
    sizes = (iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15 if version else 0)
    offset_size, length_size, base_size, index_size = sizes
    wide = 4 if version == 2 else 2
    at = 6 + wide
    for _ in range(_number(iloc, 6, wide)):
        number = _number(iloc, at, wide)
        at += wide
        in_idat = version and _number(iloc, at, 2) & 15 == 1
        at += 4 if version else 2
        base, extents = _number(iloc, at, base_size), _number(iloc, at + base_size, 2)
        at += base_size + 2
        found = b""
        for _ in range(extents):
            begin = base + _number(iloc, at + index_size, offset_size)
            length = _number(iloc, at + index_size + offset_size, length_size)
            at += index_size + offset_size + length_size
            if number == item and in_idat:
                found += meta[b"idat"][begin : begin + length]
            elif number == item:
                with open(path, "rb") as file:
                    file.seek(begin)
                    found += file.read(min(length, 64))
        if number == item:
            return found
    raise KeyError(item)
