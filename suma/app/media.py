"""Videos as a page needs them: names, captions, posters, frame thumbnails, and how each is played and served."""

import base64
import hashlib
import io
import json
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Container, Iterable
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import Request
from fastapi.responses import FileResponse, Response
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.routing import Route

from suma import read_frames
from suma.app.copies import Copies, plan_for
from suma.app.uploads import played_copy, upload_plays
from suma.explain import Explanation
from suma.index.caption_files import read_captions, read_text
from suma.index.catalog import Row
from suma.model.vocabulary import nfc

CACHE = Path(os.environ.get("SUMA_CACHE", Path.home() / ".cache" / "suma")) / "app"
POSTER, THUMB = 240, 96  # pixels, the longer side
FLAT = 8.0  # standard deviation of the pixels of a frame that shows next to nothing
MISSING = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 10"><rect width="16" height="10" fill="#8886"/>'
    '<path d="M6.8 3.4v3.2L9.6 5z" fill="#fff9"/></svg>'
)


COPIES = Copies()
SERVED_FROM = "suma-gallery"  # a folder that does not exist: what seems to lie in it is sent by `serve`
_served: dict[str, str] = {}  # key -> the file that is sent: what was shown of the gallery, nothing else


def readable(name: str) -> str:
    """Return a file name as text for people and JSON: control characters, and bytes that are not UTF-8, as \\xNN."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda c: f"\\x{ord(c[0]) & 0xFF:02x}", name)


def name_for(path: str, taken: Container[str]) -> str:
    """What a video is called on the page: the shortest end of its path that is not taken, so it tells no more of the
    path than it must."""
    parts = [readable(part) for part in Path(path).parts]
    for n in range(1, len(parts)):
        name = nfc("/".join(parts[-n:]))
        if name not in taken:
            return name
    others = (f"{parts[-1]} ({n})" for n in count(2))
    return next(name for name in chain([readable(path)], others) if name not in taken)


def captions_beside(paths: Iterable[str]) -> dict[str, list[str]]:
    """path -> captions, out of a `captions.json` {file name: caption or captions} next to a folder of videos."""
    found: dict[str, list[str]] = {}
    for path in paths:
        listed = _captions_of(Path(path).parent.parent / "captions.json")
        if captions := listed.get(nfc(Path(path).name)):
            found[path] = captions
    return found


def examples_beside(path: str) -> list[str]:
    """The queries in an `examples.json` (a list of texts) next to a folder of videos."""
    try:
        listed = json.loads(read_text(Path(path).parent.parent / "examples.json"))
    except (OSError, ValueError):
        return []
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


@lru_cache(maxsize=64)
def _captions_of(file: Path) -> dict[str, list[str]]:
    """Return a file's captions by the name of the video; none, with a warning, where it cannot be read."""
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
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(data)
        partial.replace(cached)
    except OSError:  # a read-only home: posters are made again next time
        pass
    return _uri(data), picture.width / picture.height


def _telling_frame(path: str) -> np.ndarray:
    """Return the middle key frame (h, w, 3), or where that is all of one shade (a fade, a title card), of nine frames
    the one of most contrast."""
    frame = read_frames(path, 1, keyframes=True).frames[0]
    return frame if frame.std() > FLAT else max(read_frames(path, 9).frames, key=np.std)


def poster(row: Row) -> tuple[str, float]:
    """A video's picture as a data URI, and its width / height: the gallery's poster, or its middle frame."""
    return _poster(row.path, row.digest or hashlib.sha256(os.fsencode(row.path)).hexdigest())


@lru_cache(maxsize=256)
def _thumbnails(path: str, stamp: int, num_frames: int, start: float, end: float | None) -> tuple[list[str], float]:
    try:
        frames = read_frames(path, num_frames, start, end).frames
    except (ValueError, OSError):
        return [], 1.6
    return [_uri(_jpeg(Image.fromarray(f), THUMB)) for f in frames], frames.shape[2] / frames.shape[1]


def pictures(part: Row | Explanation, num_frames: int) -> list[np.ndarray]:
    """The frames the model saw of a video or a part, small: uint8 (h, w, 3)."""
    uris = thumbnails(part, num_frames)[0]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))) for uri in uris]


def thumbnails(part: Row | Explanation, num_frames: int) -> tuple[list[str], float]:
    """The frames the model saw of a video or a part, as data URIs, and their width / height; none where the file is
    gone."""
    try:
        stamp = os.stat(part.path).st_mtime_ns
    except OSError:
        return [], 1.6
    whole = part.start == 0 and part.duration - part.end < 0.01  # seconds; an end is kept in milliseconds
    return _thumbnails(part.path, stamp, num_frames, part.start, None if whole else part.end)


def playable(row: Row) -> str:
    """Return a path for gr.Video under which `serve` sends the video or its copy; "" while the copy is to be made.

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
    """Return where the copy of a video for the browser is kept, under a short name."""
    return CACHE / "playable" / (_key(row) + plan_for(row.path).suffix)


def _key(row: Row) -> str:
    return row.digest[:32] or hashlib.sha256(os.fsencode(row.path)).hexdigest()[:32]


def plays(file: Row | str) -> bool:
    """Return whether browsers play a video of the gallery, or an upload, without a copy."""
    return upload_plays(file) if isinstance(file, str) else plan_for(file.path).as_it_is


def ask(file: Row | str) -> float:
    """Return how much of the copy of a video of the gallery, or of an upload, is made: 1 where it can be played.

    Each call says that somebody waits. Raises OSError or ValueError where no copy can be made.
    """
    if plays(file):
        return 1.0
    return COPIES.ask(file, played_copy(file)) if isinstance(file, str) else COPIES.ask(file.path, copy_of(file))


def prepare(rows: Iterable[Row]) -> None:
    """Make the copies of these videos in the background, those of all calls one after the other."""

    def work() -> None:
        for row in rows:
            try:
                while ask(row) < 1:
                    time.sleep(1)
            except (OSError, ValueError) as error:
                print(f"no copy of {readable(row.path)} for the browser: {error}", file=sys.stderr)

    threading.Thread(target=work, name="copies", daemon=True).start()


def forget(row: Row) -> None:
    """Serve this video no more."""
    for suffix in (".mp4", ".webm"):
        _served.pop(_key(row) + suffix, None)


def serve(request: Request) -> Response:
    """Send a video of the gallery that was shown, from where it lies; visitors must have logged in where that is asked.

    Gradio would copy it into its own folder first.
    """
    app: Any = request.app
    tokens = [request.cookies.get(f"access-token{kind}-{app.cookie_id}") for kind in ("", "-unsecure")]
    if app.auth is not None and not any(token in app.tokens for token in tokens if token):
        return Response("Not authenticated", 401)
    key = request.path_params["key"]
    if request.path_params["folder"] != get_upload_folder() or not os.path.isfile(_served.get(key, "")):
        return Response("File not found", 404)
    return FileResponse(_served[key], media_type=f"video/{key.rsplit('.', 1)[1]}")


ROUTES = [Route("/gradio_api/file={folder:path}/" + SERVED_FROM + "/{key}", serve)]  # before gradio's own


def _jpeg(picture: Image.Image, side: int) -> bytes:
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
