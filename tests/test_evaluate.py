"""Ranks, metrics and probes by hand; encoding that keeps the order."""

import doctest
import json
import math
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from benchmarks import Clip
from clips import noise_picture, write_video
from evaluate import (
    SHARES,
    bootstrap,
    both_ways,
    choose_share,
    encode_captions,
    encode_videos,
    owners,
    ranks,
    retrieval,
    similarities,
    table,
    time_probe,
)
from frame_cache import FrameCache
from test_data import row, write_layout

from suma import SUMA
from suma.similarity import Similarities, Texts, combine


def naive_rank(scores: list[float], correct: list[bool]) -> float:
    """1 + wrong items above the best correct one + half of those level with it."""
    best = max(s for s, right in zip(scores, correct, strict=True) if right)
    rank = 1.0
    for s, right in zip(scores, correct, strict=True):
        if not right:
            rank += 1.0 if s > best else 0.5 if s == best else 0.0
    return rank


def test_ranks_equal_a_loop_over_queries_and_items_also_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (40, 12), generator=generator).float()  # few values: many ties
    correct = torch.rand(40, 12, generator=generator) < 0.2
    correct[:, 0] |= ~correct.any(1)
    expected = [naive_rank(s, c) for s, c in zip(scores.tolist(), correct.tolist(), strict=True)]
    assert ranks(scores, correct).tolist() == expected


@pytest.mark.parametrize(
    ("scores", "correct", "rank"),
    [
        ([3, 2, 1], [1, 0, 0], 1),
        ([3, 2, 1], [0, 0, 1], 3),
        ([2, 2, 2, 2, 2], [1, 0, 0, 0, 0], 3),  # a model that says the same of all is in the middle
        ([5, 2, 2, 1], [0, 1, 0, 0], 2.5),
        ([5, 4, 3, 2], [0, 0, 1, 1], 3),  # the better of two right ones
        ([5, 4, 4, 3], [0, 1, 1, 0], 2),  # a right one level with it does not count
        ([math.inf, 1, -math.inf], [0, 0, 1], 3),
    ],
)
def test_ranks_by_hand(scores: list[float], correct: list[int], rank: float):
    assert ranks(torch.tensor([scores]).float(), torch.tensor([correct]).bool()).tolist() == [rank]


def test_nan_and_queries_without_an_answer_are_errors():
    eye = torch.eye(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="NaN"):
        ranks(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), eye)
    with pytest.raises(ValueError, match="no correct item"):
        ranks(torch.ones(2, 2), torch.tensor([[True, False], [False, False]]))


def scores_with_ranks(wanted: list[int], items: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores whose right item, 0, has the ranks `wanted`."""
    scores = torch.zeros(len(wanted), items)
    for line, rank in zip(scores, wanted, strict=True):
        line[1:rank] = 1
        line[rank:] = -1
    return scores, torch.tensor([[True] + [False] * (items - 1)] * len(wanted))


def test_metrics_by_hand():
    odd = retrieval(*scores_with_ranks([1, 1, 5, 6, 12]))
    assert (odd.r1, odd.r5, odd.r10) == pytest.approx((40, 60, 80))
    assert (odd.mdr, odd.mnr) == (5, 5)
    even = retrieval(*scores_with_ranks([1, 2, 7, 10]))
    assert (even.r1, even.r5, even.r10) == pytest.approx((25, 50, 100))
    assert (even.mdr, even.mnr) == (4.5, 5)
    assert even.row() == "25.0 (0.0 to 75.0) | 50.0 | 100.0 | 4.5 | 5.0"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_a_gpu_are_ranked_by_the_answers_of_owners():
    good = torch.eye(4, device="cuda")
    correct = torch.eye(4, dtype=torch.bool)
    assert both_ways(good, correct)["t2v"].r1 == 100
    assert choose_share(Similarities(good, good, good, good), correct) == 0


def test_a_rank_between_one_and_two_is_not_a_hit():
    assert retrieval(torch.tensor([[1.0, 1.0]]), torch.tensor([[True, False]])).r1 == 0


def test_a_video_is_ranked_by_its_best_own_sentence():
    clips = [Clip("a", Path("a"), ("one", "two"), 0, "a", ""), Clip("b", Path("b"), ("three",), 0, "b", "")]
    captions, correct = owners(clips)
    assert captions == ["one", "two", "three"]
    assert correct.tolist() == [[True, False], [True, False], [False, True]]
    scores = torch.tensor([[0.1, 0.2], [0.9, 0.4], [0.5, 0.3]])
    got = both_ways(scores, correct)
    assert (got["t2v"].r1, got["t2v"].mnr) == pytest.approx((100 / 3, 5 / 3))  # ranks 2, 1, 2
    assert (got["v2t"].r1, got["v2t"].mnr) == (50, 1.5)  # a: "two" first; b: "three" after "two"


def test_the_share_is_the_one_that_ranks_best():
    good, bad = torch.eye(4), 1 - torch.eye(4)
    assert choose_share(Similarities(good, good, bad, bad), good.bool()) == 0
    assert choose_share(Similarities(bad, bad, good, good), good.bool()) > 0.5
    assert SHARES[0] == 0 and SHARES[-1] == 1 and len(SHARES) == 21
    level = torch.ones(4, 4)
    both = choose_share(Similarities(level, level, good, good), good.bool())
    assert 0 < both <= 1


class Stub:
    """Stands for a model whose score of a caption and a video is a table's entry."""

    device = torch.device("cpu")

    def __init__(self, captions: list[str], scores: list[list[float]]):
        self.captions, self.scores, self.batches = captions, torch.tensor(scores), []

    def eval(self) -> None:
        pass

    def texts(self, sentences: list[str]) -> Texts:
        self.batches.append(sentences)
        at = torch.tensor([[self.captions.index(s)] for s in sentences])
        return Texts(at, at)

    def score(self, texts: Texts, videos: Any) -> torch.Tensor:
        return self.scores[texts.features[:, 0]]


def twin(n: int, label: str) -> Clip:
    return Clip(f"v{n}", Path("none"), ("x" * (9 - n),), 0, f"pair {n // 2}", label)


def test_the_time_probe_by_hand():
    clips = [twin(0, "order"), twin(1, "order"), twin(2, "turn"), twin(3, "turn"), twin(4, "order"), twin(5, "order")]
    scores = [
        [5, 1, 9, 9, 9, 9],  # right: only its twin counts
        [3, 2, 0, 0, 0, 0],  # wrong
        [0, 0, 4, 4, 0, 0],  # level
        [0, 0, 4, 4, 0, 0],  # level
        [0, 0, 0, 0, 2, 1],  # right
        [0, 0, 0, 0, 1, 2],  # right
    ]
    model = Stub([clip.captions[0] for clip in clips], scores)
    assert time_probe(model, clips, None) == {"order": (75.0, 2), "turn": (50.0, 1)}
    with pytest.raises(ValueError, match="pair 1 is not a pair"):
        time_probe(model, clips[:3], None)


def test_captions_are_encoded_short_ones_first_and_come_back_in_order():
    captions = ["dddd", "a", "ccc", "bb", "eeeee"]
    model = Stub(captions, [[0.0]])
    got = encode_captions(model, captions, batch_size=2)
    assert model.batches == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    assert got.features[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_captions_encoded_in_batches_are_those_encoded_alone(tiny_model: SUMA):
    captions = ["a dog runs on the grass", "cat", "", "a bird sings in a tall tree"]
    got = encode_captions(tiny_model, captions, batch_size=3)
    for i, caption in enumerate(captions):
        alone = tiny_model.texts([caption])
        assert torch.allclose(got.features[i], alone.features[0], atol=1e-5)
        assert torch.allclose(got.anchors[i], alone.anchors[0], atol=1e-6)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of 2 to 6 frames of noise, with one caption each."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "video").mkdir()
    for n in range(5):
        path = folder / "video" / f"video{n}.mp4"
        write_video(path, 2 + n, (32, 32), picture=lambda i, w, h, n=n: noise_picture(9 * n + i, w, h))
    rows = [row(n, f"a {animal} runs") for n, animal in enumerate(("dog", "cat", "bird", "horse", "man"))]
    write_layout(folder, rows, rows)
    return folder


def test_videos_encoded_in_batches_are_those_encoded_alone(tiny_model: SUMA, benchmark: Path, tmp_path: Path):
    clips = evaluate.load_clips(str(benchmark), "test_1k")
    cache = FrameCache(clips, 4, tiny_model.config.image, tmp_path)
    cache.build()
    together = encode_videos(tiny_model, clips, cache, batch_size=2)
    assert together.mask.sum(1).tolist() == [2, 3, 4, 4, 4]
    for i in range(5):
        frames = torch.from_numpy(cache.get(i, np.arange(cache.counts[i])))[None]
        with torch.no_grad():
            video, _ = tiny_model.encode_video(frames)
        assert torch.allclose(together.features[i], video[0], atol=1e-5)
    some = encode_videos(tiny_model, [clips[4], clips[1]], cache, [4, 1])
    assert torch.allclose(some.features, together.features[[4, 1]], atol=1e-5)
    texts = encode_captions(tiny_model, ["a dog", "a cat"])
    scores = combine(similarities(tiny_model, texts, together, chunk=2), tiny_model.config.concept_share)
    assert torch.allclose(scores, tiny_model.score(texts, together), atol=1e-6)


def test_the_command_writes_what_it_prints(tiny_model: SUMA, benchmark: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "use_fast_matmul", lambda: True)
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(benchmark), "--output", str(tmp_path / "r.json")]
    evaluate.main([*arguments, "--device", "cpu"])
    results = json.loads((tmp_path / "r.json").read_text())
    printed = capsys.readouterr().out
    assert printed.strip() == table(results)
    assert (results["videos"], results["captions"], results["config"]) == (5, 5, "test_1k")
    assert set(results["retrieval"]) == {"original", "aligned", "SUMA"}
    assert printed.count("| text -> video |") == printed.count("| video -> text |") == 3
    assert 1 <= results["retrieval"]["SUMA"]["t2v"]["mnr"] <= 5


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(evaluate).failed == 0


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_more_queries():
    assert bootstrap(np.ones(50)) == (1.0, 1.0)
    few, many = (bootstrap(np.tile([0.0, 1.0], n)) for n in (20, 2000))
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.5 / 4000**0.5, rel=0.1)  # the normal approximation
