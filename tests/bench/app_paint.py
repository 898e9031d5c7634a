"""How long a person waits: from `python app.py` to the first painted page, and from a click to painted results.

    python tests/bench/app_paint.py

Needs playwright and Chromium. "Painted" is the second animation frame after the page shows it. Also prints the
time that the server takes to rank anew when a concept is steered.
"""

import statistics
import time
from pathlib import Path
from typing import Any

from app_load import running_app
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
CLICK = """(query) => new Promise(done => {
  const box = document.querySelector('#query textarea, #query input');
  box.value = query;
  box.dispatchEvent(new Event('input', {bubbles: true}));
  const results = document.querySelector('#results'), before = results.querySelector('.suma-tiles').dataset.run;
  setTimeout(() => {
    const began = performance.now();
    document.querySelector('#search').click();
    const look = () => results.querySelector('.suma-tiles').dataset.run === before ? requestAnimationFrame(look)
      : requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
    look();
  }, 100);  // before the pause after which typing searches by itself
})"""


def steering_milliseconds(rounds: int = 20) -> list[float]:
    """What the handler of the steering bar takes, with another weight each time."""
    import gradio as gr

    from suma import SUMA
    from suma.app import page as app
    from suma.app.startup import ASSETS, open_index

    handlers: Any = app.Handlers(open_index(SUMA.from_pretrained(ASSETS / "model"), "", ""))
    text, times = "an elephant falling in the forest", []
    for n in range(rounds):
        event = gr.EventData(None, {"kind": "weight", "word": "elephant", "value": 1 - 0.09 * n})
        began = time.perf_counter()
        text = handlers.steer(text, event)[0]
        times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measure and print."""
    began = time.perf_counter()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        ready = time.perf_counter() - began
        began = time.perf_counter()
        with running_app() as (url, _):
            listening = time.perf_counter() - began
            page.goto(url)
            page.wait_for_selector("#query")
            page.evaluate(PAINTED)
            first = time.perf_counter() - began
            page.wait_for_selector("#why .suma-cell")
            page.evaluate(PAINTED)
            answer = time.perf_counter() - began
            queries = ["a crab on the beach", "an owl", "a dragon at night", "a clock in a room", "a rooster"]
            clicks = []
            for query in queries:
                clicks.append(page.evaluate(CLICK, query))
                page.wait_for_timeout(1500)
            again = time.perf_counter()
            page.goto(url)
            page.wait_for_selector("#query")
            page.evaluate(PAINTED)
            again = time.perf_counter() - again
        browser.close()
    print(f"browser started in {ready:.1f} s")
    print(f"python app.py -> answers HTTP {listening:.1f} s, page painted {first:.1f} s, with results {answer:.1f} s")
    print(f"page again {again:.2f} s")
    print(f"search click -> results painted: median {statistics.median(clicks):.0f} ms, longest {max(clicks):.0f} ms")
    steered = steering_milliseconds()
    print(f"steering, in the server: median {statistics.median(steered):.0f} ms, first {steered[0]:.0f} ms")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
