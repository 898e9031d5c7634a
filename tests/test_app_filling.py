"""The first page of `--videos`: it says what is being done, and what is there can be searched already."""

import json
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from clips import noise_picture, write_video

from suma import SUMA, VideoIndex
from suma.app import api, filling
from suma.app import page as app


def write_clips(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [
        write_video(folder / f"clip {n}.mp4", 12, picture=lambda i, w, h, n=n: noise_picture(40 * n + i, w, h))
        for n in range(count)
    ]


def test_videos_are_left_to_the_caller_who_asks_for_it(tiny_model: SUMA, tmp_path: Path):
    paths, later = write_clips(tmp_path / "videos", 2), []
    index = app.open_index(tiny_model, str(tmp_path / "index"), str(tmp_path / "videos"), later=later)
    assert len(index) == 0 and later == paths and (tmp_path / "index" / "index-1.sqlite").is_file()
    with pytest.raises(FileNotFoundError):
        app.open_index(tiny_model, "", str(tmp_path / "none"), later=[])


def test_while_the_first_videos_are_indexed_the_page_says_so_and_finds_those_that_are_done(
    tiny_model: SUMA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = [*write_clips(tmp_path / "videos", 3), tmp_path / "videos" / "broken.mp4"]
    paths[-1].write_bytes(b"no video")
    (tmp_path / "captions.json").write_text(json.dumps({"clip 2.mp4": "a dog runs"}))
    go, done, steps = threading.Semaphore(0), threading.Semaphore(0), filling.add_paths

    def by_step(*given: Any) -> Any:
        given_steps = steps(*given)
        yield next(given_steps)
        while True:
            done.release()
            assert go.acquire(timeout=60)
            if (step := next(given_steps, None)) is None:
                return
            yield step

    monkeypatch.setattr(api, "add_paths", by_step)
    monkeypatch.setattr(filling, "PATIENCE", 1e-9)  # one video a step
    handlers = app.Handlers(VideoIndex(tiny_model))
    handlers.fill(paths)
    assert done.acquire(timeout=60)  # it has begun
    bar, again, count, *_ = handlers.show_filling("a dog", 0)
    assert "Indexing" in bar and "0 of 4" in bar and again.active and count == 0
    assert "being indexed" in handlers.show_typed("a dog")[0] and "being indexed" in handlers.show_typed("")[0]
    go.release()
    assert done.acquire(timeout=60)
    bar, again, count, _, results, *_ = handlers.show_filling("a dog", 0)
    assert "1 of 4" in bar and again.active and count == 1 and results.count("data-video") == 1
    assert "data-video" not in str(handlers.show_filling("a dog", 1)[4])  # a page with results keeps them
    go.release(9)
    handlers.filling.thread.join(60)
    bar, again, count, *_ = handlers.show_filling("a dog", 1)
    assert not again.active and count == 1 and "Indexing" not in bar and "broken.mp4" in bar
    assert (
        len(handlers.gallery.names) == 3
        and handlers.index.caption_list == ["a dog runs"]
        and len(handlers.search("a dog")) == 3
    )


def test_an_indexing_that_cannot_go_on_says_so_and_leaves_the_page_up(
    tiny_model: SUMA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device", "/home/me/index")

    monkeypatch.setattr(VideoIndex, "add", full)
    handlers = app.Handlers(VideoIndex(tiny_model))
    handlers.fill(write_clips(tmp_path / "videos", 1))
    handlers.filling.thread.join(60)
    bar, again, *_ = handlers.show_filling("", 0)
    assert "ended early" in bar and "/home" not in bar and not again.active
    assert "No space left" in capsys.readouterr().err


def test_the_tabs_of_the_page_hold_nothing_but_tabs(tiny_model: SUMA, tmp_path: Path):
    """Gradio counts the children of gr.Tabs: anything else between two tabs hides the next one."""
    for waiting in ([], write_clips(tmp_path / "videos", 1)):
        demo = app.build_demo(VideoIndex(tiny_model), waiting=waiting)
        (tabs,) = [block for block in demo.blocks.values() if isinstance(block, gr.Tabs)]
        assert [tab.label for tab in tabs.children] == ["Search", "From a video", "Concepts", "Gallery"]
