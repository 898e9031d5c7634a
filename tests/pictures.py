"""Make the pictures of README and docs: `python tests/pictures.py` starts the app (needs playwright and Chromium).

Two screenshots, assets/app.png and assets/concepts.png, and a short film of a search, assets/app.gif.
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "bench"))
from app_load import running_app  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--autoplay-policy=no-user-gesture-required"]
QUERY = "a dragon in the night sky"
FILM_WIDTH, COLOURS = 800, 128


def settle(page: Any, milliseconds: int = 900) -> None:
    page.wait_for_function("!document.querySelector('.suma-busy') && !document.querySelector('.suma-ghost')")
    page.wait_for_timeout(milliseconds)


def still(page: Any, name: str) -> None:
    """A screenshot in a palette, which is a third of the size and looks the same."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(ROOT / "assets" / name, optimize=True)


def film(page: Any) -> None:
    """Type, look at why, ban a concept, jump to a moment."""
    frames: list[Image.Image] = []
    lasts: list[int] = []

    def take(milliseconds: int) -> None:
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        height = round(picture.height * FILM_WIDTH / picture.width)
        frames.append(picture.resize((FILM_WIDTH, height), Image.Resampling.LANCZOS))
        lasts.append(milliseconds)

    box = page.locator("#query textarea, #query input")
    box.fill("")
    take(500)
    for part in ("a ghost", " in the", " mountains"):
        box.press_sequentially(part, delay=5)
        take(250)
    answered = "q => document.querySelector('#title .suma-heading')?.dataset.for == q"
    page.wait_for_function(answered, arg="a ghost in the mountains")
    settle(page, 1200)
    take(2000)
    page.locator("#results .suma-tile").nth(1).click()
    settle(page)
    take(1500)
    page.locator("#steer .suma-knob", has_text="ghost").get_by_text("Ban").click()
    settle(page, 1200)
    take(2500)
    page.get_by_role("button", name="Reset").click()
    settle(page, 1200)
    page.mouse.wheel(0, 330)
    page.wait_for_timeout(600)
    take(1500)
    for column in (1, 4, 6):
        page.locator(f"#why rect.suma-cell[data-frame='{column}']").first.click()
        page.wait_for_timeout(250)
        take(900)
    page.mouse.wheel(0, -330)
    palette = [frame.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE) for frame in frames]
    palette[0].save(
        ROOT / "assets" / "app.gif", save_all=True, append_images=palette[1:], duration=lasts, loop=0, optimize=True
    )


def main() -> None:
    """Make all three and print their sizes."""
    with running_app() as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for theme, name in (("light", "app.png"), ("dark", "concepts.png")):
            page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=theme)
            page.goto(f"{url}?__theme={theme}&q={QUERY}")
            page.wait_for_selector("#why .suma-cell")
            settle(page)
            if theme == "dark":
                page.get_by_role("tab", name="Concepts").click()
                page.wait_for_selector("#concept-map circle")
                page.locator("#concept-list .suma-concept").nth(1).click()
                page.wait_for_selector("#concept-videos .suma-tile")
                settle(page)
            page.mouse.move(5, 5)
            still(page, name)
            page.close()
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.goto(f"{url}?__theme=light")
        page.wait_for_selector("#why .suma-cell")
        settle(page)
        film(page)
        browser.close()
    sizes = {name: (ROOT / "assets" / name).stat().st_size for name in ("app.png", "concepts.png", "app.gif")}
    for name, size in sizes.items():
        print(f"assets/{name} {size / 1e3:.0f} kB")
    print(f"together {sum(sizes.values()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
