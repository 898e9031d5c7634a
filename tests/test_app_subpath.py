"""The app behind a proxy that serves it under a path of its site: GRADIO_ROOT_PATH says which."""

import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from gradio_client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from test_app import make_gallery

from suma import SUMA
from suma.app import media
from suma.app import page as app
from suma.app.tabs import launch_options

PATH = "/films"
MANIFEST = "/manifest.json"  # of installable apps: Gradio links it at the site's root, and needs it for nothing else


def proxy_to(url: str) -> uvicorn.Server:
    """Serve what lies at `url` under PATH, and nothing else, as a web server in front of the app would: the Host header
    is passed on, since Gradio makes the addresses of files from it."""
    http = httpx.AsyncClient(base_url=url, timeout=60)

    async def forward(request: Request) -> Response:
        asked = http.build_request(
            request.method,
            request.url.path.removeprefix(PATH),
            params=request.query_params,
            headers=dict(request.headers),
            content=await request.body(),
        )
        answer = await http.send(asked, stream=True)

        async def content() -> AsyncIterator[bytes]:
            async for part in answer.aiter_raw():
                yield part
            await answer.aclose()

        return StreamingResponse(content(), answer.status_code, dict(answer.headers))

    routes = [Route(PATH + "/{rest:path}", forward, methods=["GET", "POST", "HEAD"])]
    return uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error"))


@pytest.fixture(scope="module")
def site(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """The address of the app under the proxy, what its player was given, and the video that this is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("GRADIO_ROOT_PATH", PATH)
        index = make_gallery(tmp_path_factory.mktemp("subpath"), tiny_model)
        demo = app.build_demo(index)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        port = re.search(r":(\d+)", url).group(1)
        server = proxy_to(f"http://127.0.0.1:{port}")
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield address, media.playable(index.rows[0]), Path(index.rows[0].path)
        server.should_exit = server.force_exit = True  # the client's heartbeat is an answer that never ends
        thread.join(10)
        demo.close()


def test_page_searches_and_videos_work_under_the_path(site: tuple[str, str, Path]):
    address, played, video_file = site
    page = httpx.get(f"{address}{PATH}/").text
    links = [link for link in re.findall(r'(?:src|href)="(\.?/[^"]+)"', page) if link != MANIFEST]
    assert links
    for link in links:
        assert httpx.get(httpx.URL(f"{address}{PATH}/").join(link)).status_code == 200, link
    config = httpx.get(f"{address}{PATH}/config").json()
    assert config["root"].endswith(PATH)
    video = httpx.get(f"{config['root']}{config['api_prefix']}/file={played}", headers={"Range": "bytes=0-9"})
    assert video.content == video_file.read_bytes()[:10]
    client = Client(f"{address}{PATH}/", verbose=False)
    assert len(client.predict("a dog", api_name="/search")) == 4


@pytest.mark.browser
def test_the_browser_asks_for_nothing_outside_the_path(site: tuple[str, str, Path]):
    from test_app_browser import CHROMIUM, FLAGS, quiet, search

    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, asked = browser.new_page(), []
        page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("data:", "blob:")) else None)
        page.goto(f"{site[0]}{PATH}/", timeout=60_000)
        page.wait_for_selector("#why .suma-cell", timeout=60_000)
        quiet(page)
        search(page, "a cat sits")
        page.wait_for_function("document.querySelector('#player video')?.readyState > 1", timeout=60_000)
        browser.close()
    assert (
        asked and [url for url in asked if not url.startswith(f"{site[0]}{PATH}/") and not url.endswith(MANIFEST)] == []
    )
