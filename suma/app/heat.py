"""Why a video has its score, over time: where everything stands in the picture that `templates/heat.html` draws."""

from collections.abc import Sequence

from suma.app.render import render
from suma.explain import Explanation

ROW, TIMELINE, SECONDS = 32, 54, 20  # heights, pixels
GAP = 6  # pixels below the timeline
MIN_COLUMN = 34  # width, pixels: below it the map scrolls in its box


def why(found: Explanation, thumbs: Sequence[str], aspect: float, player: str, start: float = 0.0) -> str:
    """Return the timeline (with a query), the frames' pictures and seconds, and the heat map.

    A click plays that moment in `player` (a CSS selector), and one on a concept's name searches by it. The player
    starts at the best frame; without a query at `start`, in seconds.
    """
    bars = _bars(found.frame_scores)
    best = bars.index(min(bars)) if bars else 0  # the highest bar
    picture = round(min(max(MIN_COLUMN / aspect, 30), 62)) if thumbs else 0
    frames_top = TIMELINE + GAP if bars else 0
    cells_top = frames_top + picture + SECONDS
    values = [value for concept in found.concepts for value in concept.heat]
    return render(
        "heat",
        found=found,
        thumbs=thumbs[: len(found.times)],
        player=player,
        start=found.times[best] if bars else start,
        bars=bars,
        best_frame=best,
        low=min(values, default=0.0),
        high=max(values, default=0.0),
        frames_top=frames_top,
        picture=picture,
        cells_top=cells_top,
        height=cells_top + len(found.concepts) * ROW,
        row=ROW,
        min_column=MIN_COLUMN,
    )


def _bars(scores: Sequence[float]) -> list[tuple[float, float]]:
    """Return where the bar of each frame's score begins and ends, in pixels from the top."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    share = [(score - low) / ((high - low) or 1.0) for score in scores]
    return [(4 + (1 - s) * (TIMELINE - 10), TIMELINE) for s in share]
