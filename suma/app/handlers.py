"""What the page shows: a handler for each thing a visitor does, in the order of the tabs."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from suma import Match, VideoIndex
from suma.app import heat, media, steering, tiles
from suma.app.adding import Filling, Progress
from suma.app.api import MAX_QUERY, Api, Options, kind, plain
from suma.app.concept_map import place
from suma.app.tiles import esc
from suma.app.uploads import playable_upload
from suma.explain import Explanation, heat_map
from suma.index.catalog import Row
from suma.index.files import find_videos
from suma.index.steering import parse

PAGE = 24  # videos of a page of the picker
NOTHING_YET = tiles.note("Its captions and similar videos appear here.")
MODES = {"concepts of the query": "query", "strongest in the video": "video"}


class Handlers(Api):
    """What the page shows, in the order of its tabs; the functions for programs are in suma/app/api.py."""

    def __init__(self, index: VideoIndex, options: Options | None = None):
        super().__init__(index, options)
        self._watching: dict[tuple[str, str], object] = {}  # who waits for a copy -> the last call of show_copy
        self.filling: Filling | None = None  # videos that are indexed since the app was started

    def fill(self, paths: Sequence[Path]) -> None:
        """Begin to add videos, while the page can be used."""
        self.filling = Filling(self.gallery, self.add_paths(list(paths)))

    def show_filling(self, text: str, shown: int) -> list[Any]:
        """Return how far the indexing is, whether to ask again, the number of videos now, and where the first have come
        since, the examples and the results for what is in the box."""
        filling = self.filling
        if filling is None:
            return ["", gr.Timer(active=False), *[gr.skip()] * 4]
        busy, p, count = filling.thread.is_alive(), filling.progress, len(self.gallery.names)
        said = "" if not busy else "Indexing your videos: those that are done can be searched."
        if filling.error:
            said = "Indexing ended early. The message is where the app was started."
        bar = tiles.progress(p.total, p.done, len(p.added), p.skipped, p.failed, p.rate, p.left)
        parts: list[Any] = [gr.skip()] * 3
        if count and not shown:
            parts = [tiles.queries(self.gallery.examples()), *self.show_typed(text)]
        bar = tiles.note(said) + bar if said or p.failed else ""
        return [bar, gr.Timer(active=busy), count, *parts]

    @property
    def nothing_there(self) -> str:
        """What to say where the gallery is empty."""
        if self.filling and self.filling.thread.is_alive():
            return "The first videos are being indexed; they can be searched as soon as they are done."
        return "The gallery is empty: add videos in the Gallery tab."

    # ---- text to videos --------------------------------------------------------------------------------------------

    @property
    def first_query(self) -> str:
        """A script for the page: what is in the search box, else the query in the page's address or the first example.

        It runs in the page, so nothing that is typed meanwhile is replaced.
        """
        examples = self.gallery.examples() if len(self.index) else []
        first = json.dumps(examples[0] if examples else "").replace("<", "\\u003c")
        asked = f'(new URLSearchParams(location.search).get("q") || "").slice(0, {MAX_QUERY})'
        return f"(typed) => typed || {asked} || {first}"

    @kind
    def show_results(self, text: str) -> list[Any]:
        """Results as tiles, and the bar that steers them; warns where there is nothing to search."""
        text = (text or "").strip()
        if not text:
            gr.Warning("Type what happens in the video, then press Enter.", title="Empty search")
            return self.show_typed("")
        if not len(self.index):
            busy = self.filling and self.filling.thread.is_alive()
            said = "Start the app with --videos FOLDER, or add videos in the Gallery tab."
            gr.Warning(self.nothing_there if busy else said, title="Empty gallery")
            return [gr.skip()] * 2
        if len(text) > MAX_QUERY:
            gr.Warning(f"Only the first {MAX_QUERY} characters of the query are read.", title="A long query")
        return self._results(text[:MAX_QUERY])

    @kind
    def show_typed(self, text: str) -> list[Any]:
        """The same while someone types: an empty box is no mistake."""
        try:
            return self._results((text or "").strip()[:MAX_QUERY])
        except ValueError as error:  # half a word of the query language
            return [tiles.tiles([], empty=str(error), link=""), ""]

    def _results(self, text: str) -> list[Any]:
        sentence, weights = parse(text)
        if not len(self.index):
            return [tiles.tiles([], empty=self.nothing_there, link=text), ""]
        if not (sentence or weights):
            return [tiles.tiles([], empty="Type what happens in the video.", link=""), ""]
        shown = self.gallery.tiles(self.find(sentence, weights))
        with self.gallery.lock:
            bar = steering.bar(self.index.model, text)
        return [tiles.tiles(shown, chosen=0, empty="No video of the gallery is meant by this.", link=text), bar]

    @kind
    def steer(self, text: str, event: gr.EventData) -> list[Any]:
        """Results after a click in the bar, and the query as it is then. A slider that moves is not drawn again."""
        text = steering.changed(text or "", event._data)
        results, bar = self.show_typed(text)
        return [text, results, gr.skip() if event._data.get("kind") == "weight" else bar]

    @kind
    def show_best(self, text: str, mode: str) -> list[Any]:
        """The best result: its player, ready at its best moment, and why."""
        sentence, weights = parse((text or "").strip()[:MAX_QUERY])
        matches: list[Match] = []
        with suppress(ValueError):  # said beside it
            matches = self.find(sentence, weights, 1) if (sentence or weights) and len(self.index) else []
        if not matches:
            return ["", gr.Video(visible=False), "", "", ""]
        return self._detail(self.gallery.name(matches[0].path), text, mode, matches[0].moment, play=False)

    @kind
    def show_video(self, text: str, mode: str, event: gr.EventData) -> list[Any]:
        """One chosen result: player at its best moment, and why."""
        chosen = event._data
        return self._detail(chosen.get("video", ""), text, mode, float(chosen.get("moment", 0)), play=True)

    @kind
    def show_mode(self, text: str, video: str, mode: str) -> str:
        """The heat map with other concepts."""
        return self._map(self._why(self.gallery.row(video).path, text, mode)) if video else ""

    @kind
    def save(self, text: str, video: str, mode: str, event: gr.EventData) -> str:
        """The explanation as a PNG or JSON file."""
        found = self._why(self.gallery.row(video).path, text, mode)
        name = f"suma-{Path(video).stem}"
        if event._data.get("format") == "json":
            content = {**asdict(found), "path": video}
            return tiles.download(f"{name}.json", "application/json", json.dumps(content, indent=1).encode())
        frames = media.pictures(found, self.index.model.config.num_frames)
        out = io.BytesIO()
        heat_map(found, frames).savefig(out, format="png", dpi=150)
        return tiles.download(f"{name}.png", "image/png", out.getvalue())

    def _detail(self, name: str, text: str, mode: str, moment: float, play: bool) -> list[Any]:
        row = self.gallery.row(name)
        found = self._why(row.path, text, mode)
        note = f"score {found.score:.3f} · best moment at {moment:.1f} s · {row.duration:.1f} s long"
        player, missing = self._player(row, play)
        note += f" · {missing}" * bool(missing)
        title = tiles.heading(self.gallery.title(row.path), note, (text or "").strip()[:MAX_QUERY])
        return [name, player, title, self._map(found), heat.shares(found) + heat.carried(found)]

    def _player(self, row: Row, play: bool = False) -> tuple[gr.Video, str]:
        """Return the player, hidden where there is nothing to play (yet), and a sentence where there never will be."""
        try:
            shown = media.playable(row)
        except OSError as error:
            return gr.Video(None, visible=False), plain(error)
        return gr.Video(shown or None, autoplay=play, visible=bool(shown)), ""

    async def show_copy(
        self, video: str | dict[str, str], watcher: tuple[str, str], play: bool = False
    ) -> AsyncIterator[list[Any]]:
        """Yield the player and a bar while the copy of a video is made, at most until this watcher asks for another.

        Args:
            video: its name in the gallery, or {"video": name} or {"file": an upload}; "" or {} for none.
            watcher: who waits: a session and its player.
            play: whether the copy plays at once.
        """
        mine = self._watching[watcher] = object()
        try:
            done = False
            while not done and self._watching.get(watcher) is mine:
                *shown, done = await asyncio.to_thread(self._copy, video, play)
                if self._watching.get(watcher) is mine:
                    yield shown
                    await asyncio.sleep(0 if done else 0.5)
        finally:
            if self._watching.get(watcher) is mine:
                del self._watching[watcher]

    def _copy(self, video: str | dict[str, str], play: bool) -> tuple[Any, str, bool]:
        """Return the player, the bar, and whether there is nothing to wait for."""
        current = {"video": video} if isinstance(video, str) else video
        try:
            row = self.gallery.row(current["video"]) if current.get("video") else None
            file = row or current.get("file", "")
            if not file or media.plays(file):
                return gr.skip(), "", True
            share = media.ask(file)
            if share < 1:
                return gr.skip(), tiles.copying(share), False
            if row is None:
                return playable_upload(current["file"]), "", True
            return self._player(row, play)[0], "", True
        except (OSError, ValueError) as error:
            text = f"It cannot be played here: no copy for browsers can be made ({plain(error, self.gallery)})."
            return gr.skip(), tiles.note(text), True

    def _why(self, path: str, text: str, mode: str) -> Explanation:
        return self.why(path, *parse((text or "").strip()[:MAX_QUERY]), MODES[mode])

    def _map(self, found: Explanation, player: str = "#player", start: float = 0.0) -> str:
        pictures, aspect = media.thumbnails(found, self.index.model.config.num_frames)
        return heat.why(found, pictures, aspect, player, start)

    # ---- video to captions and similar videos ----------------------------------------------------------------------

    def show_picker(self, words: str, limit: int) -> str:
        """The gallery to pick from."""
        found, more = self.gallery.page((words or "")[:200], limit)
        return tiles.tiles(found, empty="No video has these words.", more=more)

    def show_more(self, words: str, limit: int) -> tuple[str, int]:
        """A longer page of the picker."""
        return self.show_picker(words, limit + PAGE), limit + PAGE

    @kind
    def show_picked(self, lines: str, event: gr.EventData) -> list[Any]:
        """A video of the gallery: its captions, similar videos and strongest concepts."""
        row = self.gallery.row(event._data.get("video", ""))
        start = float(event._data.get("moment", 0))
        about = self._about(row.path, self.gallery.title(row.path), lines, start)
        with suppress(OSError):
            return [media.playable(row) or None, {"video": self.gallery.name(row.path)}, *about]
        return [None, {"video": self.gallery.name(row.path)}, *about]

    def show_upload(self, path: str | None, lines: str, request: gr.Request) -> list[Any]:
        """The same for an uploaded or recorded file, in a form that the browser plays."""
        uploads = self.options.uploads
        if not path:
            uploads.goodbye(request.session_hash or "")
            return [gr.skip(), {}, NOTHING_YET, *[""] * 3]
        uploads.take(path, request.session_hash or "")
        try:
            uploads.check(path)
            about = self._about(path, "Your video", lines)
            return [playable_upload(path) or gr.skip(), {"file": path}, *about]
        except (ValueError, OSError) as error:
            gr.Warning(esc(plain(error)[:300]), title="This video cannot be used")
            uploads.goodbye(request.session_hash or "")
            return [None, {}, NOTHING_YET, *[""] * 3]

    @kind
    def show_captions(self, current: dict[str, str], lines: str) -> str:
        """Captions again, with other lines."""
        path = self._current(current)
        return self._captions(path, lines) if path else ""

    def forget_upload(self, request: gr.Request) -> None:
        """A visitor has left: the upload goes."""
        self.options.uploads.goodbye(request.session_hash or "")

    def _current(self, current: dict[str, str]) -> str:
        return self.gallery.row(current["video"]).path if "video" in current else current.get("file", "")

    def _captions(self, path: str, lines: str) -> str:
        own = bool((lines or "").strip())
        if not own and not self.index.caption_list:
            return tiles.note("This gallery has no captions: write some below.")
        return tiles.captions(self.rank(path, 12 if own else 6, lines))

    def _about(self, path: str, title: str, lines: str, start: float = 0.0) -> list[Any]:
        captions = self._captions(path, lines)
        similar = self.gallery.tiles(self.find_similar(path))
        found = self.why(path, "", {}, "video", at=start)
        head = tiles.heading(title, f"{found.duration:.1f} s long")
        why = self._map(found, "#query-video", start)
        return [head, captions, tiles.head("Similar videos", tiles.tiles(similar)), why]

    # ---- concepts --------------------------------------------------------------------------------------------------

    @kind
    def show_concepts(self, words: str) -> str:
        """The list of concepts, found by a word."""
        found = self.gallery.find_concepts(words or "", 2000)
        model = self.index.model
        return tiles.concept_list(found, model.space.num_concepts, model.config.untrained)

    @kind
    def show_map(self) -> str:
        """All concepts on a plane."""
        space = self.index.model.space
        if self._places is None:
            self._places = place(space.concepts().detach().cpu().numpy()).tolist()
        names = [space.name(k) for k in range(space.num_concepts)]
        return tiles.concept_map(self._places, names, self.gallery.concept_use().share)

    _places: list[list[float]] | None = None

    @kind
    def show_concept(self, event: gr.EventData) -> list[Any]:
        """One concept: all its words and its best videos."""
        space, concept = self.index.model.space, int(event._data.get("concept", -1))
        words = space.members(concept)
        note = ", ".join(words[:80]) + (f" and {len(words) - 80} more" if len(words) > 80 else "")
        share = self.gallery.concept_use().share[concept]
        note = f"stands out in {100 * share:.1f} % of the gallery's frames · words: {note}"
        shown = tiles.tiles(self.gallery.concept_videos(concept), empty="The gallery is empty.")
        return [tiles.heading(space.name(concept), note), shown, tiles.queries([words[0]], "Search by it")]

    @kind
    def play(self, event: gr.EventData) -> list[Any]:
        """Play a video at the chosen moment."""
        row = self.gallery.row(event._data.get("video", ""))
        moment = float(event._data.get("moment", 0))
        now = tiles.playing("#concept-player", row.path, self.gallery.title(row.path), moment)
        player, missing = self._player(row, play=True)
        return [player, now + tiles.note(missing), self.gallery.name(row.path)]

    # ---- the gallery -----------------------------------------------------------------------------------------------

    def show_gallery(self, words: str, limit: int) -> list[str]:
        """What is in it, and the files that could not be read."""
        with self.gallery.lock:
            failed = {
                media.readable(name := Path(row.path).name): row.reason.replace(row.path, name)
                for row in self.index.failed
            }
            seconds = sum(row.duration for row in self.gallery.rows.values())
        facts = f"{len(self.gallery.names)} videos, {seconds / 60:.1f} minutes"
        facts += f", {len(failed)} files could not be read" if failed else ""
        return [tiles.note(facts) + tiles.failures(failed), self.show_picker(words, limit)]

    @kind
    def show_member(self, event: gr.EventData) -> list[Any]:
        """One video of the gallery, to play or remove."""
        row, name = self.gallery.row(event._data.get("video", "")), str(event._data.get("video", ""))
        heading = tiles.heading(self.gallery.title(row.path), f"{name} · {row.duration:.1f} s long")
        player, missing = self._player(row)
        return [player, heading + tiles.note(missing), name, gr.Button(visible=not self.options.read_only)]

    def add_uploads(self, files: list[str] | None) -> Iterator[Any]:
        """Uploads into the gallery, with progress."""
        yield from self._adding(self.add_files(files or []))

    def add_folder(self, folder: str | None) -> Iterator[Any]:
        """A folder that the operator allowed into the gallery, with progress."""
        yield from self._adding(self._folder(folder))

    @kind
    def remove(self, name: str) -> list[Any]:
        """A video out of the gallery."""
        if self.options.read_only:
            raise ValueError("this gallery is read-only")
        self.gallery.remove(name, self.options.library)
        gr.Info(f"{esc(name)} is no longer in the gallery.", title="Removed")
        return [gr.Video(None, visible=False), "", "", gr.Button(visible=False)]

    def _folder(self, folder: str | None) -> Iterator[Progress]:
        allowed = {str(path): path for path in self.options.folders}
        if self.options.read_only or folder not in allowed:
            raise ValueError("choose one of the folders that the operator allowed")
        yield from self.add_paths(find_videos(allowed[folder]))

    def _adding(self, steps: Iterator[Progress]) -> Iterator[Any]:
        try:
            for p in steps:
                yield tiles.progress(p.total, p.done, len(p.added), p.skipped, p.failed, p.rate, p.left)
        except (ValueError, OSError) as error:
            text = plain(error, self.gallery)
            raise gr.Error(esc(text), title="Nothing was added", print_exception=False) from error
