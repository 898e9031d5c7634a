"""SUMA in the browser: text to videos, video to captions and similar videos, and why. `python app.py --help`."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import sys
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from suma import VideoIndex
from suma.app.api import Options
from suma.app.filling import Changes
from suma.app.handlers import Handlers
from suma.app.media import prepare
from suma.app.space import zero_gpu
from suma.app.startup import load_model, open_index, options_of, parser, use_own_temp
from suma.app.tabs import CLIPS, MODEL, WRITING, concepts_tab, gallery_tab, launch_options, search_tab, video_tab
from suma.app.views import render
from suma.index.watch import watch
from suma.model.cpu import use_fast_matmul


def build_demo(
    index: VideoIndex, options: Options | None = None, waiting: Sequence[Path] = (), changes: Changes = ()
) -> gr.Blocks:
    """Return the app over an index, which begins to add the `waiting` videos, and then takes up the `changes` of their
    folder (suma.index.watch). Launch it with `launch_options()`."""
    h = Handlers(index, options)
    if waiting or changes:
        h.fill(waiting, changes)
    with gr.Blocks(title="SUMA: video search", fill_width=True, delete_cache=(3600, 6 * 3600)) as demo:
        gr.HTML(render("brand"), apply_default_css=False)
        with gr.Tabs(selected="text") as tabs:
            ask = search_tab(h, demo, tabs)
            video_tab(h, ask)
            concepts_tab(h, ask)
            gallery_tab(h)
        demo.unload(h.forget_upload)
        add_api(h)
    return demo


def add_api(h: Handlers) -> None:
    """Add the seven functions for programs. Those that take a file need components: gradio then stores the upload."""
    for function in (h.search, h.explain, h.concepts):
        gr.api(function, api_name=function.__name__, **MODEL)
    name, file = gr.Textbox("", visible=False, label="video"), gr.File(visible=False, label="file")
    number, own = gr.Number(5, visible=False, label="top_k"), gr.Textbox("", visible=False, label="lines")
    answer, call = gr.JSON(visible=False), gr.Button(visible=False)
    call.click(h.captions, [name, file, number, own], answer, api_name="captions", **MODEL)
    call.click(h.similar, [name, file, number], answer, api_name="similar", **MODEL)
    span = [gr.Number(0, visible=False, label=label) for label in ("start", "end")]
    call.click(h.clip, [name, *span], gr.File(visible=False), api_name="clip", **{**CLIPS, "api_visibility": "public"})
    call.click(h.add, file, answer, api_name="add", **{**WRITING, "api_visibility": "public"})


def main(argv: Sequence[str] | None = None) -> int:
    """Open the app. Wrong input prints one line on stderr and returns the exit code 2."""
    args = parser(__doc__).parse_args(argv)
    use_fast_matmul()
    try:
        options = options_of(args)
        use_own_temp()
        model = load_model(args.model, args.index)
        if zero_gpu():
            model.to("cuda")
        waiting: list[Path] = []
        index = open_index(model, args.index, args.videos, options.read_only, waiting, args.photos)
        if args.watch and not args.videos:
            raise ValueError("--watch follows the folder of --videos: name it")
        changes = watch(index, [args.videos], photos=args.photos) if args.watch else ()
        demo = build_demo(index, options, waiting, changes)
        if options.make_copies:
            prepare(index.rows)
        demo.queue(max_size=args.queue)
        auth = tuple(args.auth.split(":", 1)) if args.auth else None
        demo.launch(
            server_name=args.host,
            server_port=args.port or None,
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
