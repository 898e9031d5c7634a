"""The app in a real browser: what a visitor does, and that the page stays quiet and within its walls."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import noise_picture, write_video
from test_app import make_gallery

from suma import SUMA, VideoIndex, read_frames
from suma.app import page as app
from suma.app.api import MAX_QUERY, Options
from suma.app.handlers import Handlers
from suma.app.tabs import launch_options
from suma.app.uploads import Uploads
from suma.index.confidence import FEATURES, Calibration
from suma.index.query import Query

pytestmark = pytest.mark.browser
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


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
def made(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, VideoIndex]]:
    """The app over four clips, with a library and a folder that may be added: its address, its folder, its index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        folder = tmp_path_factory.mktemp("browser")
        index = make_gallery(folder, tiny_model)
        (folder / "allowed").mkdir()
        write_video(folder / "allowed" / "one.mp4", picture=lambda i, w, h: noise_picture(900 + i, w, h))
        (folder / "allowed" / "broken.mp4").write_bytes(b"no video")
        options = Options(False, [folder / "allowed"], folder / "library", Uploads(max_seconds=20))
        demo = app.build_demo(index, options)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        yield url, folder, index
        demo.close()


@pytest.fixture(scope="module")
def url(made: tuple[str, Path, VideoIndex]) -> str:
    return made[0]


@pytest.fixture(params=[(1440, 900)])
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The app, opened; at the end nothing was said on the console, and no request had left this machine."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(f"{m.text} {m.location}") if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    page.goto(url)
    page.wait_for_selector("#why .suma-cell", timeout=30_000)
    quiet(page)
    yield page
    assert page.evaluate("window.pwned") is None, "a caption ran as a script"
    page.close()  # an upload that was refused is deleted at once: the browser may still ask for it
    assert [what for what in wrong if "/broken.mp4" not in what] == []


def quiet(page: Any) -> None:
    """Wait until the page has nothing more to draw."""
    page.wait_for_function("!document.querySelector('.suma-busy') && !document.querySelector('.suma-ghost')")
    page.wait_for_timeout(200)


def box(page: Any) -> Any:
    return page.locator("#query textarea, #query input")


def best_is(page: Any, name: str) -> None:
    page.wait_for_function("n => document.querySelector('#results .suma-tile')?.dataset.video == n", arg=name)


def search(page: Any, query: str) -> None:
    before = page.locator("#results .suma-tiles").get_attribute("data-run")
    page.locator("#query textarea, #query input").fill(query)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#results .suma-tiles:not([data-run='{before}'])")
    answered = "q => document.querySelector('#title .suma-heading')?.dataset.for == q"
    page.wait_for_function(answered, arg=query.strip()[:MAX_QUERY])


def wait_until_at(page: Any, player: str, seconds: float, within: float = 0.4) -> None:
    near = "v?.readyState > 1 && v.currentTime >= t - 0.05 && v.currentTime <= t + d"
    script = f"([id, t, d]) => {{ const v = document.querySelector(id + ' video'); return {near} }}"
    page.wait_for_function(script, arg=[player, seconds, within])


def test_a_slow_answer_to_half_a_query_is_not_the_last_word(page: Any, monkeypatch: pytest.MonkeyPatch):
    detail = Handlers._detail

    def slow(self: Handlers, name: str, text: str, *more: Any, **options: Any) -> list[Any]:
        if text == "a dog":
            time.sleep(3)
        return detail(self, name, text, *more, **options)

    monkeypatch.setattr(Handlers, "_detail", slow)
    box(page).fill("a dog")
    page.wait_for_timeout(1000)  # it is on its way
    box(page).press_sequentially(" runs", delay=5)
    page.wait_for_function("document.querySelector('#title .suma-heading')?.dataset.for == 'a dog runs'")
    page.wait_for_timeout(1000)
    assert page.locator("#title .suma-heading").get_attribute("data-for") == "a dog runs"


def test_what_is_typed_while_the_page_still_loads_stays(browser: Any, url: str):
    page = browser.new_page()
    page.add_init_script("""new MutationObserver((_, watch) => {
        const box = document.querySelector('#query textarea, #query input');
        if (!box) return;
        watch.disconnect();
        box.value = 'a cat';
        box.dispatchEvent(new Event('input', {bubbles: true}));
    }).observe(document, {childList: true, subtree: true})""")
    page.goto(url)
    page.wait_for_function("document.querySelector('#title .suma-heading')?.dataset.for == 'a cat'", timeout=30_000)
    quiet(page)
    page.wait_for_timeout(1000)
    assert box(page).input_value() == "a cat"
    page.close()


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
        page.wait_for_function(
            "t => document.querySelector('#title h3').textContent == t", arg=tile.locator(".suma-title").text_content()
        )
        wait_until_at(page, "#player", float(tile.get_attribute("data-moment")), within=2.5)
    assert page.locator("#why .suma-top").count() == page.locator("#why image").count() == 12
    assert page.locator("#shares table").first.locator("tr").count() == 5


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
    words = page.locator("#why .suma-name").first.get_attribute("title")
    assert set(page.locator("#why .suma-name span").first.text_content().split(", ")) <= set(
        words.replace(":", ",").split(", ")
    )
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
    page.wait_for_function(
        "q => document.querySelector('#query textarea, #query input').value == q",
        arg=example.get_attribute("data-query"),
    )
    page.get_by_role("tab", name="From a video").click()
    page.locator("#picker .suma-tile").nth(1).click()
    page.locator("#captions button", has_text="a cat sits").click()
    page.wait_for_selector("#results .suma-tile:visible")
    assert box(page).input_value() == "a cat sits"


def test_an_upload_gets_captions_similar_videos_and_a_heat_map(page: Any, tmp_path: Path):
    page.get_by_role("tab", name="From a video").click()
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
    page.get_by_role("tab", name="From a video").click()
    page.wait_for_selector("#picker .suma-tile")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    page.locator("#query-video input[type=file]").set_input_files(str(tmp_path / "broken.mp4"))
    page.get_by_text("cannot be read as a video").first.wait_for()
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


def test_typing_searches_when_it_pauses_and_the_keyboard_reaches_every_result(page: Any):
    before = page.locator("#results .suma-tiles").get_attribute("data-run")
    box(page).fill("")
    box(page).press_sequentially("a cat sits", delay=30)
    page.wait_for_selector(f"#results .suma-tiles:not([data-run='{before}'])")
    page.wait_for_function("!document.querySelector('.suma-busy')", timeout=3000)  # not only after a while
    quiet(page)
    after = int(page.locator("#results .suma-tiles").get_attribute("data-run"))
    assert after - int(before) <= 3  # ten letters, but one search (others draw tiles, too)
    page.keyboard.press("ArrowDown")
    names = page.locator("#results .suma-tile").evaluate_all("all => all.map(t => t.dataset.video)")
    focused = "document.activeElement.dataset.video"
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == names[2]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    chosen = page.locator("#results .suma-tile").nth(1)
    page.wait_for_selector("#results .suma-tile:nth-child(2)[aria-pressed=true]")
    wait_until_at(page, "#player", float(chosen.get_attribute("data-moment")), within=2.5)
    page.locator("#why svg").focus()
    times = page.evaluate("JSON.parse(document.querySelector('#why svg').dataset.times)")
    page.evaluate("document.querySelector('#player video').pause()")
    now = int(page.locator("#why svg").get_attribute("data-now") or 0)
    page.keyboard.press("ArrowRight")
    wait_until_at(page, "#player", times[min(now + 1, len(times) - 1)])


def test_steering_ranks_anew_and_lives_in_the_address(page: Any, made: tuple[str, Path, VideoIndex], browser: Any):
    _, _, index = made
    search(page, "a dog runs")
    quiet(page)
    knob = page.locator("#steer .suma-knob").first
    word = knob.locator("input").get_attribute("data-word")
    knob.get_by_text("Ban").click()
    page.wait_for_selector("#steer .suma-banned")
    assert box(page).input_value() == f"a dog runs [{word} -1]"
    expected = [
        Path(m.path).name for m in index.search(Query("a dog runs", weights=((word, -1.0),)).texts(index.model), 4)
    ]
    best_is(page, expected[0])
    page.get_by_label("add a concept by a word").fill("snow")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#steer .suma-set').length == 1")
    slider = page.locator("#steer .suma-set input")
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_function("document.querySelector('#query textarea, #query input').value.includes('[snow 0.85]')")
    both = Query("a dog runs", weights=((word, -1.0), ("snow", 0.85))).texts(index.model)
    expected = [Path(m.path).name for m in index.search(both, 4)]
    shown = "all => all.map(t => t.dataset.video)"
    now = "JSON.stringify([...document.querySelectorAll('#results .suma-tile')].map(t => t.dataset.video))"
    page.wait_for_function(f"e => {now} == e", arg=json.dumps(expected, separators=(",", ":")))
    page.wait_for_function("new URL(location.href).searchParams.get('q').includes('snow 0.85')")
    other = browser.new_page()
    other.goto(page.url)
    other.wait_for_selector("#steer .suma-banned", timeout=30_000)
    quiet(other)
    assert other.locator("#results .suma-tile").evaluate_all(shown) == expected
    other.close()
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("document.querySelector('#query textarea, #query input').value == 'a dog runs'")
    best_is(page, Path(index.search("a dog runs", 1)[0].path).name)
    page.wait_for_function("new URL(location.href).searchParams.get('q') == 'a dog runs'")


def test_back_and_forward_show_the_results_before_and_after(page: Any):
    """One entry for each search, however many letters it was typed in; Back comes to the search tab."""
    shown = "all => all.map(t => t.dataset.video)"
    seen: list[tuple[str, list[str]]] = []

    def note(query: str) -> None:
        page.wait_for_function("q => document.querySelector('#title .suma-heading')?.dataset.for == q", arg=query)
        page.wait_for_function("q => new URL(location.href).searchParams.get('q') == q", arg=query)
        quiet(page)
        seen.append((query, page.locator("#results .suma-tile").evaluate_all(shown)))

    note(box(page).input_value())
    length = page.evaluate("history.length")
    box(page).fill("")
    for part in ("a woman ", "cooks ", "rice"):
        box(page).press_sequentially(part, delay=20)
        page.wait_for_timeout(600)  # each part is searched
    note("a woman cooks rice")
    search(page, "a dog runs")
    note("a dog runs")
    page.get_by_role("tab", name="From a video").click()
    page.locator("#picker .suma-tile").nth(1).click()
    page.locator("#captions button", has_text="a cat sits").click()
    note("a cat sits")
    assert page.evaluate("history.length") == length + 3
    assert len({str(names) for _, names in seen}) > 1
    page.get_by_role("tab", name="Gallery").click()
    for step, at in (("back", 2), ("back", 1), ("forward", 2), ("back", 1), ("back", 0)):
        page.evaluate(f"history.{step}()")
        query, names = seen[at]
        note(query)
        assert box(page).input_value() == query and seen.pop() == (query, names)
    search(page, "a bird flies")
    assert page.evaluate("history.length") == length + 1  # what lay ahead is gone, as everywhere


def test_steering_by_keyboard_keeps_its_place_and_nothing_below_moves(page: Any):
    search(page, "a dog runs [ball 0.5]")
    quiet(page)
    top = "document.querySelector('#results').getBoundingClientRect().top"
    before = page.evaluate(top)
    page.locator("#steer .suma-knob").last.get_by_text("Ban").focus()
    word = page.evaluate("document.activeElement.dataset.word")
    page.keyboard.press("Enter")
    page.wait_for_selector("#steer .suma-banned")
    page.wait_for_function("w => document.activeElement.dataset.word == w", arg=word)
    page.get_by_label("add a concept by a word").fill("snow")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#steer .suma-set').length == 2")
    page.wait_for_function("document.activeElement.matches('form[data-add] input')")
    search(page, "qwertz")
    page.get_by_text("not a word of the model: qwertz").wait_for()
    search(page, "🎃")  # no concept at all
    quiet(page)
    assert page.evaluate(top) == before


def test_the_query_is_copied_as_text_and_as_a_link(page: Any):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    search(page, "a cat sits [ball 0.5]")
    quiet(page)
    for button, expected in (("Copy as text", "a cat sits [ball 0.5]"), ("Copy link", page.url)):
        page.get_by_role("button", name=button).click()
        page.wait_for_selector("#steer [data-done]")
        assert page.evaluate("navigator.clipboard.readText()") == expected


def test_an_explanation_is_saved_as_png_and_json(page: Any, made: tuple[str, Path, VideoIndex]):
    search(page, "a dog runs")
    quiet(page)
    with page.expect_download() as png:
        page.get_by_role("button", name="Save as PNG").click()
    picture = Path(png.value.path()).read_bytes()
    assert picture.startswith(b"\x89PNG") and png.value.suggested_filename.endswith(".png")
    with page.expect_download() as text:
        page.get_by_role("button", name="Save as JSON").click()
    found = json.loads(Path(text.value.path()).read_text())
    best = made[2].search("a dog runs", 1)[0]
    assert found["path"] == Path(best.path).name and found["score"] == pytest.approx(best.score, abs=1e-3)


def test_the_best_moment_is_saved_as_a_clip(page: Any, tmp_path: Path):
    search(page, "a dog runs")
    quiet(page)
    name = Path(page.locator("#results .suma-tile").first.get_attribute("data-video")).stem
    for _ in range(2):  # a second time, too
        with page.expect_download(timeout=60_000) as clip:
            page.get_by_role("button", name="Save clip").click()
        clip.value.save_as(tmp_path / "clip.mp4")
        assert clip.value.suggested_filename == f"{name} 0-00-00.mp4"
        assert read_frames(tmp_path / "clip.mp4", 3).frames.shape == (3, 64, 96, 3)


def test_own_captions_are_ranked(page: Any):
    page.get_by_role("tab", name="From a video").click()
    page.locator("#picker .suma-tile").first.click()
    page.wait_for_selector("#captions li")
    page.locator("#lines textarea").fill("a bird sings\n<img src=x onerror='window.pwned=3'>\na man drives")
    page.wait_for_function("document.querySelectorAll('#captions li').length == 3")
    assert set(page.locator("#captions li span").all_text_contents()) == {
        "a bird sings",
        "<img src=x onerror='window.pwned=3'>",
        "a man drives",
    }


def test_a_recording_of_the_webcam_is_described(page: Any):
    page.context.grant_permissions(["camera", "microphone"])
    page.get_by_role("tab", name="From a video").click()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#query-video button", has_text="Record").click()
    page.wait_for_timeout(4000)
    page.locator("#query-video button", has_text="Stop").click()
    page.wait_for_selector("#captions li", timeout=60_000)
    assert "Your video" in page.locator("#about").text_content()


def test_the_map_of_concepts_opens_a_concepts_frames(page: Any, made: tuple[str, Path, VideoIndex]):
    page.get_by_role("tab", name="Concepts").click()
    page.wait_for_selector("#concept-map circle")
    space = made[2].model.space
    assert page.locator("#concept-map circle").count() == space.num_concepts
    page.locator("#concept-map circle[data-concept='3']").dispatch_event("click")
    page.wait_for_function("n => document.querySelector('#concept h3')?.textContent == n", arg=space.name(3))
    assert page.locator("#concept-videos .suma-tile").count() >= 4
    page.locator("#concept-query .suma-chip").click()
    page.wait_for_function(
        "w => document.querySelector('#query textarea, #query input').value == w", arg=space.members(3)[0]
    )


def test_videos_are_added_and_removed_in_the_gallery(page: Any, tmp_path: Path, made: tuple[str, Path, VideoIndex]):
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector("#members .suma-tile")
    clip = write_video(tmp_path / "mine.avi", frames=30, size=(96, 64), picture=noise_picture)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add videos").click()
    chooser.value.set_files(str(clip))
    page.get_by_text("1 of 1").wait_for()
    page.wait_for_selector("#members .suma-tile[data-video='mine.avi']")
    page.locator("#add-folder").click()
    page.get_by_text("2 of 2").wait_for()
    page.get_by_text("broken.mp4").first.wait_for()
    page.wait_for_selector("#members .suma-tile[data-video='one.mp4']")
    page.get_by_role("tab", name="Search").click()
    search(page, "a dog")
    assert page.locator("#results .suma-tile").count() == 6
    page.get_by_role("tab", name="Gallery").click()
    for name in ("mine.avi", "one.mp4"):
        page.locator(f"#members .suma-tile[data-video='{name}']").click()
        page.wait_for_function("n => document.querySelector('#member-title')?.textContent.includes(n)", arg=name)
        page.wait_for_function("document.querySelector('#member-player video')?.readyState > 0")
        page.locator("#remove").click()
        page.wait_for_selector(f"#members .suma-tile[data-video='{name}']", state="detached")
    assert len(made[2]) == 4


def test_nothing_jumps_while_the_page_fills(browser: Any, url: str):
    shifts = []
    for _ in range(3):  # the middle one: on a busy machine the stylesheet of a single load may come late
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script("""window.shift = 0;
            new PerformanceObserver(list => {
              for (const e of list.getEntries()) if (!e.hadRecentInput) window.shift += e.value;
            }).observe({type: 'layout-shift', buffered: true})""")
        page.goto(url)
        page.wait_for_selector("#why .suma-cell", timeout=30_000)
        quiet(page)
        shifts.append(page.evaluate("window.shift"))
        page.close()
    print("cumulative layout shift", *(f"{shift:.3f}" for shift in shifts))
    assert sorted(shifts)[1] < 0.1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(browser: Any, url: str, theme: str):
    """axe-core finds nothing serious on any tab. AXE: the path of its axe.min.js (npm pack axe-core)."""
    axe = os.environ.get("AXE", "")
    if not Path(axe).is_file():
        pytest.skip("axe-core is not there: set AXE to its axe.min.js (npm pack axe-core)")
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=theme)
    page.goto(f"{url}?__theme={theme}")
    page.wait_for_selector("#why .suma-cell", timeout=30_000)
    page.add_script_tag(path=axe)
    wrong = []
    for tab in ("Search", "From a video", "Concepts", "Gallery"):
        page.get_by_role("tab", name=tab).click()
        for opened in ("#picker .suma-tile", "#concept-list .suma-concept", "#members .suma-tile"):
            page.wait_for_timeout(700)
            if page.locator(opened).first.is_visible():
                page.locator(opened).first.click()
                break
        page.wait_for_timeout(1000)
        for found in page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)"):
            if found["impact"] in ("serious", "critical"):
                nodes = [node["target"][0] for node in found["nodes"][:3]]
                wrong.append((tab, found["id"], nodes, found["nodes"][0]["failureSummary"][:200]))
    page.close()
    assert wrong == []


def test_an_empty_and_a_very_long_query_leave_the_page_up(page: Any):
    page.locator("#query textarea, #query input").fill("")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results [data-link='']", state="attached")
    assert page.locator("#results .suma-tile").count() == 4
    box(page).fill("a dog " * 1700)
    page.keyboard.press("Enter")
    page.get_by_text("characters of the query are read").wait_for()
    page.wait_for_selector("#results .suma-tile")
    assert page.locator("#results .suma-tile").count() == 4


@pytest.mark.parametrize("page", [(390, 844)], indirect=True)
def test_a_phone_shows_everything_without_scrolling_sideways(page: Any):
    wide = "document.documentElement.scrollWidth"
    best, heat = (page.locator(f"#why {part}").bounding_box() for part in (".suma-area.suma-best", ".suma-heat"))
    assert heat["x"] < best["x"] and best["x"] + best["width"] <= heat["x"] + heat["width"] + 1
    assert page.evaluate(wide) <= 390
    page.get_by_role("tab", name="From a video").click()
    page.locator("#picker .suma-tile").first.click()
    page.wait_for_selector("#seen .suma-cell")
    assert page.evaluate(wide) <= 390
    page.get_by_role("tab", name="Concepts").click()
    page.locator("#concept-list .suma-concept").first.click()
    page.wait_for_function("document.querySelector('#concept h3')?.getBoundingClientRect().bottom < innerHeight")
    page.locator("#concept-videos .suma-tile").first.click()
    page.wait_for_selector("#concept-player video")
    assert page.evaluate(wide) <= 390
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector("#members .suma-tile")
    assert page.evaluate(wide) <= 390


def test_nothing_fits_and_the_nearest_are_faint(page: Any, made: tuple[str, Path, VideoIndex], monkeypatch):
    faint = "getComputedStyle(document.querySelectorAll('#results .suma-tile')[1]).opacity"
    search(page, "a dog")
    assert page.evaluate(faint) == "1" and not page.get_by_text("Nothing in this gallery fits").count()
    index = made[2]
    weights = dict.fromkeys(FEATURES, 0.0) | {"least": 1.0}
    monkeypatch.setattr(index._searcher, "_calibration", Calibration(replace(index.model.config, confidence=weights)))
    search(page, "a cat")
    assert page.get_by_text("Nothing in this gallery fits. The nearest:").is_visible()
    assert page.evaluate(faint) == "0.45"
