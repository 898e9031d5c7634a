"""A folder of one's own in the app: what is suggested, what is newest, menus of filters, sprites of the tiles."""

import io
import os
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clips import corner_picture, noise_picture, write_video
from PIL import Image
from test_app import clicked

from suma import SUMA, VideoIndex
from suma.app import media
from suma.app.handlers import Handlers
from suma.app.views import changed_query, menus
from suma.index.query import Filter

FILTERS = [
    Filter(folder="sport"),
    Filter(folder="b/sport"),
    Filter(folder="port"),
    Filter(longer=2.0),
    Filter(shorter=1.95, after="2023-01-02"),
    Filter(before="2023-01-02"),
]


@pytest.fixture(scope="module")
def handlers(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    folder = tmp_path_factory.mktemp("films")
    for n, place in enumerate(("a", "a/sport", "b/sport", "b")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        path = folder / place / f"{n}.mp4"
        write_video(path, 18 + n, (48, 32), picture=lambda i, w, h, n=n: noise_picture(99 * n + i, w, h))
        day = datetime(2023, 1, 1 + n % 3, 5).timestamp()
        os.utime(path, (day, day))
    index = VideoIndex(tiny_model)
    index.add(folder)
    return Handlers(index)


def names(shown: Any) -> list[str]:
    return [tile.name for tile in shown]


@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_a_filter_lets_through_what_the_database_does(handlers: Handlers, chosen: Filter):
    snapshot, root = handlers.index.store.snapshot, handlers.gallery.root
    chosen = Filter(chosen.folder, chosen.longer, chosen.shorter, chosen.after, chosen.before, root)
    expected = {row.path for row in snapshot.rows(snapshot.allowed(chosen))}
    assert {row.path for row in snapshot.rows(snapshot.live) if chosen.allows(row)} == expected
    assert len(expected) < 4


def test_the_newest_come_first_and_say_how_many_more_there_are(handlers: Handlers):
    shown, more = handlers.gallery.newest(Filter(), 3)
    assert names(shown)[0] == "2.mp4" and set(names(shown)[1:]) < {"1.mp4", "0.mp4", "3.mp4"} and more == 1
    assert shown[0].date == "2023-01-03"
    assert names(handlers.gallery.newest(Filter(folder="1.mp4"), 3)[0]) == ["1.mp4"]


def test_suggestions_are_the_concepts_that_most_videos_show(handlers: Handlers):
    index, votes = handlers.index, Counter[int]()
    for n in range(4):
        activations = (index.videos([n]).frames[0] @ index.model.concepts().T).max(0)
        for rank, k in enumerate(sorted(range(len(activations)), key=lambda k: -activations[k])[:6], 1):
            votes[k] += 1 / rank
    words = handlers.gallery.examples()
    counts = [votes[index.model.space.concept_of([word], index.model.embed_words)[0]] for word in words]
    assert len(set(words)) == 6 and counts == pytest.approx(sorted(votes.values(), reverse=True)[:6])


def test_a_menu_shows_what_is_typed_and_replaces_only_its_own_part(handlers: Handlers):
    text = "a dog [ball 0.5] in:sport longer:3"
    (_, folder, folders), (_, length, lengths), (_, when, dates) = menus(text, ["sport", "a"], [2023])
    assert (folder, length, when) == ("in:sport", "longer:3", "")
    assert folder in folders.values() and length in lengths.values() and "2023" in dates
    assert [name for name, *_ in menus("a dog", [], [])] == ["length", "date"]
    event = {"kind": "filter", "filter": "length", "value": "shorter:60"}
    assert changed_query(text, event) == "a dog [ball 0.5] in:sport shorter:60"
    results, *_ = handlers.steer("in:a", clicked(kind="filter", filter="folder", value='in:"b/sport"'))[1:]
    assert results.count("data-video") == 1 and 'data-video="2.mp4"' in results


def test_an_answer_of_one_video_is_its_moments(handlers: Handlers):
    found = handlers.search('a dog in:"1.mp4"', 99)
    path = handlers.gallery.names["1.mp4"]
    matches = {match.moment: match for match in handlers.index.search("a dog", 99, within=path)}
    assert {answer["video"] for answer in found} == {"1.mp4"} and 1 <= len(found) < len(matches)
    assert found[0]["moment"] == next(iter(matches)) and all(answer["moment"] in matches for answer in found)
    assert handlers.search('a dog in:"1.mp4"', 99, offset=1) == found[1:]


def test_a_sprite_has_twelve_frames_in_order_and_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(media, "CACHE", tmp_path / "cache")

    def brighter(i: int, w: int, h: int) -> np.ndarray:
        return np.full((h, w, 3), 10 + 10 * i, np.uint8)

    for name, picture in (("rising", brighter), ("noise", noise_picture), ("corner", corner_picture)):
        clip = write_video(tmp_path / f"{name}.mp4", 24, (320, 180), picture=picture, options={"g": "1"})
        row = SimpleNamespace(path=str(clip), digest="", duration=2.4)
        assert media.sprite_key(row)
        data = media._sprite(row)
        assert len(data) < 40_000 and data == media._sprite(row)
        with Image.open(io.BytesIO(data)) as sprite:
            pixels = np.asarray(sprite.convert("L"), np.float32)
        cells = np.array_split(pixels, 12, 1)
        assert pixels.shape[1] % 12 == 0
        if name == "rising":
            assert (np.diff([cell.mean() for cell in cells]) > 5).all()
    assert media.sprite_key(SimpleNamespace(path="photo.jpg", digest="", duration=0.0)) == ""


def test_the_app_takes_up_what_comes_and_goes(tiny_model: SUMA, tmp_path: Path):
    first, second = (write_video(tmp_path / f"{n}.mp4", 8 + n, picture=noise_picture) for n in range(2))
    handlers, told, go = Handlers(VideoIndex(tiny_model)), [], threading.Semaphore(0)

    def changes() -> Any:
        for change in (([str(second)], []), ([], [str(first)])):
            go.acquire(timeout=60)
            yield change
        told.append("end")

    handlers.fill([first], changes())
    for expected in (["0.mp4"], ["0.mp4", "1.mp4"], ["1.mp4"]):
        ends = time.monotonic() + 60
        while sorted(handlers.gallery.names) != expected and time.monotonic() < ends:
            time.sleep(0.01)
        assert sorted(handlers.gallery.names) == expected
        _, again, shown, _, results, *_ = handlers.show_filling("", 0)
        assert shown == len(expected) and results.count("data-video") == shown and (again.active or told)
        go.release()
