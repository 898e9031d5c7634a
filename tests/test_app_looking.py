"""Looking through one's own folder in a real browser: the newest first, more results, filters, moments, and back."""

import os
import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from clips import noise_picture, write_video
from test_app_browser import box, browser, quiet, search, wait_until_at  # noqa: F401

from suma import SUMA, VideoIndex
from suma.app import page as app
from suma.app.tabs import launch_options
from suma.index.watch import watch

pytestmark = pytest.mark.browser
COUNT, TOP = 15, 12  # videos, of which a page shows so many
NAMES = "[...document.querySelectorAll('#results .suma-tile')].map(tile => tile.dataset.video)"


def write_clip(path: Path, n: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, 24, (48, 32), picture=lambda i, w, h: noise_picture(100 * n + i // 4, w, h))
    day = datetime(2023 + n % 2, 1, 1 + n % 28).timestamp()
    os.utime(path, (day, day))
    return path


@pytest.fixture(scope="module")
def made(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, VideoIndex]]:
    """The app that watches a folder with folders in it: its address, that folder, its index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr("suma.index.watch.PAUSE", 0.5)
        patch.setattr("suma.app.media.CACHE", tmp_path_factory.mktemp("cache"))
        folder = tmp_path_factory.mktemp("films")
        for n in range(COUNT):
            write_clip(folder / ("sport" if n % 3 else "holidays") / f"clip {n}.mp4", n)
        index = VideoIndex(tiny_model)
        index.add(folder)
        demo = app.build_demo(index, changes=watch(index, [folder]))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        yield url, folder, index
        demo.close()


@pytest.fixture(params=[(1280, 700)])
def page(browser: Any, made: tuple[str, Path, VideoIndex], request: pytest.FixtureRequest) -> Iterator[Any]:  # noqa: F811
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(made[0])
    page.wait_for_selector("#why .suma-cell")
    quiet(page)
    yield page
    page.close()
    assert wrong == []


def newest_first(index: VideoIndex) -> list[str]:
    return [Path(row.path).name for row in sorted(index.rows, key=lambda row: -row.mtime)]


def wait_for_names(page: Any, names: list[str]) -> None:
    page.wait_for_function(f"names => JSON.stringify({NAMES}) === JSON.stringify(names)", arg=names)


def query_is(page: Any, text: str) -> None:
    page.wait_for_function("q => document.querySelector('#query textarea, #query input').value === q", arg=text)


def more(page: Any) -> None:
    page.locator("#results .suma-more").click()
    page.wait_for_function(f"{NAMES}.length == {COUNT}")


def test_a_folder_opens_on_its_newest_videos_and_suggests_what_they_show(page: Any, made: tuple[str, Path, VideoIndex]):
    names = newest_first(made[2])
    assert page.evaluate(NAMES) == names[:TOP] and box(page).input_value() == ""
    dates = [date.fromtimestamp(row.mtime).isoformat() for row in made[2].rows if Path(row.path).name == names[0]]
    assert page.locator("#results .suma-tile").first.locator(".suma-facts").text_content().strip() == dates[0]
    assert page.locator(".suma-ghost").count() == 0 and not page.locator("#mode").is_visible()
    assert page.locator("#title h3").text_content() == names[0].removesuffix(".mp4")
    words = page.locator("#examples .suma-chip").all_text_contents()
    assert len(set(words)) == 6 and set(words) <= set(made[2].model.space.words)
    page.locator("#examples .suma-chip").nth(2).click()
    page.wait_for_function("q => document.querySelector('#title .suma-heading')?.dataset.for == q", arg=words[2])
    assert page.locator("#mode").is_visible()
    box(page).fill("")
    page.keyboard.press("Enter")
    wait_for_names(page, names[:TOP])


def test_more_results_follow_and_the_chosen_one_stays_marked(page: Any, made: tuple[str, Path, VideoIndex]):
    search(page, "a dog runs")
    expected = [Path(match.path).name for match in made[2].search("a dog runs", COUNT)]
    wait_for_names(page, expected[:TOP])
    page.locator("#results .suma-tile").nth(3).click()
    page.wait_for_selector("#results .suma-tile:nth-child(4)[aria-pressed=true]")
    more(page)
    assert page.evaluate(NAMES) == expected and page.locator("#results .suma-more").count() == 0
    pressed = page.locator("#results .suma-tile[aria-pressed=true]")
    assert [tile.get_attribute("data-video") for tile in pressed.all()] == [expected[3]]


def test_newest_first_sorts_the_results_by_date(page: Any, made: tuple[str, Path, VideoIndex]):
    search(page, "a dog runs")
    page.get_by_label("newest first").check()
    wait_for_names(page, newest_first(made[2])[:TOP])
    page.get_by_label("newest first").uncheck()
    wait_for_names(page, [Path(match.path).name for match in made[2].search("a dog runs", TOP)])


def test_menus_choose_by_folder_date_and_length(page: Any, made: tuple[str, Path, VideoIndex]):
    names = newest_first(made[2])
    folder, when, how_long = (
        page.locator(f"#steer select[data-filter={name}]") for name in ("folder", "date", "length")
    )
    assert folder.locator("option").all_text_contents() == ["any folder", "holidays", "sport"]
    folder.select_option("holidays")
    query_is(page, 'in:"holidays"')
    wait_for_names(page, [name for name in names if int(name[5:-4]) % 3 == 0])
    when.select_option("2024")
    query_is(page, 'in:"holidays" after:2024-01-01 before:2025-01-01')
    wait_for_names(page, [name for name in names if int(name[5:-4]) % 6 == 3])
    search(page, "a dog " + box(page).input_value())
    assert sorted(page.evaluate(NAMES)) == sorted(name for name in names if int(name[5:-4]) % 6 == 3)
    how_long.select_option("over 1 min")
    page.get_by_text("No video of the gallery is meant by this.").wait_for()
    for menu in (folder, when, how_long):
        menu.select_option(index=0)
        quiet(page)
    query_is(page, "a dog")
    page.wait_for_function(f"{NAMES}.length == {TOP}")


def test_the_moments_of_one_video_are_searched(page: Any, made: tuple[str, Path, VideoIndex]):
    search(page, "a cat sits")
    name = page.locator("#results .suma-tile").first.get_attribute("data-video")
    page.get_by_role("button", name="Search within this video").click()
    query_is(page, f'a cat sits in:"{name}"')
    page.wait_for_function(f"n => {NAMES}.length > 1 && {NAMES}.every(name => name == n)", arg=name)
    path = next(row.path for row in made[2].rows if Path(row.path).name == name)
    all_moments = {match.moment: match for match in made[2].search("a cat sits", 99, within=path)}
    tiles = page.locator("#results .suma-tile").all()
    moments = [all_moments[float(tile.get_attribute("data-moment"))] for tile in tiles]
    assert [match.score for match in moments] == sorted((match.score for match in moments), reverse=True)
    for n, match in enumerate(moments):  # each is a place of its own
        assert not any(other.start <= match.moment <= other.end for other in moments[:n])
    tiles[1].click()
    page.wait_for_selector("#results .suma-tile:nth-child(2)[aria-pressed=true]")
    page.wait_for_function("t => Number(document.querySelector('#why svg').dataset.start) == t", arg=moments[1].moment)
    wait_until_at(page, "#player", moments[1].moment, within=2.5)
    save = page.get_by_role("button", name="Save clip")
    assert [float(save.get_attribute(f"data-{end}")) for end in ("from", "to")] == [moments[1].start, moments[1].end]
    page.get_by_role("button", name="Search all videos").click()
    query_is(page, "a cat sits")
    page.wait_for_function(f"{NAMES}.length == {TOP}")


def test_the_span_is_drawn_on_the_timeline(page: Any, made: tuple[str, Path, VideoIndex]):
    search(page, "a dog runs")
    best = made[2].search("a dog runs", 1)[0]
    span = page.locator("#why .suma-span")
    left, width = (float(span.get_attribute(name).rstrip("%")) / 100 for name in ("x", "width"))
    times = page.evaluate("JSON.parse(document.querySelector('#why svg').dataset.times)")
    inside = [n for n, seconds in enumerate(times) if best.start <= seconds < best.end]
    assert left == pytest.approx(inside[0] / len(times), abs=1e-4)
    assert width == pytest.approx(len(inside) / len(times), abs=1e-4)


@pytest.mark.parametrize("page", [(1280, 500), (400, 700)], indirect=True)
def test_back_leads_to_where_one_was_in_the_results(page: Any):
    search(page, "a dog runs")
    more(page)
    tile = page.locator("#results .suma-tile").nth(13)
    tile.scroll_into_view_if_needed()
    place = "[scrollY, document.querySelector('#results .suma-tiles').scrollLeft]"
    before, names = page.evaluate(place), page.evaluate(NAMES)
    assert max(before) > 100
    tile.click()
    title = tile.locator(".suma-title").text_content()
    page.wait_for_function("t => document.querySelector('#title h3').textContent == t", arg=title)
    page.wait_for_timeout(500)
    page.evaluate("window.scrollTo(0, 0)")
    page.go_back()
    page.wait_for_function(f"place => JSON.stringify({place}) === JSON.stringify(place)", arg=before)
    assert page.evaluate("document.querySelector('#player video').paused") and page.evaluate(NAMES) == names
    search(page, "a bird flies")
    quiet(page)
    page.go_back()
    wait_for_names(page, names)
    page.wait_for_function(f"place => JSON.stringify({place}) === JSON.stringify(place)", arg=before)
    assert box(page).input_value() == "a dog runs"


def test_a_tile_is_scrubbed_by_the_pointer_and_by_the_keyboard(page: Any):
    tile = page.locator("#results .suma-tile").nth(1)
    place = tile.locator(".suma-poster").bounding_box()
    for share, frame in ((0.1, "1"), (0.9, "10"), (0.5, "6")):
        page.mouse.move(place["x"] + share * place["width"], place["y"] + place["height"] / 2)
        page.wait_for_selector(f"#results .suma-tile:nth-child(2) .suma-scrub[data-frame='{frame}']")
    picture = tile.locator(".suma-scrub").evaluate("over => getComputedStyle(over).backgroundImage.slice(5, -2)")
    sprite = page.request.get(picture)
    assert sprite.ok and len(sprite.body()) < 40_000
    assert not page.request.get(picture.rsplit("/", 1)[0] + "/" + 32 * "0").ok
    page.mouse.move(5, 5)
    page.wait_for_selector(".suma-scrub", state="detached")
    box(page).focus()
    page.keyboard.press("ArrowDown")
    for frame in ("1", "2"):
        page.wait_for_selector(f"#results .suma-tile:first-child .suma-scrub[data-frame='{frame}']")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".suma-scrub", state="detached")


def test_what_is_copied_into_the_folder_and_deleted_there_is_taken_up(page: Any, made: tuple[str, Path, VideoIndex]):
    names, began = newest_first(made[2]), time.monotonic()
    new = write_clip(made[1] / "sport" / "new.mp4", 40)
    os.utime(new)
    wait_for_names(page, ["new.mp4", *names[: TOP - 1]])
    print(f"a new video is on the page after {time.monotonic() - began:.1f} s")
    new.unlink()
    wait_for_names(page, names[:TOP])
