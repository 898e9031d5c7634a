"""What the page shows: a handler for each thing a visitor does, in the order of the tabs."""

import html
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from suma import VideoIndex
from suma.app import media, views
from suma.app.api import LARGEST_TOP, MAX_QUERY, TOP, Options, clean, read_query
from suma.app.errors import error_text, show_user_errors
from suma.app.filling import Changes, Filling
from suma.app.gallery_handlers import GalleryHandlers
from suma.app.media import Tile
from suma.app.uploads import playable_upload
from suma.app.views import chips, concept_map, download, heading, lay_out, length, render, tiles
from suma.explain import Explanation, heat_map
from suma.index.query import Query, with_filter
from suma.index.search import NOTHING_FITS
from suma.video.cut import PADDING

NOTHING_YET = render("note", text="Its captions and similar videos appear here.")
HIDE, NEWEST = "hide doubles", "newest first"  # what can be ticked beside the search box
OF_BEST = 60  # answers that "newest first" sorts: the others hardly answer
MODES = {"concepts of the query": "query", "strongest in the video": "video"}


class Best(NamedTuple):
    """The best result of a search: what it takes to show and explain it."""

    text: str  # the query as it was typed
    query: Query
    video: str  # its name
    moment: float | None  # seconds; None: the best one


class Handlers(GalleryHandlers):
    """One handler for each event of the page."""

    def __init__(self, index: VideoIndex, options: Options | None = None):
        super().__init__(index, options)
        self.filling: Filling | None = None  # videos that are indexed since the app was started
        self._points: list[list[float]] | None = None  # of the concepts, on the map

    def fill(self, paths: Sequence[Path], changes: Changes = ()) -> None:
        """Begin to add videos, while the page can be used, and then to take up the changes of their folder."""
        self.filling = Filling(self.gallery, self.add_paths, paths, changes)

    @property
    def is_filling(self) -> bool:
        """Whether videos are being indexed."""
        return self.filling is not None and self.filling.busy

    def show_filling(self, text: str, shown: int, ticked: Sequence[str] = ()) -> list[Any]:
        """Return how far the indexing is, a timer that asks again until it ends, and how many videos there are.

        Where there were none, or the indexing has ended and no query is answered, examples and results follow.
        """
        if self.filling is None:
            return ["", gr.Timer(active=False), *[gr.skip()] * 5]
        busy, p, count = self.is_filling, self.filling.progress, len(self.gallery.names)
        said = "Indexing your videos: those that are done can be searched." if busy else ""
        if self.filling.error:
            said = "Indexing ended early. The message is where the app was started."
        new: list[Any] = [gr.skip()] * 4
        if count != shown and not (shown and (busy or text.strip())):
            new, shown = [chips(self.gallery.examples()), *self.show_typed(text, ticked)], count
        bar = render("progress", p=p, said=said) if said or p.failed else ""
        return [bar, gr.Timer(active=busy or self.filling.follows), shown, *new]

    @property
    def nothing_there(self) -> str:
        """What to say where the gallery is empty."""
        if self.is_filling:
            return "The first videos are being indexed; they can be searched as soon as they are done."
        return "The gallery is empty: add videos in the Gallery tab."

    # ---- text to videos --------------------------------------------------------------------------------------------

    @property
    def first_query(self) -> str:
        """A script for the page: what is in the search box, else the query in the page's address, or the first example
        where the gallery brings some; else the page opens on the newest videos.

        It runs in the page, so nothing that a visitor types is replaced.
        """
        first = json.dumps("".join(self.gallery.examples_given()[:1])).replace("<", "\\u003c")
        asked = f'(new URLSearchParams(location.search).get("q") || "").slice(0, {MAX_QUERY})'
        return f"(typed) => typed || {asked} || {first}"

    @show_user_errors
    def show_results(self, text: str, ticked: Sequence[str] = ()) -> list[Any]:
        """Return tiles, the steering bar and the best result; warn where there is nothing to search."""
        text = (text or "").strip()
        if not len(self.index):
            said = "Start the app with --videos FOLDER, or add videos in the Gallery tab."
            gr.Warning(self.nothing_there if self.is_filling else said, title="Empty gallery")
            return [gr.skip()] * 3
        if len(text) > MAX_QUERY:
            gr.Warning(f"Only the first {MAX_QUERY} characters of the query are read.", title="A long query")
        return self._results(clean(text), ticked)

    @show_user_errors
    def show_typed(self, text: str, ticked: Sequence[str] = (), limit: int = TOP) -> list[Any]:
        """Return the same while someone types: an empty box or half a word of the query language is no mistake."""
        try:
            return self._results(clean(text), ticked, limit)
        except ValueError as error:
            return [tiles([], empty=str(error), link=""), "", None]

    def show_as_many(self, text: str, ticked: Sequence[str], event: gr.EventData) -> list[Any]:
        """Return the same with as many results as the page asks for: more of them, or those it had before."""
        return self.show_typed(text, ticked, min(int(event._data.get("limit") or TOP), LARGEST_TOP))

    def _results(self, text: str, ticked: Sequence[str], limit: int = TOP) -> list[Any]:
        if not len(self.index):
            return [tiles([], empty=self.nothing_there, link=text), "", None]
        query = read_query(text)
        shown, more, fits = self._found(query, ticked, limit)
        with self.gallery.lock:
            menus = views.menus(text, self.gallery.folders(), self.gallery.years())
            bar = views.steering_bar(self.index.model, text, query, menus)
        at = shown[0].moment if shown and self._asks_within(query) else None
        best = Best(text, query, shown[0].name, at) if shown else None
        said, label = "No video of the gallery is meant by this.", "More" if more else ""
        head = "" if fits else f"{NOTHING_FITS}. The nearest:"
        return [tiles(shown, 0, said, label, text, head, limit + TOP, dim=not fits), bar, best]

    def _found(self, query: Query, ticked: Sequence[str], limit: int) -> tuple[list[Tile], int, bool]:
        """Return the tiles of a query, how many more there may be, and whether the best fits; without words, the newest
        videos."""
        if not query.says:
            return *self.gallery.newest(replace(query.filter, root=self.gallery.root), limit), True
        within, newest = self._asks_within(query), NEWEST in ticked
        found = self.find(query, OF_BEST if newest else limit + 1, hide_doubles=HIDE in ticked)
        fits = all(match.fits for match in found[:1])
        if newest and not within:
            found = self.gallery.newest_first(found)
        shown = found[:limit]
        return self.gallery.moments(shown) if within else self.gallery.tiles(shown), len(found) - len(shown), fits

    def _asks_within(self, query: Query) -> bool:
        return bool(query.says and self.gallery.video_in(query.filter))

    @show_user_errors
    def steer(self, text: str, event: gr.EventData, ticked: Sequence[str] = ()) -> list[Any]:
        """Return the query after a click in the bar, and its results. A slider that moves is not drawn again."""
        text = views.changed_query(text or "", event._data)
        results, bar, best = self.show_typed(text, ticked)
        return [text, results, gr.skip() if event._data.get("kind") == "weight" else bar, best]

    @show_user_errors
    def show_best(self, best: Best | None, mode: str) -> list[Any]:
        """Return the best result: its player, ready at its best moment, and why it was found."""
        if best is None:
            return ["", gr.Video(visible=False), "", "", ""]
        return self._detail(best.video, best.text, best.query, mode, best.moment, play=False)

    @show_user_errors
    def show_video(self, text: str, mode: str, event: gr.EventData) -> list[Any]:
        """Return a clicked result: its player at its best moment, and why it was found."""
        video, query, moment = event._data.get("video", ""), read_query(text), event._data.get("moment")
        at = float(moment or 0) if self._asks_within(query) else None
        return self._detail(video, clean(text), query, mode, at, play=True)

    @show_user_errors
    def show_mode(self, text: str, video: str, mode: str) -> str:
        """Return the heat map with other concepts."""
        return self._map(self._why(text, video, mode)) if video else ""

    @show_user_errors
    def save(self, text: str, video: str, mode: str, event: gr.EventData) -> str:
        """Return the explanation as a PNG or JSON file."""
        found = self._why(text, video, mode)
        name = f"suma-{Path(video).stem}"
        if event._data.get("format") == "json":
            content = {**asdict(found), "path": video}
            return download(f"{name}.json", "application/json", json.dumps(content, indent=1).encode())
        frames = media.pictures(found, self.index.model.config.num_frames)
        out = io.BytesIO()
        heat_map(found, frames).savefig(out, format="png", dpi=150)
        return download(f"{name}.png", "image/png", out.getvalue())

    @show_user_errors
    def save_clip(self, video: str, event: gr.EventData, request: gr.Request) -> str:
        """Return the moment of the video that is shown as an mp4 file; it is deleted when the visitor leaves."""
        start, end = (float(event._data.get(side, 0)) for side in ("from", "to"))
        path = self.cut(self.gallery.row(video), start, end, PADDING)
        self.options.uploads.hold(path, f"{request.session_hash} clip")
        return path

    def _detail(self, name: str, text: str, query: Query, mode: str, at: float | None, play: bool) -> list[Any]:
        row = self.gallery.row(name)
        found = self.why(row.path, text, query, MODES[mode], at=at)
        player, missing = self.players.player(row, play)
        score = f"score {found.score:.3f} · " if query.says else ""
        moment = f"best moment at {found.moment:.1f} s · " if query.says and row.duration else ""
        note = f"{score}{moment}{length(row.duration)}" + (f" · {missing}" if missing else "")
        within, can_be_named = bool(self.gallery.video_in(query.filter)), '"' not in name and not os.path.isabs(name)
        link = with_filter(text, ("in",), "" if within else f'in:"{name}"') if can_be_named else None
        more: dict[str, Any] = {"query": text, "found": found, "link": link, "within": within}
        title = render("result", title=self.gallery.title(row.path), note=note, **more)
        return [name, player, title, self._map(found), render("shares", found=found)]

    def _why(self, text: str, video: str, mode: str) -> Explanation:
        return self.why(self.gallery.row(video).path, clean(text), read_query(text), MODES[mode])

    def _map(self, found: Explanation, player: str = "#player", start: float = 0.0) -> str:
        pictures, aspect = media.thumbnails(found, self.index.model.config.num_frames)
        return views.heat_map(found, pictures, aspect, player, start)

    # ---- video to captions and similar videos ----------------------------------------------------------------------

    @show_user_errors
    def show_picked(self, lines: str, event: gr.EventData) -> list[Any]:
        """Return a video of the gallery: its captions, similar videos and strongest concepts."""
        row, path = self._clicked(event), None
        about = self._about(row.path, self.gallery.title(row.path), lines, float(event._data.get("moment", 0)))
        with suppress(OSError):
            path = media.playable(row) or None
        return [path, {"video": self.gallery.name(row.path)}, *about]

    def show_upload(self, path: str | None, lines: str, request: gr.Request) -> list[Any]:
        """Return the same for an uploaded or recorded file."""
        uploads, session = self.options.uploads, request.session_hash or ""
        if not path:
            uploads.forget_session(session)
            return [gr.skip(), {}, NOTHING_YET, *[""] * 3]
        uploads.hold(path, session)
        try:
            uploads.check(path)
            about = self._about(path, "Your video", lines)
            return [playable_upload(path) or gr.skip(), {"file": path}, *about]
        except (ValueError, OSError) as error:
            gr.Warning(html.escape(error_text(error)[:300]), title="This video cannot be used")
            uploads.forget_session(session)
            return [None, {}, NOTHING_YET, *[""] * 3]

    @show_user_errors
    def show_captions(self, current: dict[str, str], lines: str) -> str:
        """Return the captions of the current video, ranked anew."""
        path = self.gallery.row(current["video"]).path if "video" in current else current.get("file", "")
        return self._captions(path, lines) if path else ""

    def forget_upload(self, request: gr.Request) -> None:
        """Delete the upload and the clip of a visitor who has left."""
        for session in (request.session_hash or "", f"{request.session_hash} clip"):
            self.options.uploads.forget_session(session)

    def _captions(self, path: str, lines: str) -> str:
        own = bool((lines or "").strip())
        if not own and not self.index.caption_list:
            return render("note", text="This gallery has no captions: write some below.")
        return render("captions", found=self.rank(path, 12 if own else 6, lines))

    def _about(self, path: str, title: str, lines: str, start: float = 0.0) -> list[str]:
        captions = self._captions(path, lines)
        similar = tiles(self.gallery.tiles(self.find_similar(path)), head="Similar videos")
        found = self.why(path, "", Query(), "video", at=start)
        return [
            heading(title, length(found.duration)),
            captions,
            similar,
            self._map(found, "#query-video", start),
        ]

    # ---- concepts --------------------------------------------------------------------------------------------------

    @show_user_errors
    def show_concepts(self, words: str) -> str:
        """Return the list of concepts; with words, of those that have them or are named by them."""
        found, model = self.gallery.find_concepts(words or "", 2000), self.index.model
        return render("concepts", concepts=found, total=model.space.num_concepts, untrained=model.config.untrained)

    @show_user_errors
    def show_map(self) -> str:
        """Return the map of all concepts."""
        space = self.index.model.space
        if self._points is None:
            self._points = lay_out(self.index.scorer.concepts).tolist()
        names = [space.name(k) for k in range(space.num_concepts)]
        return concept_map(self._points, names, self.gallery.concept_use().share)

    @show_user_errors
    def show_concept(self, event: gr.EventData) -> list[str]:
        """Return one concept: all its words, its best videos, and a word to search by."""
        space, concept = self.index.model.space, int(event._data.get("concept", -1))
        words, share = space.members(concept), self.gallery.concept_use().share[concept]
        listed = ", ".join(words[:80]) + (f" and {len(words) - 80} more" if len(words) > 80 else "")
        note = f"stands out in {100 * share:.1f} % of the gallery's frames · words: {listed}"
        shown = tiles(self.gallery.concept_videos(concept), empty="The gallery is empty.")
        return [heading(space.name(concept), note), shown, chips([words[0]], "Search by it")]

    @show_user_errors
    def play(self, event: gr.EventData) -> list[Any]:
        """Return a player of the clicked video at the chosen moment, what it plays, and the video's name."""
        row, moment = self._clicked(event), float(event._data.get("moment", 0))
        title, player = self.gallery.title(row.path), "#concept-player"
        now = render("playing", player=player, path=row.path, title=title, start=moment)
        shown, missing = self.players.player(row, play=True)
        return [shown, now + render("note", text=missing), self.gallery.name(row.path)]
