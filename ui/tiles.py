"""Results as HTML that can be clicked: posters, captions, concepts. All words are escaped here."""

import html
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

# One listener for every gr.HTML of the app: `data-kind="seek"` jumps in the player, anything else goes to Python.
ON_LOAD = """
const act = (hit) => {
  if (hit.dataset.kind === 'seek') {
    const svg = hit.closest('svg');
    const video = document.querySelector(svg.dataset.player + ' video');
    if (!video) return;
    video.currentTime = JSON.parse(svg.dataset.times)[hit.dataset.frame];
    video.play().catch(() => {});
    return;
  }
  for (const on of element.querySelectorAll('[aria-pressed=true]')) on.setAttribute('aria-pressed', 'false');
  if (hit.hasAttribute('aria-pressed')) hit.setAttribute('aria-pressed', 'true');
  trigger('select', {...hit.dataset});
};
element.addEventListener('click', (event) => {
  const hit = event.target.closest('[data-kind]');
  if (hit) act(hit);
});
// what stands beside a player says where it starts: a new source loses gr.Video's playback_position
let started = '';
const start = (loaded) => {
  const mark = element.querySelector('[data-start]');
  const video = mark && document.querySelector(mark.dataset.player + ' video');
  if (!video || video.readyState < 1 || (loaded && loaded !== video)) return;
  const now = mark.dataset.clip + '@' + mark.dataset.start;
  if (!loaded && now === started) return;
  started = now;
  video.currentTime = Number(mark.dataset.start);
};
document.addEventListener('loadedmetadata', (event) => start(event.target), true);
watch('value', () => start(null));
document.addEventListener('timeupdate', (event) => {
  const svg = element.querySelector('svg[data-times]');
  if (!svg || event.target !== document.querySelector(svg.dataset.player + ' video')) return;
  const times = JSON.parse(svg.dataset.times), now = event.target.currentTime, n = times.length;
  let i = 0;
  while (i + 1 < n && times[i + 1] <= now) i++;
  const gap = i + 1 < n ? times[i + 1] - times[i] : 2 * (event.target.duration - times[i]);
  const at = Math.min(n, Math.max(0, i + 0.5 + (gap > 0 ? (now - times[i]) / gap : 0)));
  const line = svg.querySelector('.suma-playhead');
  for (const side of ['x1', 'x2']) line.setAttribute(side, (100 * at / n) + '%');
}, true);
"""
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
    """Text for HTML: a caption `<img onerror=...>` stays text, in an attribute too."""
    return html.escape(text, quote=True)


def tiles(items: Sequence[Tile], chosen: int | None = None, empty: str = "", more: int = 0) -> str:
    """Posters with title, score and best moment; `more`: how many videos a last button still holds."""
    if not items:
        return note(empty)
    shape = "16 / 10" if median(tile.aspect for tile in items) > 1.15 else "1 / 1"
    buttons = "".join(_tile(tile, i == chosen) for i, tile in enumerate(items))
    button = f'<button class="suma-more" data-kind="more">{more} more</button>' if more else ""
    # the number makes every answer a new one, so that the choice is drawn again
    return f'<div class="suma-tiles" style="--shape:{shape}" data-run="{next(_run)}">{buttons}{button}</div>'


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


def concept_list(rows: Sequence[tuple[int, str, str, float]], total: int) -> str:
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
    shown = f"{len(rows)} of {total}" if len(rows) < total else str(total)
    return (
        f'<div class="suma-listhead"><span>{shown} concepts</span><span>stands out in, of all frames</span></div>'
        f'<div class="suma-concepts">{items}</div>'
    )


def note(text: str) -> str:
    """A quiet line where a result will be, or is missing."""
    return f'<p class="suma-note">{esc(text)}</p>' if text else ""


def head(text: str, content: str) -> str:
    """Content under a small head; nothing where there is none."""
    return f'<h4 class="suma-head">{esc(text)}</h4>{content}' if content else ""


def mark(player: str, path: str, start: float) -> str:
    """Attributes that tell a player (a CSS selector) which clip it has and where to start, in seconds."""
    return f'data-player="{esc(player)}" data-clip="{zlib.crc32(path.encode())}" data-start="{start:.3f}"'


def playing(player: str, path: str, title: str, start: float) -> str:
    """What plays now, and from when."""
    return f'<p class="suma-playing" {mark(player, path, start)}><b>{esc(title)}</b> at {start:.1f} s</p>'


def heading(title: str, note: str = "") -> str:
    """A result's title and what is said about it."""
    return f'<div class="suma-heading"><h3>{esc(title)}</h3><p>{esc(note)}</p></div>'
