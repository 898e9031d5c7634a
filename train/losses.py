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
    """Which pairs (B, B) are no negatives though off the diagonal: the same video, or the same caption.

    video, caption: (B,) ids.
    """
    same = (video[:, None] == video[None]) | (caption[:, None] == caption[None])
    return same & ~torch.eye(len(video), dtype=torch.bool, device=video.device)


def contrastive(similarity: Tensor, scale: Tensor, ignore: Tensor) -> Tensor:
    """Symmetric InfoNCE over similarities (B, B) whose diagonal holds the pairs; `ignore` (B, B) leaves pairs out.

    All similarities equal gives log B.
    """
    logits = (similarity.float() * scale).masked_fill(ignore, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def alignment(videos: Videos, anchors: Tensor) -> Tensor:
    """Mean L2 distance of each video's, plus of its frames', concept vector to its own sentence's anchor.

    All of length 1 (our reading), so each distance lies in [0, 2]. Sentences that name no concept are left out.
    """
    named = anchors.norm(dim=-1) > 0  # (B,)
    if not bool(named.any()):
        return anchors.sum() * 0
    coarse = _distance(videos.concepts, anchors)  # (B,)
    fine = _distance(videos.frame_concepts, anchors[:, None])  # (B, F)
    fine = (fine * videos.mask).sum(1) / videos.mask.sum(1)
    return (coarse + fine)[named].mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| of unit vectors, with a gradient also where they meet."""
    return (2 - 2 * (a * b).sum(-1)).clamp_min(1e-8).sqrt()


def suma_loss(
    out: dict[str, Any], video: Tensor, caption: Tensor, how: Scoring, alpha: float, beta: float, weight: float = 1.0
) -> Losses:
    """L = weight * L_sim + alpha * L_align + beta * L_asim over the global batch.

    Every process contrasts against all pairs, with gradient: N processes of B/N pairs give the loss and gradients of
    one process of B.
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
    """all_gather whose backward sums every process's gradient and keeps the own part (accelerate's drops it)."""

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
    """(B/N, ...) of every process -> (B, ...), with gradient; the tensor itself in a single process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if x.dtype == torch.bool:
        return gather(x.to(torch.uint8)).bool()
    return _Gather.apply(x) if x.requires_grad else _Gather.forward(None, x)
