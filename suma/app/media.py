"""Videos as the page needs them: names, captions, posters, thumbnails of frames, and how each is played and served."""

import base64
import hashlib
import io
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import Request
from fastapi.responses import FileResponse, Response
from gradio.utils import get_upload_folder
from PIL import Image, ImageOps
from starlette.routing import Route

from suma.app.browser_formats import plan_for
from suma.app.copies import Copies
from suma.app.uploads import played_copy, upload_plays
from suma.index.captions import read_captions, read_text
from suma.index.files import readable
from suma.index.storage import Row
from suma.model.vocabulary import nfc
from suma.video.frames import read_frames

CACHE = Path(os.environ.get("SUMA_CACHE", Path.home() / ".cache" / "suma")) / "app"
POSTER, THUMB = 240, 96  # pixels, the longer side
FLAT = 8.0  # standard deviation of the pixels of a frame that shows next to nothing
MISSING = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 10"><rect width="16" height="10" fill="#8886"/>'
    '<path d="M6.8 3.4v3.2L9.6 5z" fill="#fff9"/></svg>'
)


COPIES = Copies()
SERVED_FROM = "suma-gallery"  # a folder that does not exist: `serve` answers for the files in it
SPRITE, MAX_SPRITE = 12, 40_000  # frames and bytes of what a tile is scrubbed through
KEPT = {"Cache-Control": "private, max-age=86400"}
_sprites: dict[str, Row] = {}  # key -> the video; only what was shown of the gallery is here
_served: dict[str, str] = {}  # key -> the file that is sent; only what was shown of the gallery is here


def by_name(failed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return failures (path, reason) as file name -> reason, without the folder."""
    return {readable(Path(path).name): reason.replace(path, Path(path).name) for path, reason in failed}


def name_for(path: str, taken: Container[str]) -> str:
    """Return a video's name on the page: the shortest end of its path that is not taken, to tell little of the path."""
    parts = [readable(part) for part in Path(path).parts]
    for n in range(1, len(parts)):
        name = nfc("/".join(parts[-n:]))
        if name not in taken:
            return name
    others = (f"{parts[-1]} ({n})" for n in count(2))
    return next(name for name in chain([readable(path)], others) if name not in taken)


def captions_beside(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return path -> captions, from a `captions.json` {file name: caption or captions} next to a folder of videos."""
    found: dict[str, list[str]] = {}
    for path in paths:
        listed = _captions_of(Path(path).parent.parent / "captions.json")
        if captions := listed.get(nfc(Path(path).name)):
            found[path] = captions
    return found


def examples_beside(path: str) -> list[str]:
    """Return the queries in an `examples.json` (a list of texts) next to a folder of videos."""
    try:
        listed = json.loads(read_text(Path(path).parent.parent / "examples.json"))
    except (OSError, ValueError):
        return []
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


@lru_cache(maxsize=64)
def _captions_of(file: Path) -> dict[str, list[str]]:
    """Return a file's captions by the name of the video; warn and return none where it cannot be read."""
    try:
        return {nfc(name): captions for name, captions in read_captions(file).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"no captions are shown: {error}", stacklevel=2)
        return {}


@lru_cache(maxsize=4096)
def _poster(path: str, digest: str) -> tuple[str, float]:
    ready = Path(path).parent.parent / "posters" / f"{Path(path).stem}.jpg"
    cached = CACHE / "posters" / f"{digest}.3.jpg"  # 3: as players show it, and never blank
    for file in (ready, cached):
        try:
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                return _uri(data), image.width / image.height
        except OSError:
            continue
    try:
        picture = Image.fromarray(_telling_frame(path))
    except (ValueError, OSError):
        return MISSING, 1.6
    data = _jpeg(picture, POSTER)
    _keep(cached, data)
    return _uri(data), picture.width / picture.height


def _keep(cached: Path, data: bytes) -> None:
    with suppress(OSError):  # a read-only home: it is made again next time
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
        partial.write_bytes(data)
        partial.replace(cached)


def _telling_frame(path: str) -> np.ndarray:
    """Return the middle key frame (h, w, 3); where that is all of one shade (a fade, a title card), the frame of most
    contrast among nine."""
    frame = read_frames(path, 1, keyframes=1).frames[0]
    return frame if frame.std() > FLAT else max(read_frames(path, 9).frames, key=np.std)


def poster(row: Row) -> tuple[str, float]:
    """Return a video's picture (the poster beside it, or its middle frame) as a data URI, and its width / height."""
    return _poster(row.path, row.digest or hashlib.sha256(os.fsencode(row.path)).hexdigest())


@lru_cache(maxsize=256)
def _thumbnails(path: str, stamp: int, num_frames: int, start: float, end: float | None) -> tuple[list[str], float]:
    try:
        frames = read_frames(path, num_frames, start, end).frames
    except (ValueError, OSError):
        return [], 1.6
    return [_uri(_jpeg(Image.fromarray(f), THUMB)) for f in frames], frames.shape[2] / frames.shape[1]


def pictures(part: Any, num_frames: int) -> list[np.ndarray]:
    """Return the frames that the model saw of a Row or an Explanation, small: uint8 (h, w, 3)."""
    uris = thumbnails(part, num_frames)[0]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))) for uri in uris]


def thumbnails(part: Any, num_frames: int) -> tuple[list[str], float]:
    """Return the frames that the model saw of a Row or an Explanation as data URIs, and their width / height.

    There are none where the file is gone.
    """
    try:
        stamp = os.stat(part.path).st_mtime_ns
    except OSError:
        return [], 1.6
    whole = part.start == 0 and part.duration - part.end < 0.01  # seconds; an end is kept in milliseconds
    return _thumbnails(part.path, stamp, num_frames, part.start, None if whole else part.end)


def playable(row: Row) -> str:
    """Return a path for gr.Video under which `serve` sends the video or its copy; "" until the copy is made.

    Raises FileNotFoundError where the video is gone, OSError where it may not be read.
    """
    if not os.path.isfile(row.path):
        raise FileNotFoundError(f"{readable(Path(row.path).name)} is no longer where it was indexed")
    plan = plan_for(row.path)
    source = row.path if plan.as_it_is else str(copy_of(row))
    if not os.path.isfile(source):
        return ""
    if not os.access(source, os.R_OK):
        raise PermissionError("its file cannot be read by the server")
    key = _key(row) + plan.suffix
    _served[key] = source
    return str(Path(get_upload_folder(), SERVED_FROM, key))


def copy_of(row: Row) -> Path:
    """Return where the copy of a video for browsers is kept."""
    return CACHE / "playable" / (_key(row) + plan_for(row.path).suffix)


def _key(row: Row) -> str:
    return row.digest[:32] or hashlib.sha256(os.fsencode(row.path)).hexdigest()[:32]


def plays(file: Row | str) -> bool:
    """Return whether browsers play a video of the gallery, or an upload, without a copy."""
    return upload_plays(file) if isinstance(file, str) else plan_for(file.path).as_it_is


def ask(file: Row | str) -> float:
    """Return how much of the copy of a video of the gallery, or of an upload, is made: 1 where it can be played.

    Each call tells that somebody waits. Raises OSError or ValueError where no copy can be made.
    """
    if plays(file):
        return 1.0
    return COPIES.ask(file, played_copy(file)) if isinstance(file, str) else COPIES.ask(file.path, copy_of(file))


def prepare(rows: Iterable[Row]) -> None:
    """Make the copies of these videos in the background, one after the other."""

    def work() -> None:
        for row in rows:
            try:
                while ask(row) < 1:
                    time.sleep(1)
            except (OSError, ValueError) as error:
                print(f"no copy of {readable(row.path)} for the browser: {error}", file=sys.stderr)

    threading.Thread(target=work, name="copies", daemon=True).start()


def sprite_key(row: Row) -> str:
    """Return the key under which `send_sprite` sends a video's frames; "" for a photograph."""
    _sprites[_key(row)] = row
    return _key(row) if row.duration else ""


def _sprite(row: Row) -> bytes:
    """Return SPRITE frames of a video side by side as one JPEG, smaller than MAX_SPRITE. Raises as `read_frames`."""
    cached = CACHE / "sprites" / f"{_key(row)}.jpg"
    with suppress(OSError):
        return cached.read_bytes()
    frames = read_frames(row.path, SPRITE, keyframes=True).frames
    for side, quality in ((160, 70), (160, 45), (120, 40), (80, 30), (40, 20)):
        small = [ImageOps.contain(Image.fromarray(frame), (side, side)) for frame in frames]
        strip = Image.new("RGB", (SPRITE * small[0].width, small[0].height))
        for n in range(SPRITE):
            strip.paste(small[n * len(small) // SPRITE], (n * small[0].width, 0))
        data = _jpeg(strip, strip.width, quality)
        if len(data) < MAX_SPRITE:
            break
    _keep(cached, data)
    return data


def forget(row: Row) -> None:
    """Stop serving this video."""
    _sprites.pop(_key(row), None)
    for suffix in (".mp4", ".webm"):
        _served.pop(_key(row) + suffix, None)


def serve(request: Request) -> Response:
    """Send a shown video of the gallery from its place (Gradio would copy it first), to visitors who are logged in
    where the app asks for that."""
    if not _is_logged_in(request):
        return Response("Not authenticated", 401)
    key = request.path_params["key"]
    if request.path_params["folder"] != get_upload_folder() or not os.path.isfile(_served.get(key, "")):
        return Response("File not found", 404)
    return FileResponse(_served[key], media_type=f"video/{key.rsplit('.', 1)[1]}")


def send_sprite(request: Request) -> Response:
    """Send the frames of a video that was shown, to the same visitors."""
    row = _sprites.get(request.path_params["key"])
    if not _is_logged_in(request):
        return Response("Not authenticated", 401)
    try:
        return Response(_sprite(row), media_type="image/jpeg", headers=KEPT) if row else Response("File not found", 404)
    except (OSError, ValueError):
        return Response("File not found", 404)


def _is_logged_in(request: Request) -> bool:
    app: Any = request.app
    tokens = [request.cookies.get(f"access-token{kind}-{app.cookie_id}") for kind in ("", "-unsecure")]
    return app.auth is None or any(token in app.tokens for token in tokens if token)


ROUTES = [  # before gradio's own
    Route("/gradio_api/file={folder:path}/" + SERVED_FROM + "/{key}", serve),
    Route("/gradio_api/suma-sprites/{key}", send_sprite),
]


def _jpeg(picture: Image.Image, side: int, quality: int = 80) -> bytes:
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


@dataclass(frozen=True)
class Tile:
    """One video of a list."""

    name: str  # in the gallery
    title: str
    poster: str  # data URI
    aspect: float  # the poster's width / height
    score: float | None = None
    moment: float | None = None  # seconds
    date: str = ""  # of the file
    sprite: str = ""  # its key
