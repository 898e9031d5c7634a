"""Why a match matched, as HTML: the frame scores over time and the concepts x frames heat map in one SVG."""

import json
from collections.abc import Sequence

from suma.app.colours import SCALE, colour
from suma.app.tiles import esc, mark
from suma.explain import Explanation

ROW, TIMELINE, SECONDS = 32, 54, 20  # heights, pixels
EXPORT = (
    '<div class="suma-actions"><button class="suma-link" data-kind="export" data-event="submit" data-format="png">'
    'Save as PNG</button><button class="suma-link" data-kind="export" data-event="submit" data-format="json">'
    "Save as JSON</button></div>"
)
MIN_COLUMN = 34  # width, pixels: below it the map scrolls in its box
SHARES = {
    "coarse": ("whole video", "original space"),
    "fine": ("frames", "original space"),
    "concept_coarse": ("whole video", "concept space"),
    "concept_fine": ("frames", "concept space"),
}


def why(found: Explanation, thumbs: Sequence[str], aspect: float, player: str, start: float = 0.0) -> str:
    """Timeline (with a query), thumbnails, seconds, and the heat map; a click plays that moment in `player`, a CSS
    selector, and one on a concept's name searches by it. The player starts at the best moment, else at `start`."""
    count = len(found.times)
    if found.frame_scores:
        start = found.times[found.frame_scores.index(max(found.frame_scores))]
    picture = round(min(max(MIN_COLUMN / aspect, 30), 62))
    svg, names, top = [], [], 0
    if found.frame_scores:
        names.append(_range_label(found.frame_scores))
        svg += _timeline(found)
        top = TIMELINE + 6
    for i, thumb in enumerate(thumbs[:count]):
        svg.append(
            f'<image href="{thumb}" {_column(i, count)} y="{top}" height="{picture}" '
            f'preserveAspectRatio="xMidYMid meet"/>'
        )
    shift = picture if thumbs else 0
    for i, time in enumerate(found.times):
        svg.append(f'<text x="{_middle(i, count)}%" y="{top + shift + 14}" class="suma-time">{time:.1f} s</text>')
    names.append(f'<div class="suma-axis" style="height:{shift + SECONDS}px">frames</div>')
    top += shift + SECONDS
    values = [value for concept in found.concepts for value in concept.heat]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    spread = (high - low) or 1.0
    for n, concept in enumerate(found.concepts):
        y = top + n * ROW
        part = f"<small>{concept.part:+.3f}</small>" if concept.query_weight else ""
        words = "search by this concept: " + ", ".join(concept.words)
        names.append(
            f'<button class="suma-name" style="height:{ROW}px" data-kind="query" title="{esc(words)}" '
            f'data-query="{esc(concept.words[0])}"><span>{esc(concept.name)}</span>{part}</button>'
        )
        svg += [
            f'<rect class="suma-cell" {_column(i, count)} y="{y + 1}" height="{ROW - 2}" '
            f'fill="{colour((value - low) / spread)}" data-concept="{concept.id}">'
            f"<title>{esc(concept.name)} at {time:.1f} s: {value:.3f}</title></rect>"
            f'<text class="suma-value" x="{_middle(i, count)}%" y="{y + ROW / 2 + 4}" '
            f'fill="{"#fff" if (value - low) / spread < 0.5 else "#000"}">{value:.2f}</text>'
            for i, (value, time) in enumerate(zip(concept.heat, found.times, strict=True))
        ]
    height = top + len(found.concepts) * ROW
    svg += [  # what is above the cells is clicked by column
        f'<rect class="suma-hit" {_column(i, count)} y="0" height="{top if values else height}">'
        f"<title>{_hover(found, i)}</title></rect>"
        for i in range(count)
    ]
    svg.append(f'<line class="suma-playhead" x1="-9" x2="-9" y1="0" y2="{height}"/>')
    empty = (
        '<p class="suma-note">No word of this query names a concept. '
        "Switch to the strongest in the video to see what the model found there.</p>"
    )
    return (
        f'<div class="suma-why"><div class="suma-heat">'
        f'<div class="suma-names" style="padding-top:0">{"".join(names)}</div>'
        f'<svg class="suma-svg" style="min-width:{count * MIN_COLUMN}px" height="{height}" '
        f'role="slider" tabindex="0" aria-valuemin="0" aria-valuemax="{found.duration:.1f}" '
        f'aria-valuenow="{start:.1f}" '
        f'aria-valuetext="{start:.1f} seconds" aria-label="Moment of the video; below, the activation of '
        f'{len(found.concepts)} concepts in {count} frames" '
        f'{mark(player, found.path, start)} data-times="{esc(json.dumps(found.times))}">{"".join(svg)}</svg></div>'
        f"{_legend(low, high, found.untrained) if values else empty}{EXPORT}</div>"
    )


def shares(found: Explanation) -> str:
    """The four similarities' shares of the score as a small table; they add up to the score."""
    if not found.shares:
        return ""
    largest = max(abs(value) for value in found.shares.values()) or 1.0
    rows = "".join(
        f"<tr><th scope=row>{what} <i>{space}</i></th><td class=suma-bar><span "
        f'class="{"suma-minus" if value < 0 else ""}" style="width:{100 * abs(value) / largest:.1f}%"></span></td>'
        f"<td>{value:+.3f}</td></tr>"
        for (what, space), value in ((SHARES[name], value) for name, value in found.shares.items())
    )
    return (
        f'<table class="suma-shares"><caption>What the score is made of</caption>{rows}'
        f"<tr class=suma-sum><th scope=row>score</th><td></td><td>{found.score:.3f}</td></tr></table>"
    )


def carried(found: Explanation) -> str:
    """The concepts that carried a match: words, weight in the query, activation in the video, part of the score."""
    named = [concept for concept in found.concepts if abs(concept.query_weight) >= 0.005]
    rows = "".join(
        f'<tr><th scope=row><button class="suma-link" data-kind="query" data-query="{esc(concept.words[0])}" '
        f'title="search by this concept: {esc(", ".join(concept.words))}">{esc(concept.name)}</button></th>'
        f"<td>{concept.query_weight:.2f}</td><td>{concept.activation:.2f}</td><td>{concept.part:+.3f}</td></tr>"
        for concept in named[:5]
    )
    return (
        '<table class="suma-shares suma-carried"><caption>'
        f"{'Untrained concepts' if found.untrained else 'Concepts'} that carried it <i>weight in the query, "
        "activation in the video</i></caption>"
        "<tr><th scope=col>words</th><th scope=col>weight</th><th scope=col>activation</th>"
        f"<th scope=col>score</th></tr>{rows}</table>"
        if rows
        else ""
    )


def _middle(i: int, count: int) -> str:
    return f"{100 * (i + 0.5) / count:.3f}"


def _column(i: int, count: int) -> str:
    """Place and width of column i in percent, and what a click on it plays."""
    return f'x="{100 * i / count:.3f}%" width="{100 / count - 0.15:.3f}%" data-kind="seek" data-frame="{i}"'


def _hover(found: Explanation, i: int) -> str:
    score = f": frame score {found.frame_scores[i]:.3f}" if found.frame_scores else ""
    return f"{found.times[i]:.1f} s{score}"


def _range_label(scores: Sequence[float]) -> str:
    return (
        f'<div class="suma-axis suma-range" style="height:{TIMELINE + 6}px"><span>frame score</span>'
        f"<small><span>{max(scores):.3f}</span><span>{min(scores):.3f}</span></small></div>"
    )


def _timeline(found: Explanation) -> list[str]:
    scores, count = found.frame_scores, len(found.times)
    low, spread = min(scores), (max(scores) - min(scores)) or 1.0
    best = scores.index(max(scores))
    out = []
    for i, score in enumerate(scores):
        y = 4 + (1 - (score - low) / spread) * (TIMELINE - 10)
        mark = " suma-best" if i == best else ""
        out.append(f'<rect class="suma-area{mark}" {_column(i, count)} y="{y:.1f}" height="{TIMELINE - y:.1f}"/>')
        out.append(f'<rect class="suma-top{mark}" {_column(i, count)} y="{y:.1f}" height="3"/>')
    return out


def _legend(low: float, high: float, untrained: bool) -> str:
    return (
        f'<div class="suma-legend"><span>{low:.3f}</span>'
        f'<i style="background:linear-gradient(90deg,{",".join(SCALE)})"></i><span>{high:.3f}</span>'
        f"<span>activation (cosine) of the {'untrained ' * untrained}concept in the frame</span></div>"
    )
