"""Gradient caching: the loss of a large batch in the memory of a small one (Gao et al., arXiv 2101.06983).

First the features of all pairs, without a graph; then the loss and its gradient with respect to them; then each chunk
once more, with a graph, to bring that gradient to the weights. The gradient is the same, for a third more computation.

Shapes: B pairs, D joint width, K concepts, F frames.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from suma.similarity import Texts, Videos


def flatten(out: dict[str, Any]) -> list[Tensor]:
    """Return the output of `SUMA.forward` as a list: features of texts and videos, then the two scales."""
    texts, videos = out["texts"], out["videos"]
    features = [texts.features, videos.features, videos.frames, videos.concepts, videos.frame_concepts]
    return [*features, out["logit_scale"], out["concept_logit_scale"]]


def unflatten(flat: list[Tensor], anchors: Tensor, mask: Tensor) -> dict[str, Any]:
    """Return the output of `SUMA.forward` from the list of `flatten`."""
    features, video, frames, concepts, frame_concepts, scale, concept_scale = flat
    return {
        "texts": Texts(features, anchors),
        "videos": Videos(video, frames, mask, concepts, frame_concepts),
        "logit_scale": scale,
        "concept_logit_scale": concept_scale,
    }


def cached_step(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    chunk: int,
    loss: Callable[[dict[str, Any]], Any],
    backward: Callable[[Tensor], None],
) -> Any:
    """Compute the gradients of `loss(model(*batch))` with activations of only `chunk` pairs in memory; return the loss.

    batch: tokens, anchors, pixels and mask, B rows each. loss: returns an object with the scalar `.total`.
    """
    pieces = list(zip(*(x.split(chunk) for x in batch), strict=True))
    states, outs = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append((torch.get_rng_state(), *get_device_states(*piece)))
            outs.append(flatten(model(*piece)))
    flat = [torch.cat(parts) for parts in list(zip(*outs, strict=True))[:-2]] + outs[0][-2:]
    leaves = [x.detach().requires_grad_() for x in flat]
    losses = loss(unflatten(leaves, batch[1], batch[3]))
    backward(losses.total)
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    wanted, scales = [g.split(chunk) for g in gradients[:-2]], gradients[-2:]

    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        unsynced: Any = model.no_sync if hasattr(model, "no_sync") and not last else nullcontext
        cpu_state, devices, device_states = states[i]
        with unsynced(), torch.random.fork_rng(devices):
            torch.set_rng_state(cpu_state)  # dropped patches and paths are those of the first pass
            set_device_states(devices, device_states)
            out = flatten(model(*piece))
            surrogate = sum((x * g[i]).sum() for x, g in zip(out[:-2], wanted, strict=True))
            for scale, gradient in zip(out[-2:], scales, strict=True):  # one scalar for the whole batch: counted once
                surrogate = surrogate + scale * (gradient if last else 0.0)
            surrogate.backward()
            del out, surrogate
    return losses
