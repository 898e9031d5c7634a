"""The one score, against loops over texts, videos and frames."""

import doctest
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from suma import similarity
from suma.model.config import AGGREGATIONS, Scoring
from suma.similarity import Texts, Videos, aggregate, combine, four_similarities, score

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
    masked = scores.masked_fill(~expected[2], -math.inf)
    if how == "softmax":
        whole = ((masked / temperature).softmax(-1) * scores).sum(-1)
    else:
        whole = masked.amax(-1) if how == "max" else scores.where(expected[2], 0).sum(-1) / expected[2].sum(-1)
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


def test_an_unknown_aggregation_is_an_error_that_lists_the_known_ones():
    texts, videos = sample()
    with pytest.raises(ValueError, match=r"'median'.*softmax, mean, max"):
        score(texts, videos, Scoring(0.5, "median"))


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(similarity).failed == 0
