"""`python app.py --mcp` with a real MCP client: the tools say what they do, and answer what the index answers."""

import ast
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from suma import SUMA, VideoIndex

pytest.importorskip("mcp", reason="mcp is not installed: pip install 'gradio[mcp]' (it pins an older pydantic)")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
QUERY = "an elephant falling in the forest"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("mcp") / "log"
    with log.open("w") as out:
        command = [sys.executable, "app.py", "--mcp", "--read-only", "--port", str(port)]
        app = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert app.poll() is None, log.read_text()
            try:
                if httpx.get(url).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.3)
        yield url
    finally:
        app.terminate()
        app.wait(20)


def ask(url: str, *calls: tuple[str, dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The server's tools by name, and the answers to these calls."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def session() -> tuple[dict[str, Any], list[Any]]:
        async with streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as s:
            await s.initialize()
            tools = {tool.name: tool for tool in (await s.list_tools()).tools}
            return tools, [await s.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(session())


def answer(result: Any) -> Any:
    assert not result.isError, result.content
    return ast.literal_eval(result.content[0].text)  # gradio writes Python, not JSON, into an MCP answer


def test_the_tools_say_what_they_do_and_take(server: str):
    tools, _ = ask(server)
    assert set(tools) == {"search", "captions", "similar", "explain", "concepts", "clip", "add"}
    for tool in tools.values():
        assert len(tool.description) > 40
        for name, argument in tool.inputSchema["properties"].items():
            assert argument.get("description"), (tool.name, name)
    weights = tools["search"].inputSchema["properties"]["weights"]
    assert "ban" in weights["description"]
    assert tools["search"].inputSchema.get("required") in (None, [], ["query"])


def test_the_tools_answer_what_the_index_answers(server: str):
    model = SUMA.from_pretrained(ROOT / "assets" / "model")
    index = VideoIndex.load(ROOT / "assets" / "gallery" / "index", model)
    best = index.search(QUERY, 3)
    name = Path(best[0].path).name
    _, results = ask(
        server,
        ("search", {"query": QUERY, "top_k": 3}),
        ("search", {"query": QUERY, "top_k": 3, "weights": {"elephant": -1}}),
        ("explain", {"video": name, "query": QUERY}),
        ("concepts", {"words": "elephant", "top_k": 1}),
        ("captions", {"video": name, "top_k": 2, "lines": "an elephant\na boat"}),
        ("similar", {"video": name, "top_k": 2}),
        ("add", {}),
        ("search", {"query": ""}),
    )
    found, banned, why, concepts, captions, similar = map(answer, results[:6])
    assert [(f["video"], f["score"]) for f in found] == [
        (Path(m.path).name, pytest.approx(m.score, abs=2e-4)) for m in best
    ]
    assert banned[0]["score"] < found[0]["score"]
    assert sum(why["shares"].values()) == pytest.approx(best[0].score, abs=1e-3)
    assert "elephant" in concepts[0]["words"] and captions[0]["caption"] == "an elephant"
    assert [s["video"] for s in similar] == [Path(m.path).name for m in index.similar(best[0].path, 2)]
    assert all(r.isError for r in results[6:]) and "empty" in results[7].content[0].text
