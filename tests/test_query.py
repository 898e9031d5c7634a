"""What is typed is read as it is documented, means what is documented, and a plain sentence stays one."""

import math
import os
import shutil
import time
import unicodedata
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from clips import noise_picture, write_video
from PIL import Image
from stored import DIM, clip
from tensors import texts_of, videos_of

from suma import SUMA, Filter, VideoIndex, read_frames
from suma.explain import explain
from suma.index.query import MAX_TERMS, Query, concepts_of, parse
from suma.index.store import Store
from suma.model.encoder import Queries

PLAIN = [
    "a dog runs",
    "a well-known man",
    'he says "hello" to a dog',
    "it's a dog's life",
    "a man - a dog -- a cat",
    "at -5 degrees, +1 for 10^2",
    'an "unfinished quote',
    "news at 10:30: a story in: the house",
    "a dog [runs] (ball)",
    "\u72ac \U0001f415",
    "-",
    '"',
    '""',
    "^2",
    "longer: than",
    "e-mail and t-shirt -",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_sentence_stays_as_it_is(text: str):
    assert parse(text) == Query(text)
    assert parse(f"  {text}\n").sentence == text


@pytest.mark.parametrize(
    ("typed", "sentence", "terms"),
    [
        ("dog +beach -night", "dog", [("beach", 1), ("night", -1)]),
        ('a man +"red car" -"two dogs"^0.5, or so', "a man or so", [("red car", 1), ("two dogs", -0.5)]),
        ('a man -"two dogs and +"cat', 'a man -"two dogs and +"cat', []),
        ('a man +"red car"^2 -"two dogs"^.5', "a man", [("red car", 2), ("two dogs", -0.5)]),
        ("a dog^2 runs", "a dog runs", [("dog", 1)]),
        ('a "red car"^3 at night^1', "a red car at night", [("red car", 2)]),
        ("a dog^0.25 runs", "a dog runs", [("dog", -0.75)]),
        ("-night", "", [("night", -1)]),
        ("-well-known man", "man", [("well-known", -1)]),
        ("+\u00e9t\u00e9 -night,", "", [("\u00e9t\u00e9", 1), ("night", -1)]),
    ],
)
def test_terms_and_weights(typed: str, sentence: str, terms: list[tuple[str, float]]):
    assert parse(typed) == Query(sentence, tuple(terms))


def test_filters_steering_and_the_least_score_are_words_of_the_query():
    found = parse(
        'a dog [snow -1] in:"my films/2024" longer:10 shorter:60.5 after:2024-01-31 before:2024-03-01 score:.2'
    )
    assert found.sentence == "a dog" and found.weights == (("snow", -1.0),) and found.min_score == 0.2
    assert found.filter == Filter("my films/2024", 10, 60.5, "2024-01-31", "2024-03-01")
    narrower = parse("x longer:5 longer:20 after:2024-01-31 after:20240201 before:2024-05-01 before:2025-01-01").filter
    assert narrower == Filter("", 20, math.inf, "20240201", "2024-05-01")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("a longer:ten", "longer: takes a number, like longer:10, not 'ten'"),
        ("a score:x", "score: takes a number"),
        ("a after:now", "after: takes a date, like after:2024-01-31, not .now."),
        ("a before:2024-13", "date"),
        ("a in:one in:two", "one folder at a time"),
        ("a^11 b", "10 at most"),
        ("x longer:-1", "lengths in seconds"),
        (" ".join(f"+w{n}" for n in range(MAX_TERMS + 1)), "too many"),
        ("a shorter:nan", "takes a number"),
    ],
)
def test_what_cannot_be_meant_is_told(typed: str, told: str):
    with pytest.raises(ValueError, match=told):
        parse(typed)


# What a query means


def test_a_plain_query_is_the_models_own_text(tiny_model: SUMA):
    for mine, plain in zip(
        parse("a dog runs").texts(tiny_model), tiny_model.encode_queries(["a dog runs"]), strict=True
    ):
        assert np.array_equal(mine, plain)


def test_terms_add_up_before_the_score(tiny_model: SUMA):
    texts = parse('a dog^3 runs +"red ball" -night^0.5').texts(tiny_model)
    s, a, _ = tiny_model.encode_queries(["a dog runs", "dog", "red ball", "night"])
    naive = s[0] + 2 * s[1] + s[2] - 0.5 * s[3]
    anchor = a[0] + 2 * a[1] + a[2] - 0.5 * a[3]
    assert texts.features[0] == pytest.approx(naive / np.linalg.norm(naive), abs=1e-6)
    assert texts.anchors[0] == pytest.approx(anchor / np.linalg.norm(anchor), abs=1e-6)
    steered = parse('a dog^3 runs +"red ball" -night^0.5 [snow -1]').texts(tiny_model)
    snow = tiny_model.space.concept_of(["snow"], tiny_model.embed_words)[0]
    anchor = anchor / np.linalg.norm(anchor)
    anchor[snow] = -1
    assert steered.anchors[0] == pytest.approx(anchor / np.linalg.norm(anchor), abs=1e-6)


def test_what_is_nothing_is_told(tiny_model: SUMA):
    for typed, told in (("", "empty"), ("longer:10", "empty"), ("dog -dog", "cancel"), ("[snow 0]", None)):
        if told is None:
            parse(typed).texts(tiny_model)
            continue
        with pytest.raises(ValueError, match=told):
            parse(typed).texts(tiny_model)
    features, anchors, _ = parse("-night").texts(tiny_model)
    night = tiny_model.encode_queries(["night"])
    assert features == pytest.approx(-night.features, abs=1e-6) and anchors == pytest.approx(-night.anchors, abs=1e-6)


# Who may answer


@pytest.fixture(scope="module")
def index(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    """Eight clips of 1 to 8 seconds: in `cats` and `dogs/small` by turns, and of January 1st to 8th, 2024, at noon."""
    folder = tmp_path_factory.mktemp("query") / "films"
    for n in range(8):
        path = folder / ("cats" if n % 2 else "dogs/small") / f"{n}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames=10 * (n + 1), picture=lambda i, w, h, n=n: noise_picture(1000 * n + i, w, h))
        when = datetime(2024, 1, n + 1, 12).timestamp()
        os.utime(path, (when, when))
    index = VideoIndex(tiny_model)
    index.add(folder)
    index.save(folder.parent / "index")
    return index


def found(index: VideoIndex, query: str, **options: object) -> list[int]:
    """The numbers of the clips that answer, sorted."""
    return sorted(int(Path(match.path).stem) for match in index.search(query, 20, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "chosen", "numbers"),
    [
        ("", Filter(), range(8)),
        ("in:cats", Filter("cats"), (1, 3, 5, 7)),
        ("in:small", Filter("small"), (0, 2, 4, 6)),
        ("in:dogs/small", Filter("dogs/small/"), (0, 2, 4, 6)),
        ("in:films", Filter("films"), range(8)),
        ("in:film", Filter("film"), ()),
        ("in:mall", Filter("mall"), ()),
        ("longer:3 shorter:5", Filter(longer=3, shorter=5), (2, 3, 4)),
        ("after:2024-01-03 before:2024-01-06", Filter(after="2024-01-03", before="2024-01-06"), (2, 3, 4)),
        ("in:cats longer:5", Filter("cats", 5), (5, 7)),
    ],
)
def test_filters_as_words_and_as_arguments(index: VideoIndex, words: str, chosen: Filter, numbers: tuple[int, ...]):
    assert found(index, f"a dog {words}") == found(index, "a dog", filter=chosen) == list(numbers)
    best = index.search("a dog", 20)
    allowed = [match for match in best if int(Path(match.path).stem) in numbers]
    assert index.search(f"a dog {words}", 20) == allowed  # the others keep their order and scores
    similar = index.similar(best[0].path, 20, filter=chosen)
    assert {int(Path(m.path).stem) for m in similar} == set(numbers) - {int(Path(best[0].path).stem)}


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system's clock cannot be set for one process")
@pytest.mark.parametrize(("zone", "hours"), [("UTC0", 0), ("JST-9", 9), ("PST8", -8)])
def test_a_day_begins_at_midnight_of_the_local_clock(tmp_path: Path, zone: str, hours: int):
    midnight = datetime(2024, 1, 31, tzinfo=timezone(timedelta(hours=hours))).timestamp()
    store, pairs = Store.create(tmp_path / "index", "model", DIM), [clip(1), clip(2)]
    dated = zip(pairs, (midnight - 1, midnight), strict=True)
    store.commit([replace(row, mtime=when) for (row, _), when in dated], [made for _, made in pairs])

    def chosen(**days: str) -> list[int]:
        return store.snapshot.allowed(Filter(**days)).tolist()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        days = ("2024-01-30", "2024-01-31", "2024-02-01")
        after, before = ([chosen(**{name: day}) for day in days] for name in ("after", "before"))
    time.tzset()
    assert after == [[0, 1], [1], []] and before == [[], [0], [0, 1]]


def test_a_folder_may_be_absolute_and_outside_the_index_too(index: VideoIndex, tmp_path: Path, tiny_model: SUMA):
    films = Path(index.rows[0].path).parents[1 if "cats" in index.rows[0].path else 2]
    assert found(index, f"a dog in:{films / 'cats'}") == [1, 3, 5, 7]
    assert found(index, f"a dog in:{films.parent}") == list(range(8)) and found(index, "a dog in:/elsewhere") == []
    shutil.copytree(films / "cats", tmp_path / "far" / "c\u00e4ts")
    other = VideoIndex(tiny_model)  # its folder is elsewhere, so its paths are absolute
    other.add(tmp_path / "far")
    assert found(other, "a dog in:c\u00e4ts") == found(other, "a dog in:far/c\u00e4ts") == [1, 3, 5, 7]
    rooted = Filter("far", root=str(tmp_path / "far"))
    assert found(other, "a dog", filter=rooted) == []  # its name is above the root
    assert found(other, "a dog", filter=Filter("c\u00e4ts", root=str(tmp_path / "far"))) == [1, 3, 5, 7]


@pytest.mark.parametrize(("stored", "typed"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_are_found_whether_their_accents_are_composed_or_not(
    index: VideoIndex, tmp_path: Path, tiny_model: SUMA, stored: str, typed: str
):
    folder = tmp_path / unicodedata.normalize(stored, "\u00dcberblick") / "a"
    shutil.copytree(Path(index.search("a dog in:cats", 1)[0].path).parent, folder)
    (folder / "1.mp4").rename(folder / unicodedata.normalize(stored, "caf\u00e9.mp4"))
    name = unicodedata.normalize(typed, "\u00dcberblick")
    cafe = str(tmp_path / name / "a" / unicodedata.normalize(typed, "caf\u00e9.mp4"))
    mine = VideoIndex(tiny_model)
    mine.add(tmp_path / name)  # of find_videos too
    for inside in (name, f"{name}/a", tmp_path / name):
        assert (
            len(mine.search(f"a dog in:{inside}", 9)) == len(mine.search("a dog", 9, filter=Filter(str(inside)))) == 4
        )
    assert parse("a in:caf\u00e9 in:cafe\u0301").filter == Filter("caf\u00e9")
    assert len(mine.similar(cafe, 9)) == 3 and cafe not in [match.path for match in mine.similar(cafe, 9)]
    assert mine.search("a dog", 1, within=cafe) and mine.parts(cafe)[0][0].path == mine.rows[mine.row_of(cafe)].path
    assert VideoIndex(tiny_model).parts(cafe)[0][0].duration  # also of a file that is not in the index
    assert mine.remove([cafe]) == 1 and len(mine) == 3


def test_a_decomposed_query_is_the_composed_one(tiny_model: SUMA):
    typed = '\u00e9t\u00e9 -"caf\u00e9 noir"^2 [se\u00f1or 0.5] in:\u00dcberblick'
    assert parse(unicodedata.normalize("NFD", typed)) == parse(typed)
    steered = concepts_of(tiny_model, {unicodedata.normalize("NFD", "Se\u00f1or"): 0.5})
    assert steered == concepts_of(tiny_model, {"se\u00f1or": 0.5})


def test_a_filter_follows_what_is_added_and_removed(tiny_model: SUMA, index: VideoIndex, tmp_path: Path):
    films = Path(index.search("a dog in:cats", 1)[0].path).parents[1]
    shutil.copytree(films, tmp_path / "films")
    mine = VideoIndex(tiny_model)
    mine.add(tmp_path / "films" / "cats")
    assert found(mine, "a dog in:cats") == [1, 3, 5, 7] and found(mine, "a dog in:dogs") == []
    mine.add(tmp_path / "films")
    assert found(mine, "a dog in:dogs") == [0, 2, 4, 6]
    mine.remove([tmp_path / "films" / "cats" / "3.mp4"])
    assert found(mine, "a dog in:cats") == [1, 5, 7]


def test_pages_fit_together(index: VideoIndex):
    whole = index.search("a dog", 8)
    assert [m for offset in (0, 3, 6, 9) for m in index.search("a dog", 3, offset=offset)] == whole
    path = whole[2].path
    similar = index.similar(path, 8)
    assert [m for offset in (0, 3, 6) for m in index.similar(path, 3, offset=offset)] == similar and len(similar) == 7
    for bad in ({"offset": -1}, {"top_k": 0}):
        with pytest.raises(ValueError, match=r"offset|top_k"):
            index.search("a dog", **{"top_k": 3, **bad})


def test_a_least_score_as_a_word_and_as_an_argument(index: VideoIndex):
    whole = index.search("a dog", 8)
    least = whole[3].score
    kept = [m for m in whole if m.score >= least]
    assert index.search("a dog", 8, min_score=least) == index.search(f"a dog score:{least}", 8) == kept
    assert 4 <= len(kept) < 8 and index.search("a dog", 8, min_score=1.1) == []
    assert index.similar(whole[0].path, 8, min_score=1.1) == []


def test_searching_within_one_video_answers_with_its_frames(index: VideoIndex, tiny_model: SUMA, tmp_path: Path):
    path = index.search("a dog", 1)[0].path
    row, video = index.read(path)
    scores = index.scorer.frame_scores(index.scorer.fold_texts(tiny_model.encode_queries(["a dog"])), video)[0, 0]
    expected = dict(zip(row.times, scores.tolist(), strict=False))
    moments = index.search("a dog", 20, within=path)
    assert {m.moment: m.score for m in moments} == pytest.approx(expected, abs=1e-4)
    assert [m.score for m in moments] == sorted((m.score for m in moments), reverse=True)
    assert {m.path for m in moments} == {path} and moments[0].moment == index.search("a dog", 1)[0].moment
    assert index.search("a dog", 2, offset=1, within=path) == moments[1:3]
    shutil.copy(path, tmp_path / "outside.mp4")
    outside = VideoIndex(tiny_model).search("a dog", 20, within=tmp_path / "outside.mp4")
    assert {m.moment: m.score for m in outside} == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="filters and min_confidence choose among videos"):
        index.search("a dog longer:3", within=path)


def test_the_score_of_a_query_is_the_models_and_its_explanation_adds_up(index: VideoIndex, tiny_model: SUMA):
    typed = "a dog^2 runs -snow^0.5 +cat [ball 0.8]"
    texts = parse(typed).texts(tiny_model)
    matches = {match.path: match.score for match in index.search(typed, 8)}
    scores = tiny_model.score(texts_of(texts), videos_of(tiny_model, index.videos(range(8))))[0]
    assert [matches[row.path] for row in index.rows] == pytest.approx(scores.tolist(), abs=1e-4)
    why = explain(index, index.rows[0].path, typed)
    assert why.score == pytest.approx(float(scores[0]), abs=1e-5) == pytest.approx(sum(why.shares.values()))


def test_a_subtracted_video_falls_and_an_added_one_rises(index: VideoIndex, tiny_model: SUMA, monkeypatch):
    """Texts that mean the clips themselves: taking one away from the sum of two leaves the other."""
    videos = videos_of(tiny_model, index.videos(range(8)))
    known = {f"clip{n}": n for n in range(8)}

    def queries(sentences: list[str]) -> Queries:
        at = [known[s] for s in sentences]
        return Queries(videos.features[at].numpy(), videos.concepts[at].numpy())

    monkeypatch.setattr(tiny_model, "encode_queries", queries)

    def ahead(query: str) -> float:
        """By how much the fifth clip is ahead of the second."""
        scores = {match.path: match.score for match in index.search(query, 8)}
        return scores[index.rows[5].path] - scores[index.rows[2].path]

    assert ahead("clip2 +clip5^2") > ahead("clip2") > ahead("clip2 -clip5^0.5")
    assert parse("clip2 +clip5 -clip5").texts(tiny_model).features[0] == pytest.approx(videos.features[2], abs=1e-5)


def test_an_image_asks_like_a_video(index: VideoIndex, tmp_path: Path):
    still = tmp_path / "still.png"
    Image.fromarray(read_frames(index.rows[6].path, 12).frames[5]).save(still)
    whole = index.similar(still, 8)
    small = [match for match in whole if "/small/" in match.path]
    assert len(whole) == 8 and index.similar(still, 8, filter=Filter("small")) == small
    assert index.similar(still, 2, offset=1, filter=Filter("small")) == small[1:3]
    assert index.similar(still, 8, min_score=small[1].score, filter=Filter("small"))[:2] == small[:2]


@pytest.mark.parametrize(
    ("typed", "notes"),
    [
        ("a dog runs", []),
        ("a dgo runs", []),  # shorter than 5 letters
        ("a ktichen +snwo -snows", ["'ktichen' read as 'kitchen'", "'snows' read as 'snow'"]),
        ("a dog without a leash", ["'without' is not understood: type -leash for videos without it"]),
        ("a dog that is not runing", ["'not' is not understood: type -runing for videos without it"]),
        ("nobody says no", []),
    ],
)
def test_slips_and_negations_are_told(tiny_model: SUMA, typed: str, notes: list[str]):
    assert parse(typed).notes(tiny_model.space) == notes
