"""The picture that plays: each frame of these clips tells its number, and the number is read from the page's player."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import gray, noise_picture, write_video
from test_app_browser import browser, quiet, search  # noqa: F401

from suma import SUMA, VideoIndex, read_frames
from suma.app import media
from suma.app import page as app
from suma.app.tabs import launch_options
from suma.explain import explain

pytestmark = pytest.mark.browser
RATES = {"23.mp4": 23, "30.mp4": 30, "60.mp4": 60, "240.mp4": 240, "30.webm": 30}
UNEVEN = [0, 1, 2, 5, 6, 7, 13, 14, 21, 22, 23, 40, 41, 47, 48, 49, 55, 56, 57, 63, 70, 71, 77, 78]  # of 1/60 s
GRAY = """async () => {
    const video = document.querySelector('PLAYER video'), canvas = document.createElement('canvas');
    while (video.seeking || video.readyState < 2) await new Promise((done) => setTimeout(done, 20));
    await new Promise((done) => setTimeout(done, 60));
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const draw = canvas.getContext('2d');
    draw.drawImage(video, 0, 0);
    const pixels = draw.getImageData(4, 4, 24, 24).data;
    return pixels.reduce((sum, value, i) => sum + (i % 4 < 3 ? value : 0), 0) / (24 * 24 * 3);
}"""
STILL = """
    HTMLMediaElement.prototype.play = function () { this.pause(); return Promise.resolve(); };
    document.addEventListener('loadedmetadata', (event) => { event.target.autoplay = false; }, true);
    document.addEventListener('playing', (event) => event.target.pause(), true);
"""


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """Noise of its own for the model, and the frame's number as the gray of a corner."""
    picture = noise_picture(index, width, height)
    picture[:32, :32] = gray(index)
    return picture


def told(level: float) -> int:
    return round((level - 12) / 8)


@pytest.fixture(scope="module")
def clips(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, VideoIndex]]:
    """The app over clips of common frame rates: its address and its index."""
    folder = tmp_path_factory.mktemp("moments")
    for name, rate in RATES.items():
        write_video(folder / name, frames=24, size=(96, 64), fps=rate, picture=numbered)
    sparse = {"ticks": UNEVEN, "options": {"bf": "0"}}  # with B-frames Chromium itself may land on a later key frame
    write_video(folder / "uneven.mp4", frames=24, size=(96, 64), fps=60, picture=numbered, **sparse)
    index = VideoIndex(tiny_model)
    index.add(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        demo = app.build_demo(index)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        yield url, index
        demo.close()


@pytest.fixture
def page(browser: Any, clips: tuple[str, VideoIndex]) -> Iterator[Any]:  # noqa: F811
    page = browser.new_page(viewport={"width": 1440, "height": 1200})
    page.set_default_timeout(15_000)
    page.add_init_script(STILL)
    page.goto(f"{clips[0]}?q=a+bird")
    page.wait_for_selector("#why .suma-cell", timeout=30_000)
    quiet(page)
    yield page
    page.close()


def number_on(page: Any, player: str) -> int:
    return told(page.evaluate(GRAY.replace("PLAYER", player)))


def choose(page: Any, index: VideoIndex, name: str) -> None:
    sent = Path(media.playable(next(row for row in index.rows if Path(row.path).name == name))).name
    page.locator(f"#results .suma-tile[data-video='{name}']").click()
    page.wait_for_function("n => document.querySelector('#title h3').textContent == n", arg=name.rsplit(".", 1)[0])
    page.wait_for_function("n => document.querySelector('#player video')?.currentSrc.endsWith(n)", arg=sent)


def click_column(page: Any, column: int, count: int, y: float) -> str:
    """Click the heat map where column `column` of `count` is seen, and return the hover text of what lies there."""
    box = page.locator("#why svg").bounding_box()
    x = box["x"] + (column + 0.5) * box["width"] / count
    page.mouse.click(x, box["y"] + y)
    return page.evaluate("([x, y]) => document.elementFromPoint(x, y).textContent", [x, box["y"] + y])


@pytest.mark.parametrize("name", [*RATES, "uneven.mp4"])
def test_every_column_of_the_heat_map_plays_its_own_picture(page: Any, clips: tuple[str, VideoIndex], name: str):
    """By the pixels: the thumbnail, the cell's number and the player's picture of a column are of the same frame."""
    search(page, "a dog runs")
    choose(page, clips[1], name)
    path = next(row.path for row in clips[1].rows if row.path.endswith(name))
    frames, found = read_frames(path, 12), explain(clips[1], path, "a dog runs")
    expected = [told(float(frame[4:28, 4:28].mean())) for frame in frames.frames]
    count = len(expected)
    assert len(set(expected)) == count >= 10
    top = page.locator("#why rect.suma-hit").first.evaluate("r => Number(r.getAttribute('height'))")
    heat = [f"{value:.3f}" for value in found.concepts[0].heat]
    assert len(set(heat)) > 6
    played, cells, above = [], [], []
    for column in range(count):
        cells.append(click_column(page, column, count, top + 16).rsplit(": ", 1)[-1])
        played.append(number_on(page, "#player"))
    for column in (7, 0, 6):
        click_column(page, column, count, 20)
        above.append(number_on(page, "#player"))
    assert played == expected and cells == heat and above == [expected[column] for column in (7, 0, 6)]


def test_a_result_opens_on_the_picture_of_its_best_moment(page: Any, clips: tuple[str, VideoIndex]):
    wrong = []
    for query in ("a dog runs", "a cat sits on the mat", "a man drives a red car"):
        search(page, query)
        quiet(page)
        for match in clips[1].search(query, 12):
            name = Path(match.path).name
            choose(page, clips[1], name)
            scores = np.array(explain(clips[1], match.path, query).frame_scores)
            frames = read_frames(match.path, 12).frames[scores > scores.max() - 1e-3]  # which is best may be a near tie
            page.wait_for_function("document.querySelector('#player video').readyState > 1")
            seen, right = number_on(page, "#player"), [told(float(frame[4:28, 4:28].mean())) for frame in frames]
            refresh = RATES.get(name, 0) // 60  # frames that pass where it played until the next picture of the screen
            if not any(0 <= seen - number <= refresh for number in right):
                wrong.append((query, name, match.moment, seen, right))
    assert wrong == []
