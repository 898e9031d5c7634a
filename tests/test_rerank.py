"""Corrections of hubness, by hand and against loops."""

import doctest
import math

import metrics
import pytest
import torch
from metrics import Rerank, dual_softmax, inverted_softmax, popularity, retrieval


def random_scores(*size: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_popularity_equals_a_loop_and_goes_from_the_mean_to_the_largest_score():
    bank = random_scores(7, 5)
    for j, got in enumerate(popularity(bank, 20.0).tolist()):
        assert got == pytest.approx(math.log(sum(math.exp(20 * float(s)) for s in bank[:, j]) / 7) / 20)
    assert torch.allclose(popularity(bank, 1e-6), bank.mean(0), atol=1e-5)
    assert torch.allclose(popularity(bank.float(), 1e5), bank.float().amax(0), atol=1e-4)


def test_inverted_softmax_orders_each_querys_items_as_the_published_formula():
    scores, bank = random_scores(6, 5), random_scores(9, 5).flip(0)
    published = (20 * scores).exp() / (20 * bank).exp().sum(0)
    got = inverted_softmax(scores, popularity(bank, 20.0))
    assert torch.equal(got.argsort(1), published.argsort(1))
    assert not torch.equal(got.argsort(1), scores.argsort(1))  # it does change something


def test_dual_softmax_orders_each_querys_items_as_the_product_of_both_softmaxes():
    scores = random_scores(6, 5)
    product = (20 * scores).softmax(0) * (20 * scores).softmax(1)
    assert torch.equal(dual_softmax(scores, 20.0).argsort(1), product.argsort(1))


def test_a_hub_is_pushed_back():
    """Video 0 is nearer to every sentence than the sentence's own video."""
    scores = torch.eye(4) * 0.3
    scores[:, 0] = torch.tensor([0.5, 0.35, 0.35, 0.35])
    correct = torch.eye(4, dtype=torch.bool)
    assert retrieval(scores, correct).r1 == 25
    bank = torch.tensor([[0.35, 0.0, 0.0, 0.0]] * 8)
    assert retrieval(inverted_softmax(scores, popularity(bank, 20.0)), correct).r1 == 100
    assert retrieval(dual_softmax(scores, 20.0), correct).r1 == 100


def test_a_query_is_corrected_without_the_other_test_queries_only_by_inverted_softmax():
    scores, bank = random_scores(6, 5), popularity(random_scores(9, 5), 20.0)
    assert torch.equal(inverted_softmax(scores, bank)[:2], inverted_softmax(scores[:2], bank))
    assert not torch.allclose(dual_softmax(scores, 20.0)[:2], dual_softmax(scores[:2], 20.0))
    assert Rerank("dual-softmax").transductive and not Rerank("inverted-softmax").transductive


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "qb-norm"}, "'qb-norm'.*inverted-softmax, search, dual-softmax"),
        ({"method": "dual-softmax", "inverse_temperature": 0.0}, "inverse_temperature=0.0"),
        ({"method": "dual-softmax", "inverse_temperature": math.nan}, "inverse_temperature=nan"),
        ({"method": "inverted-softmax", "bank_size": 0}, "bank_size=0"),
    ],
)
def test_wrong_options_are_named(options: dict, told: str):
    with pytest.raises(ValueError, match=told):
        Rerank(**options)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(metrics).failed == 0
