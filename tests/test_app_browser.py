"""The app in a real browser: what a visitor does, and that the page stays quiet and within its walls."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import noise_picture, write_video
from test_app import make_gallery

import app
from suma import SUMA
from ui.look import launch_options

pytestmark = pytest.mark.browser
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        demo = app.build_demo(make_gallery(tmp_path_factory.mktemp("browser"), tiny_model))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        yield url
        demo.close()


@pytest.fixture(params=[(1440, 900)])
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The app, opened; at the end nothing was said on the console, and no request had left this machine."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    page.goto(url)
    page.wait_for_selector("#why .suma-cell", timeout=30_000)
    yield page
    assert page.evaluate("window.pwned") is None, "a caption ran as a script"
    page.close()
    assert wrong == []


def search(page: Any, query: str) -> None:
    before = page.locator("#results .suma-tiles").get_attribute("data-run")
    page.locator("#query textarea, #query input").fill(query)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#results .suma-tiles:not([data-run='{before}'])")


def wait_until_at(page: Any, player: str, seconds: float, within: float = 0.4) -> None:
    near = "v?.readyState > 1 && v.currentTime >= t - 0.05 && v.currentTime <= t + d"
    script = f"([id, t, d]) => {{ const v = document.querySelector(id + ' video'); return {near} }}"
    page.wait_for_function(script, arg=[player, seconds, within])


def test_typing_and_enter_finds_posters_that_open_at_their_best_moment(page: Any):
    search(page, "a cat sits on the mat")
    assert page.locator("#results .suma-tile").count() == 4
    assert page.locator("#results .suma-tile img").evaluate_all("all => all.every(i => i.naturalWidth > 0)")
    first = page.locator("#results .suma-tile").first
    assert first.get_attribute("aria-pressed") == "true"
    wait_until_at(page, "#player", float(first.get_attribute("data-moment")))
    for n in (2, 1):
        tile = page.locator("#results .suma-tile").nth(n)
        tile.click()
        page.wait_for_function("t => document.querySelector('#title h3').textContent == t",
                               arg=tile.locator(".suma-title").text_content())  # fmt: skip
        wait_until_at(page, "#player", float(tile.get_attribute("data-moment")), within=2.5)
    assert page.locator("#why .suma-top").count() == page.locator("#why image").count() == 12
    assert page.locator("#shares tr").count() == 5


def test_a_click_on_a_cell_the_timeline_or_a_frame_plays_that_moment(page: Any):
    search(page, "a dog runs")
    times = page.evaluate("JSON.parse(document.querySelector('#why svg').dataset.times)")
    for target, column in (("rect.suma-cell", 9), ("rect.suma-hit", 3), ("rect.suma-hit", 7)):
        page.evaluate("document.querySelector('#player video').pause()")
        spot = {"x": 8, "y": 30} if target.endswith("hit") else None
        page.locator(f"#why {target}[data-frame='{column}']").first.click(position=spot)
        wait_until_at(page, "#player", times[column])
    playing = page.evaluate("!document.querySelector('#player video').paused")
    moved = page.locator("#why .suma-playhead").get_attribute("x1")
    assert playing and float(moved.rstrip("%")) > 50


def test_the_switch_shows_the_strongest_concepts(page: Any):
    before = page.locator("#why .suma-name").all_text_contents()
    page.get_by_label("strongest in the video").check()
    page.wait_for_function("n => document.querySelectorAll('#why .suma-name').length != n", arg=len(before))
    assert page.locator("#why .suma-name").count() == 8


def test_a_concepts_name_an_example_and_a_caption_search(page: Any):
    name = page.locator("#why .suma-name").first
    query = name.get_attribute("data-query")
    name.click()
    page.wait_for_function("q => document.querySelector('#query textarea, #query input').value == q", arg=query)
    example = page.locator("#examples .suma-chip").nth(1)
    example.click()
    page.wait_for_function("q => document.querySelector('#query textarea, #query input').value == q",
                           arg=example.get_attribute("data-query"))  # fmt: skip
    page.get_by_role("tab", name="Video to captions").click()
    page.locator("#picker .suma-tile").nth(1).click()
    page.locator("#captions button", has_text="a cat sits").click()
    page.wait_for_selector("#results .suma-tile:visible")
    assert page.locator("#query textarea, #query input").input_value() == "a cat sits"


def test_an_upload_gets_captions_similar_videos_and_a_heat_map(page: Any, tmp_path: Path):
    page.get_by_role("tab", name="Video to captions").click()
    page.wait_for_selector("#picker .suma-tile")
    clip = write_video(tmp_path / "mine.mp4", frames=30, size=(96, 64), picture=noise_picture)
    page.locator("#query-video input[type=file]").set_input_files(str(clip))
    page.wait_for_selector("#captions li")
    assert page.locator("#captions li").count() == 4 and page.locator("#similar .suma-tile").count() == 4
    page.locator("#seen .suma-cell[data-frame='6']").first.click()
    times = page.evaluate("JSON.parse(document.querySelector('#seen svg').dataset.times)")
    wait_until_at(page, "#query-video", times[6])
    page.locator("#similar .suma-tile").nth(2).click()
    page.wait_for_function("document.querySelectorAll('#similar .suma-tile').length == 3")
    wait_until_at(page, "#query-video", float(page.locator("#seen svg").get_attribute("data-start")), within=2.5)


def test_a_broken_upload_is_told_kindly(page: Any, tmp_path: Path):
    page.get_by_role("tab", name="Video to captions").click()
    page.wait_for_selector("#picker .suma-tile")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    page.locator("#query-video input[type=file]").set_input_files(str(tmp_path / "broken.mp4"))
    page.get_by_text("cannot be read as a video").wait_for()
    page.locator("#picker .suma-tile").first.click()
    page.wait_for_selector("#captions li")


def test_concepts_are_found_by_word_and_play(page: Any):
    page.get_by_role("tab", name="Concepts").click()
    page.wait_for_selector("#concept-list .suma-concept")
    page.locator("#word textarea, #word input").fill("dog")
    page.wait_for_function("document.querySelector('#concept-list .suma-concept').textContent.includes('dog')")
    page.locator("#concept-list .suma-concept").first.click()
    tile = page.locator("#concept-videos .suma-tile").nth(1)
    tile.click()
    wait_until_at(page, "#concept-player", float(tile.get_attribute("data-moment")), within=2.5)


def test_an_empty_and_a_very_long_query_leave_the_page_up(page: Any):
    page.locator("#query textarea, #query input").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("Type what happens in the video").wait_for()
    search(page, "a dog " * 1700)
    page.get_by_text("characters are read").wait_for()
    assert page.locator("#results .suma-tile").count() == 4


@pytest.mark.parametrize("page", [(390, 844)], indirect=True)
def test_a_phone_shows_everything_without_scrolling_sideways(page: Any):
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 390
    page.get_by_role("tab", name="Video to captions").click()
    page.locator("#picker .suma-tile").first.click()
    page.wait_for_selector("#seen .suma-cell")
    assert page.evaluate(wide) <= 390
    page.get_by_role("tab", name="Concepts").click()
    page.locator("#concept-list .suma-concept").first.click()
    page.locator("#concept-videos .suma-tile").first.click()
    page.wait_for_selector("#concept-player video")
    assert page.evaluate(wide) <= 390
