"""SUMA in the browser: text to videos, video to captions and similar videos, and why. `python app.py --help`."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from suma import VideoIndex
from suma.app import tiles
from suma.app.api import MAX_QUERY, TOP, Options
from suma.app.gpu import zero_gpu
from suma.app.handlers import MODES, NOTHING_YET, PAGE, Handlers
from suma.app.look import launch_options
from suma.app.media import prepare
from suma.app.startup import load_model, open_index, options_of, parser, use_own_temp
from suma.app.tiles import ON_LOAD
from suma.model.cpu import use_fast_matmul
from suma.video.frames import VIDEO_EXTENSIONS


def _asked(event: gr.EventData) -> tuple[str, Any]:
    """A clicked query: into the search box, on the first tab."""
    return str(event._data.get("query", ""))[:MAX_QUERY], gr.Tabs(selected="text")


def _kind(event: gr.EventData) -> str:
    return str(event._data.get("kind", ""))


def build_demo(index: VideoIndex, options: Options | None = None, waiting: Sequence[Path] = ()) -> gr.Blocks:
    """Return the app over an index, which begins to add `waiting` videos. Launch it with `look.launch_options()`."""
    h = Handlers(index, options)
    if waiting:
        h.fill(waiting)
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 4}  # Gallery.lock orders what they share
    page: dict[str, Any] = {**model, "api_visibility": "private", "show_progress": "hidden"}
    latest: dict[str, Any] = {**page, "trigger_mode": "always_last"}  # several requests while one runs: answer the last

    def clickable(elem_id: str, value: str = "", **more: Any) -> gr.HTML:
        return gr.HTML(value, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False, **more)

    def field(elem_id: str, placeholder: str, **more: Any) -> gr.Textbox:
        shown = {"label": placeholder, "show_label": False, "container": False, "max_lines": 1, **more}
        return gr.Textbox(placeholder=placeholder, elem_id=elem_id, **shown)

    def screen(elem_id: str) -> gr.Video:
        return gr.Video(
            elem_id=elem_id, label="video", show_label=False, interactive=False, visible=False, buttons=[], loop=True
        )

    def then_copy(event: Any, video: gr.State, player: gr.Video, bar: gr.HTML, play: bool = False) -> None:
        """After an event that shows a video: its copy, where browsers need one, outside the queue of searches."""

        async def show(name: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
            async for shown in h.show_copy(name, (request.session_hash or "", str(player.elem_id)), play):
                yield shown

        event.then(
            show,
            video,
            [player, bar],
            concurrency_id="copies",
            concurrency_limit=None,
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="multiple",
        )

    with gr.Blocks(title="SUMA: video search", fill_width=True, delete_cache=(3600, 6 * 3600)) as demo:
        gr.HTML(
            '<header class="suma-brand"><h1>SUMA</h1><p>Find the moment in a video by what happens in it, and see '
            "why it was found.</p></header>",
            apply_default_css=False,
        )
        video_shown, limit, current, member = gr.State(""), gr.State(PAGE), gr.State({}), gr.State("")
        concept_video = gr.State("")
        with gr.Tabs(selected="text") as tabs:
            with gr.Tab("Search", id="text", elem_id="tab-text"):
                with gr.Row(equal_height=True):
                    query = field("query", "what happens in the video", scale=8, autofocus=True)
                    button = gr.Button("Search", variant="primary", scale=1, min_width=100, elem_id="search")
                if waiting:
                    filling, again, filled = clickable("filling"), gr.Timer(1.5), gr.State(len(h.gallery.names))
                examples = clickable("examples", tiles.queries(h.gallery.examples()))
                steer = clickable("steer")
                live = clickable("live", "<i data-live hidden></i>")
                with gr.Row():
                    with gr.Column(scale=5, min_width=300):
                        there = tiles.skeleton(TOP) if len(index) else tiles.note(h.nothing_there)
                        results = clickable("results", there)
                    with gr.Column(scale=8, min_width=320, elem_id="detail"):
                        title = clickable("title")
                        with gr.Row():
                            with gr.Column(scale=5, min_width=280, elem_id="stage"):
                                player, player_copy = screen("player"), clickable("player-copy")
                            with gr.Column(scale=6, min_width=280):
                                shares = clickable("shares")
                        mode = gr.Radio(
                            list(MODES),
                            value=next(iter(MODES)),
                            label="concepts shown",
                            show_label=False,
                            container=False,
                            elem_id="mode",
                        )
                        why = clickable("why")
                        saved = clickable("saved")
            with gr.Tab("From a video", id="video", elem_id="tab-video") as video_tab, gr.Row():
                with gr.Column(scale=4, min_width=300):
                    upload = gr.Video(
                        elem_id="query-video",
                        label="Upload or record a video, or pick one below",
                        sources=["upload", "webcam"],
                        height=270,
                        buttons=[],
                        interactive=True,
                    )
                    upload_copy = clickable("query-video-copy")
                    lines = field(
                        "lines", "your own captions, one per line (instead of the gallery's)", lines=2, max_lines=6
                    )
                    words = field("filter", "filter the gallery")
                    picker = clickable("picker", elem_classes="suma-scroll")
                with gr.Column(scale=7, min_width=320):
                    about = clickable("about", NOTHING_YET)
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
                    concept_player, concept_copy = screen("concept-player"), clickable("concept-player-copy")
                    playing = clickable("playing")
                    concept_tiles = clickable("concept-videos")
            with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery") as gallery_tab, gr.Row():
                with gr.Column(scale=7, min_width=320):
                    stock = clickable("stock")
                    members_filter = field("members-filter", "filter the gallery")
                    members = clickable("members")
                with gr.Column(scale=5, min_width=320):
                    member_title = clickable("member-title")
                    member_player, member_copy = screen("member-player"), clickable("member-player-copy")
                    removal = gr.Button("Remove from the gallery", visible=False, elem_id="remove", size="sm")
                    if h.options.read_only:
                        gr.HTML(
                            tiles.note(
                                "This gallery is read-only. Run the app yourself to add your own videos: "
                                "python app.py --videos FOLDER"
                            ),
                            apply_default_css=False,
                        )
                    else:
                        limits = h.options.uploads
                        each = f"up to {limits.max_megabytes} MB, {limits.max_seconds:.0f} s each"
                        files = gr.UploadButton(
                            f"Add videos ({each})",
                            file_count="multiple",
                            elem_id="add-files",
                            file_types=["video", *sorted(VIDEO_EXTENSIONS)],
                            size="md",
                        )
                        folders = [str(path) for path in h.options.folders]
                        with gr.Row(visible=bool(folders), elem_id="folders"):
                            folder = gr.Dropdown(
                                folders,
                                value=folders[0] if folders else None,
                                elem_id="folder",
                                label="a folder of this computer",
                                scale=4,
                            )
                            add_folder = gr.Button("Add folder", elem_id="add-folder", min_width=110, size="md")
                        adding = clickable("adding")

        detail = [video_shown, player, title, why, shares]
        shown = [results, steer]
        if waiting:
            again.tick(h.show_filling, [query, filled], [filling, again, filled, examples, *shown], **page)

        def then_best(found: Any) -> None:
            then_copy(found.then(h.show_best, [query, mode], detail, **latest), video_shown, player, player_copy)

        then_best(gr.on([query.submit, button.click], h.show_results, query, shown, **page))
        then_best(live.input(h.show_typed, query, shown, **latest))
        then_best(steer.input(h.steer, query, [query, *shown], **latest))
        for source in (examples, why, shares, captions, seen, concept_query):
            then_best(source.select(_asked, None, [query, tabs], **page).then(h.show_results, query, shown, **page))
        # Gradio would drop a second click while the first loads, and "always_last" would ask the first again
        clicked = results.select(h.show_video, [query, mode], detail, trigger_mode="multiple", **page)
        then_copy(clicked, video_shown, player, player_copy, True)
        mode.change(h.show_mode, [query, video_shown, mode], why, **page)
        why.submit(h.save, [query, video_shown, mode], saved, **page)

        described = [about, captions, similar, seen]

        def picked(words: str, limit: int, lines: str, event: gr.EventData) -> list[Any]:
            if _kind(event) == "more":
                return [*h.show_more(words, limit), *[gr.skip()] * 6]
            return [gr.skip(), gr.skip(), *h.show_picked(lines, event)]

        video_tab.select(h.show_picker, [words, limit], picker, **page)
        words.change(h.show_picker, [words, limit], picker, **latest)
        for event in (
            picker.select(picked, [words, limit, lines], [picker, limit, upload, current, *described], **page),
            similar.select(h.show_picked, lines, [upload, current, *described], **page),
        ):
            then_copy(event, current, upload, upload_copy)
        waiting = {**page, "show_progress": "minimal", "show_progress_on": about}
        uploaded = gr.on(
            [upload.upload, upload.stop_recording, upload.clear],
            h.show_upload,
            [upload, lines],
            [upload, current, *described],
            **waiting,
        )
        then_copy(uploaded, current, upload, upload_copy)
        lines.change(h.show_captions, [current, lines], captions, **latest)
        demo.unload(h.forget_upload)

        concept_tab.select(h.show_concepts, word, listed, **page).then(h.show_map, None, mapped, **page)
        word.change(h.show_concepts, word, listed, **latest)
        for source in (listed, mapped):
            source.select(h.show_concept, None, [concept, concept_tiles, concept_query], **page)
        played = concept_tiles.select(h.play, None, [concept_player, playing, concept_video], **page)
        then_copy(played, concept_video, concept_player, concept_copy, True)

        def chosen(words: str, limit: int, event: gr.EventData) -> list[Any]:
            if _kind(event) == "more":
                return [*h.show_more(words, limit), *[gr.skip()] * 4]
            return [gr.skip(), gr.skip(), *h.show_member(event)]

        stocked = [stock, members]
        gallery_tab.select(h.show_gallery, [members_filter, limit], stocked, **page)
        members_filter.change(h.show_picker, [members_filter, limit], members, **latest)
        opened_member = members.select(
            chosen, [members_filter, limit], [members, limit, member_player, member_title, member, removal], **page
        )
        then_copy(opened_member, member, member_player, member_copy)
        if not h.options.read_only:
            writing: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "writing", "concurrency_limit": 1}
            gone = [member_player, member_title, member, removal]
            files.upload(h.add_uploads, files, adding, **writing).then(
                h.show_gallery, [members_filter, limit], stocked, **page
            )
            add_folder.click(h.add_folder, folder, adding, **writing).then(
                h.show_gallery, [members_filter, limit], stocked, **page
            )
            removal.click(h.remove, member, gone, **writing).then(
                h.show_gallery, [members_filter, limit], stocked, **page
            )

        for function in (h.search, h.explain, h.concepts):
            gr.api(function, api_name=function.__name__, **model)
        name, file = gr.Textbox("", visible=False, label="video"), gr.File(visible=False, label="file")
        number, own = gr.Number(5, visible=False, label="top_k"), gr.Textbox("", visible=False, label="lines")
        answer, call = gr.JSON(visible=False), gr.Button(visible=False)
        call.click(h.captions, [name, file, number, own], answer, api_name="captions", **model)
        call.click(h.similar, [name, file, number], answer, api_name="similar", **model)
        call.click(h.add, file, answer, api_name="add", concurrency_id="writing", concurrency_limit=1)
        opened = demo.load(None, query, query, js=h.first_query, api_visibility="private")
        then_best(opened.then(h.show_typed, query, shown, **page))
    return demo


def main(argv: Sequence[str] | None = None) -> int:
    """Open the app; errors of the user's input are one line on stderr and exit code 2."""
    args = parser(__doc__).parse_args(argv)
    use_fast_matmul()
    try:
        options = options_of(args)
        use_own_temp()
        model = load_model(args.model, args.index)
        if zero_gpu():
            model.to("cuda")
        waiting: list[Path] = []
        index = open_index(model, args.index, args.videos, options.read_only, waiting)
        demo = build_demo(index, options, waiting)
        if options.make_copies:
            prepare(index.rows)
        demo.queue(max_size=args.queue)
        auth = tuple(args.auth.split(":", 1)) if args.auth else None
        demo.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            auth=auth,
            mcp_server=args.mcp,
            **launch_options(args.max_megabytes),
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
