"""SUMA in the browser: text to videos, video to captions and similar videos, and why. `python app.py --help`."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from suma import SUMA, VideoIndex
from suma.cpu import use_fast_matmul
from suma.explain import Explanation, heat_map
from suma.steer import parse
from suma.video import VIDEO_EXTENSIONS, find_videos
from ui import heat, media, steering, tiles
from ui.adding import Progress, add_paths
from ui.api import MAX_QUERY, TOP, Api, Options, kind
from ui.concept_map import place
from ui.gpu import zero_gpu
from ui.look import launch_options
from ui.startup import open_index, options_of, parser
from ui.tiles import ON_LOAD, esc
from ui.uploads import playable_upload

PAGE = 24  # videos of a page of the picker
MODES = {"concepts of the query": "query", "strongest in the video": "video"}


class Handlers(Api):
    """What the page shows, in the order of its tabs; the functions for programs are in ui/api.py."""

    # ---- text to videos --------------------------------------------------------------------------------------------

    def first_query(self, request: gr.Request) -> str:
        """The query in the page's address, or the first example."""
        examples = self.gallery.examples()
        return request.query_params.get("q", "")[:MAX_QUERY] or (examples[0] if examples and len(self.index) else "")

    @kind
    def show_results(self, text: str) -> list[Any]:
        """Results as tiles, and the bar that steers them; warns where there is nothing to search."""
        text = (text or "").strip()
        if not text:
            gr.Warning("Type what happens in the video, then press Enter.", title="Empty search")
            return [gr.skip()] * 2
        if not len(self.index):
            gr.Warning("Start the app with --videos FOLDER, or add videos in the Gallery tab.", title="Empty gallery")
            return [gr.skip()] * 2
        if len(text) > MAX_QUERY:
            gr.Warning(f"Only its first {MAX_QUERY} characters are read.", title="A long query")
        return self.show_typed(text)

    @kind
    def show_typed(self, text: str) -> list[Any]:
        """The same while someone types: an empty box is no mistake."""
        sentence, weights = parse((text or "").strip()[:MAX_QUERY])
        if not (sentence or weights) or not len(self.index):
            return [tiles.tiles([], empty="Type what happens in the video.", link=""), ""]
        shown = self.gallery.tiles(self.find(sentence, weights))
        with self.gallery.lock:
            bar = steering.bar(self.index.model, (text or "").strip()[:MAX_QUERY])
        return [tiles.tiles(shown, chosen=0, link=(text or "").strip()[:MAX_QUERY]), bar]

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
        frames = media.pictures(found.path, self.index.model.config.num_frames)
        out = io.BytesIO()
        heat_map(found, frames).savefig(out, format="png", dpi=150)
        return tiles.download(f"{name}.png", "image/png", out.getvalue())

    def _detail(self, name: str, text: str, mode: str, moment: float, play: bool) -> list[Any]:
        row = self.gallery.row(name)
        found = self._why(row.path, text, mode)
        note = f"score {found.score:.3f} · best moment at {moment:.1f} s · {row.duration:.1f} s long"
        try:
            player = gr.Video(media.playable(row), autoplay=play, visible=True)
        except (FileNotFoundError, ValueError) as error:
            player, note = gr.Video(None, visible=False), f"{note} · {error}"
        title = tiles.heading(self.gallery.title(row.path), note, (text or "").strip()[:MAX_QUERY])
        return [name, player, title, self._map(found), heat.shares(found) + heat.carried(found)]

    def _why(self, path: str, text: str, mode: str) -> Explanation:
        return self.why(path, *parse((text or "").strip()[:MAX_QUERY]), MODES[mode])

    def _map(self, found: Explanation, player: str = "#player", start: float = 0.0) -> str:
        pictures, aspect = media.thumbnails(found.path, self.index.model.config.num_frames)
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
        return [media.playable(row), {"video": self.gallery.name(row.path)}, *about]

    def show_upload(self, path: str | None, lines: str, request: gr.Request) -> list[Any]:
        """The same for an uploaded or recorded file, in a form that the browser plays."""
        uploads = self.options.uploads
        if not path:
            uploads.goodbye(request.session_hash or "")
            return [gr.skip(), {}, *[""] * 4]
        uploads.take(path, request.session_hash or "")
        try:
            uploads.check(path)
            about = self._about(path, "Your video", lines)
            return [playable_upload(path), {"file": path}, *about]
        except (ValueError, OSError) as error:
            gr.Warning(esc(str(error)[:300]), title="This video cannot be used")
            uploads.goodbye(request.session_hash or "")
            return [None, {}, *[""] * 4]

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
        found = self.why(path, "", {}, "video")
        head = tiles.heading(title, f"{found.duration:.1f} s long")
        why = self._map(found, "#query-video", start)
        return [head, captions, tiles.head("Similar videos", tiles.tiles(similar)), why]

    # ---- concepts --------------------------------------------------------------------------------------------------

    @kind
    def show_concepts(self, words: str) -> str:
        """The list of concepts, found by a word."""
        found = self.gallery.find_concepts(words or "", 2000)
        return tiles.concept_list(found, self.index.model.space.num_concepts)

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
        return [gr.Video(media.playable(row), autoplay=True, visible=True), now]

    # ---- the gallery -----------------------------------------------------------------------------------------------

    def show_gallery(self, words: str, limit: int) -> list[str]:
        """What is in it, and the files that could not be read."""
        with self.gallery.lock:
            failed = {Path(row.path).name: row.reason for row in self.index.failed}
            seconds = sum(row.duration for row in self.gallery.rows.values())
        facts = f"{len(self.gallery.names)} videos, {seconds / 60:.1f} minutes"
        facts += f", {len(failed)} files could not be read" if failed else ""
        return [tiles.note(facts) + tiles.failures(failed), self.show_picker(words, limit)]

    @kind
    def show_member(self, event: gr.EventData) -> list[Any]:
        """One video of the gallery, to play or remove."""
        row, name = self.gallery.row(event._data.get("video", "")), str(event._data.get("video", ""))
        heading = tiles.heading(self.gallery.title(row.path), f"{name} · {row.duration:.1f} s long")
        return [
            gr.Video(media.playable(row), visible=True),
            heading,
            name,
            gr.Button(visible=not self.options.read_only),
        ]

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
        yield from add_paths(self.gallery, find_videos(allowed[folder]))

    def _adding(self, steps: Iterator[Progress]) -> Iterator[Any]:
        try:
            for p in steps:
                yield tiles.progress(p.total, p.done, len(p.added), p.skipped, p.failed, p.rate, p.left)
        except (ValueError, OSError) as error:
            raise gr.Error(esc(str(error)[:500]), title="Nothing was added", print_exception=False) from error


def _asked(event: gr.EventData) -> tuple[str, Any]:
    """A clicked query: into the search box, on the first tab."""
    return str(event._data.get("query", ""))[:MAX_QUERY], gr.Tabs(selected="text")


def _kind(event: gr.EventData) -> str:
    return str(event._data.get("kind", ""))


def build_demo(index: VideoIndex, options: Options | None = None) -> gr.Blocks:
    """The app over an index. Launch it with `ui.look.launch_options()`."""
    h = Handlers(index, options)
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 4}  # Gallery.lock orders what they share
    page: dict[str, Any] = {**model, "api_visibility": "private", "show_progress": "hidden"}
    typed: dict[str, Any] = {**page, "trigger_mode": "always_last"}

    def clickable(elem_id: str, value: str = "", **more: Any) -> gr.HTML:
        return gr.HTML(value, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False, **more)

    def field(elem_id: str, placeholder: str, **more: Any) -> gr.Textbox:
        shown = {"label": placeholder, "show_label": False, "container": False, "max_lines": 1, **more}
        return gr.Textbox(placeholder=placeholder, elem_id=elem_id, **shown)

    def screen(elem_id: str) -> gr.Video:
        return gr.Video(elem_id=elem_id, label="video", show_label=False, interactive=False, visible=False, buttons=[],
                        loop=True)  # fmt: skip

    with gr.Blocks(title="SUMA: video search", fill_width=True, delete_cache=(3600, 6 * 3600)) as demo:
        gr.HTML('<header class="suma-brand"><h1>SUMA</h1><p>Find the moment in a video by what happens in it, and see why '
                "it was found.</p></header>", apply_default_css=False)  # fmt: skip
        video_shown, limit, current, member = gr.State(""), gr.State(PAGE), gr.State({}), gr.State("")
        with gr.Tabs(selected="text") as tabs:
            with gr.Tab("Search", id="text", elem_id="tab-text"):
                with gr.Row(equal_height=True):
                    query = field("query", "what happens in the video", scale=8, autofocus=True)
                    button = gr.Button("Search", variant="primary", scale=1, min_width=100, elem_id="search")
                examples = clickable("examples", tiles.queries(h.gallery.examples()))
                steer = clickable("steer")
                live = clickable("live", "<i data-live hidden></i>")
                with gr.Row():
                    with gr.Column(scale=5, min_width=300):
                        empty = tiles.note("The gallery is empty: add videos in the Gallery tab.")
                        results = clickable("results", tiles.skeleton(TOP) if len(index) else empty)
                    with gr.Column(scale=8, min_width=320, elem_id="detail"):
                        title = clickable("title")
                        with gr.Row():
                            with gr.Column(scale=5, min_width=280, elem_id="stage"):
                                player = screen("player")
                            with gr.Column(scale=6, min_width=280):
                                shares = clickable("shares")
                        mode = gr.Radio(list(MODES), value=next(iter(MODES)), label="concepts shown", show_label=False,
                                        container=False, elem_id="mode")  # fmt: skip
                        why = clickable("why")
                        saved = clickable("saved")
            with gr.Tab("From a video", id="video", elem_id="tab-video") as video_tab, gr.Row():
                with gr.Column(scale=4, min_width=300):
                    upload = gr.Video(elem_id="query-video", label="Upload or record a video, or pick one below",
                                      sources=["upload", "webcam"], height=270, buttons=[], interactive=True)  # fmt: skip
                    lines = field("lines", "your own captions, one per line (instead of the gallery's)", lines=2,
                                  max_lines=6)  # fmt: skip
                    words = field("filter", "filter the gallery")
                    picker = clickable("picker", elem_classes="suma-scroll")
                with gr.Column(scale=7, min_width=320):
                    about = clickable("about", tiles.note("Its captions and similar videos appear here."))
                    captions = clickable("captions")
                    similar = clickable("similar")
                    seen = clickable("seen")
            with gr.Tab("Concepts", id="concepts", elem_id="tab-concepts") as concept_tab, gr.Row():
                with gr.Column(scale=7, min_width=320):
                    mapped = clickable("concept-map")
                    word = field("word", "find the concept of a word")
                    listed = clickable("concept-list")
                with gr.Column(scale=5, min_width=320):
                    concept = clickable("concept", tiles.note("Choose a concept to see where it is strongest."))
                    concept_query = clickable("concept-query")
                    concept_player = screen("concept-player")
                    playing = clickable("playing")
                    concept_tiles = clickable("concept-videos")
            with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery") as gallery_tab, gr.Row():
                with gr.Column(scale=7, min_width=320):
                    stock = clickable("stock")
                    members_filter = field("members-filter", "filter the gallery")
                    members = clickable("members")
                with gr.Column(scale=5, min_width=320):
                    member_title = clickable("member-title")
                    member_player = screen("member-player")
                    removal = gr.Button("Remove from the gallery", visible=False, elem_id="remove", size="sm")
                    if h.options.read_only:
                        gr.HTML(tiles.note("This gallery is read-only. Run the app yourself to add your own videos: "
                                           "python app.py --videos FOLDER"), apply_default_css=False)  # fmt: skip
                    else:
                        files = gr.UploadButton("Add videos", file_count="multiple", elem_id="add-files",
                                                file_types=["video", *sorted(VIDEO_EXTENSIONS)], size="md")  # fmt: skip
                        folders = [str(path) for path in h.options.folders]
                        with gr.Row(visible=bool(folders)):
                            folder = gr.Dropdown(folders, value=folders[0] if folders else None, elem_id="folder",
                                                 label="a folder of this computer", scale=4)  # fmt: skip
                            add_folder = gr.Button("Add folder", elem_id="add-folder", scale=1, min_width=100)
                        adding = clickable("adding")

        detail = [video_shown, player, title, why, shares]
        shown = [results, steer]
        gr.on([query.submit, button.click], h.show_results, query, shown, **page).then(
            h.show_best, [query, mode], detail, **page)  # fmt: skip
        live.input(h.show_typed, query, shown, **typed).then(h.show_best, [query, mode], detail, **page)
        steer.input(h.steer, query, [query, *shown], **typed).then(h.show_best, [query, mode], detail, **page)
        for source in (examples, why, shares, captions, seen, concept_query):
            source.select(_asked, None, [query, tabs], **page).then(h.show_results, query, shown, **page).then(
                h.show_best, [query, mode], detail, **page)  # fmt: skip
        results.select(h.show_video, [query, mode], detail, **page)
        mode.change(h.show_mode, [query, video_shown, mode], why, **page)
        why.submit(h.save, [query, video_shown, mode], saved, **page)

        described = [about, captions, similar, seen]

        def picked(words: str, limit: int, lines: str, event: gr.EventData) -> list[Any]:
            if _kind(event) == "more":
                return [*h.show_more(words, limit), *[gr.skip()] * 6]
            return [gr.skip(), gr.skip(), *h.show_picked(lines, event)]

        video_tab.select(h.show_picker, [words, limit], picker, **page)
        words.change(h.show_picker, [words, limit], picker, **typed)
        picker.select(picked, [words, limit, lines], [picker, limit, upload, current, *described], **page)
        similar.select(h.show_picked, lines, [upload, current, *described], **page)
        waiting = {**page, "show_progress": "minimal", "show_progress_on": about}
        gr.on([upload.upload, upload.stop_recording, upload.clear], h.show_upload, [upload, lines],
              [upload, current, *described], **waiting)  # fmt: skip
        lines.change(h.show_captions, [current, lines], captions, **typed)
        demo.unload(h.forget_upload)

        concept_tab.select(h.show_concepts, word, listed, **page).then(h.show_map, None, mapped, **page)
        word.change(h.show_concepts, word, listed, **typed)
        for source in (listed, mapped):
            source.select(h.show_concept, None, [concept, concept_tiles, concept_query], **page)
        concept_tiles.select(h.play, None, [concept_player, playing], **page)

        def chosen(words: str, limit: int, event: gr.EventData) -> list[Any]:
            if _kind(event) == "more":
                return [*h.show_more(words, limit), *[gr.skip()] * 4]
            return [gr.skip(), gr.skip(), *h.show_member(event)]

        stocked = [stock, members]
        gallery_tab.select(h.show_gallery, [members_filter, limit], stocked, **page)
        members_filter.change(h.show_picker, [members_filter, limit], members, **typed)
        members.select(chosen, [members_filter, limit],
                       [members, limit, member_player, member_title, member, removal], **page)  # fmt: skip
        if not h.options.read_only:
            writing: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "writing", "concurrency_limit": 1}
            gone = [member_player, member_title, member, removal]
            files.upload(h.add_uploads, files, adding, **writing).then(
                h.show_gallery, [members_filter, limit], stocked, **page)  # fmt: skip
            add_folder.click(h.add_folder, folder, adding, **writing).then(
                h.show_gallery, [members_filter, limit], stocked, **page)  # fmt: skip
            removal.click(h.remove, member, gone, **writing).then(
                h.show_gallery, [members_filter, limit], stocked, **page)  # fmt: skip

        for function in (h.search, h.explain, h.concepts):
            gr.api(function, api_name=function.__name__, **model)
        name, file = gr.Textbox("", visible=False, label="video"), gr.File(visible=False, label="file")
        number, own = gr.Number(5, visible=False, label="top_k"), gr.Textbox("", visible=False, label="lines")
        answer, call = gr.JSON(visible=False), gr.Button(visible=False)
        call.click(h.captions, [name, file, number, own], answer, api_name="captions", **model)
        call.click(h.similar, [name, file, number], answer, api_name="similar", **model)
        call.click(h.add, file, answer, api_name="add", concurrency_id="writing", concurrency_limit=1)
        demo.load(h.first_query, None, query, **page).then(h.show_typed, query, shown, **page).then(
            h.show_best, [query, mode], detail, **page)  # fmt: skip
    return demo


def main(argv: Sequence[str] | None = None) -> int:
    """Open the app; errors of the user's input are one line on stderr and exit code 2."""
    args = parser(__doc__).parse_args(argv)
    use_fast_matmul()
    try:
        options = options_of(args)
        model = SUMA.from_pretrained(args.model)
        if zero_gpu():
            model.to("cuda")
        demo = build_demo(open_index(model, args.index, args.videos, options.read_only), options)
        demo.queue(max_size=args.queue)
        auth = tuple(args.auth.split(":", 1)) if args.auth else None
        demo.launch(server_name=args.host, server_port=args.port, share=args.share, auth=auth, mcp_server=args.mcp,
                    **launch_options(args.max_megabytes))  # fmt: skip
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
