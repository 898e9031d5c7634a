"""What the page shows, as HTML from the templates beside this file: tiles, the heat map, the bar and map of concepts.

Values are escaped, and a value that a template misses is an error. Shapes: K concepts, D joint width.
"""

import base64
import os
import zlib
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import numpy as np

from suma.app.media import Tile
from suma.explain import Explanation
from suma.index.query import (
    MAX_STEERED,
    Query,
    concepts_of,
    filter_of,
    parse_steering,
    unparse_steering,
    with_filter,
)
from suma.model.encoder import Encoder
from suma.model.vocabulary import fold

# cividis: dark blue to yellow, even in lightness, and the same for colour-blind eyes
SCALE = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")


def colour(share: float) -> str:
    """Return the scale's colour at a share of 0 to 1, interpolated.

    >>> colour(0), colour(1), colour(0.5)
    ('#00224e', '#fee838', '#7d7c76')
    """
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    a, b = (bytes.fromhex(SCALE[i][1:]) for i in (low, low + 1))
    return "#" + bytes(round(x + (at - low) * (y - x)) for x, y in zip(a, b, strict=True)).hex()


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
ENVIRONMENT.globals |= {"colour": colour, "scale": SCALE, "run": count().__next__}
ENVIRONMENT.filters["clip"] = lambda path: zlib.crc32(os.fsencode(path))  # tells page.js that a player has another clip


def render(name: str, /, **values: Any) -> str:
    """Return the HTML of `templates/{name}.html`; half a character (a lone surrogate) becomes "?"."""
    html = ENVIRONMENT.get_template(f"{name}.html").render(values)
    return html.strip().encode("utf-8", "replace").decode()


def length(seconds: float) -> str:
    """Return how long a video is, in words."""
    return f"{seconds:.1f} s long" if seconds else "photo"


def heading(title: str, note: str, query: str = "", missing: str = "") -> str:
    """Return a title, a note on it, and a line saying why there is nothing to play."""
    return render("heading", title=title, note=note, query=query) + render("note", text=missing)


def chips(texts: Sequence[str], label: str = "Try") -> str:
    """Return queries to click."""
    return render("queries", texts=texts, label=label)


def download(name: str, media_type: str, data: bytes) -> str:
    """Return a file that the browser saves at once."""
    return render("download", name=name, type=media_type, content=base64.b64encode(data).decode())


def tiles(
    shown: Sequence[Tile],
    chosen: int | None = None,
    empty: str = "",
    more: str = "",
    link: str | None = None,
    head: str = "",
    limit: int = 0,
    dim: bool = False,
) -> str:
    """Return posters with title, score and best moment, or `empty` where there are none.

    Args:
        chosen: the number of the tile that is marked.
        more: what a last button says; "" for none.
        link: the query for the page's address; None leaves the address alone.
        head: a line above the tiles.
        limit: how many tiles that button asks for.
        dim: show them faintly, as they are hardly what is meant.
    """
    shape = "16 / 10" if shown and median(tile.aspect for tile in shown) > 1.15 else "1 / 1"
    values = {"chosen": chosen, "empty": empty, "more": more, "limit": limit, "link": link, "dim": dim}
    return render("tiles", tiles=shown, head=head if shown else "", shape=shape, **values)


ROW, TIMELINE, SECONDS = 32, 54, 20  # heights, pixels
GAP = 6  # pixels below the timeline
MIN_COLUMN = 34  # width, pixels: below it the map scrolls in its box


def heat_map(found: Explanation, thumbs: Sequence[str], aspect: float, player: str, start: float = 0.0) -> str:
    """Return the timeline (with a query), the frames' pictures and seconds, and the heat map.

    A click plays that moment in `player` (a CSS selector), and one on a concept's name searches by it. The player
    starts at the best frame; without a query at `start`, in seconds.
    """
    bars = _bars(found.frame_scores)
    picture = round(min(max(MIN_COLUMN / aspect, 30), 62)) if thumbs else 0
    frames_top = TIMELINE + GAP if bars else 0
    cells_top = frames_top + picture + SECONDS
    values = [value for concept in found.concepts for value in concept.heat]
    return render(
        "heat",
        found=found,
        thumbs=thumbs[: len(found.times)],
        player=player,
        start=found.moment if bars else start,
        bars=bars,
        best_frame=found.times.index(found.moment),
        answers=[i for i, time in enumerate(found.times) if found.span[0] <= time < found.span[1]],
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


MAX_CHOICE = 300  # characters
FILTERS = {"folder": ("in",), "length": ("longer", "shorter"), "date": ("after", "before")}
LENGTHS = {"under 10 s": "shorter:10", "under 1 min": "shorter:60", "over 1 min": "longer:60"}
LENGTHS |= {"over 10 min": "longer:600"}


def menus(text: str, folders: Sequence[str], years: Sequence[int]) -> list[tuple[str, str, dict[str, str]]]:
    """Return the menus of filters: name, what is chosen, and the choices, from label to the query's text."""
    dates = {f"last {days} days": f"after:{date.today() - timedelta(days)}" for days in (7, 30)}
    dates |= {str(year): f"after:{year}-01-01 before:{year + 1}-01-01" for year in years}
    choices = {"folder": {name: f'in:"{name}"' for name in folders}, "length": LENGTHS, "date": dates}
    found = []
    for name, some in choices.items():
        chosen = filter_of(text, FILTERS[name])
        typed = {} if chosen in ("", *some.values()) else {chosen: chosen}
        if some or typed:
            found.append((name, chosen, {f"any {name}": "", **typed, **some}))
    return found


SHOWN = 6  # concepts of the sentence, strongest first; those that were set always show
SETS = {"ban": -1.0, "add": 0.8}  # what a button of the bar sets a weight to


def changed_query(text: str, event: Mapping[str, Any]) -> str:
    """Return the query's text after a click in the bar: one weight set or let go, or all of them reset."""
    if event.get("kind") == "filter":
        return with_filter(text, FILTERS[event["filter"]], str(event["value"])[:MAX_CHOICE])
    sentence, weights = parse_steering(text)
    kind, word = str(event.get("kind", "")), fold(str(event.get("word", "")).strip())
    if kind == "reset":
        return sentence
    if not word:
        return text
    if kind == "free":
        weights.pop(word, None)
    elif kind == "weight":
        weights[word] = max(-1.0, min(1.0, float(event.get("value", 0))))
    elif kind in SETS:
        weights[word] = SETS[kind]
    if kind != "free" and len(weights) > MAX_STEERED:
        raise ValueError(f"at most {MAX_STEERED} concepts can be steered")
    return unparse_steering(sentence, weights)


def steering_bar(model: Encoder, text: str, query: Query, menus: Sequence[tuple[str, str, dict[str, str]]] = ()) -> str:
    """Return the bar for a query as it was typed and as it was read, with menus of filters."""
    space, weights = model.space, dict(query.weights)
    weight_of = concepts_of(model, weights)
    word_of = dict(zip(space.concept_of(list(weights), model.embed_words), weights, strict=True)) if weights else {}
    anchor = query.anchor(model)
    if anchor is not None:
        strongest = np.argsort(-anchor, kind="stable")[:SHOWN].tolist()
        weight_of |= {k: float(anchor[k]) for k in strongest if anchor[k] >= 0.005 and k not in weight_of}
    knobs = [
        {
            "name": space.name(k),
            "members": space.members(k),
            "word": word_of.get(k) or space.members(k)[0],
            "weight": weight,
            "is_set": k in word_of,
        }
        for k, weight in weight_of.items()
    ]
    return render(
        "steer",
        untrained=model.config.untrained,
        knobs=knobs,
        text=text,
        steered=bool(weights),
        menus=menus,
        says=query.says,
        unknown=[word for word in dict.fromkeys(map(space.read, query.words)) if not space.is_known(word)],
        notes=query.notes(space),
    )


LARGEST = 2048  # concepts; more are projected on their two main directions
WIDTH = 700  # of the map, in its own units


def concept_map(points: Sequence[Sequence[float]], names: Sequence[str], shares: Sequence[float]) -> str:
    """Return the map: a dot for each concept, at its point in [0, 1] x [0, 1], coloured by how often it stands out."""
    rarest_first = sorted(range(len(names)), key=lambda k: -shares[k])[::-1]  # so that the common ones lie on top
    dots = [(k, 20 + 660 * points[k][0], 16 + 468 * points[k][1], names[k], shares[k]) for k in rarest_first]
    words = [(x, y, name.split(",")[0]) for _, x, y, name, _ in reversed(dots)]
    largest = max(shares, default=0.0) or 1.0
    return render("concept_map", dots=dots, large=_labels(words, 11, 60), small=_labels(words, 24, 24), largest=largest)


def _labels(words: Sequence[tuple[float, float, str]], size: int, most: int) -> list[tuple[float, float, str]]:
    """Return labels (x, y, word) beside the dots (x, y, word) of those words that find room, the first ones first."""
    labels: list[tuple[float, float, str]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for x, y, word in words:
        left, base = x + 9, y + 0.36 * size
        box = (left, base - size, left + 0.58 * size * len(word), base + 0.2 * size)
        free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes)
        if len(labels) < most and box[2] < WIDTH and free:
            boxes.append(box)
            labels.append((left, base, word))
    return labels


def lay_out(concepts: np.ndarray, perplexity: float = 12.0, steps: int = 400) -> np.ndarray:
    """Return a point (K, 2) in [0, 1] for each unit concept (K, D), the same at every call.

    Exact t-SNE, which starts from the two main directions: it tells who is near whom; large distances mean nothing.
    """
    count = len(concepts)
    centred = concepts - concepts.mean(0)
    start = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    if 8 <= count <= LARGEST:
        start = _tsne(concepts, start, min(perplexity, (count - 1) / 3), steps)
    low, high = start.min(0), start.max(0)
    return (start - low) / np.maximum(high - low, 1e-9)


def _tsne(x: np.ndarray, start: np.ndarray, perplexity: float, steps: int) -> np.ndarray:
    distances = np.maximum(0, 2 - 2 * (x @ x.T))
    p = _affinities(distances, perplexity)
    y = (1e-2 * start / max(1e-9, start.std())).astype(np.float32)
    speed, gain = np.zeros_like(y), np.ones_like(y)
    p = ((p + p.T) / (2 * len(x))).astype(np.float32)
    for step in range(steps):
        exaggeration = 8.0 if step < steps // 4 else 1.0
        square = (y**2).sum(1)
        near = 1 / (1 + np.maximum(0, square[:, None] + square - 2 * y @ y.T))
        np.fill_diagonal(near, 0)
        pull = (exaggeration * p - near / near.sum()) * near
        gradient = 4 * (pull.sum(1)[:, None] * y - pull @ y)
        gain = np.where(np.sign(gradient) != np.sign(speed), gain + 0.2, gain * 0.8).clip(0.01)
        speed = (0.5 if step < steps // 4 else 0.8) * speed - max(10.0, len(x) / 8) * gain * gradient
        y = y + speed
        y -= y.mean(0)
    return y


def _affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Return each concept's neighbours as a distribution (K, K) of this perplexity, by bisection of its width."""
    count = len(distances)
    low, high, beta = np.zeros(count), np.full(count, np.inf), np.ones(count)
    away = distances + np.diag(np.full(count, np.inf))
    for _ in range(50):
        p = np.exp(-(away - away.min(1, keepdims=True)) * beta[:, None])
        p /= p.sum(1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    return p
