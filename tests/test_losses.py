"""The losses by hand, and two processes of B/2 pairs against one of B."""

import copy
import itertools
import math
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gradcache import cached_step
from losses import Losses, alignment, contrastive, gather, not_negatives, suma_loss
from processes import OTHERS, with_environment

from suma import SUMA
from suma.similarity import Scoring, Videos, four_similarities

NOTHING = torch.zeros(4, 4, dtype=torch.bool)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_similarities_that_are_all_equal_cost_log_b(pairs: int, scale: float):
    ignore = torch.zeros(pairs, pairs, dtype=torch.bool)
    loss = contrastive(torch.full((pairs, pairs), 0.3), torch.tensor(scale), ignore)
    assert loss.item() == pytest.approx(math.log(pairs), abs=1e-5)


@pytest.mark.parametrize("left_out", [set(), {(0, 1), (1, 0), (3, 2)}])
def test_contrastive_equals_a_loop_over_rows_and_columns(left_out: set[tuple[int, int]]):
    s = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    e = [[0.0 if (i, j) in left_out else math.exp(3 * float(s[i, j])) for j in range(4)] for i in range(4)]
    total = 0.0
    for i in range(4):
        total -= math.log(e[i][i] / sum(e[i])) + math.log(e[i][i] / sum(row[i] for row in e))
    ignore = torch.tensor([[(i, j) in left_out for j in range(4)] for i in range(4)])
    assert contrastive(s, torch.tensor(3.0), ignore).item() == pytest.approx(total / 8, rel=1e-5)


def test_pairs_that_share_a_video_or_a_caption_are_no_negatives():
    got = not_negatives(torch.tensor([5, 5, 6, 7]), torch.tensor([0, 1, 2, 1]))
    pairs = {(0, 1), (1, 0), (1, 3), (3, 1)}
    assert {(i, j) for i in range(4) for j in range(4) if got[i, j]} == pairs


def test_ignored_pairs_do_not_change_the_loss():
    s = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    ignore = not_negatives(torch.tensor([5, 5, 6, 7]), torch.tensor([0, 1, 2, 1]))
    scale = torch.tensor(3.0)
    moved = torch.where(ignore, s + 5, s).requires_grad_()
    loss = contrastive(moved, scale, ignore)
    assert loss.item() == pytest.approx(contrastive(s, scale, ignore).item(), abs=1e-6)
    assert loss.item() < contrastive(moved, scale, NOTHING).item()
    loss.backward()
    assert float(moved.grad[ignore].abs().max()) == 0 and float(moved.grad[~ignore].abs().min()) > 0


def videos_at(concepts: torch.Tensor, frame_concepts: torch.Tensor, mask: torch.Tensor) -> Videos:
    return Videos(concepts, frame_concepts, mask, concepts, frame_concepts)


X, Y, ZERO = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])


@pytest.mark.parametrize(
    ("video", "frames", "mask", "anchor", "expected"),
    [
        (X, [X, X], [1, 1], X, 0.0),
        (Y, [Y, Y], [1, 1], X, 2 * math.sqrt(2)),
        (-X, [-X, -X], [1, 1], X, 4.0),
        (X, [Y, X], [1, 1], X, math.sqrt(2) / 2),  # the mean over two frames
        (X, [X, Y], [1, 0], X, 0.0),  # the padded frame is not looked at
    ],
)
def test_alignment_by_hand(video, frames, mask, anchor, expected: float):
    videos = videos_at(video[None], torch.stack(frames)[None], torch.tensor([mask]).bool())
    assert alignment(videos, anchor[None]).item() == pytest.approx(expected, abs=5e-4)


def test_sentences_without_concepts_are_left_out_of_the_alignment():
    videos = videos_at(torch.stack([-X, X]), torch.stack([-X, X])[:, None], torch.ones(2, 1, dtype=torch.bool))
    assert alignment(videos, torch.stack([X, ZERO])).item() == pytest.approx(4, abs=1e-4)
    assert alignment(videos, torch.stack([ZERO, ZERO])).item() == 0


def test_alignment_has_a_finite_gradient_where_both_meet():
    concepts = torch.stack([X, Y]).requires_grad_()
    alignment(
        videos_at(concepts, concepts[:, None], torch.ones(2, 1, dtype=torch.bool)), torch.stack([X, Y])
    ).backward()
    assert concepts.grad.isfinite().all()


SENTENCES = [
    "a dog runs on the grass",
    "a cat sits on the mat",
    "?!",
    "a man drives a red car",
    "a child jumps",
    "a cat sits on the mat",
    "two people dance",
    "the dog sleeps",
]
VIDEO, CAPTION = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]), torch.tensor([0, 1, 2, 3, 4, 1, 6, 7])


def batch(model: SUMA) -> dict[str, torch.Tensor]:
    """Eight pairs: one video twice, one caption twice, one sentence without words; videos of 2 and 3 frames."""
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": model.tokenize(SENTENCES),
        "anchors": model.anchors(SENTENCES),
        "pixels": torch.randint(0, 256, (8, 3, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "mask": torch.tensor([[True, True, i % 2 == 0] for i in range(8)]),
    }


def losses_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor], part: slice) -> Losses:
    out = model(**{name: x[part] for name, x in inputs.items()})
    return suma_loss(out, VIDEO[part], CAPTION[part], Scoring(0.25), 0.3, 0.7)


def test_the_total_is_the_weighted_sum_of_its_parts(tiny_model: SUMA):
    inputs = batch(tiny_model)
    with torch.no_grad():
        got, out = losses_of(tiny_model, inputs, slice(None)), tiny_model(**inputs)
    sims = four_similarities(out["texts"], out["videos"], "softmax", 0.05)
    ignore = not_negatives(VIDEO, CAPTION)
    assert got.sim.item() == pytest.approx(contrastive(sims.original(), out["logit_scale"], ignore).item())
    assert got.asim.item() == pytest.approx(contrastive(sims.aligned(), out["concept_logit_scale"], ignore).item())
    assert got.align.item() == pytest.approx(alignment(out["videos"], out["texts"].anchors).item())
    assert got.total.item() == pytest.approx((got.sim + 0.3 * got.align + 0.7 * got.asim).item())


def test_every_parameter_learns_from_the_loss(tiny_model: SUMA):
    model = copy.deepcopy(tiny_model)
    losses_of(model, batch(model), slice(None)).total.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert still == []


def test_descending_the_loss_lowers_it(tiny_model: SUMA):
    model = copy.deepcopy(tiny_model)
    inputs, optimizer = batch(model), torch.optim.Adam(model.parameters(), 1e-3)
    first = losses_of(model, inputs, slice(None)).total
    for _ in range(5):
        optimizer.zero_grad()
        losses_of(model, inputs, slice(None)).total.backward()
        optimizer.step()
    assert losses_of(model, inputs, slice(None)).total < first - 0.1


def test_a_single_process_gathers_the_tensor_itself():
    x = torch.ones(2)
    assert gather(x) is x


CHUNKS = (0, 3)  # at once, or so many pairs at a time (gradient caching)


def one_of_two(folder: str, rank: int) -> None:
    """One of two gloo processes: half the batch through DistributedDataParallel; writes its losses and gradients."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        part, inputs = slice(4 * rank, 4 * rank + 4), torch.load(f"{folder}/batch.pt")
        for chunk in CHUNKS:
            model = SUMA.from_pretrained(folder)
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            if chunk:
                loss = partial(
                    suma_loss, video=VIDEO[part], caption=CAPTION[part], how=Scoring(0.25), alpha=0.3, beta=0.7
                )
                mine = tuple(x[part] for x in inputs.values())
                got = cached_step(wrapped, mine, chunk, loss, lambda total: total.backward())
            else:
                got = losses_of(wrapped, inputs, part)
                got.total.backward()
            grads = {name: p.grad for name, p in model.named_parameters()}
            torch.save({"losses": [x.item() for x in got], "grads": grads}, f"{folder}/{rank}-{chunk}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_of_half_the_batch_learn_what_one_of_the_whole_does(tiny_model: SUMA, tmp_path: Path):
    inputs = batch(tiny_model)
    tiny_model.save_pretrained(tmp_path)
    torch.save(inputs, tmp_path / "batch.pt")
    other = OTHERS.Process(target=with_environment, args=({}, one_of_two, str(tmp_path), 1))
    other.start()
    model = copy.deepcopy(tiny_model)
    expected = losses_of(model, inputs, slice(None))
    expected.total.backward()
    try:
        one_of_two(str(tmp_path), 0)
        other.join(60)
        assert other.exitcode == 0
    finally:
        other.kill()
    for rank, chunk in itertools.product(range(2), CHUNKS):
        got = torch.load(tmp_path / f"{rank}-{chunk}.pt")
        assert got["losses"] == pytest.approx([x.item() for x in expected], abs=1e-5), chunk
        for name, p in model.named_parameters():
            assert torch.allclose(got["grads"][name], p.grad, atol=1e-5, rtol=1e-4), (name, chunk)


def test_the_cosine_of_the_aligned_space_is_normalised_before_the_distance(tiny_model: SUMA):
    with torch.no_grad():
        out = tiny_model(**batch(tiny_model))
    assert torch.allclose(out["videos"].concepts, F.normalize(out["videos"].concepts, dim=-1), atol=1e-6)
    assert 0 <= float(alignment(out["videos"], out["texts"].anchors)) <= 4
