"""Videos as a page needs them: names, captions, posters, frame thumbnails, and a copy that may be played."""

import base64
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Container, Iterable
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from suma import read_frames
from suma.caption_files import read_captions, read_text
from suma.explain import Explanation
from suma.rows import Row
from suma.words import nfc
from ui.uploads import browser_plays, to_mp4

CACHE = Path(os.environ.get("SUMA_CACHE", Path.home() / ".cache" / "suma")) / "app"
POSTER, THUMB = 240, 96  # pixels, the longer side
MISSING = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 10"><rect width="16" height="10" fill="#8886"/>'
    '<path d="M6.8 3.4v3.2L9.6 5z" fill="#fff9"/></svg>'
)


def name_for(path: str, taken: Container[str]) -> str:
    """What a video is called on the page: the shortest end of its path that is not taken, so it tells no more of the
    path than it must."""
    parts = Path(path).parts
    for n in range(1, len(parts)):
        name = nfc("/".join(parts[-n:]))
        if name not in taken:
            return name
    return path


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
    cached = CACHE / "posters" / f"{digest}.2.jpg"  # 2: as players show it; older ones may be turned or dull
    for file in (ready, cached):
        try:
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                return _uri(data), image.width / image.height
        except OSError:
            continue
    try:
        picture = Image.fromarray(read_frames(path, 1, keyframes=True).frames[0])
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


def poster(row: Row) -> tuple[str, float]:
    """A video's picture as a data URI, and its width / height: the gallery's poster, or its middle frame."""
    return _poster(row.path, row.digest or hashlib.sha256(row.path.encode()).hexdigest())


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
    """The video's file, or a copy that browsers can play, as a hard link (or copy) in Gradio's cache: so the server
    gives out this file alone.

    Raises FileNotFoundError where the video is gone, ValueError where no copy can be made.
    """
    source = Path(row.path)
    if not source.is_file():
        raise FileNotFoundError(f"{source.name} is no longer where it was indexed")
    digest = row.digest[:32] or hashlib.sha256(row.path.encode()).hexdigest()[:32]
    if not browser_plays(row.path):
        source = CACHE / "playable" / digest / f"{source.stem}.mp4"
        if not source.is_file():
            to_mp4(row.path, source)
    target = Path(get_upload_folder()) / "suma" / digest / source.name
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    return str(target)


def _jpeg(picture: Image.Image, side: int) -> bytes:
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
