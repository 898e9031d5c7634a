"""Steering changes the anchor and nothing else: the same function scores what comes of it."""

import numpy as np
import pytest
from clips import noise_picture, write_video
from tensors import texts_of, videos_of

from suma import SUMA, VideoIndex
from suma.explain import explain
from suma.index.query import MAX_STEERED, Query, concepts_of, parse_steering, unparse_steering
from suma.model.encoder import Queries
from suma.similarity import four_similarities


@pytest.fixture(scope="module")
def index(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    folder = tmp_path_factory.mktemp("steer")
    for n in range(4):
        write_video(folder / f"{n}.mp4", frames=12, picture=lambda i, w, h, n=n: noise_picture(99 * n + i, w, h))
    index = VideoIndex(tiny_model)
    index.add(folder)
    return index


def steered(model: SUMA, sentence: str, weights: dict[str, float]) -> Queries:
    return Query(sentence, weights=tuple(weights.items())).texts(model)


def test_nothing_steered_is_the_plain_search(index: VideoIndex, tiny_model: SUMA):
    assert index.search(steered(tiny_model, "a dog runs", {}), 4) == index.search("a dog runs", 4)


def test_a_weight_replaces_the_anchors_and_the_anchor_has_length_one_again(tiny_model: SUMA):
    plain = tiny_model.encode_queries(["a dog runs"])
    before = plain.anchors[0]
    features, anchors, _ = steered(tiny_model, "a dog runs", {"snow": 0.5, "dog": -1})
    snow, dog = tiny_model.space.concept_of(["snow", "dog"], tiny_model.embed_words)
    assert snow != dog and before[dog] > 0
    expected = before.copy()
    expected[snow], expected[dog] = 0.5, -1.0
    assert anchors[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert features == pytest.approx(plain.features, abs=1e-6)


def test_the_score_is_the_models_score_of_the_changed_anchor(index: VideoIndex, tiny_model: SUMA):
    texts = steered(tiny_model, "a dog runs", {"snow": 0.9, "dog": 0})
    found = {match.path: match.score for match in index.search(texts, 4)}
    scores = tiny_model.score(texts_of(texts), videos_of(tiny_model, index.videos(range(4))))[0]
    assert [found[row.path] for row in index.rows] == pytest.approx(scores.tolist(), abs=1e-4)
    why = explain(index, index.rows[0].path, "a dog runs", texts=texts)
    assert why.score == pytest.approx(float(scores[0]), abs=1e-5)


def test_a_banned_concept_costs_the_videos_that_show_it(index: VideoIndex, tiny_model: SUMA):
    concept = tiny_model.space.concept_of(["snow"], tiny_model.embed_words)[0]
    videos = videos_of(tiny_model, index.videos(range(4)))
    shown = videos.concepts[:, concept]
    banned = four_similarities(texts_of(steered(tiny_model, "", {"snow": -1.0})), videos)
    assert banned.concept_coarse[0].tolist() == pytest.approx((-shown).tolist(), abs=1e-6)
    why = explain(index, index.rows[int(shown.argmax())].path, texts=steered(tiny_model, "", {"snow": -1.0}))
    assert [c.id for c in why.concepts] == [concept] and why.concepts[0].query_weight == -1
    assert (why.concepts[0].part < 0) == (float(shown.max()) > 0)
    assert why.shares["coarse"] == why.shares["fine"] == 0  # no sentence: the original space has no say


def test_words_of_one_concept_are_one_and_unknown_words_go_to_the_nearest(tiny_model: SUMA):
    found = concepts_of(tiny_model, {"Dog": 0.3, "zebra": 0.1})
    assert found[tiny_model.space.concept_of(["dog"], tiny_model.embed_words)[0]] in (0.3, 0.1) and len(found) <= 2


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"two words": 0.5}, "one word"),
        ({"dog": 1.5}, "lie in"),
        ({"dog": float("nan")}, "lie in"),
        ({"": 1.0}, "one"),
        ({f"w{i}": 0.1 for i in range(MAX_STEERED + 1)}, "at most"),
    ],
)
def test_bad_steering_is_refused(tiny_model: SUMA, weights: dict[str, float], told: str):
    with pytest.raises(ValueError, match=told):
        steered(tiny_model, "a dog", weights)
    with pytest.raises(ValueError, match="empty"):
        steered(tiny_model, "", {})


@pytest.mark.parametrize("sentence", ["a dog runs", "", "a [strange query"])
@pytest.mark.parametrize("weights", [{}, {"ball": 0.8, "snow": -1.0}])
def test_text_and_steering_go_both_ways(sentence: str, weights: dict[str, float]):
    assert parse_steering(unparse_steering(sentence, weights)) == (sentence, weights)


def test_what_is_no_steering_stays_in_the_sentence():
    assert parse_steering("a dog [runs] [ball x] (ball 1)") == ("a dog [runs] [ball x] (ball 1)", {})
    assert parse_steering("[BALL 7] dog") == ("dog", {"ball": 1.0})
