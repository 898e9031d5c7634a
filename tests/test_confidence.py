"""How likely a match is right, and when nothing fits."""

import json
import math
from dataclasses import replace
from pathlib import Path

import confidence
import numpy as np
import pytest
from benchmarks import Clip
from data import Part
from stored import clip
from tensors import videos_of

from suma import SUMA, VideoIndex
from suma.__main__ import main
from suma.index.confidence import FEATURES, Calibration, features
from suma.index.query import parse
from suma.similarity import Videos

WEIGHTS = {"bias": -1.0, "score": 2.0, "standing": 0.5, "log_size": -1.0, "known": 1.0}


@pytest.fixture
def index(tiny_model: SUMA, tmp_path: Path) -> VideoIndex:
    """Forty clips of random features, and a model that is calibrated."""
    tiny_model.save_pretrained(tmp_path / "model")
    confidence.write(tmp_path / "model", WEIGHTS | {"least": -99.0})
    index = VideoIndex(SUMA.from_pretrained(tmp_path / "model"))
    index.save(tmp_path / "index")
    random = np.random.default_rng(0)
    rows, clips = [], []
    for n in range(40):
        row, new = clip(n)
        features = random.normal(size=(4, index.model.dim)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        encoded = index.scorer.clips([features])
        folded, norms = index.scorer.fold_videos(encoded)[0], encoded.inverse_norms[0]
        rows.append(row)
        clips.append(new._replace(features=features, folded=folded, scales=norms))
    index.store.commit(rows, clips)
    return index


def least(index: VideoIndex, value: float) -> None:
    """Let another evidence be the least that fits, also for who loads the model."""
    confidence.write(index.folder.parent / "model", WEIGHTS | {"least": value})


def test_a_confidence_is_the_logistic_of_what_the_search_sees(index: VideoIndex):
    """Every clip is in the sample here; of the words one in two is known."""
    best, second = index.search("dog xqzvkw", 2)
    folded = index.scorer.fold_texts(parse("dog xqzvkw").texts(index.model))
    others = (folded @ index.scorer.fold_videos(index.videos(range(40))).T)[0]
    z = (best.score - others.mean()) / (others.std() + 0.02)
    told = -1 + 2 * best.score + 0.5 * z - math.log(40) + 0.5
    assert best.confidence == pytest.approx(1 / (1 + math.exp(-told)), abs=1e-3)
    assert best.calibrated and best.fits and second.confidence < best.confidence


def test_only_what_is_sure_enough_answers_on_request(index: VideoIndex):
    found = index.search("a dog runs", 5)
    between = (found[1].confidence + found[2].confidence) / 2
    assert index.search("a dog runs", 5, min_confidence=between) == found[:2]
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2"):
        index.search("a dog runs", min_confidence=2)


def test_without_weights_a_model_has_generic_ones_and_all_fits(tiny_model: SUMA):
    generic = Calibration(tiny_model.config)
    x = features(np.array([0.9, 0.1]), np.linspace(0, 1, 50), 50, 1.0)
    sure, fits = generic(x)
    assert 0 < sure[1] < sure[0] < 1 and fits.all() and not generic.fitted
    assert generic(x + [0, 5, 0, 0, 0])[0].tolist() == sure.tolist()  # scores mean another thing in each model
    other = Calibration(replace(tiny_model.config, confidence={n: 0.0 for n in FEATURES if n != "known"}))
    assert not other.fitted and other(x)[0].tolist() == sure.tolist()  # weights of other features


def test_the_size_of_a_gallery_lowers_confidence_but_silences_nothing(tiny_model: SUMA):
    calibration = Calibration(replace(tiny_model.config, confidence=WEIGHTS | {"least": 0.0}))
    few, many = (features(np.array([0.5]), np.zeros(9), size, 0.0) for size in (10, 10**6))
    assert calibration(few)[0] > calibration(many)[0] and calibration(few)[1] and calibration(many)[1]


def test_a_calibration_is_no_part_of_a_models_name(tiny_model: SUMA, tmp_path: Path):
    tiny_model.save_pretrained(tmp_path)
    confidence.write(tmp_path, WEIGHTS)
    loaded = SUMA.from_pretrained(tmp_path)
    assert loaded.fingerprint() == tiny_model.fingerprint() and loaded.config.confidence == WEIGHTS
    old = json.loads((tmp_path / "config.json").read_text())
    del old["confidence"]  # of a model of before
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert SUMA.from_pretrained(tmp_path).config.confidence == {}


def test_the_command_line_says_that_nothing_fits(index: VideoIndex, tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["search", str(tmp_path / "index"), "a dog runs", "--model", str(tmp_path / "model")]
    assert main([*command, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert 0 <= shown[0]["confidence"] <= 1 and shown[0]["calibrated"] and shown[0]["fits"]
    assert main([*command, "--min-confidence", "1"]) == 1
    assert capsys.readouterr().err.startswith("Nothing in this gallery fits")
    least(index, 99.0)
    for as_json in ([], ["--json"]):
        assert main([*command, *as_json]) == 1
        out = capsys.readouterr()
        assert out.out == ("[]\n" if as_json else "") and out.err.startswith("Nothing in this gallery fits")
    assert main([*command, "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_api_and_the_page_say_it_too(index: VideoIndex):
    from suma.app.handlers import Handlers

    handlers = Handlers(index)
    assert handlers.search("a dog runs", 1)[0].items() >= {"calibrated": True, "fits": True}.items()
    assert "Nothing in this gallery fits" not in handlers.show_typed("a dog runs")[0]
    assert handlers.search("a dog runs", 3, min_confidence=1) == []
    index._searcher._calibration = Calibration(replace(index.model.config, confidence=WEIGHTS | {"least": 99.0}))
    assert not handlers.search("a dog runs", 1)[0]["fits"]
    page = handlers.show_typed("a dog runs")[0]
    assert "Nothing in this gallery fits. The nearest:" in page and 'class="suma-tiles suma-dim"' in page


# ---- fitting ---------------------------------------------------------------------------------------------------------


class Drawn:
    """Draws the first of all there is, and the longest."""

    def choice(self, captions, number):
        return np.array(captions[:number])

    def integers(self, low, high=None):
        return 0 if high is None else high - 1


def test_right_is_what_shows_all_that_a_query_names():
    told = (("a dog runs home quickly now", "a brown animal"), ("a brown dog barks", "dog"), ("the cat", "the"))
    clips = [Clip(str(n), Path(str(n)), captions, 0, str(n), "") for n, captions in enumerate(told)]
    texts, right = confidence.draw_queries(clips, Drawn())
    assert texts[:2] == ["a dog runs home quickly now", "a dog runs home quickly"] and "the" not in texts
    found = dict(zip(texts, right.tolist(), strict=True))
    assert found["a brown animal"] == [True, False, False] and found["a brown dog barks"] == [False, True, False]
    assert found["dog"] == [True, True, False] and found["the cat"] == [False, False, True]


@pytest.fixture
def encoded(index: VideoIndex) -> Videos:
    return videos_of(index.model, index.videos(range(40)))


def test_galleries_have_a_right_video_or_none(index: VideoIndex, encoded: Videos):
    right = np.zeros((1, 40), bool)
    right[0, 3] = right[0, 5] = True
    trials = confidence.try_queries(index.model, ["a dog", "a cat"], right, encoded)
    assert trials.answerable.tolist() == [True, False, False] and not trials.right[1:].any()
    assert np.exp(trials.x[:, 0, 3]).round().tolist() == [40, 38, 40]
    drawn = confidence.try_queries(index.model, ["a dog", "a cat"] * 20, right, encoded, np.random.default_rng(0))
    sizes = np.exp(drawn.x[:, 0, 3]).round()
    assert drawn.answerable.sum() == 1 and sizes.min() >= 5 and sizes.max() < 40 and len({*sizes}) > 5


def test_a_search_and_a_fit_see_the_same(index: VideoIndex, encoded: Videos):
    trials = confidence.try_queries(index.model, ["a dog runs"], np.zeros((0, 40), bool), encoded)
    found = [match.confidence for match in index.search("a dog runs", 3)]
    assert Calibration(index.model.config)(trials.x[0])[0].tolist() == pytest.approx(found, abs=1e-3)


def test_fitting_gives_weights_of_which_as_many_are_right_as_they_say(
    index: VideoIndex, encoded: Videos, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(confidence, "encode_videos", lambda *_: encoded)
    words = ["dog", "cat", "ball", "bird", "car", "rice", "water", "stage", "snow", "horse"]
    clips = [
        Clip(str(n), Path(str(n)), (f"a {words[n % 10]} and a {words[n // 4]}",), 0, str(n), "") for n in range(40)
    ]
    parts = [Part("clips", 1.0, [], list(range(40)))]
    assert confidence.fit(index.model, clips, None, parts) == {}  # too few
    monkeypatch.setattr(confidence, "ENOUGH", 40)
    tried, real = [], confidence.try_queries
    monkeypatch.setattr(confidence, "try_queries", lambda *args: tried.append(real(*args)) or tried[-1])
    fitted = confidence.fit(index.model, clips, None, parts)
    assert {*fitted} == {*FEATURES, "least"} and fitted == confidence.fit(index.model, clips, None, parts)
    calibration, (trials, _) = Calibration(replace(index.model.config, confidence=fitted)), tried
    assert calibration(trials.x)[0].mean() == pytest.approx(trials.right.mean(), abs=1e-3)
    assert calibration(trials.x[trials.answerable, 0])[1].mean() == pytest.approx(0.96, abs=0.02)


def test_the_line_of_the_table(tiny_model: SUMA):
    """Two answerable queries of scores 3 and 1, two others of 0 and 2; the confidence is that of the score alone."""
    weights = {name: float(name == "score") for name in FEATURES} | {"least": 0.5}
    calibration = Calibration(replace(tiny_model.config, confidence=weights))
    inside, outside = np.zeros((2, 5)), np.zeros((2, 5))
    inside[:, 1], outside[:, 1] = [3, 1], [0, 2]
    line = confidence.line(calibration, "of hand", inside, np.array([True, False]), outside)
    error = (sum(1 / (1 + math.exp(-s)) for s in (0, 1, 2)) + 1 - 1 / (1 + math.exp(-3))) / 4  # each in its own bin
    assert line == f"| of hand | 2 + 2 | 50.0 | 0.750 (0.750) | 1.000 | {error:.3f} | 0.0 %, 50.0 % |"
