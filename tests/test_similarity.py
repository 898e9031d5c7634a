"""The one score, against loops over texts, videos and frames; and its folded form, against the score."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from suma import similarity
from suma.similarity import (
    AGGREGATIONS,
    Scoring,
    Texts,
    Videos,
    aggregate,
    combine,
    concept_parts,
    concept_scale,
    fold_texts,
    fold_videos,
    four_similarities,
    frame_scores,
    frame_weights,
    score,
    score_parts,
)

D = 8


def concepts_of(num_concepts: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_concepts, D, generator=generator, dtype=torch.float64), dim=-1)


def sample(num_concepts: int = 5, texts: int = 4, videos: int = 3, frames: int = 6, seed: int = 0):
    """Texts and videos of random unit vectors in float64; the videos hold 6, 3 and 1 valid frames, in turn."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    concepts = concepts_of(num_concepts)
    anchors = F.normalize(torch.randint(0, 3, (texts, num_concepts), generator=generator).double(), dim=-1)
    video, frame = unit(videos, D), unit(videos, frames, D)
    mask = torch.stack([torch.arange(frames) < (frames, 3, 1)[v % 3] for v in range(videos)])
    activations = F.normalize(video @ concepts.T, dim=-1), F.normalize(frame @ concepts.T, dim=-1)
    return Texts(unit(texts, D), anchors), Videos(video, frame, mask, *activations)


def naive_aggregate(scores: list[float], how: str, temperature: float) -> float:
    if how == "mean":
        return sum(scores) / len(scores)
    if how == "max":
        return max(scores)
    weights = [math.exp(s / temperature) for s in scores]
    return sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.tolist(), b.tolist()
    lengths = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_the_four_similarities_equal_a_loop_over_texts_videos_and_frames(how: str):
    texts, videos = sample()
    concepts, got = concepts_of(5), four_similarities(texts, videos, how, 0.1)
    for t in range(4):
        for v in range(3):
            valid = [f for f in range(6) if videos.mask[v, f]]
            sentence, anchor = texts.features[t], texts.anchors[t]
            fine = [cosine(sentence, videos.frames[v, f]) for f in valid]
            aligned = [cosine(anchor, concepts @ videos.frames[v, f]) for f in valid]
            assert got.coarse[t, v] == pytest.approx(cosine(sentence, videos.features[v]), abs=1e-6)
            assert got.fine[t, v] == pytest.approx(naive_aggregate(fine, how, 0.1), abs=1e-6)
            assert got.concept_coarse[t, v] == pytest.approx(cosine(anchor, concepts @ videos.features[v]), abs=1e-6)
            assert got.concept_fine[t, v] == pytest.approx(naive_aggregate(aligned, how, 0.1), abs=1e-6)


def test_the_score_is_the_weighted_sum_by_hand():
    sims = similarity.Similarities(*(torch.tensor([[x]]) for x in (0.8, 0.4, 0.2, -0.6)))
    assert sims.original().item() == pytest.approx(0.6)
    assert sims.aligned().item() == pytest.approx(-0.2)
    assert combine(sims, Scoring(0.25)).item() == pytest.approx(0.75 * 0.6 - 0.25 * 0.2)


def test_softmax_weights_by_hand():
    scores = torch.tensor([[[0.0, math.log(3) * 0.5, 7.0]]])
    mask = torch.tensor([[True, True, False]])
    assert frame_weights(scores, mask, "softmax", 0.5).tolist()[0][0] == pytest.approx([0.25, 0.75, 0.0])
    one = torch.ones(1, 1)
    assert aggregate(one, scores[0, ..., None], mask, "softmax", 0.5).item() == pytest.approx(0.75 * math.log(3) * 0.5)


def scattered(frames: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (3, D), frames (5, F, D), and masks with gaps: also at the start, and with one valid frame only."""
    generator = torch.Generator().manual_seed(3)
    queries, videos = (torch.randn(*n, D, generator=generator, dtype=torch.float64) for n in ((3,), (5, frames)))
    mask = torch.rand(5, frames, generator=generator) < 0.5
    mask[0], mask[1], mask[2, 0] = True, torch.arange(frames) == frames - 1, False
    assert mask.any(1).all() and not mask[1:, 0].all()
    return queries, videos, mask


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 10.0])
@pytest.mark.parametrize("how", AGGREGATIONS)
def test_going_frame_by_frame_gives_the_weighted_sum_and_its_gradient(how: str, temperature: float):
    got, expected = (tuple(x.requires_grad_(i < 2) for i, x in enumerate(scattered())) for _ in range(2))
    streamed = aggregate(*got, how, temperature)
    scores = torch.einsum("td,vfd->tvf", *expected[:2])
    whole = (scores * frame_weights(scores, expected[2], how, temperature)).sum(-1)
    assert torch.allclose(streamed, whole, atol=1e-12, rtol=1e-12)
    outer = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (streamed * outer).sum().backward()
    (whole * outer).sum().backward()
    for a, b in zip(got[:2], expected[:2], strict=True):
        assert float(b.grad.abs().max()) > 0.1
        assert torch.allclose(a.grad, b.grad, atol=1e-9, rtol=1e-9)


def test_large_scores_at_a_small_temperature_stay_finite_in_float32():
    queries, frames, mask = scattered()
    got = aggregate(1e3 * queries.float(), frames.float(), mask, "softmax", 1e-3)
    assert torch.allclose(got, aggregate(1e3 * queries.float(), frames.float(), mask, "max"))


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_no_tensor_of_texts_times_videos_times_frames_is_made(how: str):
    texts, videos = sample(texts=50, videos=40)
    with Largest() as whole:
        four_similarities(texts, videos, how)
    assert whole.elements == 50 * 40
    with Largest() as naive:
        torch.einsum("td,vfd->tvf", texts.features, videos.frames)
    assert naive.elements == 50 * 40 * 6


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_frame_weights_sum_to_one_over_the_valid_frames(how: str):
    texts, videos = sample()
    weights = frame_weights(torch.einsum("td,vfd->tvf", texts.features, videos.frames), videos.mask, how)
    assert torch.allclose(weights.sum(-1), torch.ones(4, 3, dtype=torch.float64))
    assert float(weights.masked_select(~videos.mask).abs().max()) == 0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_padding_frames_never_change_a_score(how: str):
    texts, videos = sample()
    junk = 9 * torch.ones(3, 6, D, dtype=torch.float64)
    dirty = videos._replace(
        frames=torch.where(videos.mask[..., None], videos.frames, junk),
        frame_concepts=torch.where(videos.mask[..., None], videos.frame_concepts, junk[..., :5]),
    )
    longer = Videos(
        videos.features,
        torch.cat([videos.frames, junk], 1),
        torch.cat([videos.mask, torch.zeros(3, 6, dtype=torch.bool)], 1),
        videos.concepts,
        torch.cat([videos.frame_concepts, junk[..., :5]], 1),
    )
    expected = score(texts, videos, Scoring(0.4, how))
    assert torch.allclose(score(texts, dirty, Scoring(0.4, how)), expected, atol=1e-12)
    assert torch.allclose(score(texts, longer, Scoring(0.4, how)), expected, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("num_concepts", [1, 3, 8, 40])  # fewer than D, as many, more
@pytest.mark.parametrize("coarse", [0.5, 0.1])
def test_the_folded_inner_product_is_the_score_under_mean(num_concepts: int, share: float, coarse: float):
    texts, videos = sample(num_concepts)
    concepts = concepts_of(num_concepts)
    scaled = concepts * torch.arange(1, num_concepts + 1)[:, None]  # folding normalises the concepts itself
    folded = fold_videos(videos.features, videos.frames, videos.mask, scaled, Scoring(share, coarse_share=coarse))
    query = fold_texts(*texts, scaled)
    assert query.shape == (4, 2 * D) and folded.shape == (3, 2 * D)
    expected = combine(four_similarities(texts, videos, "mean"), Scoring(share, coarse_share=coarse))
    assert torch.allclose(query @ folded.T, expected, atol=1e-6)


def test_scaling_the_querys_halves_changes_the_balance_of_the_spaces():
    texts, videos = sample()
    concepts = concepts_of(5)
    folded = fold_videos(videos.features, videos.frames, videos.mask, concepts, Scoring(0.25))
    halves = torch.cat([torch.full((D,), 0.4 / 0.75), torch.full((D,), 0.6 / 0.25)])
    expected = combine(four_similarities(texts, videos, "mean"), Scoring(0.6))
    assert torch.allclose((fold_texts(*texts, concepts) * halves) @ folded.T, expected, atol=1e-6)


def test_concept_scale_is_the_inverse_length_of_the_activations():
    _, videos = sample(7)
    concepts = concepts_of(7)
    got = concept_scale(videos.frames, 3 * concepts)
    assert got.shape == (3, 6, 1)
    for v in range(3):
        for f in range(6):
            length = math.sqrt(sum(float(c @ videos.frames[v, f]) ** 2 for c in concepts))
            assert float(got[v, f]) == pytest.approx(1 / length, rel=1e-9)


def test_a_sentence_without_concepts_scores_zero_in_the_aligned_space():
    texts, videos = sample()
    empty = Texts(texts.features, torch.zeros_like(texts.anchors))
    for how in AGGREGATIONS:
        assert float(four_similarities(empty, videos, how).aligned().abs().max()) == 0
        assert torch.allclose(
            score(empty, videos, Scoring(0.3, how)), 0.7 * four_similarities(texts, videos, how).original()
        )


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_the_chunked_score_equals_the_whole_one(chunk: int):
    texts, videos = sample(videos=7)
    expected = combine(four_similarities(texts, videos), Scoring(0.3))
    assert torch.allclose(score(texts, videos, Scoring(0.3), chunk=chunk), expected, atol=1e-12)


def test_no_videos_give_no_scores():
    texts, videos = sample()
    assert score(texts, Videos(*(x[:0] for x in videos)), Scoring(0.5)).shape == (4, 0)


@pytest.mark.parametrize("coarse", (0.5, 0.2))
@pytest.mark.parametrize("how", AGGREGATIONS)
def test_the_parts_of_a_score_add_up_to_it(how: str, coarse: float):
    texts, videos = sample()
    for v in range(3):
        text, video = Texts(*(x[1:2] for x in texts)), Videos(*(x[v : v + 1] for x in videos))
        parts = score_parts(text, video, Scoring(0.3, how, 0.1, coarse))
        assert sum(parts.values()) == pytest.approx(float(score(text, video, Scoring(0.3, how, 0.1, coarse))), abs=1e-6)
        concepts = concept_parts(text, video, Scoring(0.3, how, 0.1, coarse))
        assert concepts.shape == (5,)
        assert float(concepts.sum()) == pytest.approx(parts["concept_coarse"] + parts["concept_fine"], abs=1e-6)


def test_frame_scores_are_each_frames_own_score():
    texts, videos = sample()
    one = Texts(*(x[2:3] for x in texts))
    got = frame_scores(one, videos, 0.3)
    for v in range(3):
        for f in range(6):
            single = Videos(
                videos.frames[v, f][None],
                videos.frames[v, f][None, None],
                torch.ones(1, 1, dtype=torch.bool),
                videos.frame_concepts[v, f][None],
                videos.frame_concepts[v, f][None, None],
            )
            expected = float(score(one, single, Scoring(0.3))) if videos.mask[v, f] else -math.inf
            assert float(got[v, f]) == pytest.approx(expected, abs=1e-6)


def test_an_unknown_aggregation_is_an_error_that_lists_the_known_ones():
    texts, videos = sample()
    with pytest.raises(ValueError, match=r"'median'.*softmax, mean, max"):
        score(texts, videos, Scoring(0.5, "median"))


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(similarity).failed == 0


@pytest.mark.parametrize("how", similarity.AGGREGATIONS)
def test_the_score_by_scale_is_the_score(how: str):
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    concepts, mask = unit(20, 8), torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    texts, rows = similarity.Texts(unit(2, 8), unit(2, 20).abs()), unit(3, 5, 8)
    rows[:, 1:][~mask] = 0
    placed = [torch.nn.functional.normalize(x @ concepts.T, dim=-1) for x in (rows[:, 0], rows[:, 1:])]
    videos = similarity.Videos(rows[:, 0], rows[:, 1:], mask, *placed)
    named, scales = texts.anchors @ concepts, similarity.concept_scale(rows, concepts)[..., 0]
    got = similarity.score_by_scale(texts, named, rows, scales, mask, Scoring(0.3, how, 0.05, 0.8))
    torch.testing.assert_close(got, similarity.score(texts, videos, Scoring(0.3, how, 0.05, 0.8)), atol=1e-6, rtol=0)
