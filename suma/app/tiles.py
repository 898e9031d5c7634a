"""Videos as tiles that can be clicked."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from suma.app.render import render


@dataclass(frozen=True)
class Tile:
    """One video of a list."""

    name: str  # in the gallery
    title: str
    poster: str  # data URI
    aspect: float  # the poster's width / height
    score: float | None = None
    moment: float | None = None  # seconds


def tiles(
    shown: Sequence[Tile],
    chosen: int | None = None,
    empty: str = "",
    more: int = 0,
    link: str | None = None,
    head: str = "",
) -> str:
    """Return posters with title, score and best moment, or `empty` where there are none.

    Args:
        chosen: the number of the tile that is marked.
        more: how many videos a last button says are left.
        link: the query for the page's address; None leaves the address alone.
        head: a line above the tiles.
    """
    shape = "16 / 10" if shown and median(tile.aspect for tile in shown) > 1.15 else "1 / 1"
    head = head if shown else ""
    return render("tiles", tiles=shown, chosen=chosen, empty=empty, more=more, link=link, head=head, shape=shape)
