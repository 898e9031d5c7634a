"""Results as HTML that can be clicked: posters, captions, concepts. All words are escaped here."""

import base64
import html
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

from suma.app.colours import SCALE, colour

ON_LOAD = "window.sumaListen(element, trigger, watch)"  # page.js, of every gr.HTML of the app
_run = count()


@dataclass(frozen=True)
class Tile:
    """One video of a list."""

    name: str  # in the gallery
    title: str
    poster: str  # data URI
    aspect: float  # the poster's width / height
    score: float | None = None
    moment: float | None = None  # seconds


def esc(text: str) -> str:
    """Text for HTML: a caption `<img onerror=...>` stays text, in an attribute too; half a character becomes "?"."""
    return html.escape(text.encode("utf-8", "replace").decode(), quote=True)


def tiles(
    items: Sequence[Tile], chosen: int | None = None, empty: str = "", more: int = 0, link: str | None = None
) -> str:
    """Posters with title, score and best moment; `more`: how many videos a last button still holds; `link`: the query
    that goes into the page's address."""
    address = "" if link is None else f'<i hidden data-link="{esc(link)}"></i>'
    if not items:
        return note(empty) + address
    shape = "16 / 10" if median(tile.aspect for tile in items) > 1.15 else "1 / 1"
    buttons = "".join(_tile(tile, i == chosen) for i, tile in enumerate(items))
    button = f'<button class="suma-more" data-kind="more">{more} more</button>' if more else ""
    # the number makes every answer a new one, so that the choice is drawn again
    return f'<div class="suma-tiles" style="--shape:{shape}" data-run="{next(_run)}">{buttons}{button}</div>{address}'


def _tile(tile: Tile, chosen: bool) -> str:
    facts = []
    if tile.score is not None:
        facts.append(f"<b>{tile.score:.3f}</b>")
    if tile.moment is not None:
        facts.append(f"<span>at {tile.moment:.1f} s</span>")
    moment = "" if tile.moment is None else f' data-moment="{tile.moment}"'
    return (
        f'<button class="suma-tile" data-kind="video" data-video="{esc(tile.name)}"{moment} '
        f'aria-pressed="{str(chosen).lower()}" title="{esc(tile.title)}">'
        f'<img src="{tile.poster}" alt="" loading="lazy"><span class="suma-title">{esc(tile.title)}</span>'
        f'<span class="suma-facts">{"".join(facts)}</span></button>'
    )


def queries(texts: Sequence[str], label: str = "Try") -> str:
    """Queries to click."""
    chips = "".join(
        f'<button class="suma-chip" data-kind="query" data-query="{esc(text)}">{esc(text)}</button>' for text in texts
    )
    return f'<div class="suma-chips"><span>{esc(label)}</span>{chips}</div>' if chips else ""


def captions(found: Sequence[tuple[str, float]]) -> str:
    """Ranked captions; a click on one searches by it."""
    low, high = min((s for _, s in found), default=0.0), max((s for _, s in found), default=0.0)
    rows = "".join(
        f'<li><button data-kind="query" data-query="{esc(text)}" title="search videos by this caption">'
        f'<i style="width:{12 + 88 * (score - low) / ((high - low) or 1):.0f}%"></i><span>{esc(text)}</span>'
        f"<b>{score:.3f}</b></button></li>"
        for text, score in found
    )
    return head("Captions", f'<ol class="suma-captions">{rows}</ol>' if rows else "")


def concept_list(rows: Sequence[tuple[int, str, str, float]], total: int, untrained: bool = False) -> str:
    """Concepts (id, name, more words, share of frames where it stands out)."""
    if not rows:
        return note("No concept has such a word.")
    largest = max(share for *_, share in rows) or 1.0
    items = "".join(
        f'<button class="suma-concept" data-kind="concept" data-concept="{k}" aria-pressed="false">'
        f"<span><b>{esc(name)}</b> {esc(words)}</span>"
        f'<i><i style="width:{100 * share / largest:.0f}%"></i></i><small>{100 * share:.1f} %</small></button>'
        for k, name, words, share in rows
    )
    shown = (f"{len(rows)} of {total}" if len(rows) < total else str(total)) + " untrained" * untrained
    return (
        f'<div class="suma-listhead"><span>{shown} concepts</span><span>stands out in, of all frames</span></div>'
        f'<div class="suma-concepts">{items}</div>'
    )


def concept_map(places: Sequence[Sequence[float]], names: Sequence[str], shares: Sequence[float]) -> str:
    """All concepts on a plane: a dot each, at its place in [0, 1], coloured by how often it stands out."""
    largest = max(shares, default=0.0) or 1.0
    dots, order = [], sorted(range(len(names)), key=lambda k: -shares[k])
    at = [(20 + 660 * x, 16 + 468 * y) for x, y in places]
    words = [(*at[k], names[k].split(",")[0]) for k in order]
    for k in reversed(order):
        (x, y), share = at[k], shares[k] / largest
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 + 5 * share:.1f}" fill="{colour(share)}" data-kind="concept" '
            f'data-concept="{k}"><title>{esc(names[k])}: {100 * shares[k]:.1f} % of frames</title></circle>'
        )
    return (
        f'<figure class="suma-map"><svg viewBox="0 0 700 500" role="img" aria-label="Map of {len(names)} concepts; the '
        f'list beside it has the same ones">{"".join(dots)}<g class="suma-large">{_labels(words, 11, 60)}</g>'
        f'<g class="suma-small">{_labels(words, 24, 24)}</g></svg><figcaption class="suma-legend">'
        f'<span>0 %</span><i style="background:linear-gradient(90deg,{",".join(SCALE)})"></i>'
        f"<span>{100 * largest:.1f} % of frames</span><span>near = alike (t-SNE); far apart says little</span>"
        "</figcaption></figure>"
    )


def _labels(words: Sequence[tuple[float, float, str]], size: int, most: int) -> str:
    """Words beside their dots (x, y, word), where they find room: the first ones first."""
    labels: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    for x, y, word in words:
        left, base = x + 9, y + 0.36 * size
        box = (left, base - size, left + 0.58 * size * len(word), base + 0.2 * size)
        free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes)
        if len(labels) < most and box[2] < 700 and free:
            boxes.append(box)
            labels.append(f'<text x="{left:.1f}" y="{base:.1f}">{esc(word)}</text>')
    return "".join(labels)


def skeleton(number: int) -> str:
    """Where tiles will be."""
    tile = '<span class="suma-tile suma-ghost"><span></span><span></span></span>'
    return f'<div class="suma-tiles" style="--shape:1 / 1" aria-hidden="true">{tile * number}</div>'


def progress(total: int, done: int, added: int, skipped: int, failed: dict[str, str], rate: float, left: float) -> str:
    """How far an addition is: count, rate, time left, failures with their reasons."""
    facts = [f"{done} of {total}", f"{added} added"]
    facts += [f"{skipped} there already"] if skipped else []
    facts += [f"{len(failed)} failed"] if failed else []
    facts += [f"{rate:.1f} videos/s"] if rate else []
    facts += [f"{left:.0f} s left"] if rate and done < total else []
    return (
        f'<div class="suma-progress" role="status"><progress max="{max(total, 1)}" value="{done}" '
        f'aria-label="videos added"></progress><p>{" · ".join(facts)}</p>{failures(failed)}</div>'
    )


def copying(share: float) -> str:
    """Return a bar: how much is made of the copy that a browser can play (0 to 1)."""
    said = f"{100 * share:.0f} %" if share else "soon"
    return (
        f'<div class="suma-progress" role="status"><progress max="1" value="{share:.2f}" aria-label="copy made">'
        f"</progress><p>Browsers cannot play this file: a copy is being made · {said}</p></div>"
    )


def failures(failed: dict[str, str], limit: int = 50) -> str:
    """Files that could not be read, with reasons."""
    rows = "".join(
        f"<li><b>{esc(name)}</b> {esc(reason.removeprefix(name).strip())}</li>"
        for name, reason in list(failed.items())[:limit]
    )
    more = f"<li>and {len(failed) - limit} more</li>" if len(failed) > limit else ""
    return f'<ul class="suma-failures">{rows}{more}</ul>' if rows else ""


def download(name: str, kind: str, data: bytes) -> str:
    """A file that the browser saves at once."""
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<a download="{esc(name)}" href="{uri}" data-run="{next(_run)}" hidden>{esc(name)}</a>'


def note(text: str) -> str:
    """A quiet line where a result will be, or is missing."""
    return f'<p class="suma-note">{esc(text)}</p>' if text else ""


def head(text: str, content: str) -> str:
    """Content under a small head; nothing where there is none."""
    return f'<h4 class="suma-head">{esc(text)}</h4>{content}' if content else ""


def mark(player: str, path: str, start: float) -> str:
    """Attributes that tell a player (a CSS selector) which clip it has and where to start, in seconds."""
    return f'data-player="{esc(player)}" data-clip="{zlib.crc32(os.fsencode(path))}" data-start="{start:.6f}"'


def playing(player: str, path: str, title: str, start: float) -> str:
    """What plays now, and from when."""
    return f'<p class="suma-playing" {mark(player, path, start)}><b>{esc(title)}</b> at {start:.1f} s</p>'


def heading(title: str, note: str = "", query: str = "") -> str:
    """A result's title, what is said about it, and the query that it answers."""
    return f'<div class="suma-heading" data-for="{esc(query)}"><h3>{esc(title)}</h3><p>{esc(note)}</p></div>'
