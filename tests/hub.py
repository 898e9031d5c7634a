"""A stand-in for the Hub on localhost: model and dataset repositories over real HTTP, with faults on request."""

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKEN = "hf_right"
Files = dict[str, bytes]


@dataclass
class Hub:
    """What the stand-in holds: "models/me/suma" -> commits (the last one is `main`) -> files.

    faults: part of "METHOD /path" -> an HTTP status, "short" (a body without its second half), "flipped" (one wrong
    bit), or "dropped" (once: the connection closes in the middle of the body). calls: every request so far.
    """

    url: str = ""
    repos: dict[str, dict[str, Files]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    faults: dict[str, int | str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def commit(self, repo: str, files: Files) -> str:
        """Make a commit of a repository; its id."""
        commits = self.repos.setdefault(repo, {})
        digest = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[digest] = files
        return digest

    def files(self, repo: str) -> Files:
        """The files of the last commit."""
        return list(self.repos[repo].values())[-1]

    def fault(self, request: Request) -> int | str | None:
        asked = f"{request.method} {request.url.path}"
        return next((fault for part, fault in self.faults.items() if part in asked), None)


def refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


def entry(path: str, content: bytes) -> dict[str, Any]:
    about = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(".zip"):  # a large file: the Hub knows its sha256
        about["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return about


def make_app(hub: Hub) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, following: Any) -> Response:
        path, sent = request.url.path, request.headers.get("authorization")
        hub.calls.append(f"{request.method} {path}")
        fault = hub.fault(request)
        if isinstance(fault, int):
            return refusal(fault, "", f"injected {fault}")
        if sent not in (None, f"Bearer {TOKEN}"):
            return refusal(401, "", "Invalid credentials in Authorization header")
        writes = path == "/api/repos/create" or "/commit/" in path or "/preupload/" in path
        hidden = any(name.removeprefix("models/") in path for name in hub.private)
        if sent is None and (writes or hidden):
            return refusal(401, "RepoNotFound", "Invalid username or password.")
        return await following(request)

    @app.post("/api/validate-yaml")
    def validate() -> dict[str, Any]:
        return {"errors": [], "warnings": []}

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        asked = await request.json()
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        kind = asked.get("type") or "model"
        url = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if f"{kind}s/{name}" in hub.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        hub.commit(f"{kind}s/{name}", {})
        return JSONResponse({"url": url, "name": name, "id": name})

    def find(repo: str, revision: str) -> tuple[str, Files] | Response:
        commits = hub.repos.get(repo)
        if not commits:
            return refusal(404, "RepoNotFound", "Repository not found")
        digest = list(commits)[-1] if revision == "main" else revision
        return (digest, commits[digest]) if digest in commits else refusal(404, "RevisionNotFound", "Invalid rev id")

    @app.get("/api/{kind}/{owner}/{name}")
    @app.get("/api/{kind}/{owner}/{name}/revision/{revision}")
    def info(kind: str, owner: str, name: str, revision: str = "main") -> Any:
        found = find(f"{kind}/{owner}/{name}", revision)
        if isinstance(found, Response):
            return found
        about = {"id": f"{owner}/{name}", "private": False, "tags": [], "downloads": 0, "likes": 0}
        return {**about, "sha": found[0], "siblings": [{"rfilename": path} for path in sorted(found[1])]}

    @app.get("/api/{kind}/{owner}/{name}/tree/{revision}")
    @app.get("/api/{kind}/{owner}/{name}/tree/{revision}/{folder:path}")
    def tree(kind: str, owner: str, name: str, revision: str, folder: str = "") -> Any:
        found = find(f"{kind}/{owner}/{name}", revision)
        if isinstance(found, Response):
            return found
        inside = folder.rstrip("/") + "/" if folder else ""  # no repository of the tests has folders
        listed = [entry(path, content) for path, content in sorted(found[1].items()) if path.startswith(inside)]
        return listed if listed or not folder else refusal(404, "EntryNotFound", f"{folder} does not exist")

    @app.post("/api/{kind}/{owner}/{name}/paths-info/{revision}")
    async def paths_info(kind: str, owner: str, name: str, revision: str, request: Request) -> Any:
        found = find(f"{kind}/{owner}/{name}", revision)
        if isinstance(found, Response):
            return found
        as_form = "form" in request.headers.get("content-type", "")
        asked = (await request.form()).getlist("paths") if as_form else (await request.json())["paths"]
        return [entry(path, found[1][path]) for path in asked if path in found[1]]

    @app.post("/api/{kind}/{owner}/{name}/preupload/{revision}")
    async def preupload(kind: str, owner: str, name: str, revision: str, request: Request) -> Any:
        asked = (await request.json())["files"]
        return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}

    @app.post("/api/{kind}/{owner}/{name}/commit/{revision}")
    async def commit(kind: str, owner: str, name: str, revision: str, request: Request) -> Any:
        repo = f"{kind}/{owner}/{name}"
        found = find(repo, revision)
        if isinstance(found, Response):
            return found
        files = dict(found[1])
        for line in map(json.loads, (await request.body()).splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        digest = hub.commit(repo, files)
        return {"success": True, "commitOid": digest, "commitUrl": f"{hub.url}/{owner}/{name}/commit/{digest}"}

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(request: Request, owner: str, name: str, revision: str, path: str, kind: str = "models") -> Response:
        found = find(f"{kind}/{owner}/{name}", revision)
        if isinstance(found, Response):
            return found
        digest, files = found
        if path not in files:
            missing = refusal(404, "EntryNotFound", "Entry not found")
            missing.headers["X-Repo-Commit"] = digest
            return missing
        body = files[path]
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": digest, "Accept-Ranges": "bytes"}
        status, span = 200, request.headers.get("range")
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            stop = min(int(last) + 1 if last else len(body), len(body))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(body)}"
            status, body = 206, body[int(first) : stop]
        if request.method == "HEAD":
            return Response(None, status, {**headers, "Content-Length": str(len(body))})
        fault = hub.fault(request)
        if fault == "dropped":
            hub.faults.clear()
            return Dropped(body, status, headers)
        if fault == "flipped":
            body = body[:-1] + bytes([body[-1] ^ 1])
        return Response(body[: len(body) // 2] if fault == "short" else body, status, headers)

    return app


class Dropped(Response):
    """A response whose connection closes after half of the announced body."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        raise ConnectionAbortedError("injected: the connection is dropped")


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A stand-in that listens on a free port of 127.0.0.1 until the block is left."""
    hub = Hub()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(make_app(hub), log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the stand-in did not start"
            time.sleep(0.01)
        try:
            yield hub
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the stand-in did not stop"
