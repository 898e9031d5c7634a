"""Clips whose features are a number, put into a store and read back; without torch, which is slow to import."""

import numpy as np

from suma.index.storage import NewClip, Row
from suma.index.store import Store

DIM = 8


def clip(number: int, frames: int = 3) -> tuple[Row, NewClip]:
    """A file and its clip, all of whose features are its number."""
    row = Row(f"/videos/{number}.mp4", 100 + number, 1.5, f"digest {number}", 4.0)
    times = [0.5 + f for f in range(frames)]
    features, folded = np.full((1 + frames, DIM), number), np.full(2 * DIM, number)
    return row, NewClip(row.digest, 0.0, 4.0, times, features, folded, np.full(1 + frames, number))


def fill(store: Store, *numbers: int) -> None:
    rows, clips = zip(*map(clip, numbers), strict=True)
    store.commit(rows, clips)


def held(store: Store) -> list[int]:
    """The numbers of the clips that can be found, checked wherever they stand."""
    snapshot, numbers = store.snapshot, []
    found = zip(snapshot.live, snapshot.rows(snapshot.live), *snapshot.gather(snapshot.live), strict=True)
    for position, row, features, scales, valid in found:
        number = int(row.digest.split()[1])
        assert row.path == f"/videos/{number}.mp4" and row.times == [0.5, 1.5, 2.5]
        assert valid.sum() == 4 and (features[valid] == number).all() and (scales[valid] == number).all()
        assert (snapshot.folded[position] == number).all() and (snapshot.vectors([position]) == number).all()
        assert snapshot.positions_of(row.path) == [position] and snapshot.file(row.path).digest == row.digest
        numbers.append(number)
    return numbers
