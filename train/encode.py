"""Encode a benchmark's videos and captions, each once, by one process or several; compare them.

Shapes: T texts, V videos, F frames, D joint width, K concepts.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from benchmarks import Clip
from data import pad_frames, pick_frames
from frame_cache import FrameCache, FrameFeatures

from suma.index.scoring import Clips, Scorer
from suma.model.suma import SUMA
from suma.progress import Progress
from suma.similarity import Similarities, Texts, Videos, four_similarities

Features = TypeVar("Features", Texts, Videos)
ORDERS = ("all", "shuffled", "middle")  # of a video's frames: as they are, in a random order, the middle one alone


def encode_all(
    items: Sequence[Any],
    encode: Callable[[Sequence[Any]], Features],
    batch_size: int,
    accelerator: Accelerator | None,
    label: str,
) -> Features:
    """Return the features of all items, in their order, encoded in batches.

    The accelerator's processes take turns at the items: each item is encoded by one of them, and all get all features.
    The number of items need not be a multiple of the number of processes.
    """
    if not items:
        raise ValueError(f"{label}: there is nothing to encode, give at least one")
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    shared = len(items) >= world > 1
    mine = items[rank::world] if shared else items
    steps = Progress(range(0, len(mine), batch_size), desc=label, unit="batch", disable=rank > 0, leave=False)
    parts = [encode(mine[i : i + batch_size]) for i in steps]
    features = type(parts[0])(*(torch.cat(x) for x in zip(*parts, strict=True)))
    if accelerator is None or not shared:
        return features
    longest = -(-len(items) // world)  # every process sends this many, some of them a row twice; `rows` leaves it out
    sent = torch.arange(longest).clamp_max(len(mine) - 1)
    rows = torch.tensor([i % world * longest + i // world for i in range(len(items))])
    return type(features)(*(accelerator.gather(x[sent.to(x.device)])[rows.to(x.device)] for x in features))


def reorder(picks: np.ndarray, order: str, seed: int) -> np.ndarray:
    """Return a video's frames in one of ORDERS, which shows what time is worth.

    >>> reorder(np.arange(5), "middle", 0).tolist(), sorted(reorder(np.arange(5), "shuffled", 0).tolist())
    ([2], [0, 1, 2, 3, 4])
    """
    if order == "middle":
        return picks[len(picks) // 2 :][:1]
    return np.random.default_rng(seed).permutation(picks) if order == "shuffled" else picks


def encode_frames(model: SUMA, videos: Sequence[np.ndarray]) -> Videos:
    """Return the features of videos (F, 3, S, S), or of what `encode_images` made of their frames (F, C + ...)."""
    pixels, mask = (torch.from_numpy(x).to(model.device) for x in pad_frames(videos, model.config.num_frames))
    return model.make_videos(*model.encode_video(pixels, mask), mask)


@torch.no_grad()
def encode_videos(
    model: SUMA,
    clips: Sequence[Clip],
    cache: FrameCache | FrameFeatures,
    picks: Sequence[int] | None = None,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    order: str = "all",
) -> Videos:
    """Return the features of the clips, from the middle frame of each segment. picks: their indices in the cache."""
    model.eval()
    num_frames = model.config.num_frames

    def encode(chosen: Sequence[int]) -> Videos:
        frames = [cache.get(j, reorder(pick_frames(int(cache.counts[j]), num_frames), order, j)) for j in chosen]
        return encode_frames(model, frames)

    indices = range(len(clips)) if picks is None else picks
    return encode_all(indices, encode, batch_size, accelerator, "encode videos")


@torch.no_grad()
def encode_captions(
    model: SUMA, captions: Sequence[str], batch_size: int = 256, accelerator: Accelerator | None = None
) -> Texts:
    """Return the features of the captions, batched by length so that little is padded."""
    model.eval()
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    ordered = [captions[i] for i in order]
    texts = encode_all(ordered, model.make_texts, batch_size, accelerator, "encode captions")
    back = torch.tensor(np.argsort(order), device=model.device)
    return Texts(texts.features[back], texts.anchors[back])


def similarities(model: SUMA, texts: Texts, videos: Videos, chunk: int = 64) -> Similarities:
    """Return all four similarities (T, V), on the CPU, computed for `chunk` videos at a time."""
    c = model.config
    parts = [
        four_similarities(texts, Videos(*(x[i : i + chunk] for x in videos)), c.aggregation, c.aggregation_temperature)
        for i in range(0, len(videos.features), chunk)
    ]
    return Similarities(*(torch.cat(x, dim=1).cpu() for x in zip(*parts, strict=True)))


def clips_of(scorer: Scorer, videos: Videos) -> Clips:
    """Return encoded videos as an index compares them, in numpy."""
    rows = torch.cat([videos.features[:, None], videos.frames], 1).cpu().numpy()
    return Clips(rows, scorer.inverse_norms(rows), videos.mask.cpu().numpy())
