"""Why a match matched: shares of the score, its concepts, and where they are: only the model's own numbers.

Shapes: F frames, K concepts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suma.similarity import concept_parts, frame_scores, score_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suma.index import VideoIndex


@dataclass(frozen=True)
class Concept:
    """One concept cluster in one video."""

    id: int
    name: str  # its most central words
    words: list[str]  # all of them
    query_weight: float  # in the query's anchor, 0..1; 0 without a query
    part: float  # of the score; all parts and the original space's shares add up to it
    heat: list[float]  # activation (cosine) of each frame, F


@dataclass(frozen=True)
class Explanation:
    """Why a video has its score for a query (or, without one, what the model sees in it)."""

    path: str
    query: str
    score: float
    shares: dict[str, float]  # of the four similarities, weighted; they add up to the score
    times: list[float]  # of the frames, seconds
    frame_scores: list[float]  # the score of each frame alone, F
    concepts: list[Concept]  # strongest first
    duration: float  # seconds


@torch.no_grad()
def explain(
    index: "VideoIndex",
    path: str | Path,
    query: str = "",
    by: str = "query",
    top_k: int = 8,
) -> Explanation:
    """Explain a video of the index, or any other file.

    Concepts are those of the query that add most to the score (`by="query"`), or those that stand out most in the
    video: highest above their mean in the gallery, in its standard deviations (`by="video"`; also without a query).
    Raises ValueError for another `by`.
    """
    if by not in ("query", "video"):
        raise ValueError(f'by must be "query" or "video", got {by!r}')
    model = index.model
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    row, video = index.read(path)
    count = len(row.times)
    activations = model.space.activations(video.frames[0, :count])  # (F, K)
    if query.strip():
        texts = model.texts([query.strip()])
        c = model.config
        part_of = score_parts(texts, video, c.concept_share, c.aggregation, c.aggregation_temperature)
        parts = concept_parts(texts, video, c.concept_share, c.aggregation, c.aggregation_temperature)
        per_frame = frame_scores(texts, video, c.concept_share)[0, :count].tolist()
        anchor = texts.anchors[0]
    else:
        parts, anchor, part_of = torch.zeros(model.space.num_concepts), torch.zeros(model.space.num_concepts), {}
        per_frame = []
    if by == "query" and query.strip():
        named = (anchor > 0).nonzero().flatten()
        order = named[parts[named].argsort(descending=True)][:top_k]
    else:
        order = standout(index, activations).amax(0).topk(min(top_k, model.space.num_concepts)).indices
    concepts = [
        Concept(
            k,
            model.space.name(k),
            model.space.members(k),
            float(anchor[k]),
            float(parts[k]),
            activations[:, k].tolist(),
        )
        for k in order.tolist()
    ]
    score = sum(part_of.values())
    return Explanation(str(path), query.strip(), score, part_of, row.times, per_frame, concepts, row.duration)


def standout(index: "VideoIndex", activations: Tensor) -> Tensor:
    """Activations (F, K) in standard deviations above each concept's mean over the gallery's frames."""
    mean, deviation = index.concept_statistics()
    return (activations - mean) / deviation


def heat_map(explanation: Explanation, width: float = 9.0) -> "Figure":
    """A picture of the concepts x frames heat map with its legend, and the frame scores above it (inches wide)."""
    from matplotlib.figure import Figure

    rows = len(explanation.concepts)
    figure = Figure(figsize=(width, 1.6 + 0.42 * rows), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1, max(1.0, 0.45 * rows)], sharex=True)
    positions = range(len(explanation.times))
    if explanation.frame_scores:
        above.plot(positions, explanation.frame_scores, marker="o", color="#31688e")
    above.set_ylabel("score")
    above.set_title(explanation.query or Path(explanation.path).name)
    image = below.imshow([c.heat for c in explanation.concepts] or [[0.0]], aspect="auto", cmap="cividis")
    below.set_yticks(range(rows), [c.name for c in explanation.concepts])
    below.set_xticks(list(positions), [f"{t:.1f} s" for t in explanation.times], rotation=45)
    figure.colorbar(image, ax=below, label="activation (cosine)")
    return figure
