"""The score of an index, in numpy and folded, is the score of suma/similarity.py."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensors import queries_of

from suma.index.scoring import Clips, Scorer
from suma.model.config import AGGREGATIONS, Scoring
from suma.similarity import Similarities, Texts, Videos, combine, four_similarities, score


def sample(seed: int) -> tuple[Texts, Videos, Scorer, Clips]:
    """The same texts and videos of random shapes, masks, shares and aggregation, in float64, for torch and numpy."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    t, v, f, d, k = (int(rng.integers(1, most)) for most in (5, 6, 8, 20, 40))

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    how = Scoring(*rng.random(1), AGGREGATIONS[seed % 3], float(rng.choice([1e-2, 0.05, 1.0])), *rng.random(1))
    concepts, rows, mask = unit(k, d), unit(v, 1 + f, d), torch.rand(v, f, generator=generator) < 0.6
    mask[:, rng.integers(f)] = True
    rows[:, 1:][~mask] = 0
    anchors = unit(t, k) * (torch.rand(t, 1, generator=generator) < 0.9)  # some have no words
    placed = F.normalize(rows @ concepts.T, dim=-1)
    texts, scorer = Texts(unit(t, d), anchors), Scorer(concepts.numpy(), how)
    videos = Videos(rows[:, 0], rows[:, 1:], mask, placed[:, 0], placed[:, 1:])
    return texts, videos, scorer, Clips(rows.numpy(), scorer.inverse_norms(rows.numpy()), mask.numpy())


@pytest.mark.parametrize("seed", range(60))
def test_the_folded_score_is_the_score(seed: int):
    texts, videos, scorer, clips = sample(seed)
    folded, how = scorer.fold_texts(queries_of(texts)), scorer.how
    assert scorer.score(folded, clips) == pytest.approx(score(texts, videos, how).numpy(), abs=1e-6)
    expected = four_similarities(texts, videos, how.aggregation, how.temperature)
    for name, got in scorer.similarities(folded, clips).items():
        assert got == pytest.approx(getattr(expected, name).numpy(), abs=1e-6), name
    equal = combine(four_similarities(texts, videos, "mean"), how).numpy()
    assert folded @ scorer.fold_videos(clips).T == pytest.approx(equal, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_the_parts_of_a_score_add_up_to_it(seed: int):
    texts, _, scorer, clips = sample(seed)
    folded, shares = scorer.fold_texts(queries_of(texts)), scorer.how.shares
    assert sum(shares.values()) == pytest.approx(1) and tuple(shares) == Similarities._fields
    parts = {name: shares[name] * x for name, x in scorer.similarities(folded, clips).items()}
    assert sum(parts.values()) == pytest.approx(scorer.score(folded, clips), abs=1e-6)
    for t, anchor in enumerate(texts.anchors.numpy()):
        for v in range(len(clips.rows)):
            of_concepts = scorer.concept_parts(anchor, clips.one(v))
            assert of_concepts.shape == anchor.shape and not of_concepts[anchor == 0].any()
            expected = parts["concept_coarse"][t, v] + parts["concept_fine"][t, v]
            assert of_concepts.sum() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_frames_own_score_is_that_of_a_video_of_it_alone(seed: int):
    texts, videos, scorer, clips = sample(seed)
    got = scorer.frame_scores(scorer.fold_texts(queries_of(texts)), clips)
    for v, f in np.ndindex(*clips.mask.shape):
        frame, placed = videos.frames[v : v + 1, f], videos.frame_concepts[v : v + 1, f]
        alone = Videos(frame, frame[:, None], torch.ones(1, 1, dtype=torch.bool), placed, placed[:, None])
        expected = score(texts, alone, scorer.how)[:, 0].numpy() if clips.mask[v, f] else -math.inf
        assert got[:, v, f] == pytest.approx(expected, abs=1e-6)


def test_softmax_weights_by_hand():
    scorer = Scorer(np.eye(1), Scoring(0.0, "softmax", 0.5, 0.0))  # the frames in the original space alone
    rows = np.array([[[0.0], [0.0], [math.log(3) * 0.5], [7.0]]])
    clips = Clips(rows, np.ones((1, 4)), np.array([[True, True, False]]))
    assert scorer.score(np.ones((1, 2)), clips).item() == pytest.approx(0.75 * math.log(3) * 0.5)


def test_inverse_norms_are_those_of_the_activations():
    _, _, scorer, clips = sample(0)
    for row, got in zip(clips.rows.reshape(-1, clips.rows.shape[-1]), clips.inverse_norms.ravel(), strict=True):
        if row.any():
            assert got == pytest.approx(1 / math.sqrt(sum(float(c @ row) ** 2 for c in scorer.concepts)), rel=1e-9)


def test_scaling_a_texts_halves_changes_the_balance_of_the_spaces():
    texts, videos, scorer, clips = sample(1)
    scorer = Scorer(scorer.concepts, Scoring(0.25))
    halves = np.repeat([0.4 / 0.75, 0.6 / 0.25], scorer.concepts.shape[1])
    got = scorer.fold_texts(queries_of(texts)) * halves @ scorer.fold_videos(clips).T
    assert got == pytest.approx(combine(four_similarities(texts, videos, "mean"), Scoring(0.6)).numpy(), abs=1e-6)


def test_videos_of_other_lengths_are_padded_and_padding_counts_nothing():
    texts, _, scorer, clips = sample(2)
    encoded = [np.float32(clips.rows[v][: n + 1]) for v, n in ((0, 1), (0, clips.mask.shape[1]))]
    padded = scorer.clips(encoded)
    assert padded.mask.sum(1).tolist() == [1, clips.mask.shape[1]] and padded.rows.dtype == np.float32
    folded = scorer.fold_texts(queries_of(texts))
    alone = scorer.score(folded, scorer.clips(encoded[:1]))
    assert scorer.score(folded, padded)[:, :1] == pytest.approx(alone, abs=1e-6)
