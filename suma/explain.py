"""Explain a match: a score taken apart into shares, concepts and frames, all of them the model's own numbers.

Shapes: F frames, K concepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from suma.index.query import parse
from suma.index.search import span_of
from suma.model.encoder import Queries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from suma.index.video_index import VideoIndex


@dataclass(frozen=True)
class Concept:
    """One concept cluster in one video."""

    id: int
    name: str  # its most central words
    words: list[str]  # all of them
    query_weight: float  # in the query's unit anchor; 0 without a query, negative where a steered query bans it
    activation: float  # cosine of the whole video with the concept
    part: float  # of the score: these and the original space's shares sum to it
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
    duration: float  # seconds, of the whole file
    start: float = 0.0  # seconds: the part of a long video that is explained
    end: float = 0.0
    moment: float = 0.0  # seconds: where the frame is that answers best
    span: tuple[float, float] = (0.0, 0.0)  # seconds: around the moment, what answers the query
    untrained: bool = False  # concepts that no video has trained (suma/model/from_clip.py)


def explain(
    index: "VideoIndex",
    path: str | Path,
    query: str = "",
    by: str = "query",
    top_k: int = 8,
    texts: Queries | None = None,
    at: float | None = None,
) -> Explanation:
    """Explain a video of the index, or any other file, by a query in the language of suma/index/query.py.

    by: which concepts are shown: those of the query that add most to the score ("query"), or those highest above their
        mean in the gallery, in standard deviations ("video"; also without a query).
    texts: the query as the model reads it (T = 1), if it was read before.
    at: seconds into the video; without it, explain the part of a long one that the query finds best, or the first.

    Raise ValueError for another `by`, or for a `top_k` below 1.
    """
    if by not in ("query", "video"):
        raise ValueError(f'by must be "query" or "video", got {by!r}')
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    scorer, space = index.scorer, index.model.space
    if texts is None and query.strip():
        texts = parse(query).texts(index.model)
    folded = None if texts is None else scorer.fold_texts(texts)
    rows, clips = index.parts(path)
    n = 0 if folded is None else int(scorer.score(folded, clips)[0].argmax())
    row, clip = (rows[n], clips.one(n)) if at is None else index.read(path, at)
    count = len(row.times)
    (anchor, parts), shares, of_frames = np.zeros((2, space.num_concepts)), dict[str, float](), list[float]()
    if texts is not None and folded is not None:
        anchor, parts = texts.anchors[0], scorer.concept_parts(texts.anchors[0], clip)
        found = scorer.similarities(folded, clip)
        shares = {name: share * float(found[name][0, 0]) for name, share in scorer.how.shares.items()}
        of_frames = scorer.frame_scores(folded, clip)[0, 0, :count].tolist()
    activations = clip.rows[0, : 1 + count] @ scorer.concepts.T  # (1 + F, K)
    if by == "query" and texts is not None:
        named = np.flatnonzero(anchor)
        order = named[np.argsort(-parts[named], kind="stable")][:top_k]
    else:
        order = np.argsort(-standout(index, activations[1:]).max(0), kind="stable")[:top_k]
    concepts = [
        Concept(k, space.name(k), space.members(k), float(anchor[k]), whole, float(parts[k]), heat)
        for k, (whole, *heat) in zip(order.tolist(), activations.T[order].tolist(), strict=True)
    ]
    values = np.array(of_frames or [0.0] * count).round(6)
    best = int(values.argmax()) if at is None else int(np.argmin([abs(time - at) for time in row.times]))
    part = (row.duration, row.start, row.end, row.times[best], span_of(values, row, best), index.model.config.untrained)
    return Explanation(str(path), query.strip(), sum(shares.values()), shares, row.times, of_frames, concepts, *part)


def standout(index: "VideoIndex", activations: np.ndarray) -> np.ndarray:
    """Return activations (F, K) in standard deviations above each concept's mean over the gallery's frames."""
    mean, deviation = index.concept_statistics()
    return (activations - mean) / deviation


def heat_map(explanation: Explanation, pictures: Sequence[np.ndarray] = (), width: float = 10.0) -> "Figure":
    """Draw the frame scores, the frames' pictures (h, w, 3) uint8 if given, and a heat map of concepts x frames with
    its values and legend; `width` is in inches."""
    from matplotlib.figure import Figure

    rows, count = len(explanation.concepts), len(explanation.times)
    shown = bool(len(pictures))
    figure = Figure(figsize=(width, 1.9 + 0.42 * rows + 0.8 * shown), layout="constrained")
    heights = [1.0, *([0.9] if shown else []), max(1.0, 0.45 * rows)]
    above, *middle, below = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    positions = range(count)
    if explanation.frame_scores:
        above.plot(positions, explanation.frame_scores, marker="o", color="#31688e")
    above.set_ylabel("score")
    above.set_title(explanation.query or Path(explanation.path).name, parse_math=False)
    for axes in middle:
        axes.set_axis_off()
        for i, picture in enumerate(pictures[:count]):
            aspect = picture.shape[1] / picture.shape[0]
            inset = axes.inset_axes((i - 0.45, 0, 0.9, 1), transform=axes.get_xaxis_transform())
            inset.imshow(picture, aspect="equal", extent=(0, aspect, 0, 1))
            inset.set_axis_off()
    heat = [c.heat for c in explanation.concepts] or [[0.0] * count]
    image = below.imshow(heat, aspect="auto", cmap="cividis")
    middle_value = (image.norm.vmin + image.norm.vmax) / 2
    for y, concept in enumerate(explanation.concepts):
        for x, value in enumerate(concept.heat):
            ink = "white" if value < middle_value else "black"
            below.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    below.set_yticks(range(rows), [c.name for c in explanation.concepts], parse_math=False)
    below.set_xticks(list(positions), [f"{t:.1f} s" for t in explanation.times])
    figure.colorbar(image, ax=below, label="activation (cosine)")
    return figure
