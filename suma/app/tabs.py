"""What stands on each tab, and the look: theme, style sheet, and the options that every launch of the app uses."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from suma.app.api import MAX_QUERY, TOP
from suma.app.gallery_handlers import PAGE
from suma.app.handlers import HIDE, MODES, NEWEST, NOTHING_YET, Handlers
from suma.app.media import ROUTES
from suma.app.views import chips, render
from suma.index.files import VIDEO_EXTENSIONS

SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Return the theme: greys, one accent, and the system's fonts, so that no request leaves the page's server."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    ).set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="0px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_padding="0px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_radius="*radius_lg",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="*neutral_100",
        checkbox_label_background_fill_hover_dark="*neutral_800",
        checkbox_label_border_width="1px",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_dark="*neutral_700",
        checkbox_label_padding="4px 10px",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        block_title_background_fill="transparent",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def launch_options(max_megabytes: int = 200) -> dict[str, Any]:
    """Return the options of `demo.launch`, for the app and the tests."""
    return {
        "theme": theme(),
        "css": (Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
        "head": f"<script>{(Path(__file__).parent / 'page.js').read_text(encoding='utf-8')}</script>",
        "state_session_capacity": 300,  # Gradio keeps some 200 kB for each visitor, and for each call without a session
        "footer_links": ["api", "settings"],
        "max_file_size": f"{max_megabytes}mb",
        "app_kwargs": {"routes": ROUTES},
    }


# how gradio runs the handlers; Gallery.lock orders what they share
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 4}
PRIVATE: dict[str, Any] = {**MODEL, "api_visibility": "private", "show_progress": "hidden"}
LATEST: dict[str, Any] = {**PRIVATE, "trigger_mode": "always_last"}  # several requests while one runs: answer the last
# else gradio drops a second click while the first one loads, and "always_last" would answer the first again
EACH: dict[str, Any] = {**PRIVATE, "trigger_mode": "multiple"}
WRITING: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "writing", "concurrency_limit": 1}
COPYING: dict[str, Any] = {**EACH, "concurrency_id": "copies", "concurrency_limit": None}  # beside all searches
CLIPS: dict[str, Any] = {**EACH, "concurrency_id": "clips", "concurrency_limit": 1}  # to encode takes all processors
ON_LOAD = "window.sumaListen(element, trigger, watch)"  # page.js

Ask = Callable[[gr.HTML], None]  # lets the queries of a part of the page be clicked to search by them


def clickable(elem_id: str, value: str = "", **more: Any) -> gr.HTML:
    """Return a place for HTML whose buttons are handled by page.js."""
    return gr.HTML(value, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False, **more)


def field(elem_id: str, placeholder: str, **more: Any) -> gr.Textbox:
    """Return a text box without a frame, of one line where nothing else is said."""
    shown = {"label": placeholder, "show_label": False, "container": False, "max_lines": 1, **more}
    return gr.Textbox(placeholder=placeholder, elem_id=elem_id, **shown)


def screen(elem_id: str) -> tuple[gr.Video, gr.HTML]:
    """Return a player, and the place below it that says how far a copy is."""
    hidden: dict[str, Any] = {"show_label": False, "interactive": False, "visible": False, "buttons": []}
    return gr.Video(elem_id=elem_id, label="video", loop=True, **hidden), clickable(f"{elem_id}-copy")


def then_copy(h: Handlers, event: Any, video: gr.State, player: gr.Video, bar: gr.HTML, play: bool = False) -> None:
    """After an event that shows a video: show its copy where browsers need one, outside the queue of searches."""

    async def show(name: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for shown in h.players.show_copy(name, (request.session_hash or "", str(player.elem_id)), play):
            yield shown

    event.then(show, video, [player, bar], **COPYING)


def _clicked_query(event: gr.EventData) -> tuple[str, Any]:
    """Return a clicked query for the search box, and the first tab to show it."""
    return str(event._data.get("query", ""))[:MAX_QUERY], gr.Tabs(selected="text")


def search_tab(h: Handlers, demo: gr.Blocks, tabs: gr.Tabs) -> Ask:
    """Build the tab that searches by text. Return what lets queries of other tabs be clicked."""
    with gr.Tab("Search", id="text", elem_id="tab-text"):  # gr.Tabs may hold tabs only, so the states are inside
        found = gr.State(None)  # the best result
        with gr.Row(equal_height=True):
            query = field("query", "what happens in the video", scale=8, autofocus=True)
            button = gr.Button("Search", variant="primary", scale=1, min_width=100, elem_id="search")
            look: dict[str, Any] = {"show_label": False, "container": False, "min_width": 276, "elem_id": "ticked"}
            ticked = gr.CheckboxGroup([NEWEST, HIDE], label="order and doubles", scale=0, **look)
        filling = clickable("filling") if h.filling else None
        examples = clickable("examples", chips(h.gallery.examples()))
        steer = clickable("steer")
        live = clickable("live", "<i data-live hidden></i>")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                empty = render("note", text=h.nothing_there)
                results = clickable("results", render("skeleton", number=TOP) if len(h.index) else empty)
            with gr.Column(scale=8, min_width=320, elem_id="detail"):
                then_best, sources = _detail(h, query, found, results)
        typed, shown = [query, ticked], [results, steer, found]
        if filling is not None:
            timer, count = gr.Timer(1.5), gr.State(len(h.gallery.names))
            timer.tick(h.show_filling, [query, count, ticked], [filling, timer, count, examples, *shown], **PRIVATE)

    def ask(source: gr.HTML) -> None:
        clicked = source.select(_clicked_query, None, [query, tabs], **PRIVATE)
        then_best(clicked.then(h.show_results, typed, shown, **PRIVATE))

    for source in (examples, *sources):
        ask(source)
    then_best(gr.on([query.submit, button.click], h.show_results, typed, shown, **PRIVATE))
    results.submit(h.show_as_many, typed, shown, **LATEST)
    then_best(live.input(h.show_as_many, typed, shown, **LATEST))
    then_best(ticked.input(h.show_typed, typed, shown, **LATEST))
    then_best(steer.input(h.steer, typed, [query, *shown], **LATEST))
    opened = demo.load(None, query, query, js=h.first_query, api_visibility="private")
    then_best(opened.then(h.show_typed, typed, shown, **PRIVATE))
    return ask


def _detail(
    h: Handlers, query: gr.Textbox, found: gr.State, results: gr.HTML
) -> tuple[Callable[[Any], None], Sequence[gr.HTML]]:
    """Build the place of one result. Return what shows the best one after an event, and the parts with queries."""
    video, title = gr.State(""), clickable("title")
    with gr.Row():
        with gr.Column(scale=5, min_width=280, elem_id="stage"):
            player, bar = screen("player")
            clip = gr.DownloadButton(visible="hidden", elem_id="clip")
        with gr.Column(scale=6, min_width=280):
            shares = clickable("shares")
    plain: dict[str, Any] = {"show_label": False, "container": False}
    mode = gr.Radio(list(MODES), value=next(iter(MODES)), label="concepts shown", elem_id="mode", **plain)
    why, saved = clickable("why"), clickable("saved")
    detail = [video, player, title, why, shares]

    def then_best(event: Any) -> None:
        then_copy(h, event.then(h.show_best, [found, mode], detail, **LATEST), video, player, bar)

    then_copy(h, results.select(h.show_video, [query, mode], detail, **EACH), video, player, bar, True)
    mode.change(h.show_mode, [query, video, mode], why, **PRIVATE)
    why.submit(h.save, [query, video, mode], saved, **PRIVATE)
    busy = {**CLIPS, "show_progress": "minimal", "show_progress_on": title}
    made = title.submit(h.save_clip, video, clip, **busy)
    made.success(None, js="() => setTimeout(() => document.querySelector('#clip').click(), 100)", **PRIVATE)
    return then_best, (title, why, shares)


def video_tab(h: Handlers, ask: Ask) -> None:
    """Build the tab that starts from a video: captions, similar videos, concepts."""
    with gr.Tab("From a video", id="video", elem_id="tab-video") as tab, gr.Row():
        limit, current = gr.State(PAGE), gr.State({})
        with gr.Column(scale=4, min_width=300):
            upload = gr.Video(
                elem_id="query-video",
                label="Upload or record a video, or pick one below",
                sources=["upload", "webcam"],
                height=270,
                buttons=[],
                interactive=True,
            )
            bar = clickable("query-video-copy")
            own = "your own captions, one per line (instead of the gallery's)"
            lines = field("lines", own, lines=2, max_lines=6)
            words = field("filter", "filter the gallery")
            picker = clickable("picker", elem_classes="suma-scroll")
        with gr.Column(scale=7, min_width=320):
            about = clickable("about", NOTHING_YET)
            captions, similar, seen = (clickable(name) for name in ("captions", "similar", "seen"))
    described = [upload, current, about, captions, similar, seen]
    tab.select(h.show_picker, [words, limit], picker, **PRIVATE)
    words.change(h.show_picker, [words, limit], picker, **LATEST)
    picker.submit(h.show_more, [words, limit], [picker, limit], **PRIVATE)
    changes = [upload.upload, upload.stop_recording, upload.clear]
    busy = {**PRIVATE, "show_progress": "minimal", "show_progress_on": about}
    for event in (
        picker.select(h.show_picked, lines, described, **PRIVATE),
        similar.select(h.show_picked, lines, described, **PRIVATE),
        gr.on(changes, h.show_upload, [upload, lines], described, **busy),
    ):
        then_copy(h, event, current, upload, bar)
    lines.change(h.show_captions, [current, lines], captions, **LATEST)
    ask(captions)
    ask(seen)


def concepts_tab(h: Handlers, ask: Ask) -> None:
    """Build the tab of the model's concepts: a map, a list, and the videos where one is strongest."""
    with gr.Tab("Concepts", id="concepts", elem_id="tab-concepts") as tab, gr.Row():
        video = gr.State("")
        with gr.Column(scale=7, min_width=320):
            drawn = clickable("concept-map")
            word = field("word", "find the concept of a word")
            listed = clickable("concept-list")
        with gr.Column(scale=5, min_width=320):
            hint = render("note", text="Choose a concept to see where it is strongest.")
            concept, query = clickable("concept", hint), clickable("concept-query")
            player, bar = screen("concept-player")
            playing = clickable("playing")
            videos = clickable("concept-videos")
    tab.select(h.show_concepts, word, listed, **PRIVATE).then(h.show_map, None, drawn, **PRIVATE)
    word.change(h.show_concepts, word, listed, **LATEST)
    for source in (listed, drawn):
        source.select(h.show_concept, None, [concept, videos, query], **PRIVATE)
    played = videos.select(h.play, None, [player, playing, video], **PRIVATE)
    then_copy(h, played, video, player, bar, True)
    ask(query)


def gallery_tab(h: Handlers) -> None:
    """Build the tab of the gallery: its videos, and adding and removing them where that is allowed."""
    with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery") as tab, gr.Row():
        limit, member = gr.State(PAGE), gr.State("")
        with gr.Column(scale=7, min_width=320):
            stock = clickable("stock")
            words = field("members-filter", "filter the gallery")
            members = clickable("members")
        with gr.Column(scale=5, min_width=320):
            title = clickable("member-title")
            player, bar = screen("member-player")
            removal = gr.Button("Remove from the gallery", visible=False, elem_id="remove", size="sm")
            added = _adding(h)
    one = [player, title, member, removal]
    words.change(h.show_picker, [words, limit], members, **LATEST)
    members.submit(h.show_more, [words, limit], [members, limit], **PRIVATE)
    then_copy(h, members.select(h.show_member, None, one, **PRIVATE), member, player, bar)
    if not h.options.read_only:
        added.append(removal.click(h.remove, member, one, **WRITING).then)
    for then in (tab.select, *added):
        then(h.show_gallery, [words, limit], [stock, members], **PRIVATE)


def _adding(h: Handlers) -> list[Callable[..., Any]]:
    """Build the buttons that add videos. Return what waits for the end of an addition."""
    if h.options.read_only:
        said = "This gallery is read-only. Run the app yourself to add your own videos: python app.py --videos FOLDER"
        gr.HTML(render("note", text=said), apply_default_css=False)
        return []
    limits = h.options.uploads
    label = f"Add videos (up to {limits.max_megabytes} MB, {limits.max_seconds:.0f} s each)"
    types = ["video", "image", *sorted(VIDEO_EXTENSIONS)]
    files = gr.UploadButton(label, file_count="multiple", elem_id="add-files", file_types=types, size="md")
    folders = [str(path) for path in h.options.folders]
    first = folders[0] if folders else None
    with gr.Row(visible=bool(folders), elem_id="folders"):
        folder = gr.Dropdown(folders, value=first, elem_id="folder", label="a folder of this computer", scale=4)
        button = gr.Button("Add folder", elem_id="add-folder", min_width=110, size="md")
    progress = clickable("adding")
    by_upload = files.upload(h.add_uploads, files, progress, **WRITING)
    by_folder = button.click(h.add_folder, folder, progress, **WRITING)
    return [by_upload.then, by_folder.then]
