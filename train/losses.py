"""The losses of the paper (section 3.4) as pure functions of what `SUMA.forward` returns.

Shapes: B pairs of the global batch, F frames, K concepts.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from suma.similarity import Scoring, Texts, Videos, four_similarities


class Losses(NamedTuple):
    """Scalars; `total` is what the optimiser sees."""

    total: Tensor
    sim: Tensor
    asim: Tensor
    align: Tensor


def not_negatives(video: Tensor, caption: Tensor) -> Tensor:
    """Return which pairs (B, B) off the diagonal are no negatives: those of one video, or of one caption.

    video, caption: (B,) ids.
    """
    same = (video[:, None] == video[None]) | (caption[:, None] == caption[None])
    return same & ~torch.eye(len(video), dtype=torch.bool, device=video.device)


def contrastive(similarity: Tensor, scale: Tensor, ignore: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of similarities (B, B) whose diagonal holds the pairs; log B if all are equal.

    ignore (B, B): pairs to leave out.
    """
    logits = (similarity.float() * scale).masked_fill(ignore, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def alignment(videos: Videos, anchors: Tensor) -> Tensor:
    """Return the mean L2 distance of a video's concept vector, plus that of its frames', to its own sentence's anchor.

    All have length 1 (our reading), so each distance is in [0, 2]. Sentences that name no concept are left out.
    """
    named = anchors.norm(dim=-1) > 0  # (B,)
    if not bool(named.any()):
        return anchors.sum() * 0
    coarse = _distance(videos.concepts, anchors)  # (B,)
    fine = _distance(videos.frame_concepts, anchors[:, None])  # (B, F)
    fine = (fine * videos.mask).sum(1) / videos.mask.sum(1)
    return (coarse + fine)[named].mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return |a - b| of unit vectors, with a finite gradient also if they are equal."""
    return (2 - 2 * (a * b).sum(-1)).clamp_min(1e-8).sqrt()


def suma_loss(
    out: dict[str, Any], video: Tensor, caption: Tensor, how: Scoring, alpha: float, beta: float, weight: float = 1.0
) -> Losses:
    """Return L = weight * L_sim + alpha * L_align + beta * L_asim over the global batch.

    Every process contrasts against all pairs, with gradient: N processes of B/N pairs have the loss and the gradients
    of one process of B.
    """
    texts = Texts(*(gather(x) for x in out["texts"]))
    videos = Videos(*(gather(x) for x in out["videos"]))
    ignore = not_negatives(gather(video), gather(caption))
    similarities = four_similarities(texts, videos, how.aggregation, how.temperature)
    sim = contrastive(similarities.original(how.coarse_share), out["logit_scale"], ignore)
    asim = contrastive(similarities.aligned(how.coarse_share), out["concept_logit_scale"], ignore)
    align = alignment(videos, texts.anchors)
    return Losses(weight * sim + alpha * align + beta * asim, sim, asim, align)


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums the gradients of all processes (accelerate's all_gather has no gradient)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Return the tensors (B/N, ...) of all processes as one (B, ...), with gradient; for one process, `x` itself."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if x.dtype == torch.bool:
        return gather(x.to(torch.uint8)).bool()
    return _Gather.apply(x) if x.requires_grad else _Gather.forward(None, x)
