"""Gradient caching gives the gradients of the plain step, with fewer activations in memory."""

import copy
from functools import partial

import pytest
import torch
from gradcache import cached_step
from losses import suma_loss

from suma import SUMA
from suma.similarity import Scoring


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 100])
def test_every_gradient_equals_the_plain_steps(tiny_model: SUMA, chunk: int):
    plain, cached = copy.deepcopy(tiny_model).train(), copy.deepcopy(tiny_model).train()
    captions = ["a dog runs", "a cat sits", "the dog barks", "a mat", "a dog runs", "loudly"]
    size = plain.config.image["size"]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 3, size, size), generator=generator, dtype=torch.uint8)
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[2, 2] = mask[4, 1:] = False
    batch = (plain.tokenize(captions), plain.anchors(captions), pixels, mask)
    loss = partial(
        suma_loss,
        video=torch.tensor([0, 1, 2, 3, 4, 1]),
        caption=torch.tensor([0, 1, 2, 3, 0, 5]),
        how=Scoring(0.25),
        alpha=0.3,
        beta=0.7,
    )

    expected = loss(plain(*batch))
    expected.total.backward()
    seen = []
    cached.clip.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = cached_step(cached, batch, chunk, loss, lambda total: total.backward())

    torch.testing.assert_close(torch.stack(list(found)), torch.stack(list(expected)))
    for (name, a), (_, b) in zip(cached.named_parameters(), plain.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if b.grad is not None:
            difference = float((a.grad - b.grad).norm() / b.grad.norm().clamp_min(1e-6))
            assert difference < 1e-5, f"{name}: {difference}"
    assert max(seen) <= 3 * chunk  # frames that went through the tower at once


def test_both_passes_draw_the_same_random_numbers(tiny_model: SUMA):
    """With dropout in the tower, and the whole batch as one chunk, the gradients are the plain step's."""
    gradients = []
    for chunk in (0, 3):
        model = copy.deepcopy(tiny_model).train()
        model.clip.visual.ln_post = torch.nn.Sequential(model.clip.visual.ln_post, torch.nn.Dropout(0.5))
        captions, size = ["a dog runs", "a cat sits", "a mat"], model.config.image["size"]
        pixels = torch.arange(9).mul(28).to(torch.uint8).view(3, 3, 1, 1, 1).expand(3, 3, 3, size, size).contiguous()
        batch = (model.tokenize(captions), model.anchors(captions), pixels, torch.ones(3, 3, dtype=torch.bool))
        loss = partial(
            suma_loss, video=torch.arange(3), caption=torch.arange(3), how=Scoring(0.25, "mean"), alpha=0.3, beta=0.7
        )
        torch.manual_seed(5)
        if chunk:
            cached_step(model, batch, chunk, loss, lambda total: total.backward())
        else:
            loss(model(*batch)).total.backward()
        gradients.append(model.clip.visual.conv1.weight.grad)
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5
