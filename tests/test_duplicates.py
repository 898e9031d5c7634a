"""Doubles are found by their frames in the order of time, here by made features (real: tests/bench/duplicates.py)."""

from pathlib import Path

import numpy as np
import pytest

from suma.index.duplicates import SLOTS, groups, likeness, time_maps
from suma.index.storage import NewClip, Row
from suma.index.store import Store

DIM, FINE = 32, 120  # moments of a made video, of which twelve are read
RANDOM = np.random.default_rng(0)
COMMON = 2 * RANDOM.normal(size=DIM)  # what all videos have in common


def made(seed: int) -> np.ndarray:
    """A video (FINE, DIM): a scene of its own, in which five things happen one after the other."""
    rng = np.random.default_rng(seed)
    scene, events = rng.normal(size=DIM), rng.normal(size=(6, DIM))
    at = np.linspace(0, 4.999, FINE)
    share = (at % 1)[:, None]
    return COMMON + scene + (1 - share) * events[at.astype(int)] + share * events[at.astype(int) + 1]


def frames(video: np.ndarray, start: float = 0, stop: float = 1, noise: float = 0.2, count: int = SLOTS) -> np.ndarray:
    """The frames that an index reads of this part of a video, encoded anew."""
    at = start + (np.arange(count) + 0.5) / count * (stop - start)
    return video[(at * FINE).astype(int)] + noise * RANDOM.normal(size=(count, DIM))


def stored(folder: Path, clips: dict[str, list[np.ndarray]], sizes: dict[str, int] | None = None) -> Store:
    """A store of these videos, by name, each with the frames of its parts."""
    store, files, new = Store.create(folder, "model", DIM), [], []
    for name, parts in clips.items():
        files.append(Row(f"/v/{name}.mp4", (sizes or {}).get(name, 1), 1.0, f"digest {name}", 10.0 * len(parts)))
        for n, part in enumerate(parts):
            features = np.concatenate([part.mean(0, keepdims=True), part]).astype(np.float16)
            times, scales = np.arange(len(part)).tolist(), np.ones(len(features), np.float32)
            spans = (10.0 * n, 10.0 * n + 10)
            new.append(NewClip(files[-1].digest, *spans, times, features, np.zeros(2 * DIM, np.float16), scales))
    store.commit(files, new)
    return store


def found(store: Store) -> list[list[str]]:
    return [[Path(row.path).stem for row in files] for files in groups(store.snapshot)]


OTHERS = {f"other{n}": [frames(made(100 + n))] for n in range(20)}


@pytest.mark.parametrize(
    "double",
    [
        frames(made(1)),
        frames(made(1), 0.25, 1),
        frames(made(1), 0, 0.7),
        frames(made(1), 0.1, 0.9, count=9),
        frames(made(1)) + RANDOM.normal(size=DIM) * 0.5,  # a logo
    ],
    ids=["encoded", "start trimmed", "end trimmed", "fewer frames", "shifted"],
)
def test_a_double_is_found(tmp_path: Path, double: np.ndarray):
    assert found(stored(tmp_path / "index", {"one": [frames(made(1))], "two": [double], **OTHERS})) == [["one", "two"]]


def test_neither_other_takes_nor_another_order_nor_a_shared_picture_makes_a_double(tmp_path: Path):
    one, events = made(1), made(1) - COMMON
    scene = events.mean(0)
    clips = {
        "one": one,
        "take": made(2) - (made(2) - COMMON).mean(0) + scene,  # the same scene, in which other things happen
        "turned": one[::-1],
        "title": np.concatenate([one[:40], made(3)[40:]]),  # begins alike
    }
    assert found(stored(tmp_path / "index", {n: [frames(v)] for n, v in clips.items()} | OTHERS)) == []


def test_two_videos_alone_are_compared_too(tmp_path: Path):
    assert found(stored(tmp_path / "a", {"one": [frames(made(1))], "two": [frames(made(1))]})) == [["one", "two"]]
    assert found(stored(tmp_path / "b", {})) == []


def test_copies_stand_with_the_doubles_the_longest_and_largest_first(tmp_path: Path):
    clips = {"a": [frames(made(1))], "b": [frames(made(1))], "c": [frames(made(2))], **OTHERS}
    store = stored(tmp_path / "index", clips, {"a": 5, "b": 9})
    copies = [Row(f"/v/{name}2.mp4", 5, 2.0, f"digest {name}", 10.0) for name in "ac"]
    store.commit(copies)
    assert found(store) == [["b", "a", "a2"], ["c2", "c"]]


def test_long_videos_are_doubles_by_most_of_their_parts(tmp_path: Path):
    film = [made(n) for n in (1, 2, 3, 4)]
    clips = {
        "film": [frames(v) for v in film],
        "cut": [frames(v) for v in film[:3]],
        "trailer": [frames(film[0])],
        **OTHERS,
    }
    assert found(stored(tmp_path / "index", clips)) == [["film", "cut"]]


def test_each_map_of_time_weighs_all_of_one_clip(tmp_path: Path):
    maps = time_maps().reshape(-1, SLOTS, SLOTS)
    assert maps.sum((1, 2)) == pytest.approx(1) and len(maps) < 200
    same = np.eye(SLOTS, dtype=np.float32)[None]
    assert likeness(same, same) == pytest.approx(1) and likeness(same, same[:, ::-1])[0] < 0.3
