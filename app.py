"""SUMA in the browser: text to videos, video to captions and similar videos, and why. `python app.py --help`."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import argparse
import functools
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from suma import SUMA, Match, VideoIndex
from suma.cpu import use_fast_matmul
from suma.explain import Explanation, explain
from suma.store import MANIFEST
from ui import heat, media, tiles
from ui.gallery import Gallery
from ui.look import launch_options
from ui.tiles import ON_LOAD, esc

ASSETS = Path(__file__).resolve().parent / "assets"
TOP, PAGE = 12, 24  # results, and videos of a page of the picker
MAX_QUERY = 2000  # characters that are read; the model itself reads fewer
MODES = {"concepts of the query": "query", "strongest in the video": "video"}


def kind(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What the user can mend is said in a message instead of a traceback, with the page as it was."""

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except (ValueError, KeyError, OSError) as error:
            text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            raise gr.Error(esc(text[:500]), title="That did not work", print_exception=False) from error

    return wrapped


class Handlers:
    """The API (JSON in and out), then what the page shows."""

    def __init__(self, index: VideoIndex):
        self.index, self.gallery = index, Gallery(index)

    # ---- the API ---------------------------------------------------------------------------------------------------

    @kind
    def search(self, query: str, top_k: int = TOP) -> list[dict[str, Any]]:
        """Find the videos that a text describes best: video, caption, score, best moment (seconds), concepts."""
        return [self._json(match) for match in self._search(query, top_k)]

    @kind
    def captions(self, video: str, file: str | None, top_k: int) -> list[dict[str, Any]]:
        """The captions that describe a video best: one of the gallery by its name, or an uploaded file."""
        found = self.index.captions(self._path(video, file), _count(top_k))
        return [{"caption": caption, "score": score} for caption, score in found]

    @kind
    def similar(self, video: str, file: str | None, top_k: int) -> list[dict[str, Any]]:
        """The videos most like a video: one of the gallery by its name, or an uploaded file."""
        return [self._json(match) for match in self.index.similar(self._path(video, file), _count(top_k))]

    @kind
    def explain(
        self, video: str, query: str = "", by: Literal["query", "video"] = "query", top_k: int = 8
    ) -> dict[str, Any]:
        """Why a video of the gallery has its score: shares of the score, frame scores, concepts x frames."""
        found = asdict(explain(self.index, self.gallery.row(video).path, query[:MAX_QUERY], by, _count(top_k)))
        return {"video": video, **{name: value for name, value in found.items() if name != "path"}}

    def _json(self, match: Match) -> dict[str, Any]:
        concepts = [{"name": name, "part": part} for name, part in match.concepts]
        path = match.path
        return {
            "video": self.gallery.name(path), "caption": self.gallery.title(path), "score": match.score,
            "moment": match.moment, "duration": match.duration, "concepts": concepts,
        }  # fmt: skip

    def _search(self, query: str, top_k: int) -> list[Match]:
        return self.index.search(query[:MAX_QUERY], _count(top_k))

    def _path(self, video: str, file: str | None) -> str:
        if file:
            return file
        if not video:
            raise ValueError("give the name of a video of the gallery, or upload a file")
        return self.gallery.row(video).path

    # ---- text to videos --------------------------------------------------------------------------------------------

    @kind
    def show_results(self, query: str, mode: str) -> list[Any]:
        """Results as tiles, and the best of them explained."""
        query = (query or "").strip()
        if not query:
            gr.Warning("Type what happens in the video, then press Enter.", title="Empty search")
            return [gr.skip()] * 7
        if not len(self.index):
            gr.Warning("Start the app with --videos FOLDER to fill it.", title="The gallery is empty")
            return [gr.skip()] * 7
        if len(query) > MAX_QUERY:
            gr.Warning(f"Only its first {MAX_QUERY} characters are read.", title="A long query")
        matches = self._search(query, TOP)
        shown = tiles.tiles(self.gallery.tiles(matches), chosen=0)
        best = self.gallery.name(matches[0].path)
        return [shown, query[:MAX_QUERY], *self._detail(best, query, mode, matches[0].moment, play=False)]

    @kind
    def show_video(self, query: str, mode: str, event: gr.EventData) -> list[Any]:
        """One chosen result: player at its best moment, and why."""
        chosen = event._data
        return self._detail(chosen.get("video", ""), query, mode, float(chosen.get("moment", 0)), play=True)

    @kind
    def show_mode(self, query: str, video: str, mode: str) -> str:
        """The heat map with other concepts."""
        return self._why(self.gallery.row(video).path, query, mode)[0] if video else ""

    def _detail(self, name: str, query: str, mode: str, moment: float, play: bool) -> list[Any]:
        row = self.gallery.row(name)
        why, found = self._why(row.path, query, mode)
        note = f"score {found.score:.3f} · best moment at {moment:.1f} s · {row.duration:.1f} s long"
        try:
            player = gr.Video(media.playable(row), autoplay=play, visible=True)
        except FileNotFoundError as error:
            player, note = gr.Video(None, visible=False), f"{note} · {error}"
        return [name, player, tiles.heading(self.gallery.title(row.path), note), why, heat.shares(found)]

    def _why(
        self, path: str, query: str, mode: str, player: str = "#player", start: float = 0.0
    ) -> tuple[str, Explanation]:
        found = explain(self.index, path, query, MODES[mode])
        pictures, aspect = media.thumbnails(path, self.index.model.config.num_frames)
        return heat.why(found, pictures, aspect, player, start), found

    # ---- video to captions and similar videos ----------------------------------------------------------------------

    def show_picker(self, words: str, limit: int) -> str:
        """The gallery to pick from."""
        found, more = self.gallery.page((words or "")[:200], limit)
        return tiles.tiles(found, empty="No video has these words.", more=more)

    def show_more(self, words: str, limit: int) -> tuple[str, int]:
        """A longer page of the picker."""
        return self.show_picker(words, limit + PAGE), limit + PAGE

    @kind
    def show_picked(self, event: gr.EventData) -> list[Any]:
        """A video of the gallery: its captions, similar videos and strongest concepts."""
        row = self.gallery.row(event._data.get("video", ""))
        start = float(event._data.get("moment", 0))
        return [media.playable(row), *self._about(row.path, self.gallery.title(row.path), start)]

    def show_upload(self, path: str | None) -> list[Any]:
        """The same for an uploaded file."""
        if not path:
            return [""] * 4
        try:
            return self._about(path, "Your video")
        except (ValueError, OSError):
            text = f"{Path(path).name} cannot be read as a video. An MP4 or WebM file should work."
            gr.Warning(esc(text), title="Unreadable video")
            return [""] * 4

    def _about(self, path: str, title: str, start: float = 0.0) -> list[Any]:
        captions = self.index.captions(path, 6) if self.index.caption_list else []
        similar = self.gallery.tiles(self.index.similar(path, TOP))
        row, _ = self.index.read(path)
        note = f"{row.duration:.1f} s long"
        why = self._why(path, "", "strongest in the video", "#query-video", start)[0]
        return [
            tiles.heading(title, note),
            tiles.captions(captions),
            tiles.head("Similar videos", tiles.tiles(similar)),
            why,
        ]

    # ---- concepts --------------------------------------------------------------------------------------------------

    @kind
    def show_concepts(self, words: str) -> str:
        """The list of concepts, found by a word."""
        return tiles.concept_list(self.gallery.find_concepts(words or ""), self.index.model.space.num_concepts)

    @kind
    def show_concept(self, event: gr.EventData) -> list[Any]:
        """One concept: all its words and its best videos."""
        space, concept = self.index.model.space, int(event._data.get("concept", -1))
        words = space.members(concept)
        note = ", ".join(words[:80]) + (f" and {len(words) - 80} more" if len(words) > 80 else "")
        shown = tiles.tiles(self.gallery.concept_videos(concept), empty="The gallery is empty.")
        query = tiles.queries([space.name(concept).replace(",", "")], "Search by it")
        return [tiles.heading(space.name(concept), note), shown, query]

    @kind
    def play(self, event: gr.EventData) -> list[Any]:
        """Play a video at the chosen moment."""
        row = self.gallery.row(event._data.get("video", ""))
        moment = float(event._data.get("moment", 0))
        now = tiles.playing("#concept-player", row.path, self.gallery.title(row.path), moment)
        return [gr.Video(media.playable(row), autoplay=True, visible=True), now]


def _count(top_k: int) -> int:
    return min(int(top_k or 0), 1000)


def _asked(event: gr.EventData) -> tuple[str, Any]:
    """A clicked query: into the search box, on the first tab."""
    return str(event._data.get("query", ""))[:MAX_QUERY], gr.Tabs(selected="text")


def _kind(event: gr.EventData) -> str:
    return str(event._data.get("kind", ""))


def build_demo(index: VideoIndex) -> gr.Blocks:
    """The app over an index. Launch it with `ui.look.launch_options()`."""
    h = Handlers(index)
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one call of the model at a time
    page: dict[str, Any] = {**model, "api_visibility": "private", "show_progress": "hidden"}

    def clickable(elem_id: str, value: str = "", **options: Any) -> gr.HTML:
        return gr.HTML(value, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False, **options)

    def field(elem_id: str, placeholder: str, **options: Any) -> gr.Textbox:
        shown = {"label": placeholder, "show_label": False, "container": False, "max_lines": 1}
        return gr.Textbox(placeholder=placeholder, elem_id=elem_id, **shown, **options)

    def screen(elem_id: str) -> gr.Video:
        return gr.Video(elem_id=elem_id, show_label=False, interactive=False, visible=False, buttons=[], loop=True)

    with gr.Blocks(title="SUMA: video search", fill_width=True) as demo:
        size = f"{len(index)} videos" if len(index) else "empty: start it with --videos FOLDER"
        gr.HTML(f'<div class="suma-brand"><h1>SUMA</h1><p>Search videos by what happens in them. Gallery: {size}.</p>'
                "</div>", apply_default_css=False)  # fmt: skip
        query_used, video_shown, limit = gr.State(""), gr.State(""), gr.State(PAGE)
        with gr.Tabs(selected="text") as tabs:
            with gr.Tab("Text to videos", id="text", elem_id="tab-text"):
                with gr.Row(equal_height=True):
                    query = field("query", "what happens in the video", scale=8)
                    button = gr.Button("Search", variant="primary", scale=1, min_width=100, elem_id="search")
                examples = clickable("examples", tiles.queries(h.gallery.examples()))
                with gr.Row():
                    with gr.Column(scale=5, min_width=300):
                        results = clickable("results", tiles.note("Results appear here."))
                    with gr.Column(scale=8, min_width=320):
                        title = clickable("title")
                        with gr.Row():
                            with gr.Column(scale=5, min_width=280):
                                player = screen("player")
                            with gr.Column(scale=5, min_width=280):
                                shares = clickable("shares")
                        mode = gr.Radio(
                            list(MODES), value=next(iter(MODES)), show_label=False, container=False, elem_id="mode"
                        )
                        why = clickable("why")
            with gr.Tab("Video to captions", id="video", elem_id="tab-video") as video_tab, gr.Row():
                with gr.Column(scale=4, min_width=300):
                    upload = gr.Video(
                        elem_id="query-video", label="Upload a video, or pick one below", sources=["upload"],
                        height=270, buttons=[], interactive=True,
                    )  # fmt: skip
                    words = field("filter", "filter the gallery")
                    picker = clickable("picker", elem_classes="suma-scroll")
                with gr.Column(scale=7, min_width=320):
                    about = clickable("about", tiles.note("Its captions and similar videos appear here."))
                    captions = clickable("captions")
                    similar = clickable("similar")
                    seen = clickable("seen")
            with gr.Tab("Concepts", id="concepts", elem_id="tab-concepts") as concept_tab, gr.Row():
                with gr.Column(scale=5, min_width=300):
                    word = field("word", "find the concept of a word")
                    listed = clickable("concept-list")
                with gr.Column(scale=6, min_width=320):
                    concept = clickable("concept", tiles.note("Choose a concept to see where it is strongest."))
                    concept_query = clickable("concept-query")
                    concept_player = screen("concept-player")
                    playing = clickable("playing")
                    concept_tiles = clickable("concept-videos")

        found = [results, query_used, video_shown, player, title, why, shares]
        gr.on([query.submit, button.click], h.show_results, [query, mode], found, **page)
        for source in (examples, why, captions, seen, concept_query):
            source.select(_asked, None, [query, tabs], **page).then(h.show_results, [query, mode], found, **page)
        results.select(h.show_video, [query_used, mode], found[2:], **page)
        mode.change(h.show_mode, [query_used, video_shown, mode], why, **page)

        described = [about, captions, similar, seen]

        def picked(words: str, limit: int, event: gr.EventData) -> list[Any]:
            if _kind(event) == "more":
                return [*h.show_more(words, limit), *[gr.skip()] * 5]
            return [gr.skip(), gr.skip(), *h.show_picked(event)]

        video_tab.select(h.show_picker, [words, limit], picker, **page)
        words.change(h.show_picker, [words, limit], picker, trigger_mode="always_last", **page)
        picker.select(picked, [words, limit], [picker, limit, upload, *described], **page)
        similar.select(h.show_picked, None, [upload, *described], **page)
        waiting = {**page, "show_progress": "minimal", "show_progress_on": about}
        gr.on([upload.upload, upload.clear], h.show_upload, upload, described, **waiting)

        concept_tab.select(h.show_concepts, word, listed, **page)
        word.change(h.show_concepts, word, listed, trigger_mode="always_last", **page)
        listed.select(h.show_concept, None, [concept, concept_tiles, concept_query], **page)
        concept_tiles.select(h.play, None, [concept_player, playing], **page)

        gr.api(h.search, api_name="search", **model)
        gr.api(h.explain, api_name="explain", **model)
        name, file = gr.Textbox("", visible=False, label="video"), gr.File(visible=False, label="file")
        number, answer = gr.Number(5, visible=False, label="top_k"), gr.JSON(visible=False)
        call = gr.Button(visible=False)
        for api_name, handler in (("captions", h.captions), ("similar", h.similar)):
            call.click(handler, [name, file, number], answer, api_name=api_name, **model)
        if h.gallery.examples(1) and len(index):  # open with an answer on the page
            first = h.gallery.examples()[0]
            demo.load(lambda: first, None, query, **page).then(h.show_results, [query, mode], found, **page)
    return demo


def open_index(model: SUMA, index: str, videos: str) -> VideoIndex:
    """The index to show: loaded, or made of a folder of videos and kept in `index`, else in the cache.

    Raises ValueError or FileNotFoundError where there is nothing to show.
    """
    if not videos:
        try:
            return VideoIndex.load(index or ASSETS / "gallery" / "index", model)
        except (FileNotFoundError, ValueError) as error:
            if index:
                raise
            print(f"note: {error}; indexing the bundled videos now", file=sys.stderr)
            videos = str(ASSETS / "gallery" / "videos")
    source = zlib.crc32(os.path.abspath(videos).encode())
    folder = Path(index) if index else media.CACHE / "indexes" / f"{model.fingerprint()}-{source:08x}"
    made = VideoIndex.load(folder, model) if (folder / MANIFEST).is_file() else VideoIndex(model)
    made.remove([row.path for row in made.rows if not Path(row.path).is_file()])
    try:
        made.save(folder)
    except OSError:
        if index:
            raise
        made.folder = None
        print(f"note: {folder} cannot be written: this index lasts for this run", file=sys.stderr)
    for path, reason in made.add(videos).failed.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)
    return made


def parser() -> argparse.ArgumentParser:
    """The command line; environment variables give its defaults, for Spaces."""
    p = argparse.ArgumentParser(prog="app.py", description=__doc__)
    env = os.environ.get
    p.add_argument("--model", default=env("SUMA_MODEL", str(ASSETS / "model")), help="a SUMA folder or Hub id "
                   "(default: the bundled model; env SUMA_MODEL)")  # fmt: skip
    p.add_argument("--index", default=env("SUMA_INDEX", ""), help="the folder of a saved index (default: the bundled "
                   "gallery; env SUMA_INDEX); with --videos it is where their index is kept")  # fmt: skip
    p.add_argument("--videos", default=env("SUMA_VIDEOS", ""), help="a folder of videos to index at start; what is in "
                   "the index already is skipped (env SUMA_VIDEOS)")  # fmt: skip
    p.add_argument("--host", default="0.0.0.0" if env("SPACE_ID") else "127.0.0.1", help="address to listen on; "
                   "0.0.0.0 opens it to the network (default: %(default)s)")  # fmt: skip
    p.add_argument("--port", type=int, default=None, help="default: the first free one from 7860 on")
    p.add_argument("--share", action="store_true", help="also make a public link (through Gradio's servers)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Open the app; errors of the user's input are one line on stderr and exit code 2."""
    args = parser().parse_args(argv)
    use_fast_matmul()
    try:
        demo = build_demo(open_index(SUMA.from_pretrained(args.model), args.index, args.videos))
        demo.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
