"""Ranks and metrics, by hand and against a loop over queries and items."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import Clip
from metrics import SHARES, bootstrap, both_ways, choose_share, owners, ranks, retrieval

from suma.similarity import Scoring, Similarities


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
    assert choose_share([Similarities(good, good, good, good)], Scoring(0)) == 0


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
    assert choose_share([Similarities(good, good, bad, bad)], Scoring(0)) == 0
    assert choose_share([Similarities(bad, bad, good, good)], Scoring(0)) > 0.5
    assert SHARES[0] == 0 and SHARES[-1] == 1 and len(SHARES) == 21
    level = torch.ones(4, 4)
    both = choose_share([Similarities(level, level, good, good)], Scoring(0))
    assert 0 < both <= 1


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_more_queries():
    assert bootstrap(np.ones(50)) == (1.0, 1.0)
    few, many = (bootstrap(np.tile([0.0, 1.0], n)) for n in (20, 2000))
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.5 / 4000**0.5, rel=0.1)  # the normal approximation
